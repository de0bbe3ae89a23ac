"""Scoring what is new, and only that: the keys and values of what came before are kept.

Causal attention never changes them, so a text of T tokens is read once and not T times.
"""

from functools import partial

import numpy as np

from reference.errors import InputError
from reference.layers.attention import attention, merge, repeat, split, turned
from reference.layers.embedding import embed, unembed
from reference.layers.feed_forward import feed_forward, swiglu
from reference.layers.linear import linear
from reference.layers.mask import causal, moved, sliding_window
from reference.layers.normalization import layer_norm, rms_norm
from reference.layers.position import learned_position
from reference.layers.residual import post_norm, pre_norm
from reference.layers.rotary import rotary_halves
from reference.models import name_of
from reference.models.decoder_batches import check_language
from reference.models.gpt import check_tokens, masks_of
from reference.models.llama import frequencies_of


def decode(params, cache, *, tokens, start, config):
    """Score the next token at each of a few new positions, given a cache of all before them.

    Equals the model's logits at positions start … start + T - 1; faster because the keys and values
    of earlier positions are read, not computed again: causal attention never changes them.

    params as of the model; cache (L, 2, B, G, S, K), keys and values of each block, filled up to
    `start`; tokens (B, T) -> logits (B, T, V).  Writes cache[..., start : start + T, :] in place.
    Raises InputError for a cache of another shape or past its end, for a model that does not write,
    and as the model for tokens.
    Source: Shazeer 2019, "Fast transformer decoding", sec. 2.4.
    """
    check_decoder(config)
    check_tokens(tokens, config)
    check_cache(cache.shape, tokens.shape, start, config)
    return DECODERS[name_of(config)](params, cache, tokens, start, config)


def decode_gpt(params, cache, tokens, start, config):
    """`decode` of `gpt`, with its bands: what they have left behind stays in the cache, unseen."""
    masks = masks_of(config)
    embedded, _ = embed(params["token"], ids=tokens)
    x, _ = learned_position(params["position"], embedded, offset=start)
    for layer, (block, block_cache) in enumerate(zip(params["blocks"], cache, strict=True)):
        mask = masks[layer % len(masks)]
        attend = partial(cached_attention, cache=block_cache, start=start, mask=mask)
        h, _ = pre_norm(block["attention"], x, sublayer=attend)
        x, _ = pre_norm(block["feed_forward"], h, sublayer=feed_forward)
    normed, _ = layer_norm(params["norm"], x)
    return unembed(params["token"], normed)[0]


def decode_gpt1(params, cache, tokens, start, config):
    """`decode` of `gpt1`.  With shared embeddings too, only tokens are scored: positions, which its
    own logits also have, are no part of a text.  A softmax over what is left gives each token the
    chance that it has if the next one is a token.
    """
    embedded, _ = embed(params["token"], ids=tokens)
    x, _ = learned_position(params["position"], embedded, offset=start)
    for block, block_cache in zip(params["blocks"], cache, strict=True):
        attend = partial(cached_attention, cache=block_cache, start=start, mask=causal)
        h, _ = post_norm(block["attention"], x, sublayer=attend)
        x, _ = post_norm(block["feed_forward"], h, sublayer=feed_forward)
    return unembed(params["token"], x)[0]


def decode_llama(params, cache, tokens, start, config):
    """`decode` of `llama`: queries and keys are turned by their own positions before they are kept.

    Positions that a window has left behind stay in the cache, unseen.
    """
    x, _ = embed(params["token"], ids=tokens)
    norm = partial(rms_norm, epsilon=config.epsilon)
    options = {
        "mask": causal if config.window is None else sliding_window(config.window),
        "rotary": partial(
            rotary_halves,
            frequencies=frequencies_of(config),
            positions=np.arange(start, start + tokens.shape[1]),
        ),
        "heads": config.heads,
    }
    for block, block_cache in zip(params["blocks"], cache, strict=True):
        attend = partial(cached_attention, cache=block_cache, start=start, **options)
        h, _ = pre_norm(block["attention"], x, sublayer=attend, norm=norm)
        x, _ = pre_norm(block["feed_forward"], h, sublayer=swiglu, norm=norm)
    normed, _ = norm(params["norm"], x)
    if config.tied:
        return unembed(params["token"], normed)[0]
    return linear(params["output"], normed)[0]


DECODERS = {"gpt": decode_gpt, "gpt1": decode_gpt1, "llama": decode_llama}


def cached_attention(params, x, *, cache, start, mask, heads=None, rotary=None):
    """`multi_head_attention` of new positions over themselves and those in the cache.

    params as there; x (B, T, D), cache (2, B, G, S, K) -> (B, T, D), and no backward.  Writes the
    new keys and values into the cache.  heads: H, where it is not G.
    """
    groups, end = cache.shape[2], start + x.shape[1]
    heads = heads or groups
    q, k, v = (
        split(linear(params[name], x)[0], number)
        for name, number in (("query", heads), ("key", groups), ("value", groups))
    )
    (turned_q, turned_k), _ = turned(q, k, rotary)
    cache[0, :, :, start:end] = turned_k
    cache[1, :, :, start:end] = v
    keys, values = (repeat(a, heads // groups) for a in cache[:, :, :, :end])
    context, _ = attention(turned_q, keys, values, mask=moved(mask, start))
    return linear(params["out"], merge(context))[0], None


def make_cache(config, *, batch, length, dtype):
    """Room for the keys and values of `length` positions -> zeros (L, 2, B, G, S, K).

    Raises InputError unless batch is positive and length in [1, context].
    """
    return np.zeros(cache_shape(config, batch, length), dtype)


def cache_shape(config, batch, length):
    """The cache's shape, or the InputError that says why there is none."""
    check_decoder(config)
    if batch < 1 or not 1 <= length <= config.context:
        raise InputError(
            f"the cache is for {batch} sequences of {length} tokens; give at least 1 sequence, "
            f"and a length from 1 to the model's context, {config.context}"
        )
    groups = getattr(config, "groups", config.heads)
    width = getattr(config, "head_width", None) or config.width // config.heads
    return config.layers, 2, batch, groups, length, width


def check_decoder(config):
    """Raise InputError for a model that does not write text from left to right."""
    if name_of(config) not in DECODERS:
        raise InputError(
            f"the model is a {name_of(config)}, which does not write; give one of "
            f"{', '.join(DECODERS)}"
        )
    if hasattr(config, "head"):
        check_language(config)


def check_cache(shape, tokens, start, config):
    """Raise InputError unless tokens (B, T) fit, from `start` on, into a cache; both are shapes."""
    batch, new = tokens
    length = shape[-2] if len(shape) > 1 else 0
    if tuple(shape) != cache_shape(config, batch, length):
        raise InputError(
            f"the cache has shape {tuple(shape)}, and tokens {tuple(tokens)} need "
            f"{cache_shape(config, batch, length)}; make it by make_cache, with the model's config"
        )
    if not 0 <= start <= length - new:
        raise InputError(
            f"{new} tokens from position {start} on do not fit into a cache of {length} positions; "
            f"give a start from 0 to {length - new}, or make a longer cache"
        )
