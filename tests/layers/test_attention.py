from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.attention as twins
from accelerated import functional
from accelerated.layers.rotary import rotary_halves as twin_rotary_halves
from reference import random
from reference.errors import DtypeError, InputError
from reference.layers.attention import attention, cross_attention, multi_head_attention
from reference.layers.mask import causal, sliding_window
from reference.layers.rotary import rotary_frequencies, rotary_halves
from tests.mirror import EVERY, assert_gradient, assert_mirror, random_like
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
    assert_mirror(attention, twins.attention, q, k, v, **noise, rng=rng, noise_in=EVERY)


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
        (jnp.bfloat16, {"soft_cap": 3.0}, "was given dropout, a bias, a sink, a cap"),
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
    dq, dk, dv, *_ = backward(np.ones_like(y))
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
    dq, dk, dv, *_ = backward(rng.standard_normal(y.shape))
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
    for ours, tensor in zip(backward(dy)[:3], theirs, strict=True):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_the_twin_s_softmax_is_float32_in_bfloat16():
    """Scores of 212.1 and 212.8 are 212 and 213 in bfloat16."""
    q, k = np.array([[1, 1]], jnp.bfloat16), np.array([[300, 0], [300, 1]], jnp.bfloat16)
    weights = twins.attention(q, k, np.eye(2, dtype=jnp.bfloat16))
    share = 1 / (1 + np.exp(-(0.5**0.5)))
    np.testing.assert_allclose(np.float64(weights[0, 1]), share, rtol=4e-3)


def layer(module, seed):
    """A twin's function, and weights for both engines in float64."""
    apply, init = functional(module)
    rng = np.random.default_rng(seed)
    return apply, random_like(jax.tree.map(lambda a: np.asarray(a, np.float64), init), rng)


def attention_params(width, heads, seed=4, **options):
    return layer(twins.MultiHeadAttention(width, heads=heads, rngs=nnx.Rngs(0), **options), seed)[1]


def test_multi_head_attention_equals_its_twin():
    rng = np.random.default_rng(4)
    apply, params = layer(twins.MultiHeadAttention(21, heads=3, rngs=nnx.Rngs(0)), 4)
    x = rng.standard_normal((2, 5, 21))
    options = {"mask": causal, "rate": 0.2, "key": random.key(6)}

    def ours(params, x, *, key=None):
        return multi_head_attention(params, x, heads=3, **options | {"key": key})

    def theirs(params, x, *, key=None):
        return apply(params, x, **options | {"key": key})

    assert_gradient(ours, params, x, key=options["key"], rng=rng)
    assert_mirror(ours, theirs, params, x, key=options["key"], rng=rng)


def test_attention_with_all_that_was_added_later_equals_its_twin():
    """In tiles: bias, sink, scale, cap.  Turns red if a tile has another's bias."""
    rng = np.random.default_rng(10)
    q, k, v = problem(rng, (2, 3), queries=67, keys=71)
    bias, sink = rng.standard_normal((2, 1, 67, 71)), rng.standard_normal(3)
    options = {"mask": sliding_window(9), "scale": 0.9, "soft_cap": 1.3}
    assert_gradient(attention, q, k, v, bias, sink, **options, rng=rng)
    assert_mirror(attention, twins.attention, q, k, v, bias, sink, **options, rng=rng)


@pytest.mark.parametrize("shape", [(5, 4), (3, 1, 4), (2, 1, 5, 1), (1, 1, 1, 1)])
def test_a_bias_gets_the_sum_over_what_it_was_broadcast_to(shape):
    """Turns red if `sum_to` forgets an axis."""
    rng = np.random.default_rng(11)
    q, k, v = problem(rng)
    bias = rng.standard_normal(shape)
    assert_gradient(attention, q, k, v, bias, rng=rng)
    whole = np.broadcast_to(bias, (2, 3, 5, 4)).copy()
    y, backward = attention(q, k, v, whole)
    np.testing.assert_array_equal(attention(q, k, v, bias)[0], y)


