"""Scoring what is new, and only that: the keys and values of what came before are kept."""

from functools import partial

import jax
import jax.numpy as jnp

from accelerated.layers.attention import attention, repeat, split
from accelerated.layers.embedding import known
from accelerated.layers.residual import PreNorm
from accelerated.layers.rotary import rotary_halves
from reference.inference.cache import cache_shape, check_cache
from reference.layers.mask import causal, sliding_window
from reference.models.gpt import GPTConfig, check_tokens, masks_of
from reference.models.llama import LlamaConfig, frequencies_of


def decode(model, cache, *, tokens, start):
    """-> logits and the new cache: donate the old one, and its memory is written in place.

    A function for `functional(model, decode)`.  start may be an array (B,): where the new tokens of
    each sequence begin.  One that is not known while this is compiled gives NaN past the cache's
    end, and a cache that is lost.
    """
    config = model.config
    check_tokens(tokens, config, values=known(tokens))
    check_cache(cache.shape, tokens.shape, start if known(start) else 0, config)
    batch, length = tokens.shape
    starts = jnp.broadcast_to(jnp.asarray(start), (batch,))
    t = starts[:, None] + jnp.arange(length)
    if isinstance(config, LlamaConfig):
        x, rotary = model.token(ids=tokens), rotary_of(config, t)
        seen = [causal if config.window is None else sliding_window(config.window)]
    else:
        places = jnp.minimum(t, config.context - 1)  # past the end it is NaN anyway
        x, rotary = model.position(model.token(ids=tokens), places=places), None
        seen = masks_of(config) if isinstance(config, GPTConfig) else [causal]
    masks = [one(t[:, None, :, None], jnp.arange(cache.shape[-2])) for one in seen]
    for layer, block in enumerate(model.blocks):
        part, read, mask = (
            block.attention.sublayer,
            before(block.attention, x),
            masks[layer % len(masks)],
        )
        q, k, v = project(part, read, rotary)
        cache = cache.at[layer].set(written(cache[layer], jnp.stack((k, v)), starts))
        keys, values = (repeat(a, part.heads // part.groups) for a in cache[layer])
        change = part.out(part.merge(attention(q, keys, values, mask=mask)))
        x = block.feed_forward(after(block.attention, x, change))
    normed = model.norm(x) if hasattr(model, "norm") else x
    tied = getattr(config, "tied", True)
    logits = model.token.unembed(normed) if tied else model.output(normed)
    inside = t[:, -1, None, None] < cache.shape[-2]
    return jnp.where(inside, logits[..., : config.vocabulary], jnp.nan), cache


def before(part, x):
    """What the sub-layer of a `PreNorm` or a `PostNorm` reads."""
    return part.norm(x) if isinstance(part, PreNorm) else x


def after(part, x, change):
    """And what comes of it."""
    return x + change if isinstance(part, PreNorm) else part.norm(x + change)


def project(part, x, rotary):
    """Queries (B, H, T, K), keys and values (B, G, T, K), turned where a layer does so."""
    q, k = split(part.query(x), part.heads), split(part.key(x), part.groups)
    v = split(part.value(x), part.groups)
    return (q, k, v) if rotary is None else (rotary(q), rotary(k), v)


def rotary_of(config, positions):
    """The rotation of positions (B, T), for every head."""
    frequencies = frequencies_of(config)
    return partial(rotary_halves, frequencies=frequencies, positions=positions[:, None])


def written(cache, new, starts):
    """A layer's cache (2, B, G, S, K) with new (2, B, G, T, K), of each sequence from its start."""

    def write_one(cache, new, start):
        return jax.lax.dynamic_update_slice(cache, new, (0, 0, start, 0))

    return jax.vmap(write_one, in_axes=(1, 1, 0), out_axes=1)(cache, new, starts)


def make_cache(config, *, batch, length, dtype):
    return jnp.zeros(cache_shape(config, batch, length), dtype)
