from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.relative_position as twins
from accelerated import functional
from accelerated.layers.attention import tiles
from reference import random
from reference.errors import DtypeError, InputError
from reference.layers.attention import attention
from reference.layers.mask import both, causal, sliding_window
from reference.layers.relative_position import (
    alibi,
    alibi_slopes,
    first_distances,
    moved,
    relative_buckets,
    shaw_attention,
    t5_bias,
    transformer_xl_attention,
)
from tests.mirror import assert_gradient, assert_mirror, random_like
from tests.peers import peer

HEADS, WIDTH = 3, 7
NOISE = {"rate": 0.3, "key": random.key(5)}


def problem(rng, leading=(2, HEADS), queries=5, keys=11):
    """Queries, keys and values."""
    shapes = ((queries, WIDTH), (keys, WIDTH), (keys, WIDTH))
    return [rng.standard_normal((*leading, *shape)) for shape in shapes]


def t5_params(rng, buckets=8):
    return {"embedding": rng.standard_normal((buckets, HEADS))}


def shaw_params(rng, furthest=2):
    tables = rng.standard_normal((2, 2 * furthest + 1, WIDTH))
    return dict(zip(("key", "value"), ({"embedding": table} for table in tables), strict=True))


def xl_params(rng, width=10):
    biases = {f"{kind}_bias": np.zeros((HEADS, WIDTH)) for kind in ("content", "position")}
    return random_like({"position": {"kernel": np.zeros((width, HEADS * WIDTH))}} | biases, rng)


def xl_twin(width=10):
    options = {"heads": HEADS, "head_width": WIDTH, "rngs": nnx.Rngs(0)}
    return functional(twins.TransformerXLAttention(width, **options))[0]


def shaw_twin(furthest=2):
    return functional(twins.ShawAttention(furthest, WIDTH, rngs=nnx.Rngs(0)))[0]


def t5_twin(buckets=8, **options):
    return functional(twins.T5Bias(buckets, HEADS, **options, rngs=nnx.Rngs(0)))[0]


def by_alibi(q, k, v, *, mask, offset=0):
    bias, _ = alibi(alibi_slopes(HEADS), queries=q.shape[-2], keys=k.shape[-2], offset=offset)
    return attention(q, k, v, bias, mask=moved(mask, offset))[0]


def by_t5(q, k, v, *, mask, offset=0):
    lengths = {"queries": q.shape[-2], "keys": k.shape[-2]}
    params = t5_params(np.random.default_rng(1))
    bias, _ = t5_bias(params, **lengths, max_distance=9, offset=offset)
    return attention(q, k, v, bias, mask=moved(mask, offset))[0]


def by_shaw(q, k, v, *, mask, offset=0):
    params = shaw_params(np.random.default_rng(2))
    return shaw_attention(params, q, k, v, mask=mask, offset=offset)[0]


def by_transformer_xl(q, k, v, *, mask, offset=0):
    """Its offset is the number of keys that the queries do not have."""
    assert offset == k.shape[-2] - q.shape[-2]
    return transformer_xl_attention(xl_params(np.random.default_rng(3)), q, k, v, mask=mask)[0]


each_form = pytest.mark.parametrize("form", [by_alibi, by_t5, by_shaw, by_transformer_xl])


@pytest.mark.parametrize("lengths", [(5, 11, 0), (3, 7, 4), (7, 3, 2), (1, 5, 13)])
def test_alibi_equals_its_twin(lengths):
    rng = np.random.default_rng(0)
    options = dict(zip(("queries", "keys", "offset"), lengths, strict=True))
    slopes = rng.standard_normal(HEADS)
    assert_gradient(alibi, slopes, **options, rng=rng)
    if lengths == (3, 7, 4):
        assert_mirror(alibi, twins.alibi, slopes, **options, rng=rng)


