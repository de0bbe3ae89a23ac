"""Speculative decoding: a small model guesses tokens ahead, the large one checks them at once.

To score five tokens costs a large model hardly more than to score one, for either way all its
weights are read.  What is written has exactly the large model's distribution.
"""

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.inference.cache import decode, make_cache
from reference.inference.decoding import check_finite, check_generation
from reference.inference.sampling import probabilities, restrict


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
    """Go on with a text as `generate` does, with the help of a draft model.

        x̃₁ … x̃γ ~ q, the draft's;   x̃ᵢ is kept with the probability min(1, p(x̃ᵢ) / q(x̃ᵢ)), p the
        model's, if all before it were;   the first that is not is drawn anew from
        max(p - q, 0) / Σ max(p - q, 0);   where all are kept, one more is drawn from p

    A token x then comes with min(p, q) + (1 - Σ min(p, q)) max(p - q, 0) / Σ max(p - q, 0) = p.

    tokens (T,), the prompt -> the new tokens (n,) int64, `steps` or fewer as in `generate`, and in
    how many rounds, each of which reads the large model once.  window: γ.  Without a key, or at a
    temperature of 0, the likeliest each time: the same text as `generate`'s.  sampling: of
    `restrict`, for both models.  Keys: round r's is fold_in(key, r), split in the order guesses,
    of which the i-th has fold_in(…, i); what is kept; the one that is drawn anew.
    Raises InputError as `generate`, for models of two vocabularies, and where the prompt, `steps`
    and the window are longer than the context of either.
    Source: Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2.
    """
    check_speculation(tokens, steps, config, draft_config, window, key=key, stop=stop, **sampling)
    greedy = key is None or sampling.get("temperature") == 0

    def chances(logits):
        check_finite(np.isfinite(logits).all())
        likeliest = {"temperature": 0.0} if greedy else sampling
        return probabilities(restrict(logits, **likeliest)).astype(logits.dtype)

    length, dtype = len(tokens) + steps + window, tree.leaves(params)[0].dtype
    cache, draft_cache = (
        make_cache(c, batch=1, length=length, dtype=dtype) for c in (config, draft_config)
    )
    text, read, draft_read, rounds = tokens.astype(np.int64), 0, 0, 0
    while len(text) < len(tokens) + steps and not set(text[len(tokens) :].tolist()) & set(stop):
        keys = [None] * 3 if greedy else list(random.split(random.fold_in(key, rounds), 3))
        guessed, q = text, []
        for i in range(window):
            unread = guessed[None, draft_read:]
            logits = decode(
                draft_params, draft_cache, tokens=unread, start=draft_read, config=draft_config
            )
            draft_read = len(guessed)
            q.append(chances(logits[0, -1]))
            guess_key = None if greedy else random.fold_in(keys[0], i)
            guessed = np.append(guessed, choose(guess_key, q[-1]))
        logits = decode(params, cache, tokens=guessed[None, read:], start=read, config=config)
        p = chances(logits[0, -window - 1 :])
        kept = number_kept(guessed[len(text) :], p, np.stack(q), keys[1])
        rest = p[kept] if kept == window else np.maximum(p[kept] - q[kept], 0)
        read = len(text) + kept
        text = np.append(guessed[:read], choose(keys[2], rest))
        draft_read = min(draft_read, read)
        rounds += 1
    return until(text[len(tokens) :][:steps], stop), rounds


def number_kept(guesses, p, q, key):
    """How many guesses (γ,) are kept, of the first ones; p (γ + 1, V) and q (γ, V)."""
    each = np.arange(len(guesses))
    wanted, offered = p[each, guesses], q[each, guesses]
    chance = np.zeros(len(guesses)) if key is None else random.uniform(key, (len(guesses),))
    return int(np.cumprod(chance * offered < wanted).sum())


def choose(key, chances):
    """One by its probability; without a key the likeliest.  chances (V,), of any sum."""
    if key is None:
        return int(chances.argmax())
    with np.errstate(divide="ignore"):
        return int(random.categorical(key, np.log(chances)))


def until(written, stop):
    """What was written, up to the first token of `stop`."""
    ends = np.flatnonzero(np.isin(written, stop))
    return written[: ends[0] + 1] if len(ends) else written


def check_speculation(tokens, steps, config, draft_config, window, **options):
    """Raise DtypeError or InputError for what `speculate` cannot work with."""
    if config.vocabulary != draft_config.vocabulary:
        raise InputError(
            f"the draft's vocabulary has {draft_config.vocabulary} tokens, the model's "
            f"{config.vocabulary}; give a draft with the same tokenizer"
        )
    if not isinstance(window, int) or window < 1:
        raise InputError(f"window is {window!r}; give the number of guesses, an integer from 1 on")
    for either in (config, draft_config):
        check_generation(tokens, steps, either, **options)
        check_generation(tokens, steps + window, either, **options)
