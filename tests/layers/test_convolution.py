from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.convolution as twins
from accelerated import functional
from reference.errors import InputError
from reference.layers.convolution import (
    assemble,
    conv2d,
    max_pool,
    nearest_upsample,
    patch_embed,
    patches,
)
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer

seeds = st.integers(0, 2**32)


def params_of(rng, shape=(3, 2, 5, 7), bias=True):
    """Weights of the size that training has: N(0, 1/fan in)."""
    kernel = rng.standard_normal(shape) / np.prod(shape[:3]) ** 0.5
    return {"kernel": kernel} | ({"bias": rng.standard_normal(shape[3])} if bias else {})


def twin_of(cls, *args, **options):
    """A twin without its numbers, as a function, and the shapes of its parameters."""
    made = nnx.eval_shape(lambda: cls(*args, **options, rngs=nnx.Rngs(0)))
    apply, params = functional(made)
    return apply, {name: a.shape for name, a in params.items()}


def twin_conv2d(shape=(3, 2, 5, 7), bias=True, **options):
    window, (inputs, outputs) = shape[:2], shape[2:]
    return twin_of(twins.Conv2d, inputs, outputs, window, use_bias=bias, **options)[0]


# The twins


@pytest.mark.parametrize("leading, factor", [((2,), 2), ((), (3, 2))])
def test_nearest_upsample_equals_its_twin(leading, factor):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*leading, 3, 5, 7))
    assert_gradient(nearest_upsample, x, factor=factor, rng=rng)
    assert_mirror(nearest_upsample, twins.nearest_upsample, x, factor=factor, rng=rng)


@pytest.mark.parametrize("leading", [(), (2,)])
def test_patches_and_assemble_equal_their_twins(leading):
    rng = np.random.default_rng(1)
    x, options = rng.standard_normal((*leading, 6, 15, 7)), {"size": 3, "grid": (2, 5)}
    assert_gradient(patches, x, size=3, rng=rng)
    assert_mirror(patches, twins.patches, x, size=3, rng=rng)
    cut = rng.standard_normal((*leading, 10, 63))
    assert_gradient(assemble, cut, **options, rng=rng)
    assert_mirror(assemble, twins.assemble, cut, **options, rng=rng)


@pytest.mark.parametrize("leading, bias", [((2,), True), ((2, 3), False)])
def test_patch_embed_equals_its_twin(leading, bias):
    rng = np.random.default_rng(2)
    params = params_of(rng, (3, 3, 5, 7), bias)
    apply, shapes = twin_of(twins.PatchEmbed, 5, 7, size=3, use_bias=bias)
    assert shapes == {name: a.shape for name, a in params.items()}
    x = rng.standard_normal((*leading, 6, 15, 5))
    ours = partial(patch_embed, size=3)
    assert_gradient(ours, params, x, rng=rng)
    assert_mirror(ours, apply, params, x, rng=rng)


@pytest.mark.parametrize(
    "leading, bias, options",
    [
        ((2,), True, {}),
        ((2,), True, {"stride": (2, 3), "padding": (1, 2)}),
        ((), False, {"stride": (4, 3), "padding": "SAME"}),
        ((2, 3), True, {"padding": "SAME"}),
    ],
)
def test_conv2d_equals_its_twin(leading, bias, options):
    rng = np.random.default_rng(3)
    params, x = params_of(rng, bias=bias), rng.standard_normal((*leading, 7, 11, 5))
    ours = partial(conv2d, **options)
    assert_gradient(ours, params, x, rng=rng)
    assert_mirror(ours, twin_conv2d(bias=bias, **options), params, x, rng=rng)


