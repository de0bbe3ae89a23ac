"""Attention: each position reads from the positions it may see."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from accelerated.layers.dropout import dropout
from accelerated.layers.embedding import known
from accelerated.layers.linear import Linear
from accelerated.layers.softmax import softmax
from reference.errors import InputError
from reference.layers.attention import check_heads
from reference.layers.mask import causal

__all__ = ["attention", "MultiHeadAttention"]


def attention(q, k, v, *, mask=None, rate=0.0, key=None, implementation=None):
    """Equals `reference.layers.attention.attention`; faster because each tile of queries meets only
    the keys that its mask shows it: of the causal scores, 3/8 are never computed.

    The softmax is taken in float32 or wider.  Not `jax.nn.dot_product_attention`, whose softmax is
    float32 even for float64, and which gives the mean of v to a query that may look nowhere; but
    that with implementation="cudnn", the fused kernel of NVIDIA's GPUs.
    Raises InputError for what that kernel cannot do, or another implementation.
    """
    if implementation is not None:
        check_cudnn(implementation, q, mask=mask, noise=key is not None and rate > 0)
        q, k, v = (a.swapaxes(-2, -3) for a in (q, k, v))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=mask is causal, implementation="cudnn")
        return y.swapaxes(-2, -3)
    shape = (*q.shape[:-1], k.shape[-2])
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scaled = q * q.shape[-1] ** -0.5
    kept = dropout(jnp.ones(shape, v.dtype), rate=rate, key=key)
    outputs = []
    for t, s in tiles(mask, *shape[-2:]):
        scores = jnp.einsum(
            "...tk,...sk->...ts", scaled[..., t, :], k[..., s, :], preferred_element_type=wide
        )
        masked_scores = jnp.where(visible(mask, t, s), scores, -jnp.inf)
        weights = softmax(masked_scores).astype(v.dtype) * kept[..., t, s]
        outputs.append(jnp.einsum("...ts,...sk->...tk", weights, v[..., s, :]))
    return jnp.concatenate(outputs, axis=-2)


class MultiHeadAttention(nnx.Module):
    def __init__(self, width, *, heads, rngs, implementation=None):
        check_heads(width, heads)
        self.heads, self.implementation = heads, implementation
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)

    def __call__(self, x, *, mask=None, rate=0.0, key=None):
        q, k, v = (self.split(part(x)) for part in (self.query, self.key, self.value))
        noise = {"rate": rate, "key": key}
        context = attention(q, k, v, mask=mask, **noise, implementation=self.implementation)
        return self.out(self.merge(context))

    def split(self, a):
        """(B, T, D) -> (B, H, T, K)."""
        return a.reshape(*a.shape[:-1], self.heads, -1).swapaxes(-2, -3)

    def merge(self, a):
        """(B, H, T, K) -> (B, T, D)."""
        b = a.swapaxes(-2, -3)
        return b.reshape(*b.shape[:-2], -1)


def tiles(mask, queries, keys):
    """Yield slices of at most four tiles of queries, each with one of the keys that they may see.

    One tile of all where the mask is an array, or is not known before the function runs.
    """
    size = max(-(-queries // 4), 64) if callable(mask) else queries
    for start in range(0, queries, size):
        t = slice(start, min(start + size, queries))
        seen = visible(mask, t, slice(0, keys), positions=np.arange)
        if not known(seen):
            yield slice(0, queries), slice(0, keys)
            return
        any_sees = np.broadcast_to(seen, (*np.shape(seen)[:-1], keys)).reshape(-1, keys).any(axis=0)
        (columns,) = np.nonzero(any_sees)
        yield t, slice(columns[0], columns[-1] + 1) if len(columns) else slice(0, 1)


def visible(mask, t, s, positions=jnp.arange):
    """A mask at a tile, as a boolean array; a function is asked for each pair of its positions."""
    if mask is None:
        return True
    if not callable(mask):
        return mask
    return mask(positions(t.start, t.stop)[:, None], positions(s.start, s.stop)[None])


def check_cudnn(implementation, q, *, mask, noise):
    """Raise InputError for what the fused kernel cannot do."""
    if implementation != "cudnn":
        raise InputError(f"implementation is {implementation!r}; give 'cudnn' or None")
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise InputError(f"cuDNN's attention was given {q.dtype}; compute in bfloat16 or float16")
    if noise or not (mask is None or mask is causal):
        raise InputError(
            "cuDNN's attention was given dropout, or another mask than `causal`; leave them out, "
            "or take implementation=None"
        )
