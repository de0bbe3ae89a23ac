from functools import partial

import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.grid_position as twins
from accelerated import functional
from accelerated.layers.grid_position import LearnedGridPosition
from reference.errors import InputError
from reference.layers.grid_position import (
    interpolation_matrix,
    learned_grid_position,
    sinusoidal_grid_position,
)
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer

BOTH = ["bilinear", "bicubic"]
each_interpolation = pytest.mark.parametrize("interpolation", BOTH)
seeds = st.integers(0, 2**32)
sides = st.integers(1, 9)
grids = st.tuples(sides, sides)


def problem(rng, grid, to, extra=0, leading=(2,), width=7):
    """A table, an x and a dy."""
    table = rng.standard_normal((extra + grid[0] * grid[1], width))
    x, dy = rng.standard_normal((2, *leading, extra + to[0] * to[1], width))
    return {"embedding": table}, x, dy


def interpolated(table, grid, to, interpolation, extra=0):
    """What is added to an image of another size."""
    x = np.zeros((extra + to[0] * to[1], table.shape[-1]))
    options = {"grid": grid, "to": to, "extra": extra, "interpolation": interpolation}
    return learned_grid_position({"embedding": table}, x, **options)[0]


@pytest.mark.parametrize(
    "to, extra, leading, interpolation",
    [(None, 1, (2,), "bilinear"), ((5, 2), 2, (2, 3), "bilinear"), ((2, 7), 0, (), "bicubic")],
)
def test_learned_grid_position_equals_its_twin(to, extra, leading, interpolation):
    rng = np.random.default_rng(0)
    fixed = {"grid": (3, 5), "extra": extra, "interpolation": interpolation}
    twin, drawn = functional(LearnedGridPosition(7, **fixed, rngs=nnx.Rngs(0)))
    params, x, _ = problem(rng, (3, 5), to or (3, 5), extra, leading)
    assert drawn["embedding"].shape == params["embedding"].shape
    ours = partial(learned_grid_position, **fixed)
    assert_gradient(ours, params, x, to=to, rng=rng)
    assert_mirror(ours, twin, params, x, to=to, rng=rng)


@pytest.mark.parametrize(
    "extra, leading, spacing", [(0, (2, 3), "tensor2tensor"), (1, (), "paper")]
)
def test_sinusoidal_grid_position_equals_its_twin(extra, leading, spacing):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((*leading, extra + 15, 12))
    options = {"grid": (3, 5), "extra": extra, "spacing": spacing}
    assert_gradient(sinusoidal_grid_position, x, **options, rng=rng)
    assert_mirror(sinusoidal_grid_position, twins.sinusoidal_grid_position, x, **options, rng=rng)


