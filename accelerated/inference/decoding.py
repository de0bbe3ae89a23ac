"""Writing text one token at a time, without reading it all again for each."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from accelerated import functional
from accelerated.inference.cache import decode, make_cache
from accelerated.inference.sampling import penalize, sample
from accelerated.models import twin_of
from reference import random
from reference.inference.decoding import check_batch_of_prompts, check_finite, check_generation

NOT_FINITE = -1  # in place of a token that was drawn from such logits


def generate(
    params, *, tokens, steps, config, key=None, stop=(), repetition_penalty=1.0, **sampling
):
    """Equals `reference.inference.decoding.generate`; faster because all of it runs compiled, and
    the prompts of a list side by side.

    Prompts and cache are padded to powers of two, so that a few compilations serve all lengths, and
    only the new tokens come back from the device.
    """
    options = {"stop": stop, "repetition_penalty": repetition_penalty} | sampling
    prompts = tokens if isinstance(tokens, list) else [tokens]
    check_batch_of_prompts(prompts)
    for prompt in prompts:
        check_generation(prompt, steps, config, key=key, **options)
    lengths = np.array([len(prompt) for prompt in prompts])
    temperature = sampling.pop("temperature", 1.0)
    keys = None if temperature == 0 else keys_of(key, prompts, tokens)
    rows = padded(int(lengths.max()), config.context)
    written, count = write(
        params,
        np.stack([np.pad(p.astype(np.int32), (0, rows - len(p))) for p in prompts]),
        lengths,
        steps,
        keys,
        float(temperature),
        np.asarray(stop, np.int32),
        room=padded(int(lengths.max()) + steps, config.context),
        config=config,
        repetition_penalty=float(repetition_penalty),
        sampling=tuple(sorted(sampling.items())),
    )
    found = [np.asarray(row)[:n].astype(np.int64) for row, n in zip(written, count, strict=True)]
    check_finite(all(NOT_FINITE not in row for row in found))
    return found if isinstance(tokens, list) else found[0]


def keys_of(key, prompts, tokens):
    """The key of each prompt (B, 2), or None."""
    if key is None:
        return None
    if not isinstance(tokens, list):
        return np.asarray(key)[None]
    return np.stack([random.fold_in(key, b) for b in range(len(prompts))])


@partial(jax.jit, static_argnames=("room", "config", "repetition_penalty", "sampling"))
def write(
    params,
    prompts,
    lengths,
    steps,
    keys,
    temperature,
    stop,
    *,
    room,
    config,
    repetition_penalty,
    sampling,
):
    """Up to `steps` new tokens after the first `lengths` of padded prompts (B, P) -> tokens
    (B, room), and how many of them each has.

    The padding's keys and values lie in the cache too.  No token sees them, for each writes its own
    over them before it looks, and it never looks further.
    """
    decode_with, _ = functional(twin_of(config).abstract(config), decode)
    batch, dtype = len(prompts), jax.tree.leaves(params)[0].dtype
    empty = make_cache(config, batch=batch, length=room, dtype=dtype)
    prompt_logits, cache = decode_with(params, empty, tokens=prompts, start=0)
    inside = jnp.arange(prompts.shape[1]) < lengths[:, None]
    each = jnp.arange(batch)
    seen = jnp.zeros((batch, config.vocabulary), bool).at[each[:, None], prompts].max(inside)
    options = dict(sampling) | {"temperature": temperature}

    def draw(i, logits, seen):
        scores = penalize(logits, seen, repetition_penalty=repetition_penalty)
        if keys is None:
            tokens = scores.argmax(axis=-1)
        else:
            own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
            tokens = jax.vmap(partial(sample, **options))(own, scores)
        return jnp.where(jnp.isfinite(logits).all(axis=-1), tokens, NOT_FINITE).astype(jnp.int32)

    def go_on(carry):
        i, *_, ended, _ = carry
        return (i < steps) & ~ended.all()

    def step(carry):
        i, logits, cache, seen, written, ended, count = carry
        tokens = draw(i, logits, seen)
        written = written.at[:, i].set(tokens)
        count = count + ~ended
        ended |= (tokens[:, None] == stop).any(axis=-1) | (tokens == NOT_FINITE)
        seen = seen.at[each, tokens].set(True)
        logits, cache = decode_with(params, cache, tokens=tokens[:, None], start=lengths + i)
        return i + 1, logits[:, 0], cache, seen, written, ended, count

    written = jnp.zeros((batch, room), jnp.int32)
    ended, count = jnp.zeros(batch, bool), jnp.zeros(batch, jnp.int32)
    start = 0, prompt_logits[each, lengths - 1], cache, seen, written, ended, count
    *_, written, _, count = jax.lax.while_loop(go_on, step, start)
    return written, count


def padded(length, context):
    """The next power of two, but at most the context."""
    return min(1 << (length - 1).bit_length(), context)