@pytest.mark.parametrize("lengths", [(5, 11, 0), (13, 7, 4), (1, 5, 13)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_bias_equals_its_twin(lengths, bidirectional):
    rng = np.random.default_rng(1)
    options = dict(zip(("queries", "keys", "offset"), lengths, strict=True))
    kind = {"bidirectional": bidirectional, "max_distance": 9}
    ours, params = partial(t5_bias, **kind), t5_params(rng)
    assert_gradient(ours, params, **options, rng=rng)
    if lengths == (13, 7, 4):
        assert_mirror(ours, t5_twin(**kind), params, **options, rng=rng)


@pytest.mark.parametrize(
    "leading, options, mirrored",
    [
        ((2, HEADS), {"mask": causal, "offset": 3} | NOISE, True),
        ((2,), {}, True),
        ((), {"mask": sliding_window(2), "offset": 9}, False),
        ((HEADS,), {"mask": np.tril(np.ones((5, 11), bool), 2), "offset": 1}, False),
    ],
)
def test_shaw_attention_equals_its_twin(leading, options, mirrored):
    rng = np.random.default_rng(2)
    q, k, v = problem(rng, leading)
    params = shaw_params(rng)
    assert_gradient(shaw_attention, params, q, k, v, **options, rng=rng)
    if mirrored:
        assert_mirror(shaw_attention, shaw_twin(), params, q, k, v, **options, rng=rng)


@pytest.mark.parametrize(
    "leading, queries, options, mirrored",
    [
        ((2, HEADS), 5, {"mask": causal} | NOISE, True),
        ((HEADS,), 11, {}, True),
        ((HEADS,), 1, {"mask": causal}, False),
        ((2, 2, HEADS), 5, {"mask": np.tril(np.ones((5, 11), bool))}, False),
    ],
)
def test_transformer_xl_attention_equals_its_twin(leading, queries, options, mirrored):
    rng = np.random.default_rng(3)
    q, k, v = problem(rng, leading, queries)
    params = xl_params(rng)
    assert_gradient(transformer_xl_attention, params, q, k, v, **options, rng=rng)
    if mirrored:
        assert_mirror(transformer_xl_attention, xl_twin(), params, q, k, v, **options, rng=rng)


def test_the_twins_in_bfloat16_do_not_round_what_they_add_up():
    """Of 600 equal weights, those beyond the clip distance go into one sum, which in bfloat16 would
    stop growing; and the distances of ALiBi stay integers.
    Turns red if the twin sums shares in the dtype of v, or ALiBi computes in that of the slopes.
    """
    rng = np.random.default_rng(4)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), shaw_params(rng))
    q, k, v = (np.zeros((n, WIDTH), jnp.bfloat16) for n in (1, 601, 601))
    y = shaw_twin()(params, q, k, v)
    exact = shaw_attention(jax.tree.map(np.float64, params), *map(np.float64, (q, k, v)))[0]
    np.testing.assert_allclose(np.float64(y), exact, atol=0.01)
    bias = twins.alibi(jnp.ones(1, jnp.bfloat16), queries=1, keys=5, offset=1001)
    np.testing.assert_array_equal(bias[0, 0], [-1001, -1000, -999, -998, -997])


def test_a_mask_that_is_moved_keeps_what_is_known_of_it_while_it_is_compiled():
    """Documents are an argument, causality is not: a tile past the memory still ends at its last
    query.  Turns red if the parts of `both` are lost, or not moved themselves.
    """
    spans = []

    @jax.jit
    def compiled(ids):
        mask = moved(both(causal, lambda t, s: ids[t] == ids[s]), 100)
        spans.extend((t.stop, s.stop) for t, s in tiles(mask, 128, 228))
        return ids

    compiled(jnp.zeros(228, jnp.int32))
    assert spans == [(64, 164), (128, 228)]


def test_an_offset_that_is_not_known_while_it_is_compiled_gives_the_same():
    """Turns red if a twin's distances leave the offset out."""
    rng = np.random.default_rng(5)
    q, k, v = problem(rng)
    slopes, table, tables = rng.standard_normal(HEADS), t5_params(rng), shaw_params(rng)
    lengths = {"queries": 5, "keys": 11}

    @jax.jit
    def compiled(offset):
        bias = t5_twin(max_distance=9)(table, **lengths, offset=offset)
        read = shaw_twin()(tables, q, k, v, mask=causal, offset=offset)
        return twins.alibi(slopes, **lengths, offset=offset), bias, read

    expected = (
        alibi(slopes, **lengths, offset=4)[0],
        t5_bias(table, **lengths, max_distance=9, offset=4)[0],
        shaw_attention(tables, q, k, v, mask=causal, offset=4)[0],
    )
    for theirs, ours in zip(compiled(jnp.array(4, jnp.int32)), expected, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-11, atol=1e-12)


