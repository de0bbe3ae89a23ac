import numpy as np
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from accelerated import functional
from accelerated.layers.normalization import LayerNorm
from reference.layers.normalization import layer_norm
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer


def params_of(width, rng):
    return {"scale": rng.standard_normal(width), "bias": rng.standard_normal(width)}


def test_layer_norm_equals_its_twin():
    rng = np.random.default_rng(0)
    apply, _ = functional(LayerNorm(7, rngs=nnx.Rngs(0)))
    params, x = params_of(7, rng), rng.standard_normal((2, 3, 7))
    assert_gradient(layer_norm, params, x, rng=rng)
    assert_mirror(layer_norm, apply, params, x, rng=rng)


def test_layer_norm_of_numbers_around_10000_equals_its_twin():
    """Turns red with Flax's default, E[x²] - E[x]².

    x has lost four of its sixteen digits to the shift, hence the tolerance; in bfloat16 it would
    lose all, hence no such run.
    """
    rng = np.random.default_rng(1)
    apply, _ = functional(LayerNorm(7, rngs=nnx.Rngs(0)))
    params, x = params_of(7, rng), 1e4 + rng.standard_normal((2, 3, 7))
    narrow = {np.float32: 2}
    assert_mirror(layer_norm, apply, params, x, rng=rng, tolerance=1e-8, narrow=narrow)


def test_the_twin_equals_flax_s_own():
    rng = np.random.default_rng(3)
    params, x = params_of(7, rng), rng.standard_normal((2, 3, 7))
    ours, _ = functional(LayerNorm(7))
    module = nnx.LayerNorm(7, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))
    theirs, made = functional(module)
    assert {name: a.shape for name, a in made.items()} == {"scale": (7,), "bias": (7,)}
    np.testing.assert_allclose(ours(params, x), theirs(params, x), rtol=1e-12, atol=1e-13)


@given(st.integers(0, 2**32), st.floats(-1e4, 1e4), st.floats(0.1, 1e3))
def test_layer_norm_ignores_shift_and_scale(seed, shift, factor):
    """Turns red if the mean is not taken off, or ε stands outside the root times the variance."""
    rng = np.random.default_rng(seed)
    params, x = params_of(11, rng), rng.standard_normal((3, 11))
    y, _ = layer_norm(params, x, epsilon=0)
    moved, _ = layer_norm(params, factor * x + shift, epsilon=0)
    np.testing.assert_allclose(moved, y, atol=1e-8, rtol=0)


@given(st.integers(0, 2**32))
def test_what_is_normalized_has_mean_0_and_variance_1(seed):
    x = np.random.default_rng(seed).standard_normal((5, 13))
    n, backward = layer_norm({"scale": np.ones(13), "bias": np.zeros(13)}, x, epsilon=0)
    np.testing.assert_allclose(n.mean(axis=-1), 0, atol=1e-13)
    np.testing.assert_allclose(n.var(axis=-1), 1, rtol=1e-12)
    # Neither a shift of x nor its scale reaches n, so no gradient points along them.
    _, dx = backward(np.cos(np.arange(65.0)).reshape(5, 13))
    np.testing.assert_allclose(dx.sum(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose((dx * n).sum(axis=-1), 0, atol=1e-12)


def test_layer_norm_equals_pytorch_s():
    torch = peer("torch")
    rng = np.random.default_rng(2)
    params, x = params_of(7, rng), rng.standard_normal((2, 3, 7))
    scale, bias, there = (
        torch.tensor(a, requires_grad=True) for a in (params["scale"], params["bias"], x)
    )
    y, backward = layer_norm(params, x)
    dy = rng.standard_normal(x.shape)
    theirs = torch.nn.functional.layer_norm(there, (7,), scale, bias)
    theirs.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=1e-12, atol=1e-12)
    dparams, dx = backward(dy)
    for ours, tensor in ((dparams["scale"], scale), (dparams["bias"], bias), (dx, there)):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-10, atol=1e-12)
