import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from accelerated import functional
from accelerated.layers.normalization import LayerNorm, QueryKeyNorm, RMSNorm
from accelerated.layers.normalization import l2_norm as l2_norm_twin
from reference.layers.normalization import l2_norm, layer_norm, query_key_norm, rms_norm
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer


def params_of(width, rng):
    return {"scale": rng.standard_normal(width), "bias": rng.standard_normal(width)}


def test_l2_norm_equals_its_twin():
    rng = np.random.default_rng(10)
    for shape in ((7,), (2, 3, 5, 7)):
        assert_gradient(l2_norm, rng.standard_normal(shape), rng=rng)
    # Lengths from a hundredth to ten thousand, and a row without any, which stays as it is.
    x = rng.standard_normal((3, 5, 7)) * np.array([1e-2, 1, 1e4])[:, None, None]
    x[1, 2] = 0
    assert_mirror(l2_norm, l2_norm_twin, x, rng=rng)


def test_a_row_without_length_gives_zeros_and_gets_no_gradient():
    """Turns red if the inverse of its length is not replaced by 0, in either engine."""
    x, dy = np.array([[3.0, -4.0], [0, 0], [3e-13, 4e-13]]), np.array([[1.0, 2], [3, 5], [7, 11]])
    y, backward = l2_norm(x)
    y_twin, vjp = jax.vjp(l2_norm_twin, x)
    for value, gradient in ((y, backward(dy)), (y_twin, vjp(dy)[0])):
        np.testing.assert_allclose(value, [[0.6, -0.8], [0, 0], [0, 0]], rtol=1e-15)
        np.testing.assert_allclose(gradient, [[0.32, 0.24], [0, 0], [0, 0]], rtol=1e-14)
    np.testing.assert_allclose(l2_norm(x, epsilon=1e-13)[0][2], [0.6, 0.8], rtol=1e-15)


@pytest.mark.parametrize("epsilon", [1e-6, 0.3])
def test_rms_norm_equals_its_twin(epsilon):
    rng = np.random.default_rng(11)
    apply, _ = functional(RMSNorm(7, epsilon=epsilon, rngs=nnx.Rngs(0)))

    def ours(params, x):
        return rms_norm(params, x, epsilon=epsilon)

    params = {"scale": rng.standard_normal(7)}
    for leading in ((), (3,), (2, 3, 5)):
        assert_gradient(ours, params, rng.standard_normal((*leading, 7)), rng=rng)
    x = rng.standard_normal((2, 3, 7)) * np.array([1, 1e-2, 1e4])[:, None]
    assert_mirror(ours, apply, params, x, rng=rng)


def test_query_key_norm_equals_its_twin():
    rng = np.random.default_rng(12)
    apply, _ = functional(QueryKeyNorm(7, rngs=nnx.Rngs(0)))
    params = {name: {"scale": rng.standard_normal(7)} for name in ("query", "key")}
    # Six heads of queries and two of keys, of different lengths.
    q, k = rng.standard_normal((3, 6, 5, 7)), rng.standard_normal((3, 2, 11, 7))
    assert_gradient(query_key_norm, params, q, k, rng=rng)
    assert_mirror(query_key_norm, apply, params, q, k, rng=rng)


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