@pytest.mark.parametrize("grid, to", [((3, 5), (7, 4)), ((7, 4), (3, 5)), ((4, 4), (1, 9))])
@pytest.mark.parametrize("interpolation, align_corners", [("bilinear", True), ("bicubic", False)])
def test_interpolation_is_pytorch_s(grid, to, interpolation, align_corners):
    """Values and gradients."""
    torch = peer("torch")
    params, x, dy = problem(np.random.default_rng(2), grid, to)
    there = torch.tensor(params["embedding"], requires_grad=True)
    new = torch.nn.functional.interpolate(
        there.reshape(1, *grid, 7).permute(0, 3, 1, 2),
        size=to,
        mode=interpolation,
        align_corners=align_corners,
    )
    expected = torch.tensor(x) + new.permute(0, 2, 3, 1).reshape(1, -1, 7)
    expected.backward(torch.tensor(dy))
    y, backward = learned_grid_position(params, x, grid=grid, to=to, interpolation=interpolation)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-13)
    dparams, dx = backward(dy)
    np.testing.assert_allclose(dparams["embedding"], there.grad.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(dx, dy)


@pytest.mark.parametrize("size", [4, 9])
def test_bicubic_is_hugging_face_s_vit(size):
    """Values and gradients, the class token's included."""
    torch, vit = peer("torch"), peer("transformers.models.vit.modeling_vit")
    config = peer("transformers").ViTConfig(image_size=12, patch_size=2, hidden_size=7)
    embeddings = vit.ViTEmbeddings(config).double()
    params, x, dy = problem(np.random.default_rng(3), (6, 6), (size, 5), extra=1)
    embeddings.position_embeddings.data = torch.tensor(params["embedding"])[None]
    there = torch.tensor(x)
    expected = there + embeddings.interpolate_pos_encoding(there, 2 * size, 2 * 5)
    expected.backward(torch.tensor(dy))
    options = {"grid": (6, 6), "to": (size, 5), "extra": 1, "interpolation": "bicubic"}
    y, backward = learned_grid_position(params, x, **options)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-13)
    theirs = embeddings.position_embeddings.grad[0].numpy()
    np.testing.assert_allclose(backward(dy)[0]["embedding"], theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("to", [(7, 4), (2, 11)])
def test_bilinear_is_scipy_s_zoom_as_in_google_s_vit(to):
    ndimage = peer("scipy.ndimage")
    table = np.random.default_rng(4).standard_normal((15, 7))
    zoom = (to[0] / 3, to[1] / 5, 1)
    theirs = ndimage.zoom(table.reshape(3, 5, 7), zoom, order=1).reshape(-1, 7)
    np.testing.assert_allclose(
        interpolated(table, (3, 5), to, "bilinear"), theirs, rtol=0, atol=1e-13
    )


def test_the_fixed_table_is_vit_mae_s_in_hugging_face():
    """Its module for a square, of which it has a copy in float32, and its function for the rest."""
    torch, mae = peer("torch"), peer("transformers.models.vit_mae.modeling_vit_mae")
    made = mae.build_2d_sinusoidal_position_embedding(
        3, 5, embed_dim=12, cls_token=True, dtype=torch.float64
    ).numpy()
    columns_first = np.concatenate([made[:, 6:], made[:, :6]], axis=-1)
    ours, _ = sinusoidal_grid_position(np.zeros((16, 12)), grid=(3, 5), extra=1)
    np.testing.assert_allclose(ours, columns_first, rtol=0, atol=1e-14)
    config = peer("transformers").ViTMAEConfig(image_size=10, patch_size=2, hidden_size=12)
    embeddings = mae.ViTMAEEmbeddings(config)
    embeddings.initialize_weights()
    ours, _ = sinusoidal_grid_position(np.zeros((26, 12)), grid=(5, 5), extra=1)
    theirs = embeddings.position_embeddings[0].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2**-24)


@pytest.mark.parametrize("spacing, steps", [("paper", 3), ("tensor2tensor", 2)])
def test_the_fixed_table_is_that_of_the_formula(spacing, steps):
    """Turns red if the row comes before the column, or with one spacing for the other."""
    y, _ = sinusoidal_grid_position(np.zeros((15, 12)), grid=(3, 5), spacing=spacing)
    theta = 10000.0 ** (-np.arange(3) / steps)
    for row in range(3):
        for column in range(5):
            waves = [f(at * theta) for at in (column, row) for f in (np.sin, np.cos)]
            np.testing.assert_allclose(y[5 * row + column], np.concatenate(waves), rtol=1e-13)


@each_interpolation
@given(seed=seeds, grid=grids, extra=st.integers(0, 2))
def test_interpolating_to_the_same_grid_is_the_identity(interpolation, seed, grid, extra):
    """Turns red if the bicubic's places are not moved by half a patch."""
    table = np.random.default_rng(seed).standard_normal((extra + grid[0] * grid[1], 3))
    np.testing.assert_array_equal(interpolated(table, grid, grid, interpolation, extra), table)


@each_interpolation
@given(grid=grids, to=grids, value=st.floats(-1e3, 1e3))
def test_a_constant_table_stays_constant(interpolation, grid, to, value):
    """Turns red if what reaches over the edge is left out, or with another a in half of w."""
    table = np.full((grid[0] * grid[1], 3), value)
    new = interpolated(table, grid, to, interpolation)
    np.testing.assert_allclose(new, value, rtol=1e-13, atol=1e-13)


@given(grids, grids, seeds)
def test_a_table_that_is_linear_in_row_and_column_stays_so_under_bilinear(grid, to, seed):
    """Turns red if the corners do not meet: old / new for (old - 1) / (new - 1)."""
    slopes = np.random.default_rng(seed).standard_normal((3, 4))

    def plane(grid):
        row, column = np.meshgrid(*(np.linspace(0, min(n - 1, 1), n) for n in grid), indexing="ij")
        return slopes[0] + row.ravel()[:, None] * slopes[1] + column.ravel()[:, None] * slopes[2]

    if any((a == 1) != (b == 1) for a, b in zip(grid, to, strict=True)):
        return  # one place has no slope
    new = interpolated(plane(grid), grid, to, "bilinear")
    np.testing.assert_allclose(new, plane(to), rtol=0, atol=1e-13)