def test_cross_attention_equals_its_twin():
    """Grouped, with normed and turned queries and keys, a sink, a cap, a bias, memory of another
    width and heads that do not make up the width."""
    rng = np.random.default_rng(12)
    options = {"heads": 6, "groups": 2, "head_width": 4, "memory_width": 11}
    module = twins.CrossAttention(
        7, **options, use_bias=False, norm=True, sink=True, rngs=nnx.Rngs(0)
    )
    apply, params = layer(module, 12)
    x, memory = rng.standard_normal((2, 5, 7)), rng.standard_normal((2, 3, 11))
    bias = rng.standard_normal((6, 5, 3))
    frequencies = rotary_frequencies(4)
    more = {"mask": causal, "scale": 0.6, "soft_cap": 2.0}

    def ours(params, x, memory, bias):
        rotary = partial(rotary_halves, frequencies=frequencies)
        return cross_attention(params, x, memory, bias, heads=6, groups=2, rotary=rotary, **more)

    def theirs(params, x, memory, bias):
        rotary = partial(twin_rotary_halves, frequencies=frequencies)
        return apply(params, x, memory, bias, rotary=rotary, **more)

    assert set(params) == {"query", "key", "value", "out", "norm", "sink"}
    assert_gradient(ours, params, x, memory, bias, rng=rng)
    assert_mirror(ours, theirs, params, x, memory, bias, rng=rng)


def test_the_heads_of_a_group_read_the_same_keys():
    """Grouped attention is multi-head attention whose keys and values are repeated; with as many
    groups as heads it is multi-head.  Turns red if heads h and h + G share, not neighbours.
    """
    rng = np.random.default_rng(13)
    x = rng.standard_normal((2, 5, 12))
    params = attention_params(12, 6, groups=2)

    def repeated(linear):
        return {
            name: np.repeat(a.reshape(*a.shape[:-1], 2, 2), 3, axis=-2).reshape(*a.shape[:-1], 12)
            for name, a in linear.items()
        }

    full = params | {name: repeated(params[name]) for name in ("key", "value")}
    expected, _ = multi_head_attention(full, x, heads=6, groups=6)
    np.testing.assert_array_equal(expected, multi_head_attention(full, x, heads=6)[0])
    y, backward = multi_head_attention(params, x, heads=6, groups=2)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13)
    dparams, dx, _ = backward(y)
    dfull, dx_full, _ = multi_head_attention(full, x, heads=6)[1](y)
    np.testing.assert_allclose(dx, dx_full, rtol=0, atol=1e-12)
    for name in ("key", "value"):  # of each group the sum over its three heads
        summed = dfull[name]["kernel"].reshape(12, 2, 3, 2).sum(axis=2).reshape(12, 4)
        np.testing.assert_allclose(dparams[name]["kernel"], summed, rtol=0, atol=1e-12)


def test_self_attention_is_cross_attention_to_itself():
    """Its gradient is the sum of both uses.  Turns red if one of them is left out."""
    rng = np.random.default_rng(14)
    params, x = attention_params(12, 3), rng.standard_normal((2, 5, 12))
    y, backward = multi_head_attention(params, x, heads=3)
    other, cross_backward = cross_attention(params, x, x, heads=3)
    np.testing.assert_array_equal(y, other)
    _, dx, dmemory, _ = cross_backward(y)
    np.testing.assert_array_equal(backward(y)[1], dx + dmemory)


