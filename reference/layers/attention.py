"""Attention: each position reads from the positions it may see.

`attention` is the formula; the rest is where its queries, keys and values come from.
"""

import numpy as np

from reference.errors import DtypeError, InputError
from reference.layers.activation import soft_cap as cap_scores
from reference.layers.dropout import dropout
from reference.layers.linear import linear
from reference.layers.normalization import query_key_norm
from reference.layers.softmax import softmax, softmax_with_sink

__all__ = ["attention", "cross_attention", "multi_head_attention"]


def attention(
    q, k, v, bias=None, sink=None, *, mask=None, scale=None, soft_cap=None, rate=0.0, key=None
):
    """Average the values, weighted by how well query and key agree.

        A = softmax(q kᵀ / √K),   y = dropout(A) v

    q (..., T, K), k and v (..., S, K) -> y (..., T, K).  The leading axes, such as batch and heads,
    are those of separate problems.  mask: one of `mask.py`, a function of positions t and s, or a
    boolean array that broadcasts to (..., T, S); True where a query may look.  A query that may
    look nowhere gets zeros.  With a key, dropout on the weights.
    What later systems add: bias, broadcast to (..., T, S), is added to the scores (T5, ALiBi);
    sink (H,), as in `softmax_with_sink` (GPT-OSS); scale in place of 1/√K (T5 and GPT-Neo: 1);
    soft_cap c: scores pass `soft_cap` before the mask (Gemma 2).
    Raises InputError for shapes that do not fit, DtypeError for a mask that is not of booleans.
    Source: Vaswani et al. 2017, eq. 1.

    Backward: y = A v is a product, and so are the scores, so each factor is differentiated by the
    other:  dv = Aᵀ dy,  dA = dy vᵀ,  dscores = softmax's backward of dA,
        dq = dscores k / √K,   dk = dscoresᵀ q / √K,   dbias = dscores, summed as it was broadcast.
    """
    check_attention(q.shape, k.shape, v.shape, bias, sink)
    scale_by = q.shape[-1] ** -0.5 if scale is None else float(scale)
    scores = (q * scale_by) @ k.mT
    if bias is not None:
        scores += bias
    seen, cap_backward = (scores, None) if soft_cap is None else cap_scores(scores, cap=soft_cap)
    if mask is not None:
        np.copyto(seen, -np.inf, where=~visible(mask, seen.shape))
    weights, softmax_backward = softmax(seen) if sink is None else softmax_with_sink(seen, sink)
    kept, dropout_backward = dropout(weights, rate=rate, key=key)
    y = kept @ v

    def backward(dy):
        dv = kept.mT @ dy
        dseen, dsink = softmax_backward(dropout_backward(dy @ v.mT)), None
        if sink is not None:
            dseen, dsink = dseen
        dscores = dseen if soft_cap is None else cap_backward(dseen)
        dq = scale_by * (dscores @ k)
        dk = scale_by * (dscores.mT @ q)
        dbias = None if bias is None else sum_to(bias.shape, dscores)
        return dq, dk, dv, dbias, dsink

    return y, backward


def multi_head_attention(params, x, bias=None, **options):
    """Attend in H subspaces at once, and mix what the heads read.

        headₕ = attention(q, k, v) of the h-th K of the features of each
        y = Concat(head₁ … head_H) W_out

    It is `cross_attention` of a sequence to itself, and has its parameters and options.
    x (B, T, D) -> y (B, T, D).
    Source: Vaswani et al. 2017, sec. 3.2.2.

    Backward: that of each step in turn; x is read on both sides, so its gradient is a sum.
    """
    y, cross_backward = cross_attention(params, x, x, bias, **options)

    def backward(dy):
        dparams, dx, dmemory, dbias = cross_backward(dy)
        return dparams, dx + dmemory, dbias

    return y, backward