@each_interpolation
@given(old=sides, new=sides)
def test_each_row_of_a_matrix_sums_to_1_and_both_ends_are_alike(interpolation, old, new):
    """Turns red if what reaches over the last edge is left out."""
    matrix = interpolation_matrix(old, new, interpolation, np.dtype(np.float64))
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-14)
    assert matrix.shape == (new, old)
    if interpolation == "bicubic" or new > 1:  # corner on corner, one place is the first
        np.testing.assert_allclose(matrix[::-1, ::-1], matrix, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1


@each_interpolation
@given(seed=seeds, grid=grids, to=grids)
def test_the_class_token_s_row_is_untouched(interpolation, seed, grid, to):
    """Turns red if the leading rows are the table's last, or their gradient is left out."""
    params, x, dy = problem(np.random.default_rng(seed), grid, to, extra=2)
    options = {"grid": grid, "to": to, "extra": 2, "interpolation": interpolation}
    y, backward = learned_grid_position(params, x, **options)
    np.testing.assert_array_equal(y[:, :2], x[:, :2] + params["embedding"][:2])
    np.testing.assert_array_equal(backward(dy)[0]["embedding"][:2], dy[:, :2].sum(axis=0))
    fixed, _ = sinusoidal_grid_position(np.zeros((2 + to[0] * to[1], 8)), grid=to, extra=2)
    assert not fixed[:2].any()


@each_interpolation
@given(seed=seeds, grid=grids, to=grids)
def test_turning_the_image_on_its_side_turns_the_table(interpolation, seed, grid, to):
    """Turns red if rows and columns change their matrices."""
    table = np.random.default_rng(seed).standard_normal((*grid, 3))
    upright = interpolated(table.reshape(-1, 3), grid, to, interpolation).reshape(*to, 3)
    aside = interpolated(
        table.swapaxes(0, 1).reshape(-1, 3), grid[::-1], to[::-1], interpolation
    ).reshape(*to[::-1], 3)
    np.testing.assert_allclose(aside.swapaxes(0, 1), upright, rtol=0, atol=1e-13)


def reference_learned(table, x, *, grid, to=None, extra=0, interpolation="bilinear"):
    options = {"grid": grid, "to": to, "extra": extra, "interpolation": interpolation}
    return learned_grid_position({"embedding": table}, x, **options)


def twin_learned(table, x, *, to=None, **options):
    module = LearnedGridPosition(table.shape[-1], **options, rngs=nnx.Rngs(0))
    return functional(module)[0]({"embedding": table}, x, to=to)


@pytest.mark.parametrize("engine", [reference_learned, twin_learned])
@pytest.mark.parametrize(
    "tokens, options, message",
    [
        (15, {"extra": 1}, "x has 15 tokens; give 16: 1 leading and a grid of 3 x 5"),
        (16, {"extra": 1, "to": (2, 5)}, "x has 16 tokens; give 11: 1 leading and a grid of 2 x 5"),
        (16, {"extra": 0}, "the table has 16 rows; 0 leading tokens and a grid of 3 x 5 have 15"),
        (
            16,
            {"extra": 1, "interpolation": "nearest", "to": (5, 3)},
            "interpolation is 'nearest'; give 'bilinear' or 'bicubic'",
        ),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(engine, tokens, options, message):
    with pytest.raises(InputError, match=message):
        engine(np.zeros((16, 7)), np.zeros((2, tokens, 7)), grid=(3, 5), **options)


@pytest.mark.parametrize("engine", [sinusoidal_grid_position, twins.sinusoidal_grid_position])
@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((15, 14), {}, "width is 14; .* a multiple of 4, at least 4"),
        ((15, 4), {"spacing": "tensor2tensor"}, "width is 4; .* at least 8"),
        ((15, 8), {"spacing": "even"}, "spacing is 'even'; give 'paper' or 'tensor2tensor'"),
        ((15, 8), {"extra": 1}, "x has 15 tokens; give 16: 1 leading and a grid of 3 x 5"),
    ],
)
def test_an_image_without_a_fixed_table_is_refused(engine, shape, options, message):
    with pytest.raises(InputError, match=message):
        engine(np.zeros(shape), grid=(3, 5), **options)