@given(st.integers(0, 2**32), st.floats(-1e3, 1e3))
def test_a_bias_that_is_the_same_for_all_keys_changes_nothing(seed, shift):
    """Turns red if the bias is added after the softmax."""
    rng = np.random.default_rng(seed)
    q, k, v = problem(rng)
    y, backward = attention(q, k, v, shift * rng.standard_normal((5, 1)))
    np.testing.assert_allclose(y, attention(q, k, v)[0], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(backward(y)[3], 0, atol=1e-12)


@given(st.integers(0, 2**32))
def test_a_sink_takes_its_share_from_all(seed):
    """Of -1e4 it is no sink, of 1e4 it takes all.  Turns red if its share is not in the total."""
    q, k, v = problem(np.random.default_rng(seed))
    y, _ = attention(q, k, v)
    none, _ = attention(q, k, v, None, np.full(3, -1e4))
    np.testing.assert_allclose(none, y, rtol=1e-12, atol=1e-14)
    assert not attention(q, k, v, None, np.full(3, 1e4))[0].any()
    ones = np.ones_like(v)
    share, _ = attention(q, k, ones, None, np.zeros(3))
    np.testing.assert_allclose(attention(q, k, v, None, np.zeros(3))[0], share * y, rtol=1e-9)


def test_a_cap_too_high_to_matter_changes_nothing_and_a_low_one_evens_out():
    """Turns red if the mask is applied before the cap, which would make its scores finite."""
    q, k, v = problem(np.random.default_rng(15))
    y, _ = attention(q, k, v, mask=causal)
    capped, _ = attention(q, k, v, mask=causal, soft_cap=1e8)
    np.testing.assert_allclose(capped, y, rtol=1e-9, atol=1e-12)
    even, _ = attention(q, k, v, mask=causal, soft_cap=1e-9)
    means = np.stack([v[:, :, : t + 1].mean(axis=2) for t in range(4)], axis=2)
    np.testing.assert_allclose(even[:, :, :4], means, rtol=1e-7, atol=1e-8)


def test_one_head_of_the_whole_width_is_attention_between_projections():
    """Turns red if heads are split or merged along another axis."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 5, 7))
    identity = {"kernel": np.eye(7), "bias": np.zeros(7)}
    params = dict.fromkeys(("query", "key", "value", "out"), identity)
    y, _ = multi_head_attention(params, x, heads=1, mask=causal)
    np.testing.assert_allclose(y, attention(x, x, x, mask=causal)[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("groups", [0, 2, -1])
def test_groups_that_do_not_divide_the_heads_are_refused(groups):
    message = f"{groups} groups do not divide the 3 heads"
    with pytest.raises(InputError, match=message):
        cross_attention(attention_params(21, 3), *np.zeros((2, 2, 5, 21)), heads=3, groups=groups)
    with pytest.raises(InputError, match=message):
        twins.CrossAttention(21, heads=3, groups=groups, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("heads", [0, 4, -3])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    message = f"{heads} heads do not divide the width 21"
    with pytest.raises(InputError, match=message):
        multi_head_attention(attention_params(21, 3), np.zeros((2, 5, 21)), heads=heads)
    with pytest.raises(InputError, match=message):
        twins.MultiHeadAttention(21, heads=heads, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("hidden", [0, 3])
def test_an_array_that_hides_a_key_from_all_is_a_mask_like_others(hidden):
    """Known, as here, or an argument.  Turns red if a tile of it has fewer keys than the array."""
    q, k, v = problem(np.random.default_rng(16))
    mask = np.ones((5, 4), bool)
    mask[:, hidden] = False
    expected, _ = attention(q, k, v, mask=mask)
    np.testing.assert_allclose(twins.attention(q, k, v, mask=mask), expected, atol=1e-13)
    inside = jax.jit(lambda q: twins.attention(q, k, v, mask=jnp.asarray(mask)))
    np.testing.assert_allclose(inside(q), expected, atol=1e-13)


@pytest.mark.parametrize("engine", [attention, twins.attention])
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"mask": np.zeros((5, 4))}, DtypeError, "the mask is of float64; give booleans"),
        ({"mask": np.ones((5, 4), int)}, DtypeError, "the mask is of int64"),
        ({"mask": [[True]]}, DtypeError, "the mask is list; give booleans"),
        ({"mask": np.ones((2, 1, 1, 5, 4), bool)}, InputError, r"the mask has shape \(2, 1, 1, 5"),
        ({"mask": np.ones((5, 3), bool)}, InputError, r"the mask has shape \(5, 3\), the scores"),
        ({"bias": np.ones((6, 1, 1, 5, 4))}, InputError, "bias has shape"),
        ({"bias": np.ones((2, 2, 5, 4))}, InputError, "bias has shape"),
        ({"sink": np.ones(1)}, InputError, r"sink has shape \(1,\), q .*; give one a head"),
        ({"k": np.ones((2, 1, 4, 7))}, InputError, "the same leading axes"),
        ({"k": np.ones((2, 3, 4, 6))}, InputError, "q has shape"),
        (dict.fromkeys("qkv", np.ones(7)), InputError, r"q has shape \(7,\)"),
        ({"v": np.ones((2, 3, 3, 7))}, InputError, "q has shape"),
    ],
)
def test_what_does_not_fit_into_attention_is_named(engine, change, error, message):
    """JAX would take a mask of 0 and -inf for its opposite, and repeat what NumPy refuses."""
    q, k, v = problem(np.random.default_rng(17))
    arguments = {"q": q, "k": k, "v": v, "bias": None, "sink": None, "mask": None} | change
    mask = {"mask": arguments.pop("mask")}
    with pytest.raises(error, match=message):
        engine(*arguments.values(), **mask)