# Independent implementations.


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 16, 71])
def test_the_slopes_are_bloom_s_and_mpt_s(heads):
    """Theirs are float32.  Turns red if the slopes between are taken from the other end."""
    torch = peer("torch")
    bloom = peer("transformers.models.bloom.modeling_bloom")
    mpt = peer("transformers.models.mpt.modeling_mpt")
    ours = alibi_slopes(heads)
    key_positions = bloom.build_alibi_tensor(torch.ones(1, 5), heads, torch.float32).numpy()
    np.testing.assert_allclose(ours, key_positions[:, 0, 1], rtol=1e-6)
    last, _ = alibi(ours, queries=1, keys=5, offset=4)
    np.testing.assert_allclose(last, mpt.build_mpt_alibi_tensor(heads, 5).numpy(), rtol=1e-6)


def test_alibi_in_attention_equals_bloom_s_and_mpt_s():
    """Theirs differ from ours by what all keys of a query have in common, which a softmax ignores:
    the gradient of the slopes, too.  Turns red if the bias or that gradient has the other sign.
    """
    torch = peer("torch")
    bloom = peer("transformers.models.bloom.modeling_bloom")
    mpt = peer("transformers.models.mpt.modeling_mpt")
    rng = np.random.default_rng(6)
    q, k, v = problem(rng, (1, 4), 5, 5)
    bias, bias_backward = alibi(alibi_slopes(4), queries=5, keys=5)
    y, backward = attention(q, k, v, bias, mask=causal)
    dy = rng.standard_normal(y.shape)
    fixed = torch.tensor(alibi_slopes(4))[:, None, None]
    by_bloom = bloom.build_alibi_tensor(torch.ones(1, 5), 4, torch.float64)
    by_mpt = mpt.build_mpt_alibi_tensor(4, 5).double()
    for theirs in (by_bloom, by_mpt):
        slopes = torch.tensor(alibi_slopes(4), requires_grad=True)
        added = theirs / fixed * slopes[:, None, None]
        scores = torch.tensor(q) @ torch.tensor(k).mT * WIDTH**-0.5 + added
        hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
        read = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ torch.tensor(v)
        read.backward(torch.tensor(dy))
        np.testing.assert_allclose(y, read.detach().numpy(), rtol=1e-11, atol=1e-12)
        dslopes = bias_backward(backward(dy)[3])
        np.testing.assert_allclose(dslopes, slopes.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "buckets, max_distance", [(32, 128), (320, 800), (64, 256), (12, 37), (4, 9), (8, 5)]
)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_buckets_are_t5_s(buckets, max_distance, bidirectional):
    """T5's own, WavLM's, and some where the logarithm's steps meet integers or each other.
    Turns red with `>` for `>=`, or with another width of the exact half.
    """
    torch, t5 = peer("torch"), peer("transformers.models.t5.modeling_t5")
    distance = np.arange(-2000, 2001)
    options = {"bidirectional": bidirectional, "max_distance": max_distance}
    theirs = t5.T5Attention._relative_position_bucket(
        torch.tensor(distance), num_buckets=buckets, **options
    )
    ours = relative_buckets(distance, buckets=buckets, **options)
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_is_t5_s(bidirectional):
    """Turns red if queries and keys change places, or the offset is added to the keys."""
    torch, transformers = peer("torch"), peer("transformers")
    t5 = peer("transformers.models.t5.modeling_t5")
    config = transformers.T5Config(
        d_model=6, d_kv=2, num_heads=HEADS, is_decoder=not bidirectional, feed_forward_proj="relu"
    )
    theirs = t5.T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    params = t5_params(np.random.default_rng(7), buckets=32)
    theirs.relative_attention_bias.weight.data = torch.tensor(params["embedding"])
    options = {"queries": 53, "keys": 211, "offset": 101}
    bias, backward = t5_bias(params, bidirectional=bidirectional, **options)
    dbias = np.random.default_rng(8).standard_normal(bias.shape)
    expected = theirs.compute_bias(53, 211, past_seen_tokens=101)
    expected.backward(torch.tensor(dbias)[None])
    np.testing.assert_array_equal(bias, expected.detach().numpy()[0])
    gradient = theirs.relative_attention_bias.weight.grad.numpy()
    np.testing.assert_allclose(backward(dbias)["embedding"], gradient, rtol=1e-10, atol=1e-11)