@pytest.mark.parametrize(
    "leading, options",
    [
        ((2,), {"window": 2}),
        ((), {"window": (3, 2), "stride": 1, "padding": (2, 1)}),
        ((2, 3), {"window": 3, "stride": (2, 1), "padding": "SAME"}),
    ],
)
def test_max_pool_equals_its_twin(leading, options):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((*leading, 7, 11, 5))
    assert_gradient(max_pool, x, **options, rng=rng)
    assert_mirror(max_pool, twins.max_pool, x, **options, rng=rng)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 2},
        {"window": (3, 2), "stride": 1, "padding": (2, 1)},
        {"window": 3, "stride": (2, 1), "padding": "SAME"},
    ],
)
def test_of_equals_the_first_is_the_largest_in_both_engines(options):
    """Of three values many are equal.  Turns red if the last of equals gets dy, or each a share."""
    rng = np.random.default_rng(5)
    x = rng.integers(-1, 2, (2, 7, 11, 5)).astype(float)
    y, backward = max_pool(x, **options)
    twin_y, vjp = jax.vjp(partial(twins.max_pool, **options), x)
    np.testing.assert_array_equal(twin_y, y)
    dy = rng.integers(1, 100, y.shape).astype(float)  # whole numbers: sums in any order are equal
    np.testing.assert_array_equal(vjp(dy)[0], backward(dy))
    ones, _ = max_pool(np.ones((4, 6, 1)), window=2)
    _, ones_backward = max_pool(np.ones((4, 6, 1)), window=2)
    expected = np.zeros((4, 6, 1))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(ones_backward(ones), expected)


def test_the_twin_of_patch_embed_equals_flax_s_convolution():
    rng = np.random.default_rng(6)
    apply, _ = twin_of(twins.PatchEmbed, 5, 7, size=3)
    params, x = params_of(rng, (3, 3, 5, 7)), rng.standard_normal((2, 6, 15, 5))
    expected = twin_conv2d((3, 3, 5, 7), stride=3)(params, x).reshape(2, 10, 7)
    np.testing.assert_allclose(apply(params, x), expected, rtol=1e-11, atol=1e-12)


# PyTorch and Hugging Face: channels come before the rows, and a kernel is (D, C, kh, kw)


def channels_first(torch, a):
    return torch.tensor(np.moveaxis(a, -1, -3).copy(), requires_grad=True)


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-11, atol=1e-12)


def kernel_there(torch, kernel):
    return torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), requires_grad=True)


@pytest.mark.parametrize(
    "window, stride, padding",
    [
        ((3, 2), 1, 0),
        ((3, 2), 2, 1),
        ((3, 2), (3, 2), (1, 2)),
        ((2, 5), (1, 3), (2, 0)),
        ((1, 1), 1, 0),
        ((3, 5), 1, "SAME"),  # PyTorch warns of even windows; our twin has one
        ((2, 3), 1, "VALID"),
    ],
)
def test_conv2d_equals_pytorch_s(window, stride, padding):
    """Turns red if the kernel is turned around, or rows and columns change places."""
    torch = peer("torch")
    rng = np.random.default_rng(7)
    params, x = params_of(rng, (*window, 5, 7)), rng.standard_normal((2, 7, 11, 5))
    there, kernel = channels_first(torch, x), kernel_there(torch, params["kernel"])
    bias = torch.tensor(params["bias"], requires_grad=True)
    theirs = padding.lower() if isinstance(padding, str) else padding
    expected = torch.nn.functional.conv2d(there, kernel, bias, stride=stride, padding=theirs)
    y, backward = conv2d(params, x, stride=stride, padding=padding)
    assert_same(y, expected.movedim(1, -1))
    dy = rng.standard_normal(y.shape)
    expected.backward(channels_first(torch, dy))
    dparams, dx = backward(dy)
    assert_same(dx, there.grad.movedim(1, -1))
    assert_same(dparams["kernel"], kernel.grad.permute(2, 3, 1, 0))
    assert_same(dparams["bias"], bias.grad)


@pytest.mark.parametrize(
    "window, stride, padding", [(2, None, 0), ((3, 2), (1, 2), (1, 1)), (3, 2, 1), (1, 1, 0)]
)
def test_max_pool_equals_pytorch_s(window, stride, padding):
    torch = peer("torch")
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2, 7, 11, 5)) - 10  # padding of 0 would win
    there = channels_first(torch, x)
    expected = torch.nn.functional.max_pool2d(there, window, stride, padding)
    y, backward = max_pool(x, window=window, stride=stride, padding=padding)
    assert_same(y, expected.movedim(1, -1))
    dy = rng.standard_normal(y.shape)
    expected.backward(channels_first(torch, dy))
    assert_same(backward(dy), there.grad.movedim(1, -1))


@pytest.mark.parametrize("factor", [2, (3, 1)])
def test_nearest_upsample_equals_pytorch_s(factor):
    torch = peer("torch")
    rng = np.random.default_rng(9)
    x = rng.standard_normal((2, 3, 5, 7))
    there = channels_first(torch, x)
    expected = torch.nn.functional.interpolate(there, scale_factor=factor, mode="nearest")
    y, backward = nearest_upsample(x, factor=factor)
    assert_same(y, expected.movedim(1, -1))
    dy = rng.standard_normal(y.shape)
    expected.backward(channels_first(torch, dy))
    assert_same(backward(dy), there.grad.movedim(1, -1))


