import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.position as twins
import reference.layers.position
from accelerated import functional
from accelerated.layers.position import LearnedPosition
from reference.errors import InputError
from reference.layers.position import (
    learned_position,
    sinusoidal_position,
    sinusoidal_position_concatenated,
    waves,
)
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer

TABLE = {"embedding": np.random.default_rng(0).standard_normal((7, 5))}
TWIN, _ = functional(LearnedPosition(7, 5, rngs=nnx.Rngs(0)))
PAPER = partial(sinusoidal_position_concatenated, spacing="paper")


def table(component, length, width, offset=0, dtype=np.float64):
    """What a component adds."""
    return component(np.zeros((length, width), dtype), offset=offset)[0]


@pytest.mark.parametrize("offset, leading", [(0, (2,)), (4, (2, 2)), (3, ())])
def test_learned_position_equals_its_twin(offset, leading):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((*leading, 3, 5))
    assert_gradient(learned_position, TABLE, x, offset=offset, rng=rng)
    assert_mirror(learned_position, TWIN, TABLE, x, offset=offset, rng=rng)


def test_learned_position_of_given_places_equals_its_twin():
    """A place that several tokens share gets the sum of theirs."""
    rng = np.random.default_rng(2)
    places = np.array([[0, 1, 0, 1, 2], [6, 6, 6, 0, 3]])
    x = rng.standard_normal((2, 5, 5))
    assert_gradient(learned_position, TABLE, x, places=places, rng=rng)
    assert_mirror(learned_position, TWIN, TABLE, x, places=places, rng=rng)
    in_order = np.tile(np.arange(5), (2, 1))
    expected = learned_position(TABLE, x)[0]
    np.testing.assert_array_equal(learned_position(TABLE, x, places=in_order)[0], expected)


@pytest.mark.parametrize("engine", [learned_position, TWIN])
@pytest.mark.parametrize(
    "places, message",
    [
        (np.zeros((2, 4), int), r"places has shape \(2, 4\), x \(2, 3, 5\)"),
        (np.full((2, 3), 7), r"places\[0, 0\] is 7, outside"),
        (np.full((2, 3), -1), r"places\[0, 0\] is -1, outside"),
    ],
)
def test_places_that_there_are_not_are_refused(engine, places, message):
    with pytest.raises(InputError, match=message):
        engine(TABLE, np.zeros((2, 3, 5)), places=places)


@pytest.mark.parametrize("engine", [learned_position, TWIN])
@pytest.mark.parametrize("length, offset", [(8, 0), (3, 5)])
def test_a_sequence_past_the_context_is_refused(engine, length, offset):
    with pytest.raises(InputError, match="the sequence has 8 tokens, the model's context only 7"):
        engine(TABLE, np.zeros((2, length, 5)), offset=offset)


@pytest.mark.parametrize("offset, leading", [(0, (2, 3)), (10_000, ())])
def test_sinusoidal_position_equals_its_twin(offset, leading):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((*leading, 5, 14))
    assert_gradient(sinusoidal_position, x, offset=offset, rng=rng)
    assert_mirror(sinusoidal_position, twins.sinusoidal_position, x, offset=offset, rng=rng)


@pytest.mark.parametrize("spacing, offset", [("tensor2tensor", 0), ("paper", 7)])
def test_sinusoidal_position_concatenated_equals_its_twin(spacing, offset):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 5, 14))
    options = {"spacing": spacing, "offset": offset}
    twin = twins.sinusoidal_position_concatenated
    assert_gradient(sinusoidal_position_concatenated, x, **options, rng=rng)
    assert_mirror(sinusoidal_position_concatenated, twin, x, **options, rng=rng)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_an_offset_that_is_not_known_while_it_is_compiled_gives_the_same(dtype, tolerance):
    """Turns red if the twin's own table is in another order or from another position."""
    x = np.random.default_rng(4).standard_normal((2, 5, 14)).astype(dtype)

    @jax.jit
    def compiled(x, offset):
        return (
            twins.sinusoidal_position(x, offset=offset),
            twins.sinusoidal_position_concatenated(x, offset=offset),
            twins.sinusoidal_position_concatenated(x, offset=offset, spacing="paper"),
        )

    actual = compiled(x, jnp.array(11, jnp.int32))
    for theirs, ours in zip(
        actual, (sinusoidal_position, sinusoidal_position_concatenated, PAPER), strict=True
    ):
        assert theirs.dtype == dtype
        np.testing.assert_allclose(theirs, ours(x, offset=11)[0], rtol=0, atol=tolerance)


