import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.attention as twins
from accelerated import functional
from reference import random
from reference.errors import InputError
from reference.layers.attention import attention, multi_head_attention
from reference.layers.mask import causal
from tests.mirror import assert_gradient, assert_mirror, random_like
from tests.peers import peer


def problem(rng, leading=(2, 3), queries=5, keys=4, width=7):
    shapes = ((queries, width), (keys, width), (keys, width))
    return [rng.standard_normal((*leading, *shape)) for shape in shapes]


@pytest.mark.parametrize("leading", [(), (2, 3)])
@pytest.mark.parametrize("mask", [None, causal])
def test_attention_equals_its_twin(mask, leading):
    rng = np.random.default_rng(0)
    q, k, v = problem(rng, leading)
    assert_gradient(attention, q, k, v, mask=mask, rng=rng)
    assert_mirror(attention, twins.attention, q, k, v, mask=mask, rng=rng)


def test_attention_with_dropout_equals_its_twin():
    rng = np.random.default_rng(1)
    q, k, v = problem(rng)
    noise = {"rate": 0.3, "key": random.key(5)}
    assert_gradient(attention, q, k, v, **noise, rng=rng)
    assert_mirror(attention, twins.attention, q, k, v, **noise, rng=rng)


def nowhere_at_first(t, s):
    """A window of 9, from position 65 on: a tile of queries sees nothing."""
    return (t >= 65) & (s <= t) & (t - s < 9)


@pytest.mark.parametrize(
    "mask, noise", [(causal, {}), (nowhere_at_first, {"rate": 0.3, "key": random.key(5)})]
)
def test_attention_in_tiles_equals_its_twin(mask, noise):
    """Turns red if a tile's keys, its mask or its noise are another's."""
    rng = np.random.default_rng(6)
    q, k, v = problem(rng, (2,), queries=131, keys=137, width=3)
    assert_gradient(attention, q, k, v, mask=mask, **noise, rng=rng)
    assert_mirror(attention, twins.attention, q, k, v, mask=mask, **noise, rng=rng)


def test_a_tile_has_only_the_keys_that_are_seen():
    def spans(*args):
        return [(t.start, t.stop, s.start, s.stop) for t, s in twins.tiles(*args)]

    quarters = [(0, 64, 0, 64), (64, 128, 0, 128), (128, 192, 0, 192), (192, 256, 0, 256)]
    assert spans(causal, 256, 256) == quarters
    assert [t for t, *_ in spans(causal, 1024, 1024)] == [0, 256, 512, 768]
    assert spans(causal, 63, 63) == [(0, 63, 0, 63)]
    assert spans(lambda t, s: abs(t - s) < 2, 100, 90) == [(0, 64, 0, 65), (64, 100, 63, 90)]
    assert spans(lambda t, s: s < 0, 5, 4) == [(0, 5, 0, 1)]
    assert spans(lambda t, s: s < 3, 5, 4) == [(0, 5, 0, 3)]
    assert spans(None, 256, 9) == spans(np.ones((256, 9), bool), 256, 9) == [(0, 256, 0, 9)]


def test_a_mask_that_is_not_known_while_it_is_compiled_hides_the_same():
    """Documents in one sequence: the mask is made of an argument."""
    q, k, v = problem(np.random.default_rng(7), (2,), queries=130, keys=130)
    document = np.arange(130) // 50

    @jax.jit
    def compiled(document):
        return twins.attention(q, k, v, mask=lambda t, s: document[t] == document[s])

    expected, _ = attention(q, k, v, mask=document[:, None] == document)
    np.testing.assert_allclose(compiled(document), expected, rtol=1e-10, atol=1e-13)


def test_cudnn_gets_what_it_wants(monkeypatch):
    """Its axes and its mask; what it would compute is XLA's here."""
    rng = np.random.default_rng(8)
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in problem(rng, (2, 3), queries=5, keys=5))
    real, asked = jax.nn.dot_product_attention, []

    def on_xla(q, k, v, *, implementation, **options):
        asked.append((q.shape, implementation))
        return real(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)
    for mask in (None, causal):
        ours = twins.attention(q, k, v, mask=mask)
        theirs = twins.attention(q, k, v, mask=mask, implementation="cudnn")
        np.testing.assert_allclose(*np.float32([ours, theirs]), rtol=0.02, atol=0.02)
    assert asked == [((2, 5, 3, 7), "cudnn")] * 2


@pytest.mark.parametrize(
    "dtype, options, message",
    [
        (np.float32, {}, "was given float32; compute in bfloat16"),
        (jnp.bfloat16, {"mask": np.ones((5, 4), bool)}, "another mask than `causal`"),
        (jnp.bfloat16, {"rate": 0.1, "key": random.key(0)}, "was given dropout"),
        (jnp.bfloat16, {"implementation": "flash"}, "is 'flash'; give 'cudnn' or None"),
    ],
)
def test_what_cudnn_cannot_do_is_refused(dtype, options, message):
    q, k, v = (jnp.asarray(a, dtype) for a in problem(np.random.default_rng(9)))
    with pytest.raises(InputError, match=message):
        twins.attention(q, k, v, **{"implementation": "cudnn"} | options)