def test_patch_embed_equals_hugging_face_s():
    """A convolution of PyTorch, in ViT's patch embedding."""
    torch, transformers = peer("torch"), peer("transformers")
    from transformers.models.vit.modeling_vit import ViTPatchEmbeddings

    rng = np.random.default_rng(10)
    sizes = {"image_size": (6, 15), "patch_size": 3, "num_channels": 5, "hidden_size": 7}
    module = ViTPatchEmbeddings(transformers.ViTConfig(**sizes)).double()
    params, x = params_of(rng, (3, 3, 5, 7)), rng.standard_normal((2, 6, 15, 5))
    projection = module.projection
    with torch.no_grad():
        projection.weight.copy_(kernel_there(torch, params["kernel"]))
        projection.bias.copy_(torch.tensor(params["bias"]))
    there = channels_first(torch, x)
    expected = module(there)
    y, backward = patch_embed(params, x, size=3)
    assert_same(y, expected)
    dy = rng.standard_normal(y.shape)
    expected.backward(torch.tensor(dy))
    dparams, dx = backward(dy)
    assert_same(dx, there.grad.movedim(1, -1))
    assert_same(dparams["kernel"], projection.weight.grad.permute(2, 3, 1, 0))
    assert_same(dparams["bias"], projection.bias.grad)


# Properties

strides = st.tuples(st.integers(1, 4), st.integers(1, 4))
paddings = st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.just("SAME"))