def test_shaw_attention_equals_the_formula_with_arrays_for_each_pair():
    """In PyTorch, with (T, S, K) arrays and its own derivative.  Turns red with t - s for s - t, if
    keys and values change tables, or if one of the terms is not scaled.
    """
    torch = peer("torch")
    rng = np.random.default_rng(9)
    q, k, v = problem(rng)
    params = shaw_params(rng)
    tables = [params[name]["embedding"] for name in ("key", "value")]
    theirs = [torch.tensor(a, requires_grad=True) for a in (*tables, q, k, v)]
    index = (np.arange(11)[None] - np.arange(3, 8)[:, None]).clip(-2, 2) + 2
    a, b = (table[torch.tensor(index)] for table in theirs[:2])
    there_q, there_k, there_v = theirs[2:]
    e = torch.einsum("bhtk,bhsk->bhts", there_q, there_k)
    e = (e + torch.einsum("bhtk,tsk->bhts", there_q, a)) / WIDTH**0.5
    hidden = torch.tensor(np.arange(11) > np.arange(3, 8)[:, None])
    weights = torch.softmax(e.masked_fill(hidden, -torch.inf), -1)
    expected = torch.einsum("bhts,bhtsk->bhtk", weights, there_v[:, :, None] + b)
    dy = rng.standard_normal(q.shape)
    expected.backward(torch.tensor(dy))
    y, backward = shaw_attention(params, q, k, v, mask=causal, offset=3)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-11, atol=1e-12)
    dparams, *dqkv = backward(dy)
    dtables = [dparams[name]["embedding"] for name in ("key", "value")]
    for ours, tensor in zip((*dtables, *dqkv), theirs, strict=True):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_shaw_s_keys_are_wav2vec2_bert_s():
    """Of the released models in transformers it has the vectors for keys, and none for values."""
    torch = peer("torch")
    wav2vec2 = peer("transformers.models.wav2vec2_bert.modeling_wav2vec2_bert")
    rng = np.random.default_rng(10)
    q, k, v = problem(rng)
    params = shaw_params(rng)
    params["value"] = {"embedding": np.zeros((5, WIDTH))}
    table = torch.nn.Embedding(5, WIDTH, _weight=torch.tensor(params["key"]["embedding"]))
    limits = {"left_max_position_embeddings": 2, "right_max_position_embeddings": 2}
    layer = SimpleNamespace(**limits, distance_embedding=table, scaling=WIDTH**-0.5)
    there_q, there_k, there_v = (torch.tensor(a, requires_grad=True) for a in (q, k, v))
    _, bias = wav2vec2._apply_relative_key_position_encoding(layer, there_q, there_k)
    expected = torch.nn.functional.scaled_dot_product_attention(
        there_q, there_k, there_v, attn_mask=bias
    )
    dy = rng.standard_normal(q.shape)
    expected.backward(torch.tensor(dy))
    y, backward = shaw_attention(params, q, k, v)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-11, atol=1e-12)
    dparams, *dqkv = backward(dy)
    tensors = (table.weight, there_q, there_k, there_v)
    for ours, tensor in zip((dparams["key"]["embedding"], *dqkv), tensors, strict=True):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("queries", [11, 5, 1])