def cross_attention(
    params,
    x,
    memory,
    bias=None,
    *,
    heads,
    groups=None,
    mask=None,
    rotary=None,
    scale=None,
    soft_cap=None,
    rate=0.0,
    key=None,
):
    """One sequence asks, another answers: how a decoder reads what its encoder made of the source.

        q = x W_query,   k = memory W_key,   v = memory W_value
        y = Concat over the heads of attention(q, k, v), W_out

    params: query (D -> H K), key and value (D -> G K), out (H K -> D), each a `linear`; where
    given, norm, of a `query_key_norm`, and sink (H,).
    x (B, T, D), memory (B, S, D) -> y (B, T, D).
    groups: with G < H heads of keys and values, each serves H / G heads of queries: less to keep
    while decoding.  G = 1 is multi-query attention, G = H (the default) multi-head.
    rotary: `rotary_pairs` or `rotary_halves` with its frequencies, to turn queries and keys by.
    bias, mask, scale, soft_cap, rate, key: as in `attention`, over (B, H, T, S).
    Raises InputError unless the heads divide the width, and the groups the heads.
    Source: Vaswani et al. 2017, sec. 3.2.3; groups: Shazeer 2019, sec. 3, Ainslie et al. 2023.

    Backward: that of each step in turn; a group's gradient is the sum over the heads it serves.
    """
    shared = heads if groups is None else groups
    (q, k, v), project_backward = project(params, x, memory, heads, shared, rotary)
    context, attention_backward = attention(
        *(q, k, v, bias, params.get("sink")),
        mask=mask,
        scale=scale,
        soft_cap=soft_cap,
        rate=rate,
        key=key,
    )
    y, out_backward = linear(params["out"], merge(context))

    def backward(dy):
        dout, dcontext = out_backward(dy)
        dq, dk, dv, dbias, dsink = attention_backward(split(dcontext, heads))
        dparams, dx, dmemory = project_backward(dq, dk, dv)
        dparams |= {"out": dout} if dsink is None else {"out": dout, "sink": dsink}
        return dparams, dx, dmemory, dbias

    return y, backward


def project(params, x, memory, heads, groups, rotary):
    """Queries (B, H, T, K), keys and values (B, H, S, K), normed and turned where a layer does so.

    Their `backward` takes dq, dk and dv to dparams, dx and dmemory.
    """
    check_heads(params["query"]["kernel"].shape[-1], heads, groups)
    wide_q, query_backward = linear(params["query"], x)
    wide_k, key_backward = linear(params["key"], memory)
    wide_v, value_backward = linear(params["value"], memory)
    split_q, split_k = split(wide_q, heads), split(wide_k, groups)
    (normed_q, normed_k), norm_backward = normed(params, split_q, split_k)
    (q, turned_k), turn_backward = turned(normed_q, normed_k, rotary)
    serves = heads // groups
    k, v = repeat(turned_k, serves), repeat(split(wide_v, groups), serves)

    def backward(dq, dk, dv):
        dnormed = turn_backward(dq, sum_groups(dk, serves))
        dnorm, dsplit_q, dsplit_k = norm_backward(dnormed)
        dquery, dx = query_backward(merge(dsplit_q))
        dkey, dmemory_key = key_backward(merge(dsplit_k))
        dvalue, dmemory_value = value_backward(merge(sum_groups(dv, serves)))
        dparams = {"query": dquery, "key": dkey, "value": dvalue} | dnorm
        return dparams, dx, dmemory_key + dmemory_value

    return (q, k, v), backward


def normed(params, q, k):
    """Queries and keys after `query_key_norm`, where a layer has one."""
    if "norm" not in params:
        return (q, k), lambda dnormed: ({}, *dnormed)
    both, norm_backward = query_key_norm(params["norm"], q, k)

    def backward(dnormed):
        dnorm, dq, dk = norm_backward(dnormed)
        return {"norm": dnorm}, dq, dk

    return both, backward


