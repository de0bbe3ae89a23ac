"""Attention: each position reads from the positions it may see."""

import jax.numpy as jnp
from flax import nnx

from accelerated.layers.activation import softmax
from accelerated.layers.dropout import dropout
from accelerated.layers.linear import Linear
from reference.layers.attention import check_heads

__all__ = ["attention", "MultiHeadAttention"]


def attention(q, k, v, *, mask=None, rate=0.0, key=None):
    """The softmax is taken in float32 or wider.

    Not `jax.nn.dot_product_attention`, whose softmax is float32 even for float64, and which gives
    the mean of v to a query that may look nowhere.
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("...tk,...sk->...ts", q * scale, k, preferred_element_type=wide)
    masked_scores = scores if mask is None else jnp.where(visible(mask, scores), scores, -jnp.inf)
    weights = dropout(softmax(masked_scores).astype(v.dtype), rate=rate, key=key)
    return jnp.einsum("...ts,...sk->...tk", weights, v)


class MultiHeadAttention(nnx.Module):
    def __init__(self, width, *, heads, rngs):
        check_heads(width, heads)
        self.heads = heads
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)

    def __call__(self, x, *, mask=None, rate=0.0, key=None):
        q, k, v = (self.split(part(x)) for part in (self.query, self.key, self.value))
        return self.out(self.merge(attention(q, k, v, mask=mask, rate=rate, key=key)))

    def split(self, a):
        """(B, T, D) -> (B, H, T, K)."""
        return a.reshape(*a.shape[:-1], self.heads, -1).swapaxes(-2, -3)

    def merge(self, a):
        """(B, H, T, K) -> (B, T, D)."""
        b = a.swapaxes(-2, -3)
        return b.reshape(*b.shape[:-2], -1)


def visible(mask, scores):
    """A mask as a boolean array, made on the device where it is a function of positions."""
    if not callable(mask):
        return mask
    return mask(jnp.arange(scores.shape[-2])[:, None], jnp.arange(scores.shape[-1]))