def test_transformer_xl_attention_equals_xlnet_s(queries):
    """Value and all gradients; the memory has what the queries lack of 11 positions.
    Turns red if R counts the other way, the biases change places, or the shift is off by one.
    """
    torch, transformers = peer("torch"), peer("transformers")
    xlnet = peer("transformers.models.xlnet.modeling_xlnet")
    rng = np.random.default_rng(11)
    q, k, v = problem(rng, (2, HEADS), queries, 11)
    params = xl_params(rng, HEADS * WIDTH + 1)
    config = transformers.XLNetConfig(d_model=HEADS * WIDTH, n_head=HEADS, n_layer=1, dropout=0.0)
    layer = xlnet.XLNetRelativeAttention(config).double()
    layer.r_w_bias.data = torch.tensor(params["content_bias"])
    layer.r_r_bias.data = torch.tensor(params["position_bias"])
    kernel = torch.tensor(params["position"]["kernel"], requires_grad=True)
    width = len(kernel)
    frequencies = torch.tensor(1 / 10000 ** (np.arange(0, width, 2) / width))
    distance = torch.arange(11, -queries, -1, dtype=torch.float64)
    waves = xlnet.XLNetModel.positional_embedding(distance, frequencies)[:, 0]
    r = (waves @ kernel).reshape(-1, 1, HEADS, WIDTH).expand(-1, 2, -1, -1)
    theirs = [torch.tensor(a.transpose(2, 0, 1, 3), requires_grad=True) for a in (q, k, v)]
    hidden = np.arange(11) > np.arange(11 - queries, 11)[:, None]
    mask = torch.tensor(hidden, dtype=torch.float64)[:, :, None, None]
    expected = layer.rel_attn_core(*theirs, r, attn_mask=mask)
    dy = rng.standard_normal(q.shape)
    expected.backward(torch.tensor(dy.transpose(2, 0, 1, 3)))
    y, backward = transformer_xl_attention(params, q, k, v, mask=causal)
    there = expected.detach().numpy().transpose(1, 2, 0, 3)
    np.testing.assert_allclose(y, there, rtol=1e-11, atol=1e-12)
    dparams, *dqkv = backward(dy)
    tensors = {
        "position": (dparams["position"]["kernel"], kernel),
        "content": (dparams["content_bias"], layer.r_w_bias),
        "bias": (dparams["position_bias"], layer.r_r_bias),
    }
    for ours, tensor in tensors.values():
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-9, atol=1e-11)
    for ours, tensor in zip(dqkv, theirs, strict=True):
        gradient = tensor.grad.numpy().transpose(1, 2, 0, 3)
        np.testing.assert_allclose(ours, gradient, rtol=1e-9, atol=1e-11)


# Properties.


@each_form
@given(seed=st.integers(0, 2**32), start=st.integers(0, 9))
def test_tokens_that_are_moved_together_give_the_same(form, seed, start):
    """Seven tokens alone, and with strangers around them, whom they do not see.
    Turns red if a distance is no difference, such as s - 2t, or `shift` does not shift.
    """
    q, k, v = problem(np.random.default_rng(seed), (2, HEADS), 16, 16)
    place = slice(start, start + 7)

    def among_them(t, s):
        return causal(t, s) & (s >= start)

    whole = form(q, k, v, mask=among_them)[..., place, :]
    alone = form(*(a[..., place, :] for a in (q, k, v)), mask=causal)
    np.testing.assert_allclose(whole, alone, rtol=1e-10, atol=1e-12)


@each_form
@given(seed=st.integers(0, 2**32), queries=st.integers(1, 11))
def test_a_segment_after_its_memory_has_the_last_rows_of_the_whole(form, seed, queries):
    """Turns red if queries are counted from 0, in the distances or for the mask."""
    q, k, v = problem(np.random.default_rng(seed), (2, HEADS), 11, 11)
    mask = both(causal, sliding_window(7))
    last = form(q[..., -queries:, :], k, v, mask=mask, offset=11 - queries)
    whole = form(q, k, v, mask=mask)[..., -queries:, :]
    np.testing.assert_allclose(last, whole, rtol=1e-10, atol=1e-12)


@given(st.integers(1, 40), st.integers(0, 40))
def test_alibi_is_a_penalty_that_grows_with_the_distance_alone(queries, offset):
    """Turns red without the minus sign, or with slope·s as BLOOM has it."""
    bias, _ = alibi(alibi_slopes(5), queries=queries, keys=31, offset=offset)
    assert (bias <= 0).all()
    t, s = np.arange(queries)[:, None] + offset, np.arange(31)
    np.testing.assert_array_equal(bias == 0, np.broadcast_to(t == s, bias.shape))
    np.testing.assert_array_equal(bias[:, 1:, 1:], bias[:, :-1, :-1])
    past = bias[:, -1, : min(queries + offset, 31)]
    assert (np.diff(past, axis=-1) > 0).all()


