"""Writing text one token at a time, without reading it all again for each."""

from functools import partial

import numpy as np

from reference import random
from reference.errors import InputError
from reference.inference.sampling import check_sampling, sample
from reference.layers.attention import attention, merge, split
from reference.layers.embedding import check_ids, check_integers, embed, unembed
from reference.layers.feed_forward import feed_forward
from reference.layers.linear import linear
from reference.layers.mask import causal, moved
from reference.layers.normalization import layer_norm
from reference.layers.position import learned_position
from reference.layers.residual import pre_norm
from reference.models.gpt import check_tokens


def generate(params, *, tokens, steps, config, key=None, temperature=1.0, top_k=None):
    """Go on with a text: draw a token, append it, and ask again.

        xᵢ ~ softmax(restrict(gpt(x₀ … xᵢ₋₁)))

    tokens (T,), the prompt -> (steps,) int64, the new tokens.  The i-th of these, from 0 on, is
    drawn with fold_in(key, i); without a key or at a temperature of 0 it is the likeliest.
    Raises InputError for a prompt that is empty, of another vocabulary, or with `steps` longer than
    the context, for what `restrict` refuses, and where logits are not finite.
    Source: Radford et al. 2019, sec. 2 (the factorization).
    """
    check_generation(tokens, steps, config, key=key, temperature=temperature, top_k=top_k)
    dtype = params["token"]["embedding"].dtype
    cache = make_cache(config, batch=1, length=len(tokens) + steps, dtype=dtype)
    written = np.empty(steps, np.int64)
    unread, start = tokens, 0
    for i in range(steps):
        logits = decode(params, cache, tokens=unread[None], start=start, config=config)[0, -1]
        check_finite(np.isfinite(logits).all())
        step_key = None if key is None else random.fold_in(key, i)
        written[i] = sample(step_key, logits, temperature=temperature, top_k=top_k)
        start += len(unread)
        unread = written[i : i + 1]
    return written


def decode(params, cache, *, tokens, start, config):
    """Score the next token at each of a few new positions, given a cache of all before them.

    Equals `gpt`'s logits at positions start … start + T - 1; faster because the keys and values of
    earlier positions are read, not computed again: causal attention never changes them.

    params as in `gpt`; cache (L, 2, B, H, S, K), keys and values of each block, filled up to
    `start`; tokens (B, T) -> logits (B, T, V).  Writes cache[..., start : start + T, :] in place.
    Raises InputError for a cache of another shape or past its end, and as `gpt` for tokens.
    Source: Shazeer 2019, "Fast transformer decoding", sec. 2.4.
    """
    check_tokens(tokens, config)
    check_cache(cache.shape, tokens.shape, start, config)
    embedded, _ = embed(params["token"], ids=tokens)
    x, _ = learned_position(params["position"], embedded, offset=start)
    for block, block_cache in zip(params["blocks"], cache, strict=True):
        attend = partial(cached_attention, cache=block_cache, start=start)
        h, _ = pre_norm(block["attention"], x, sublayer=attend)
        x, _ = pre_norm(block["feed_forward"], h, sublayer=feed_forward)
    normed, _ = layer_norm(params["norm"], x)
    return unembed(params["token"], normed)[0]


def cached_attention(params, x, *, cache, start):
    """`multi_head_attention` of new positions over themselves and those in the cache.

    params as there; x (B, T, D), cache (2, B, H, S, K) -> (B, T, D), and no backward.  Writes the
    new keys and values into the cache.
    """
    heads, end = cache.shape[2], start + x.shape[1]
    q, k, v = (split(linear(params[name], x)[0], heads) for name in ("query", "key", "value"))
    cache[0, :, :, start:end] = k
    cache[1, :, :, start:end] = v
    keys, values = cache[:, :, :, :end]
    context, _ = attention(q, keys, values, mask=moved(causal, start))
    return linear(params["out"], merge(context))[0], None


def make_cache(config, *, batch, length, dtype):
    """Room for the keys and values of `length` positions -> zeros (L, 2, B, H, S, K).

    Raises InputError unless batch is positive and length in [1, context].
    """
    return np.zeros(cache_shape(config, batch, length), dtype)


def cache_shape(config, batch, length):
    """The cache's shape, or the InputError that says why there is none."""
    if batch < 1 or not 1 <= length <= config.context:
        raise InputError(
            f"the cache is for {batch} sequences of {length} tokens; give at least 1 sequence, "
            f"and a length from 1 to the model's context, {config.context}"
        )
    return config.layers, 2, batch, config.heads, length, config.width // config.heads


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


def check_generation(tokens, steps, config, *, key, temperature, top_k):
    """Raise DtypeError or InputError for what `generate` cannot work with."""
    check_integers(tokens, name="tokens")
    if tokens.ndim != 1:
        raise InputError(f"tokens has shape {tokens.shape}; give those of one text, (T,)")
    if len(tokens) == 0:
        raise InputError("the prompt has no tokens; give a text that encodes to one at least")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise InputError(f"steps is {steps}; give the number of new tokens, an integer from 1 on")
    if len(tokens) + steps > config.context:
        raise InputError(
            f"a prompt of {len(tokens)} tokens and {steps} new ones are {len(tokens) + steps}, the "
            f"model's context is {config.context}; shorten the prompt or ask for fewer new tokens"
        )
    check_ids(tokens, config.vocabulary, name="tokens")
    check_sampling(config.vocabulary, temperature=temperature, top_k=top_k)
    if key is not None:
        random.fold_in(key, 0)  # for its errors


def check_finite(finite):
    """Raise InputError unless all logits that tokens are drawn from are finite."""
    if not finite:
        raise InputError(
            "the logits of a new token are not finite: the weights are damaged, or training went "
            "wrong; take an earlier checkpoint"
        )