def test_the_tables_are_those_of_the_formulas():
    """Turns red with D/2 for D/2 - 1, sine for cosine, or another base."""
    length, width = 7, 10
    for p in range(length):
        for i in range(width // 2):
            paper, released = (10000 ** -(i / steps) for steps in (width / 2, width / 2 - 1))
            row = table(sinusoidal_position, length, width)[p]
            np.testing.assert_allclose(row[2 * i], math.sin(p * paper), rtol=1e-13)
            np.testing.assert_allclose(row[2 * i + 1], math.cos(p * paper), rtol=1e-13)
            for component, theta in ((PAPER, paper), (sinusoidal_position_concatenated, released)):
                row = table(component, length, width)[p]
                np.testing.assert_allclose(row[i], math.sin(p * theta), rtol=1e-13)
                np.testing.assert_allclose(row[width // 2 + i], math.cos(p * theta), rtol=1e-13)


def test_the_concatenated_table_in_the_paper_s_spacing_is_marian_s():
    """Theirs is rounded to float32 once, hence the tolerance of half an ulp of 1."""
    torch, marian = peer("torch"), peer("transformers.models.marian.modeling_marian")
    with torch.no_grad():
        theirs = marian.MarianSinusoidalPositionalEmbedding(29, 14).create_weight().numpy()
    np.testing.assert_allclose(table(PAPER, 29, 14), theirs, rtol=0, atol=2**-24)


def test_the_concatenated_table_in_the_paper_s_spacing_is_gpt_j_s():
    torch, gptj = peer("torch"), peer("transformers.models.gptj.modeling_gptj")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theirs = gptj.create_sinusoidal_positions(29, 14).numpy()
    finally:
        torch.set_default_dtype(before)
    np.testing.assert_allclose(table(PAPER, 29, 14), theirs, rtol=0, atol=1e-13)


def test_the_concatenated_table_in_tensor2tensor_s_spacing_is_fsmt_s():
    """Theirs has float32 angles of up to 28 radians, whose rounding is 1e-6."""
    fsmt = peer("transformers.models.fsmt.modeling_fsmt")
    theirs = fsmt.SinusoidalPositionalEmbedding.get_embedding(29, 14, None).numpy()
    ours = table(sinusoidal_position_concatenated, 29, 14)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-6)


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_a_step_is_one_rotation_wherever_it_starts(p, k):
    """Turns red if sine and cosine of a pair have different frequencies."""
    start, end, step = (table(sinusoidal_position, 1, 14, at)[0] for at in (p, p + k, k))
    sin, cos = step[0::2], step[1::2]
    turned = [start[0::2] * cos + start[1::2] * sin, start[1::2] * cos - start[0::2] * sin]
    np.testing.assert_allclose(np.stack(turned, -1).ravel(), end, rtol=0, atol=1e-11)


@given(st.integers(0, 2**32), st.integers(0, 1000))
def test_interleaved_is_a_permutation_of_concatenated_in_the_paper_s_spacing(seed, offset):
    """Turns red with the released spacing, or if the sines stay together in both."""
    x = np.random.default_rng(seed).standard_normal((2, 5, 14))
    order = np.arange(14).reshape(2, 7).T.ravel()
    permuted = np.empty_like(x)
    permuted[..., order] = x
    y, _ = PAPER(permuted, offset=offset)
    np.testing.assert_array_equal(y[..., order], sinusoidal_position(x, offset=offset)[0])


@pytest.mark.parametrize(
    "component", [sinusoidal_position, sinusoidal_position_concatenated, PAPER]
)
@given(offset=st.integers(0, 9))
def test_an_offset_is_a_slice(component, offset):
    """Turns red if the offset is left out, or is where the table ends."""
    x = np.random.default_rng(5).standard_normal((2, 11, 14))
    whole, _ = component(x)
    part, _ = component(x[:, offset:], offset=offset)
    np.testing.assert_array_equal(part, whole[:, offset:])


@pytest.mark.parametrize(
    "engine", [lambda *a, **k: sinusoidal_position(*a, **k)[0], twins.sinusoidal_position]
)
def test_a_late_position_is_exact_in_float32(engine):
    """Turns red with angles in float32, which are off by 0.06 there."""
    exact = table(sinusoidal_position, 5, 14, offset=1_000_000)
    narrow = engine(np.zeros((5, 14), np.float32), offset=1_000_000)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, exact, rtol=0, atol=2**-24)


def test_nobody_can_write_to_the_table_that_all_calls_share():
    """Turns red if the table is handed out writable."""
    shared = waves(0, 5, 14, "paper", True, np.dtype(np.float64))
    assert shared is waves(0, 5, 14, "paper", True, np.dtype(np.float64))
    with pytest.raises(ValueError, match="read-only"):
        shared[0, 0] = 1


@pytest.mark.parametrize("engine", [reference.layers.position, twins])
@pytest.mark.parametrize(
    "name, width, options, message",
    [
        ("sinusoidal_position", 7, {}, "width is 7; .* a multiple of 2, at least 2"),
        ("sinusoidal_position_concatenated", 7, {}, "width is 7; .* a multiple of 2, at least 4"),
        ("sinusoidal_position_concatenated", 2, {}, "width is 2; .* at least 4"),
        (
            "sinusoidal_position_concatenated",
            8,
            {"spacing": "even"},
            "spacing is 'even'; give 'paper' or 'tensor2tensor'",
        ),
    ],
)
def test_a_width_without_pairs_or_another_spacing_is_refused(engine, name, width, options, message):
    with pytest.raises(InputError, match=message):
        getattr(engine, name)(np.zeros((3, width)), **options)


@pytest.mark.parametrize("offset", [-1, np.int64(-5)])
def test_a_position_before_the_first_is_refused(offset):
    """Turns red if it counts from the table's end."""
    params, x = {"embedding": np.ones((6, 5))}, np.ones((2, 1, 5))
    apply, _ = functional(LearnedPosition(6, 5, rngs=nnx.Rngs(0)))
    for engine in (learned_position, apply):
        with pytest.raises(InputError, match=f"offset is {offset}; give the number"):
            engine(params, x, offset=offset)
        with pytest.raises(InputError, match="the sequence has 7 tokens"):
            engine(params, x, offset=np.int64(6))
