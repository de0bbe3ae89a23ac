"""Speculative decoding: a small model guesses tokens ahead, the large one checks them at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from accelerated import functional
from accelerated.inference.cache import decode, make_cache
from accelerated.inference.decoding import padded
from accelerated.inference.sampling import probabilities, restrict
from accelerated.models import twin_of
from reference.inference.decoding import check_finite
from reference.inference.speculative import check_speculation, until


def speculate(
    params,
    draft_params,
    *,
    tokens,
    steps,
    config,
    draft_config,
    window=4,
    key=None,
    stop=(),
    **sampling,
):
    """Equals the reference's; faster because all rounds run compiled, on the device."""
    check_speculation(tokens, steps, config, draft_config, window, key=key, stop=stop, **sampling)
    temperature = sampling.pop("temperature", 1.0)
    end = len(tokens) + steps
    room = padded(end + window, min(config.context, draft_config.context))
    text, rounds, finite = write(
        (params, draft_params),
        np.pad(tokens.astype(np.int32), (0, room + 1 - len(tokens))),
        len(tokens),
        end,
        None if temperature == 0 else key,
        float(temperature),
        np.asarray(stop, np.int32),
        configs=(config, draft_config),
        window=window,
        sampling=tuple(sorted(sampling.items())),
    )
    check_finite(bool(finite))
    return until(np.asarray(text)[len(tokens) : end].astype(np.int64), stop), int(rounds)


@partial(jax.jit, static_argnames=("configs", "window", "sampling"))
def write(params, text, length, end, key, temperature, stop, *, configs, window, sampling):
    """The text (room + 1,), of which the first `length` tokens are given, up to `end`; rounds; and
    whether all logits were finite.

    Each round reads the last two tokens of the draft's text anew, for it may not have read the last
    guess; what a cache has beyond the text is written over before it is seen.
    """
    readers = [functional(twin_of(c).abstract(c), decode)[0] for c in configs]
    caches, begun = [], length
    for read, config, own in zip(readers, configs, params, strict=True):
        dtype = jax.tree.leaves(own)[0].dtype
        empty = make_cache(config, batch=1, length=len(text) - 1, dtype=dtype)
        caches.append(read(own, empty, tokens=text[None, :-1], start=0)[1])

    def scores(i, cache, tokens, start):
        logits, cache = readers[i](params[i], cache, tokens=tokens[None], start=start)
        return logits[0], cache

    def chances(logits):
        if key is None:
            return jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=logits.dtype)
        return probabilities(restrict(logits, **dict(sampling), temperature=temperature))

    def go_on(carry):
        text, n, *_ = carry
        places = jnp.arange(len(text))
        new = (places >= begun) & (places < n)
        ended = (new[:, None] & (text[:, None] == stop)).any()
        return (n < end) & ~ended

    def one_round(carry):
        text, n, rounds, finite, cache, draft_cache = carry
        keys = None if key is None else jax.random.split(jax.random.fold_in(key, rounds), 3)
        start = jnp.maximum(n - 2, 0)
        last_two = jax.lax.dynamic_slice(text, (start,), (2,))
        pair, draft_cache = scores(1, draft_cache, last_two, start)
        logits, guesses, q = pair[n - 1 - start], [], []
        for i in range(window):
            finite &= jnp.isfinite(logits).all()
            q.append(chances(logits))
            guesses.append(choose(keys, 0, q[-1], i))
            if i < window - 1:
                following, draft_cache = scores(1, draft_cache, guesses[-1][None], n + i)
                logits = following[0]
        guessed, q = jnp.stack(guesses), jnp.stack(q)
        unread = jnp.concatenate([jax.lax.dynamic_slice(text, (n - 1,), (1,)), guessed])
        logits, cache = scores(0, cache, unread, n - 1)
        finite &= jnp.isfinite(logits).all()
        p, each = chances(logits), jnp.arange(window)
        u = 0.0 if keys is None else jax.random.uniform(keys[1], (window,), jnp.float32)
        kept = jnp.cumprod(u * q[each, guessed] < p[each, guessed]).sum()
        lacking = jnp.maximum(p[kept] - jnp.concatenate([q, jnp.zeros_like(q[:1])])[kept], 0)
        anew = choose(keys, 2, lacking)
        new = jnp.append(guessed, 0).at[kept].set(anew)
        text = jax.lax.dynamic_update_slice(text, new, (n,))
        return text, n + kept + 1, rounds + 1, finite, cache, draft_cache

    carry = text, length, 0, jnp.bool_(True), *caches
    text, _, rounds, finite, *_ = jax.lax.while_loop(go_on, one_round, carry)
    return text, rounds, finite


def choose(keys, stream, chances, i=None):
    """One by its probability; without keys the likeliest."""
    if keys is None:
        return chances.argmax().astype(jnp.int32)
    key = keys[stream] if i is None else jax.random.fold_in(keys[stream], i)
    return jax.random.categorical(key, jnp.log(chances)).astype(jnp.int32)
