"""How far apart two tokens stand, in place of where each stands."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from accelerated.layers.attention import attention, split, visible
from accelerated.layers.dropout import dropout
from accelerated.layers.embedding import Embed
from accelerated.layers.linear import Linear
from accelerated.layers.softmax import softmax
from reference.layers.attention import check_mask
from reference.layers.mask import moved
from reference.layers.relative_position import (
    check_buckets,
    check_memory,
    check_tables,
    distance_waves,
    relative_buckets,
    shift,
)

__all__ = ["alibi", "T5Bias", "ShawAttention", "TransformerXLAttention"]


def alibi(slopes, *, queries, keys, offset=0):
    """In float32 or wider, as the scores that it is added to: bfloat16 would round the distances
    beyond 256.  `offset` may be an array.
    """
    wide = jnp.promote_types(slopes.dtype, jnp.float32)
    distance = abs(distances(queries, keys, offset)).astype(wide)
    return -slopes.astype(wide)[:, None, None] * distance


class T5Bias(Embed):
    """Equals `reference.layers.relative_position.t5_bias`; faster because it looks up a row for
    each distance, not for each pair.  `offset` may be an array.
    """

    def __init__(self, buckets, heads, *, bidirectional=True, max_distance=128, rngs):
        check_buckets(buckets, bidirectional, max_distance)
        self.embedding = nnx.Param(initial(rngs.params(), (buckets, heads)))
        self.bidirectional, self.max_distance = bidirectional, max_distance

    def __call__(self, *, queries, keys, offset=0):
        ids = relative_buckets(
            np.arange(-queries, keys) - offset,
            buckets=self.embedding.shape[0],
            bidirectional=self.bidirectional,
            max_distance=self.max_distance,
        )
        by_distance = super().__call__(ids=ids).T[:, None]
        heads, _, columns = by_distance.shape
        return shift(jnp.broadcast_to(by_distance, (heads, queries, columns)))


class Distances(nnx.Module):
    """A vector for each clipped distance."""

    def __init__(self, rows, width, *, rngs):
        self.embedding = nnx.Param(initial(rngs.params(), (rows, width)))


class ShawAttention(nnx.Module):
    """`distance` is c, `width` that of a head.  The softmax and the sums by distance are taken in
    float32 or wider.  `offset` may be an array.
    """

    def __init__(self, distance, width, *, rngs):
        self.key = Distances(2 * distance + 1, width, rngs=rngs)
        self.value = Distances(2 * distance + 1, width, rngs=rngs)

    def __call__(self, q, k, v, *, offset=0, mask=None, rate=0.0, key=None):
        key_table, value_table = self.key.embedding[...], self.value.embedding[...]
        check_tables(len(key_table), len(value_table))
        queries, keys = q.shape[-2], k.shape[-2]
        wide = jnp.promote_types(q.dtype, jnp.float32)
        product = partial(jnp.einsum, preferred_element_type=wide)
        scaled = q * q.shape[-1] ** -0.5
        by_distance = product("...tk,rk->...tr", scaled, key_table)
        spread_out = partial(spread, keys=keys, offset=offset)
        scores = product("...tk,...sk->...ts", scaled, k) + spread_out(by_distance)
        if mask is not None and not callable(mask):
            check_mask(mask, scores.shape)
        seen = visible(moved(mask, offset), slice(0, queries), slice(0, keys))
        weights = softmax(jnp.where(seen, scores, -jnp.inf))
        kept = weights * dropout(jnp.ones_like(weights), rate=rate, key=key)
        (shares,) = jax.linear_transpose(spread_out, by_distance)(kept)
        read = jnp.einsum("...ts,...sk->...tk", kept.astype(v.dtype), v)
        return read + shares.astype(v.dtype) @ value_table


class TransformerXLAttention(nnx.Module):
    """`width` is that of the waves, the paper's D."""

    def __init__(self, width, *, heads, head_width, rngs):
        self.position = Linear(width, heads * head_width, use_bias=False, rngs=rngs)
        normal = jax.nn.initializers.normal(0.02)
        self.content_bias = nnx.Param(normal(rngs.params(), (heads, head_width)))
        self.position_bias = nnx.Param(normal(rngs.params(), (heads, head_width)))

    def __call__(self, q, k, v, *, mask=None, rate=0.0, key=None):
        queries, keys = q.shape[-2], k.shape[-2]
        kernel = self.position.kernel.shape
        content_bias, position_bias = self.content_bias[...], self.position_bias[...]
        check_memory(q.shape, k.shape, kernel, content_bias.shape, position_bias.shape)
        table = distance_waves(queries, keys, kernel[0], q.dtype)
        by_distance = split(self.position(table), q.shape[-3])
        products = jnp.einsum(
            "...tk,...nk->...tn",
            (q + position_bias[:, None]) * q.shape[-1] ** -0.5,
            by_distance,
            preferred_element_type=jnp.promote_types(q.dtype, jnp.float32),
        )
        options = {"mask": moved(mask, keys - queries), "rate": rate, "key": key}
        return attention(q + content_bias[:, None], k, v, shift(products), **options)


def initial(key, shape):
    """As tensor2tensor draws Shaw's tables, and T5X those of T5."""
    return jax.nn.initializers.glorot_uniform()(key, shape)


def distances(queries, keys, offset):
    """s - t - offset, for all pairs (T, S); made on the device, as a constant it would be large."""
    return jnp.arange(keys) - jnp.arange(queries)[:, None] - offset


def spread(a, *, keys, offset):
    """(..., T, 2c + 1) -> (..., T, S): to each pair what its query has for its distance."""
    furthest = a.shape[-1] // 2
    index = distances(a.shape[-2], keys, offset).clip(-furthest, furthest) + furthest
    return jnp.take_along_axis(a, index.reshape((1,) * (a.ndim - 2) + index.shape), axis=-1)