@given(st.integers(0, 6), st.integers(1, 64))
def test_published_slopes_are_powers_of_the_first_down_to_a_256th(exponent, extra):
    """2^(-8/H) … 2⁻⁸, each that of the head before times the first; of 8 heads, halves.  Any number
    of heads has as many slopes, all different, from 0 to 1.
    Turns red with a base of 2^(-4/H), a count from 0, or the slopes between cut short.
    """
    heads = 2**exponent
    slopes = alibi_slopes(heads)
    assert slopes[-1] == 2**-8
    np.testing.assert_allclose(slopes, slopes[0] ** np.arange(1, heads + 1), rtol=1e-13)
    np.testing.assert_array_equal(alibi_slopes(8), 0.5 ** np.arange(1, 9))
    others = alibi_slopes(extra)
    assert len(set(others.tolist())) == extra and 0 < others.min() and others.max() < 1


@given(st.integers(1, 20), st.integers(1, 200), st.booleans())
def test_buckets_widen_with_the_distance(half, further, bidirectional):
    """Exact below the half, never falling, the last for all from the greatest distance on.
    Turns red with `>` for `>=`, with a bucket too few, or if directions are mixed.
    """
    count = 2 * half
    furthest = half + further
    options = {"buckets": count * (1 + bidirectional), "max_distance": furthest}
    buckets = partial(relative_buckets, bidirectional=bidirectional, **options)
    past = buckets(-np.arange(2 * furthest + 2))
    np.testing.assert_array_equal(past[:half], np.arange(half))
    assert (np.diff(past) >= 0).all() and past.max() == count - 1
    assert (past[furthest:] == count - 1).all()
    future = buckets(np.arange(1, 2 * furthest + 2))
    np.testing.assert_array_equal(future, past[1:] + count if bidirectional else 0 * past[1:])


def test_no_rounding_decides_where_a_bucket_begins():
    """From 4 to 128 in five steps each begins at twice the one before.
    Turns red with logarithms in float64, where 5 log 2 / log 32 is rounded down to below 1.
    """
    assert first_distances(9, 128) == (1, 2, 3, 4, 8, 16, 32, 64)