@given(seeds, st.integers(1, 4), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_patches_put_together_again_are_the_image(seed, size, grid):
    """Turns red if patches are cut column by column: with the axes of the grid swapped."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, size * grid[0], size * grid[1], 3))
    cut, _ = patches(x, size=size)
    np.testing.assert_array_equal(assemble(cut, size=size, grid=grid)[0], x)
    n = (grid[0] - 1) * grid[1] + grid[1] - 1  # the last: below, on the right
    corner = x[:, -size:, -size:].reshape(2, -1)
    np.testing.assert_array_equal(cut[:, n], corner)
    if grid[1] > 1:  # the second stands beside the first
        second = x[:, :size, size : 2 * size].reshape(2, -1)
        np.testing.assert_array_equal(cut[:, 1], second)


@given(seeds, st.integers(1, 4), st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_patch_embed_is_a_convolution_whose_stride_is_its_size(seed, size, grid):
    """In value and gradient.  Turns red if a patch's numbers come channels first."""
    rng = np.random.default_rng(seed)
    params = params_of(rng, (size, size, 3, 5))
    x = rng.standard_normal((2, size * grid[0], size * grid[1], 3))
    y, backward = patch_embed(params, x, size=size)
    expected, conv2d_backward = conv2d(params, x, stride=size)
    np.testing.assert_allclose(y, expected.reshape(y.shape), rtol=1e-11, atol=1e-12)
    dy = rng.standard_normal(y.shape)
    (dparams, dx), (dkernel, dpixels) = backward(dy), conv2d_backward(dy.reshape(expected.shape))
    np.testing.assert_allclose(dx, dpixels, rtol=1e-11, atol=1e-12)
    for name, gradient in dparams.items():
        np.testing.assert_allclose(gradient, dkernel[name], rtol=1e-11, atol=1e-12)


@given(seeds)
def test_a_convolution_of_one_pixel_is_a_linear_map(seed):
    """Turns red if D comes first where the kernel is laid out as a matrix."""
    rng = np.random.default_rng(seed)
    params, x = params_of(rng, (1, 1, 5, 7)), rng.standard_normal((2, 3, 11, 5))
    expected = np.einsum("bijc,cd->bijd", x, params["kernel"][0, 0]) + params["bias"]
    np.testing.assert_allclose(conv2d(params, x)[0], expected, rtol=1e-12, atol=1e-12)


@given(seeds, st.integers(0, 3), st.integers(0, 5))
def test_the_convolution_of_a_shifted_image_is_shifted(seed, down, across):
    """Away from the border.  Turns red if a weight or the bias depends on the place."""
    rng = np.random.default_rng(seed)
    params, x = params_of(rng), rng.standard_normal((2, 7, 11, 5))
    y, _ = conv2d(params, x)
    shifted, _ = conv2d(params, np.roll(x, (down, across), axis=(1, 2)))
    inside = y[:, : y.shape[1] - down, : y.shape[2] - across]
    np.testing.assert_allclose(shifted[:, down:, across:], inside, rtol=1e-11, atol=1e-12)


@given(seeds, strides, paddings)
def test_the_backward_of_a_convolution_is_its_transpose(seed, stride, padding):
    """⟨conv x, z⟩ = ⟨x, convᵀ z⟩ = ⟨W, dW⟩.  Turns red if overlapping windows overwrite each other,
    or the margins are cut off at the wrong end.
    """
    rng = np.random.default_rng(seed)
    params, x = params_of(rng, bias=False), rng.standard_normal((2, 7, 11, 5))
    y, backward = conv2d(params, x, stride=stride, padding=padding)
    z = rng.standard_normal(y.shape)
    dparams, dx = backward(z)
    np.testing.assert_allclose(np.vdot(x, dx), np.vdot(y, z), rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(
        np.vdot(params["kernel"], dparams["kernel"]), np.vdot(y, z), rtol=1e-10, atol=1e-9
    )


@given(strides, st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_same_padding_leaves_as_many_places_as_strides_fit(stride, window):
    """Turns red if an odd number of missing rows is rounded down."""
    params, x = {"kernel": np.ones((*window, 5, 1))}, np.ones((7, 11, 5))
    y, _ = conv2d(params, x, stride=stride, padding="SAME")
    assert y.shape == (-(-7 // stride[0]), -(-11 // stride[1]), 1)


@given(seeds)
def test_the_maximum_of_one_pixel_is_that_pixel(seed):
    """Turns red if channels are pooled together."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 3, 11, 5))
    y, backward = max_pool(x, window=1)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(backward(2 * x), 2 * x)


@given(seeds, strides, st.tuples(st.integers(0, 1), st.integers(0, 2)), st.booleans())
def test_every_gradient_of_a_maximum_goes_to_one_place(seed, stride, padding, equal):
    """Turns red if dy goes to all that are equal, or overwrites what another window gave."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-9, -7, (2, 7, 11, 5)) if equal else rng.standard_normal((2, 7, 11, 5)) - 8
    options = {"window": (2, 3), "stride": stride, "padding": padding}
    y, backward = max_pool(x.astype(float), **options)
    dy = rng.integers(1, 100, y.shape).astype(float)
    dx = backward(dy)
    np.testing.assert_array_equal(dx.sum(axis=(1, 2)), dy.sum(axis=(1, 2)))
    one = np.zeros_like(dy)
    one[1, 1, 0, 3] = 1
    assert (backward(one) != 0).sum() == 1


@given(seeds, st.integers(1, 4))
def test_the_mean_of_an_upsampled_pixel_s_copies_is_the_pixel(seed, factor):
    """Turns red if the image is repeated rather than each pixel, or the backward takes the mean."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 3, 5, 7))
    y, backward = nearest_upsample(x, factor=factor)
    blocks = y.reshape(2, 3, factor, 5, factor, 7)
    np.testing.assert_allclose(blocks.mean(axis=(2, 4)), x, rtol=1e-14)
    np.testing.assert_allclose(backward(np.ones_like(y)), np.full_like(x, factor**2), rtol=1e-14)


# Bad input


def conv2d_there(params, x, **options):
    return twin_conv2d(params["kernel"].shape, bias="bias" in params, **options)(params, x)


def patch_embed_there(params, x, *, size):
    return twin_of(twins.PatchEmbed, *params["kernel"].shape[2:], size=size)[0](params, x)


@pytest.mark.parametrize("engine", [conv2d, conv2d_there])
@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((2, 7, 11, 3), {}, r"x has shape \(2, 7, 11, 3\), the kernel \(3, 2, 5, 7\); give"),
        ((11, 5), {}, r"x has shape \(11, 5\); give \(\.\.\., rows, columns, C\)"),
        ((2, 0, 11, 5), {}, r"x has shape \(2, 0, 11, 5\)"),
        ((2, 2, 11, 5), {}, r"the window is \(3, 2\), the image with its padding only \(2, 11\)"),
        ((2, 5, 1, 5), {"padding": (1, 0)}, r"with its padding only \(7, 1\)"),
        ((2, 7, 11, 5), {"stride": 0}, "stride is 0; give an integer from 1 on, or two"),
        ((2, 7, 11, 5), {"stride": (1, 2, 3)}, r"stride is \(1, 2, 3\)"),
        ((2, 7, 11, 5), {"padding": -1}, "padding is -1; give an integer from 0 on, or two"),
        ((2, 7, 11, 5), {"padding": "FULL"}, "padding is 'FULL'; .* 'SAME' or 'VALID'"),
    ],
)
def test_what_cannot_be_convolved_is_named(engine, shape, options, message):
    with pytest.raises(InputError, match=message):
        engine(params_of(np.random.default_rng(0)), np.zeros(shape), **options)


def test_a_window_that_is_none_is_refused():
    with pytest.raises(InputError, match="window is 0; give an integer from 1 on, or two"):
        twins.Conv2d(5, 7, 0, rngs=nnx.Rngs(0))
    assert twin_of(twins.Conv2d, 5, 7, 3)[1]["kernel"] == (3, 3, 5, 7)


@pytest.mark.parametrize("engine", [max_pool, twins.max_pool])
@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((2, 7, 1, 5), {"window": 2}, r"the window is \(2, 2\), the image .* only \(7, 1\)"),
        ((7, 5), {"window": 2}, r"x has shape \(7, 5\)"),
        ((2, 7, 11, 5), {"window": (3, 2), "padding": 2}, r"padding is 2, the window \(3, 2\)"),
        ((2, 7, 11, 5), {"window": 0}, "window is 0; give an integer from 1 on"),
        ((2, 7, 11, 5), {"window": 2, "stride": 1.5}, "stride is 1.5; give an integer"),
    ],
)
def test_what_cannot_be_pooled_is_named(engine, shape, options, message):
    with pytest.raises(InputError, match=message):
        engine(np.zeros(shape), **options)


@pytest.mark.parametrize("engine", [patch_embed, patch_embed_there])
@pytest.mark.parametrize(
    "shape, size, message",
    [
        ((2, 6, 14, 5), 3, r"size is 3, the image \(6, 14\); give a divisor of both sides"),
        ((2, 8, 15, 5), 3, r"size is 3, the image \(8, 15\)"),
        ((2, 6, 15, 3), 3, r"the kernel \(3, 3, 5, 7\) for patches of size 3; give .* channels"),
        ((2, 6, 14, 5), 2, r"the kernel \(3, 3, 5, 7\) for patches of size 2; give .*size, size"),
    ],
)
def test_images_that_are_no_patches_are_named(engine, shape, size, message):
    params = params_of(np.random.default_rng(0), (3, 3, 5, 7))
    with pytest.raises(InputError, match=message):
        engine(params, np.zeros(shape), size=size)


@pytest.mark.parametrize("engine", ["reference", "accelerated"])
@pytest.mark.parametrize(
    "name, shape, options, message",
    [
        ("patches", (6, 15, 5), {"size": 0}, r"size is 0, the image \(6, 15\)"),
        ("patches", (15, 5), {"size": 3}, r"x has shape \(15, 5\)"),
        ("assemble", (2, 9, 63), {"size": 3, "grid": (2, 5)}, r"\(2, 9, 63\), for size 3 and grid"),
        ("assemble", (2, 10, 62), {"size": 3, "grid": (2, 5)}, r"\(2, 10, 62\), for size 3"),
        ("assemble", (2, 10, 63), {"size": 3.0, "grid": (2, 5)}, r"for size 3.0"),
        ("patches", (6, 15, 5), {"size": 3.0}, r"size is 3.0, the image \(6, 15\)"),
        ("assemble", (2, 10, 63), {"size": 3, "grid": (2, 5, 1)}, r"grid is \(2, 5, 1\); give"),
        ("nearest_upsample", (6, 15, 5), {"factor": 0}, "factor is 0; give an integer from 1 on"),
        ("nearest_upsample", (15, 5), {"factor": 2}, r"x has shape \(15, 5\)"),
    ],
)
def test_what_cannot_be_cut_laid_out_or_repeated_is_named(engine, name, shape, options, message):
    call = {"reference": globals()[name], "accelerated": getattr(twins, name)}[engine]
    with pytest.raises(InputError, match=message):
        call(np.zeros(shape), **options)