def test_rms_and_l2_norm_equal_pytorch_s():
    torch, rng = peer("torch"), np.random.default_rng(13)
    params, x, dy = {"scale": rng.standard_normal(7)}, *rng.standard_normal((2, 2, 3, 7))
    scale, there = torch.tensor(params["scale"], requires_grad=True), torch.tensor(x)
    there.requires_grad_()
    expected = torch.nn.functional.rms_norm(there, (7,), scale, eps=1e-6)
    expected.backward(torch.tensor(dy))
    y, backward = rms_norm(params, x)
    dparams, dx = backward(dy)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(dparams["scale"], scale.grad.numpy(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(dx, there.grad.numpy(), rtol=1e-11, atol=1e-13)

    there = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.normalize(there, dim=-1)
    expected.backward(torch.tensor(dy))
    y, backward = l2_norm(x)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(backward(dy), there.grad.numpy(), rtol=1e-12, atol=1e-14)


def hugging_face_s(name):
    """(query or only norm, key norm or None) of Llama and of Qwen3, their scales random."""
    torch, transformers = peer("torch"), peer("transformers")
    if name == "Llama":
        norms = [transformers.models.llama.modeling_llama.LlamaRMSNorm(7)]
    else:
        config = transformers.Qwen3Config()
        config.head_dim = 7
        attention = transformers.models.qwen3.modeling_qwen3.Qwen3Attention(config, layer_idx=0)
        norms = [attention.q_norm, attention.k_norm]
    for seed, norm in enumerate(norms):
        torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(seed))
    return norms


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_rms_and_query_key_norm_equal_hugging_face_s(name):
    """They compute in float32 whatever they are given, so that they are given float32 too, and the
    tolerance is a few of its roundings.
    """
    torch, rng = peer("torch"), np.random.default_rng(14)
    norms = hugging_face_s(name)
    scales = [{"scale": norm.weight.detach().numpy().astype(np.float64)} for norm in norms]
    xs, dys = zip(*rng.standard_normal((len(norms), 2, 2, 3, 7)).astype(np.float32), strict=True)
    there = [torch.tensor(x, requires_grad=True) for x in xs]
    expected = [norm(x) for norm, x in zip(norms, there, strict=True)]
    torch.autograd.backward(expected, [torch.tensor(dy) for dy in dys])
    wide = [x.astype(np.float64) for x in xs]
    if name == "Llama":
        y, backward = rms_norm(*scales, *wide)
        ys, (dscale, *dxs) = [y], backward(dys[0])
        dscales = [dscale]
    else:
        ys, backward = query_key_norm(dict(zip(("query", "key"), scales, strict=True)), *wide)
        dparams, *dxs = backward(dys)
        dscales = [dparams["query"], dparams["key"]]
    for i, norm in enumerate(norms):
        np.testing.assert_allclose(ys[i], expected[i].detach().numpy(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(dxs[i], there[i].grad.numpy(), rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(
            dscales[i]["scale"], norm.weight.grad.numpy(), rtol=2e-6, atol=2e-6
        )


def test_the_twin_of_rms_norm_equals_flax_s_own():
    rng = np.random.default_rng(15)
    params, x = {"scale": rng.standard_normal(7)}, rng.standard_normal((2, 3, 7))
    ours, made = functional(RMSNorm(7))
    theirs, _ = functional(nnx.RMSNorm(7, epsilon=1e-6, rngs=nnx.Rngs(0)))
    np.testing.assert_array_equal(made["scale"], np.ones(7))
    np.testing.assert_allclose(ours(params, x), theirs(params, x), rtol=1e-12, atol=1e-13)


@given(st.integers(0, 2**32), st.floats(0.1, 1e3), st.floats(1.1, 1e4))
def test_rms_norm_ignores_a_positive_scale_but_not_a_shift(seed, factor, shift):
    """Turns red if the mean square is not under a root, or the mean is taken off."""
    rng = np.random.default_rng(seed)
    params, x = {"scale": np.ones(11)}, rng.standard_normal((3, 11))
    y, _ = rms_norm(params, x, epsilon=0)
    np.testing.assert_allclose(rms_norm(params, factor * x, epsilon=0)[0], y, rtol=1e-12)
    np.testing.assert_allclose(rms_norm(params, -x, epsilon=0)[0], -y, rtol=1e-15)
    # With the mean in, a shift draws every feature towards 1.
    moved, _ = rms_norm(params, x + shift * np.abs(x).max(), epsilon=0)
    assert (moved > 0).all() and np.abs(moved - y).max() > 0.1


@given(st.integers(0, 2**32), st.sampled_from([0, 1e-6, 0.5]))
def test_layer_norm_of_what_is_centered_is_its_rms_norm(seed, epsilon):
    """Turns red if either takes ε outside the root, or Σ x² for its mean."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 11))
    centered = x - x.mean(axis=-1, keepdims=True)
    params = params_of(11, rng) | {"bias": np.zeros(11)}
    y, backward = layer_norm(params, x, epsilon=epsilon)
    same, rms_backward = rms_norm({"scale": params["scale"]}, centered, epsilon=epsilon)
    np.testing.assert_allclose(same, y, rtol=1e-10, atol=1e-13)
    dy = rng.standard_normal(y.shape)
    (dparams, dx), (drms, dcentered) = backward(dy), rms_backward(dy)
    np.testing.assert_allclose(drms["scale"], dparams["scale"], rtol=1e-10, atol=1e-12)
    through_the_mean = dcentered - dcentered.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(through_the_mean, dx, rtol=1e-10, atol=1e-12)


@given(st.integers(0, 2**32), st.floats(1e-3, 1e4))
def test_rows_of_length_1_have_no_gradient_along_themselves(seed, size):
    """Turns red if l2_norm's backward loses y (y·dy), or Σ x² becomes its mean."""
    rng = np.random.default_rng(seed)
    x, dy = size * rng.standard_normal((2, 3, 11)), rng.standard_normal((2, 3, 11))
    y, backward = l2_norm(x)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), 1, rtol=1e-14)
    dx = backward(dy)
    np.testing.assert_allclose(size * (dx * y).sum(axis=-1), 0, atol=1e-13)
    # √D times it is the RMS norm, gradient and all.
    n, rms_backward = rms_norm({"scale": np.ones(11)}, x, epsilon=0)
    np.testing.assert_allclose(11**0.5 * y, n, rtol=1e-13)
    np.testing.assert_allclose(11**0.5 * dx * size, rms_backward(dy)[1] * size, atol=1e-12)


@given(st.integers(0, 2**32), st.floats(0.01, 1e4))
def test_scores_of_normalized_queries_and_keys_have_a_bound(seed, size):
    """Turns red if only queries are normalized, or either by its length without the √K."""
    rng = np.random.default_rng(seed)
    params = {name: {"scale": rng.standard_normal(7)} for name in ("query", "key")}
    q, k = size * rng.standard_normal((2, 5, 7)), size * rng.standard_normal((2, 11, 7))
    (q_normed, k_normed), _ = query_key_norm(params, q, k)
    highest = [np.abs(params[name]["scale"]).max() for name in ("query", "key")]
    assert np.abs(q_normed @ k_normed.mT).max() <= 7 * highest[0] * highest[1]
    # It is reached by a query and a key that agree.
    ones = {name: {"scale": np.ones(7)} for name in ("query", "key")}
    (q_normed, k_normed), _ = query_key_norm(ones, q, 3 * q, epsilon=0)
    np.testing.assert_allclose(np.vecdot(q_normed, k_normed), 7, rtol=1e-13)
