"""Attention: each position reads from the positions it may see."""

import numpy as np

from reference.errors import InputError
from reference.layers.dropout import dropout
from reference.layers.linear import linear
from reference.layers.softmax import softmax

__all__ = ["attention", "multi_head_attention"]


def attention(q, k, v, *, mask=None, rate=0.0, key=None):
    """Average the values, weighted by how well query and key agree.

        A = softmax(q kᵀ / √K),   y = dropout(A) v

    q (..., T, K), k and v (..., S, K) -> y (..., T, K).  The leading axes, such as batch and heads,
    are those of three separate problems.  mask: a function of positions t and s, such as `causal`,
    or a boolean array that broadcasts to (..., T, S); True where a query may look.  A query that
    may look nowhere gets zeros.  With a key, dropout on the weights.
    Source: Vaswani et al. 2017, eq. 1.

    Backward: y = A v is a product, and so are the scores, so each factor is differentiated by the
    other:  dv = Aᵀ dy,  dA = dy vᵀ,  dscores = softmax's backward of dA,
        dq = dscores k / √K,   dk = dscoresᵀ q / √K.
    """
    scale = q.shape[-1] ** -0.5
    scores = (q * scale) @ k.mT
    if mask is not None:
        np.copyto(scores, -np.inf, where=~visible(mask, scores.shape))
    weights, softmax_backward = softmax(scores)
    kept, dropout_backward = dropout(weights, rate=rate, key=key)
    y = kept @ v

    def backward(dy):
        dv = kept.mT @ dy
        dscores = softmax_backward(dropout_backward(dy @ v.mT))
        dq = scale * (dscores @ k)
        dk = scale * (dscores.mT @ q)
        return dq, dk, dv

    return y, backward


def multi_head_attention(params, x, *, heads, mask=None, rate=0.0, key=None):
    """Attend in H subspaces at once, and mix what the heads read.

        headₕ = attention(q, k, v) of the h-th K of the D features,   K = D / H
        y = Concat(head₁ … head_H) W_out

    params: query, key, value, out, each a `linear` of D -> D.  x (B, T, D) -> y (B, T, D).  mask as
    in `attention`, over (B, H, T, T); rate and key: dropout on the attention weights.
    Raises InputError unless the heads divide the width.
    Source: Vaswani et al. 2017, sec. 3.2.2.

    Backward: that of each step in turn; x was read three times, so its gradient is a sum.
    """
    check_heads(x.shape[-1], heads)
    q, query_backward = linear(params["query"], x)
    k, key_backward = linear(params["key"], x)
    v, value_backward = linear(params["value"], x)
    context, attention_backward = attention(
        split(q, heads), split(k, heads), split(v, heads), mask=mask, rate=rate, key=key
    )
    y, out_backward = linear(params["out"], merge(context))

    def backward(dy):
        dout, dcontext = out_backward(dy)
        dq, dk, dv = attention_backward(split(dcontext, heads))
        dquery, dx_query = query_backward(merge(dq))
        dkey, dx_key = key_backward(merge(dk))
        dvalue, dx_value = value_backward(merge(dv))
        dparams = {"query": dquery, "key": dkey, "value": dvalue, "out": dout}
        return dparams, dx_query + dx_key + dx_value

    return y, backward


def split(a, heads):
    """(..., T, D) -> (..., H, T, K): head h gets the h-th K of the features."""
    return a.reshape(*a.shape[:-1], heads, -1).swapaxes(-2, -3)


def merge(a):
    """(..., H, T, K) -> (..., T, D): what `split` does, undone."""
    b = a.swapaxes(-2, -3)
    return b.reshape(*b.shape[:-2], -1)


def visible(mask, shape):
    """A mask as a boolean array: a function is asked for every pair of positions of (..., T, S)."""
    if not callable(mask):
        return mask
    return mask(np.arange(shape[-2])[:, None], np.arange(shape[-1])[None])


def check_heads(width, heads):
    """Raise InputError unless each head gets the same number of features."""
    if heads < 1 or width % heads:
        raise InputError(f"{heads} heads do not divide the width {width}; give a divisor of it")