def turned(q, k, rotary):
    """Queries and keys after `rotary`, where a layer has it."""
    if rotary is None:
        return (q, k), lambda dq, dk: (dq, dk)
    turned_q, query_backward = rotary(q)
    turned_k, key_backward = rotary(k)
    return (turned_q, turned_k), lambda dq, dk: (query_backward(dq), key_backward(dk))


def repeat(a, times):
    """(B, G, S, K) -> (B, H, S, K): each head as often as it serves."""
    return a if times == 1 else np.repeat(a, times, axis=-3)


def sum_groups(da, times):
    """The backward of `repeat`: the sum over the heads that were made of one."""
    if times == 1:
        return da
    return da.reshape(*da.shape[:-3], -1, times, *da.shape[-2:]).sum(axis=-3)


def sum_to(shape, da):
    """The backward of broadcasting `shape` to that of da: a sum over each axis that was made."""
    leading = da.ndim - len(shape)
    made = tuple(i + leading for i, n in enumerate(shape) if n == 1 and da.shape[i + leading] > 1)
    return da.sum(axis=(*range(leading), *made)).reshape(shape)


def split(a, heads):
    """(..., T, D) -> (..., H, T, K): head h gets the h-th K of the features."""
    return a.reshape(*a.shape[:-1], heads, -1).swapaxes(-2, -3)


def merge(a):
    """(..., H, T, K) -> (..., T, D): what `split` does, undone."""
    b = a.swapaxes(-2, -3)
    return b.reshape(*b.shape[:-2], -1)


def visible(mask, shape):
    """A mask as a boolean array: a function is asked for every pair of positions of (..., T, S)."""
    seen = mask
    if callable(mask):
        seen = mask(np.arange(shape[-2])[:, None], np.arange(shape[-1])[None])
    check_mask(seen, shape)
    return seen


def check_mask(mask, shape):
    """Raise DtypeError unless a mask is of booleans, InputError unless it fits the scores."""
    dtype = getattr(mask, "dtype", None)
    if not np.issubdtype(dtype, np.bool_):
        raise DtypeError(
            f"the mask is {'of ' + str(dtype) if dtype is not None else type(mask).__name__}; give "
            "booleans, True where a query may look (of a mask that is added to scores: mask == 0)"
        )
    check_broadcast(mask.shape, shape, name="the mask")


def check_broadcast(shape, scores, *, name):
    """Raise InputError unless an array of a shape can be repeated to that of the scores."""
    fits = len(shape) <= len(scores)
    if not fits or any(n not in (1, m) for n, m in zip(shape[::-1], scores[::-1], strict=False)):
        raise InputError(
            f"{name} has shape {tuple(shape)}, the scores {tuple(scores)}; give one that "
            "broadcasts to it"
        )


def check_attention(q, k, v, bias, sink):
    """Raise InputError unless queries, keys, values (shapes), bias and sink (arrays) fit."""
    if len(q) < 2 or q[:-2] != k[:-2] or q[-1] != k[-1] or k[:-1] != v[:-1]:
        raise InputError(
            f"q has shape {tuple(q)}, k {tuple(k)}, v {tuple(v)}; give (..., T, K), (..., S, K), "
            "(..., S, K), with the same leading axes"
        )
    scores = (*q[:-1], k[-2])
    if bias is not None:
        check_broadcast(bias.shape, scores, name="bias")
    if sink is not None and sink.shape != q[-3:-2]:
        raise InputError(f"sink has shape {tuple(sink.shape)}, q {tuple(q)}; give one a head")


def check_heads(width, heads, groups=None):
    """Raise InputError unless each head gets as many features, and each group as many heads."""
    if heads < 1 or width % heads:
        raise InputError(f"{heads} heads do not divide the width {width}; give a divisor of it")
    if groups is not None and (groups < 1 or heads % groups):
        raise InputError(f"{groups} groups do not divide the {heads} heads; give a divisor of them")