@given(st.integers(0, 2**32), st.integers(0, 4))
def test_shaw_attention_with_tables_of_zeros_is_attention(seed, furthest):
    """Turns red if a distance adds to scores, or to what is read, anything but its row's part."""
    q, k, v = problem(np.random.default_rng(seed))
    params = jax.tree.map(np.zeros_like, shaw_params(np.random.default_rng(seed), furthest))
    y, backward = shaw_attention(params, q, k, v, mask=causal, **NOISE)
    expected, plain_backward = attention(q, k, v, mask=causal, **NOISE)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(backward(y)[1:], plain_backward(y)[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


@given(st.integers(0, 2**32), st.integers(0, 4))
def test_beyond_the_clip_distance_shaw_attention_cannot_tell_distances_apart(seed, furthest):
    """Keys that are that far or further may change places; within, they may not.
    Turns red if distances are not clipped, or clipped one later or earlier.
    """
    rng = np.random.default_rng(seed)
    q, k, v = problem(rng)
    params = shaw_params(rng, furthest)
    y = shaw_attention(params, q[..., :1, :], k, v)[0]
    order = np.r_[:furthest, furthest + rng.permutation(11 - furthest)]
    moved_keys = shaw_attention(params, q[..., :1, :], k[..., order, :], v[..., order, :])[0]
    np.testing.assert_allclose(moved_keys, y, rtol=1e-10, atol=1e-12)
    if furthest:
        order = np.r_[: furthest - 1, furthest, furthest - 1, furthest + 1 : 11]
        other = shaw_attention(params, q[..., :1, :], k[..., order, :], v[..., order, :])[0]
        assert np.abs(other - y).max() > 1e-6


@given(st.integers(0, 2**32))
def test_transformer_xl_attention_without_kernel_and_biases_is_attention(seed):
    """Turns red if a distance adds to scores anything but the product of query and wave."""
    q, k, v = problem(np.random.default_rng(seed), (2, HEADS), 11, 11)
    params = jax.tree.map(np.zeros_like, xl_params(np.random.default_rng(seed)))
    y, _ = transformer_xl_attention(params, q, k, v, mask=causal, **NOISE)
    np.testing.assert_allclose(y, attention(q, k, v, mask=causal, **NOISE)[0], rtol=1e-12)


# Bad input.


def test_heads_below_1_have_no_slopes():
    with pytest.raises(InputError, match="heads is 0; give at least 1"):
        alibi_slopes(0)


@pytest.mark.parametrize(
    "buckets, bidirectional, max_distance, message",
    [
        (2, True, 9, "2 buckets are to hold distances up to 9; give 4 or more, a multiple of 2"),
        (9, True, 9, "9 buckets .* a multiple of 2, and a max_distance above 2"),
        (1, False, 9, "1 buckets .* give 2 or more, a multiple of 1"),
        (8, False, 4, "distances up to 4; .* a max_distance above 4"),
        (8, True, 2, "distances up to 2; .* a max_distance above 2"),
    ],
)
def test_buckets_that_cannot_be_laid_out_are_refused(buckets, bidirectional, max_distance, message):
    options = {"bidirectional": bidirectional, "max_distance": max_distance}
    with pytest.raises(InputError, match=message):
        t5_bias({"embedding": np.zeros((buckets, HEADS))}, queries=5, keys=7, **options)
    with pytest.raises(InputError, match=message):
        t5_twin(buckets, **options)


@pytest.mark.parametrize("engine", [shaw_attention, shaw_twin()])
@pytest.mark.parametrize("key_rows, value_rows", [(4, 4), (5, 3)])
def test_tables_without_a_row_for_each_distance_are_refused(engine, key_rows, value_rows):
    q, k, v = problem(np.random.default_rng(12))
    params = {
        "key": {"embedding": np.zeros((key_rows, WIDTH))},
        "value": {"embedding": np.zeros((value_rows, WIDTH))},
    }
    message = f"the tables have {key_rows} and {value_rows} rows; give each 2c"
    with pytest.raises(InputError, match=message):
        engine(params, q, k, v)


@pytest.mark.parametrize("engine", [transformer_xl_attention, xl_twin()])
@pytest.mark.parametrize(
    "queries, heads, changed, message",
    [
        (13, HEADS, {}, "there are 13 queries and 11 keys; give the memory's, then"),
        (5, 1, {}, r"q has 1 heads of 7, .*\(10, 21\).*; give \(D, 7\) and \(1, 7\)"),
        (5, HEADS, {"position_bias": np.zeros((1, WIDTH))}, r"give \(D, 21\) and \(3, 7\)"),
        (5, HEADS, {"position": {"kernel": np.zeros((10, 22))}}, r"\(10, 22\).*give \(D, 21\)"),
        (5, HEADS, {"position": {"kernel": np.zeros((9, 21))}}, "the width is 9; .* multiple of 2"),
    ],
)
def test_what_transformer_xl_attention_cannot_place_is_refused(
    engine, queries, heads, changed, message
):
    rng = np.random.default_rng(13)
    q, k, v = problem(rng, (2, heads), queries)
    with pytest.raises(InputError, match=message):
        engine(xl_params(rng) | changed, q, k, v)


@pytest.mark.parametrize("bidirectional, buckets", [(True, 4), (False, 2)])
def test_the_fewest_buckets_tell_near_from_far(bidirectional, buckets):
    """Turns red if two in a direction are refused."""
    params = {"embedding": np.arange(float(buckets))[:, None]}
    bias, _ = t5_bias(params, queries=1, keys=9, bidirectional=bidirectional, offset=4)
    past = [1, 1, 1, 1, 0]
    future = [3, 3, 3, 3] if bidirectional else [0] * 4
    np.testing.assert_array_equal(bias[0, 0], past + future)


@pytest.mark.parametrize("engine", [shaw_attention, shaw_twin()])
def test_shaw_attention_refuses_a_mask_of_numbers(engine):
    """JAX would take one of 0 and -inf for its opposite.  Turns red if it is not looked at."""
    rng = np.random.default_rng(23)
    q, k, v = rng.standard_normal((3, 1, 4, WIDTH))
    with pytest.raises(DtypeError, match="the mask is of float64; give booleans"):
        engine(shaw_params(rng), q, k, v, mask=np.zeros((4, 4)))
