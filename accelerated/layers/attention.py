"""Attention: each position reads from the positions it may see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from accelerated.layers.activation import soft_cap as cap_scores
from accelerated.layers.dropout import dropout
from accelerated.layers.embedding import known
from accelerated.layers.linear import Linear
from accelerated.layers.normalization import QueryKeyNorm
from accelerated.layers.softmax import softmax, softmax_with_sink
from reference.errors import InputError
from reference.layers.attention import check_attention, check_heads, check_mask
from reference.layers.mask import causal

__all__ = ["attention", "CrossAttention", "MultiHeadAttention"]


def attention(
    q,
    k,
    v,
    bias=None,
    sink=None,
    *,
    mask=None,
    scale=None,
    soft_cap=None,
    rate=0.0,
    key=None,
    implementation=None,
):
    """Equals `reference.layers.attention.attention`; faster because each tile of queries meets only
    the keys that its mask shows it: of the causal scores, 3/8 are never computed.

    The softmax is taken in float32 or wider.  Not `jax.nn.dot_product_attention`, whose softmax is
    float32 even for float64, and which gives the mean of v to a query that may look nowhere; but
    that with implementation="cudnn", the fused kernel of NVIDIA's GPUs.
    Raises InputError for what that kernel cannot do, or another implementation.
    """
    check_attention(q.shape, k.shape, v.shape, bias, sink)
    if implementation is not None:
        noise = key is not None and rate > 0
        more = any(option is not None for option in (bias, sink, soft_cap))
        check_cudnn(implementation, q, mask=mask, noise=noise, more=more)
        options = {"scale": scale, "is_causal": mask is causal, "implementation": "cudnn"}
        q, k, v = (a.swapaxes(-2, -3) for a in (q, k, v))
        return jax.nn.dot_product_attention(q, k, v, **options).swapaxes(-2, -3)
    shape = (*q.shape[:-1], k.shape[-2])
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scaled = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    all_bias = None if bias is None else jnp.broadcast_to(bias, (*bias.shape[:-2], *shape[-2:]))
    kept = dropout(jnp.ones(shape, v.dtype), rate=rate, key=key)
    outputs = []
    if mask is not None and not callable(mask):
        check_mask(mask, shape)
    for t, s in tiles(mask, *shape[-2:]):
        scores = jnp.einsum(
            "...tk,...sk->...ts", scaled[..., t, :], k[..., s, :], preferred_element_type=wide
        )
        biased = scores if bias is None else scores + all_bias[..., t, s]
        capped = biased if soft_cap is None else cap_scores(biased, cap=soft_cap)
        seen = jnp.where(visible(mask, t, s), capped, -jnp.inf)
        weights = softmax(seen) if sink is None else softmax_with_sink(seen, sink)
        read = weights.astype(v.dtype) * kept[..., t, s]
        outputs.append(jnp.einsum("...ts,...sk->...tk", read, v[..., s, :]))
    return jnp.concatenate(outputs, axis=-2)


class CrossAttention(nnx.Module):
    """norm, sink: whether it has those parameters;  use_bias: whether its projections do."""

    def __init__(
        self,
        width,
        *,
        heads,
        groups=None,
        head_width=None,
        memory_width=None,
        use_bias=True,
        norm=False,
        sink=False,
        rngs,
        implementation=None,
    ):
        if head_width is None:
            check_heads(width, heads)
        each = head_width or width // heads
        check_heads(heads * each, heads, groups)
        self.heads, self.groups = heads, heads if groups is None else groups
        self.implementation = implementation
        options = {"use_bias": use_bias, "rngs": rngs}
        self.query = Linear(width, heads * each, **options)
        self.key = Linear(memory_width or width, self.groups * each, **options)
        self.value = Linear(memory_width or width, self.groups * each, **options)
        self.out = Linear(heads * each, width, **options)
        self.norm = QueryKeyNorm(each) if norm else None
        self.sink = nnx.Param(jnp.zeros(heads)) if sink else None

    def __call__(
        self,
        x,
        memory,
        bias=None,
        *,
        mask=None,
        rotary=None,
        scale=None,
        soft_cap=None,
        rate=0.0,
        key=None,
    ):
        q, k, v = self.project(x, memory, rotary=rotary)
        context = attention(
            *(q, k, v, bias, None if self.sink is None else self.sink[...]),
            mask=mask,
            scale=scale,
            soft_cap=soft_cap,
            rate=rate,
            key=key,
            implementation=self.implementation,
        )
        return self.out(self.merge(context))

    def project(self, x, memory, *, rotary=None):
        """Queries (B, H, T, K), keys and values (B, H, S, K), as the reference's `project`."""
        q, k = split(self.query(x), self.heads), split(self.key(memory), self.groups)
        v = split(self.value(memory), self.groups)
        if self.norm is not None:
            q, k = self.norm(q, k)
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        serves = self.heads // self.groups
        return q, repeat(k, serves), repeat(v, serves)

    def merge(self, a):
        """(B, H, T, K) -> (B, T, H K)."""
        b = a.swapaxes(-2, -3)
        return b.reshape(*b.shape[:-2], -1)


