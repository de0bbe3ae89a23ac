"""Writing text one token at a time, without reading it all again for each."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from accelerated import functional
from accelerated.inference.sampling import sample
from accelerated.layers.attention import attention
from accelerated.layers.embedding import known
from accelerated.models.gpt import GPT
from reference.inference.decoding import cache_shape, check_cache, check_finite, check_generation
from reference.layers.mask import causal
from reference.models.gpt import check_tokens

NOT_FINITE = -1  # in place of a token that was drawn from such logits


def generate(params, *, tokens, steps, config, key=None, temperature=1.0, top_k=None):
    """Equals `reference.inference.decoding.generate`; faster because all of it runs compiled.

    The prompt and the cache are padded to powers of two, so that a few compilations serve all
    lengths, and only the new tokens come back from the device.
    """
    check_generation(tokens, steps, config, key=key, temperature=temperature, top_k=top_k)
    padding = padded(len(tokens), config.context) - len(tokens)
    written = write(
        params,
        np.pad(tokens.astype(np.int32), (0, padding)),
        len(tokens),
        steps,
        None if temperature == 0 else key,
        float(temperature),
        room=padded(len(tokens) + steps, config.context),
        config=config,
        top_k=top_k,
    )
    new = np.asarray(written)[:steps].astype(np.int64)
    check_finite(NOT_FINITE not in new)
    return new


@partial(jax.jit, static_argnames=("room", "config", "top_k"))
def write(params, prompt, length, steps, key, temperature, *, room, config, top_k):
    """`steps` new tokens after the first `length` of a padded prompt -> (room,) int32.

    The padding's keys and values lie in the cache too.  No token sees them, for each writes its own
    over them before it looks, and it never looks further.
    """
    decode_with, _ = functional(GPT.abstract(config), decode)
    dtype = params["token"]["embedding"].dtype
    empty = make_cache(config, batch=1, length=room, dtype=dtype)
    prompt_logits, prompt_cache = decode_with(params, empty, tokens=prompt[None], start=0)

    def step(i, carry):
        written, logits, cache = carry
        step_key = None if key is None else jax.random.fold_in(key, i)
        drawn = sample(step_key, logits, temperature=temperature, top_k=top_k)
        token = jnp.where(jnp.isfinite(logits).all(), drawn, NOT_FINITE).astype(jnp.int32)
        next_logits, cache = decode_with(params, cache, tokens=token[None, None], start=length + i)
        return written.at[i].set(token), next_logits[0, 0], cache

    start = jnp.zeros(room, jnp.int32), prompt_logits[0, length - 1], prompt_cache
    return jax.lax.fori_loop(0, steps, step, start)[0]


def decode(model, cache, *, tokens, start):
    """-> logits and the new cache: donate the old one, and its memory is written in place.

    A function for `functional(model, decode)`.  A `start` that is not known while this is compiled
    gives NaN past the cache's end, and a cache that is lost.
    """
    check_tokens(tokens, model.config, values=known(tokens))
    check_cache(cache.shape, tokens.shape, start if known(start) else 0, model.config)
    t, s = start + jnp.arange(tokens.shape[1])[:, None], jnp.arange(cache.shape[-2])
    mask = causal(t, s)
    x = model.position(model.token(ids=tokens), offset=start)
    for layer, block in enumerate(model.blocks):
        part, read = block.attention.sublayer, block.attention.norm(x)
        q, k, v = part.project(read, read)
        new = jnp.stack((k, v))[None]
        cache = jax.lax.dynamic_update_slice(cache, new, (layer, 0, 0, 0, start, 0))
        keys, values = cache[layer]
        h = x + part.out(part.merge(attention(q, keys, values, mask=mask)))
        x = block.feed_forward(h)
    logits = model.token.unembed(model.norm(x))
    return jnp.where(t[-1] < len(s), logits, jnp.nan), cache


def make_cache(config, *, batch, length, dtype):
    return jnp.zeros(cache_shape(config, batch, length), dtype)


def padded(length, context):
    """The next power of two, but at most the context."""
    return min(1 << (length - 1).bit_length(), context)