def test_a_query_that_may_look_nowhere_gets_zeros():
    """Turns red if softmax divides by a total of 0; NaN there would reach every parameter."""
    rng = np.random.default_rng(2)
    q, k, v = problem(rng)
    mask = rng.random((2, 1, 5, 4)) < 0.5
    mask[:, :, 2] = False
    y, backward = attention(q, k, v, mask=mask)
    assert not y[:, :, 2].any()
    dq, dk, dv = backward(np.ones_like(y))
    assert not dq[:, :, 2].any() and np.isfinite(dk).all() and np.isfinite(dv).all()
    assert_gradient(attention, q, k, v, mask=mask, rng=rng)
    assert_mirror(attention, twins.attention, q, k, v, mask=mask, rng=rng)


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6))
def test_a_mask_as_a_function_is_the_mask_as_an_array(seed, queries, keys):
    """Turns red with `<` for `<=` in `causal`."""
    q, k, v = problem(np.random.default_rng(seed), (2,), queries, keys)
    array = np.tril(np.ones((queries, keys), bool))
    by_function, by_array = attention(q, k, v, mask=causal)[0], attention(q, k, v, mask=array)[0]
    np.testing.assert_array_equal(by_function, by_array)


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_whatever_is_masked_zeros_and_gradients_stay_finite(seed, density):
    """Turns red if a row without a key to look at divides by its total."""
    rng = np.random.default_rng(seed)
    q, k, v = problem(rng)
    mask = rng.random((2, 3, 5, 4)) < density
    y, backward = attention(q, k, v, mask=mask)
    dq, dk, dv = backward(rng.standard_normal(y.shape))
    nowhere, unseen = ~mask.any(axis=-1), ~mask.any(axis=-2)
    assert not y[nowhere].any() and not dq[nowhere].any()
    assert not dk[unseen].any() and not dv[unseen].any()
    assert all(np.isfinite(a).all() for a in (y, dq, dk, dv))


@given(st.integers(0, 2**32))
def test_the_order_of_keys_does_not_matter(seed):
    """Attention reads a set."""
    rng = np.random.default_rng(seed)
    q, k, v = problem(rng, ())
    order = rng.permutation(4)
    np.testing.assert_allclose(
        attention(q, k[order], v[order])[0], attention(q, k, v)[0], rtol=1e-12, atol=1e-13
    )


@given(st.integers(0, 2**32))
def test_what_is_read_lies_among_the_values(seed):
    """Turns red if the weights of a query do not sum to 1."""
    q, k, v = problem(np.random.default_rng(seed))
    y, _ = attention(q, k, v)
    assert (y <= v.max(axis=-2, keepdims=True) + 1e-12).all()
    assert (y >= v.min(axis=-2, keepdims=True) - 1e-12).all()


def test_attention_equals_pytorch_s():
    """Turns red with 1/√D, or without the root."""
    torch = peer("torch")
    rng = np.random.default_rng(3)
    q, k, v = problem(rng)
    theirs = [torch.tensor(a, requires_grad=True) for a in (q, k, v)]
    mask = np.tril(np.ones((5, 4), bool))
    y, backward = attention(q, k, v, mask=mask)
    dy = rng.standard_normal(y.shape)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *theirs, attn_mask=torch.tensor(mask)
    )
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-11, atol=1e-12)
    for ours, tensor in zip(backward(dy), theirs, strict=True):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_the_twin_s_softmax_is_float32_in_bfloat16():
    """Scores of 212.1 and 212.8 are 212 and 213 in bfloat16."""
    q, k = np.array([[1, 1]], jnp.bfloat16), np.array([[300, 0], [300, 1]], jnp.bfloat16)
    weights = twins.attention(q, k, np.eye(2, dtype=jnp.bfloat16))
    share = 1 / (1 + np.exp(-(0.5**0.5)))
    np.testing.assert_allclose(np.float64(weights[0, 1]), share, rtol=4e-3)


def test_multi_head_attention_equals_its_twin():
    rng = np.random.default_rng(4)
    apply, init = functional(twins.MultiHeadAttention(21, heads=3, rngs=nnx.Rngs(0)))
    params = random_like(jax.tree.map(lambda a: np.asarray(a, np.float64), init), rng)
    x = rng.standard_normal((2, 5, 21))
    options = {"mask": causal, "rate": 0.2, "key": random.key(6)}

    def ours(params, x, *, key):
        return multi_head_attention(params, x, heads=3, **options | {"key": key})

    def theirs(params, x, *, key):
        return apply(params, x, **options | {"key": key})

    assert_gradient(ours, params, x, key=options["key"], rng=rng)
    assert_mirror(ours, theirs, params, x, key=options["key"], rng=rng)


def test_one_head_of_the_whole_width_is_attention_between_projections():
    """Turns red if heads are split or merged along another axis."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 5, 7))
    identity = {"kernel": np.eye(7), "bias": np.zeros(7)}
    params = dict.fromkeys(("query", "key", "value", "out"), identity)
    y, _ = multi_head_attention(params, x, heads=1, mask=causal)
    np.testing.assert_allclose(y, attention(x, x, x, mask=causal)[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("heads", [0, 4, -3])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    message = f"{heads} heads do not divide the width 21"
    with pytest.raises(InputError, match=message):
        multi_head_attention({}, np.zeros((2, 5, 21)), heads=heads)
    with pytest.raises(InputError, match=message):
        twins.MultiHeadAttention(21, heads=heads, rngs=nnx.Rngs(0))