class MultiHeadAttention(CrossAttention):
    """`CrossAttention` of a sequence to itself, with its options."""

    def __call__(self, x, bias=None, **options):
        return super().__call__(x, x, bias, **options)


def split(a, heads):
    """(B, T, H K) -> (B, H, T, K)."""
    return a.reshape(*a.shape[:-1], heads, -1).swapaxes(-2, -3)


def repeat(a, times):
    """(B, G, S, K) -> (B, H, S, K): each head as often as it serves."""
    return a if times == 1 else jnp.repeat(a, times, axis=-3)


def tiles(mask, queries, keys):
    """Yield slices of at most four tiles of queries, each with one of the keys that they may see.

    One tile of all where the mask is an array, or is not known before the function runs; of a mask
    that is `both` of some, those that are known say what is seen.
    """
    if not callable(mask):
        yield slice(0, queries), slice(0, keys)
        return
    size = max(-(-queries // 4), 64)
    for start in range(0, queries, size):
        t = slice(start, min(start + size, queries))
        seen = known_part(mask, t, slice(0, keys))
        if seen is None:
            yield slice(0, queries), slice(0, keys)
            return
        any_sees = np.broadcast_to(seen, (*np.shape(seen)[:-1], keys)).reshape(-1, keys).any(axis=0)
        (columns,) = np.nonzero(any_sees)
        yield t, slice(columns[0], columns[-1] + 1) if len(columns) else slice(0, 1)


def known_part(mask, t, s):
    """What a mask shows at a tile, as far as it is known while it is compiled, or None."""
    seen = visible(mask, t, s, positions=np.arange)
    if known(seen):
        return seen
    parts = [known_part(part, t, s) for part in getattr(mask, "parts", ())]
    found = [part for part in parts if part is not None]
    return functools.reduce(np.logical_and, found) if found else None


def visible(mask, t, s, positions=jnp.arange):
    """A mask at a tile, as a boolean array; a function is asked for each pair of its positions."""
    if mask is None:
        return True
    if not callable(mask):
        return mask
    return mask(positions(t.start, t.stop)[:, None], positions(s.start, s.stop)[None])


def check_cudnn(implementation, q, *, mask, noise, more):
    """Raise InputError for what the fused kernel cannot do."""
    if implementation != "cudnn":
        raise InputError(f"implementation is {implementation!r}; give 'cudnn' or None")
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise InputError(f"cuDNN's attention was given {q.dtype}; compute in bfloat16 or float16")
    if noise or more or not (mask is None or mask is causal):
        raise InputError(
            "cuDNN's attention was given dropout, a bias, a sink, a cap, or another mask than "
            "`causal`; leave them out, or take implementation=None"
        )
