"""From scores to a choice: which token comes next.

Options, the same in all that writes, in the order in which they act:
    repetition_penalty   scores of tokens that are there already, divided (or multiplied) by it
    temperature          below 1 sharper, above 1 flatter;  0: the likeliest alone
    top_k                only the k likeliest
    top_p                only the likeliest that together have the probability p
    min_p                only those with p times the probability of the likeliest
"""

import numpy as np

from reference import random
from reference.errors import InputError


def restrict(logits, *, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Sharpen or flatten a distribution, and cut off its tail, where the model is least reliable.

        p ∝ exp(z / τ)
        top_k: over the k largest z alone
        top_p: over the fewest of the largest whose sum is top_p or more
        min_p: over those with p >= min_p · max p

    logits z (..., V) -> (..., V): z / τ, and -inf where cut off; ties go to the lower index, so
    that exactly k stay.  A temperature τ of 0 leaves the largest alone: the limit of p.  Each
    works on what the one before has left.  None cuts nothing.
    Raises InputError for options that `check_sampling` refuses.
    Source: Ackley et al. 1985, eq. 5 (temperature); Fan et al. 2018, sec. 5.4 (top-k); Holtzman et
    al. 2020, sec. 3.1 (top-p); Nguyen et al. 2024 (min-p).
    """
    check_sampling(logits.shape[-1], temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    if temperature == 0:
        return restrict(logits, top_k=1)
    scaled = logits / logits.dtype.type(temperature)
    order = np.argsort(-logits, axis=-1, kind="stable")
    if top_k is not None:
        np.put_along_axis(scaled, order[..., top_k:], -np.inf, axis=-1)
    if top_p is not None:
        falling = probabilities(np.take_along_axis(scaled, order, axis=-1))
        before = np.cumsum(falling, axis=-1) - falling
        tail = np.take_along_axis(before >= top_p, np.argsort(order, axis=-1), axis=-1)
        scaled[tail] = -np.inf
    if min_p is not None:
        shares = probabilities(scaled)
        scaled[shares < min_p * shares.max(axis=-1, keepdims=True)] = -np.inf
    return scaled


def probabilities(logits):
    """softmax over the last axis, in float64: sums of it are compared with a bound."""
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return wide / wide.sum(axis=-1, keepdims=True)


def penalize(logits, written, *, repetition_penalty):
    """Make tokens that are there already less likely to come again.

        z / ρ where z > 0,   z · ρ elsewhere,   for each token of the text

    logits z (V,);  written (T,), the text so far, prompt and all;  ρ: 1 changes nothing, 1.2 is
    usual -> (V,).
    Source: Keskar et al. 2019, "CTRL", sec. 4.1.  Differs from the paper: there it is z / ρ of any
    sign, which makes tokens with z < 0 likelier; ours is Hugging Face's.
    """
    seen = np.unique(written)
    changed = logits.copy()
    z, penalty = logits[seen], logits.dtype.type(repetition_penalty)
    changed[seen] = np.where(z > 0, z / penalty, z * penalty)
    return changed


def sample(key, logits, **options):
    """Choose a token for each row of scores: the likeliest, or with a key one by its probability.

    logits (..., V) -> (...) int64;  options: of `restrict`.  Without a key the largest, the lower
    index of equal ones; with one, `random.categorical` of the restricted logits, which at a
    temperature of 0 is the same.
    Raises InputError as `restrict` and `random.categorical` do.
    """
    if key is None:
        return logits.argmax(axis=-1)
    return random.categorical(key, restrict(logits, **options))


def check_sampling(
    vocabulary, *, temperature=1.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0
):
    """Raise InputError unless these restrict a vocabulary to something that can be drawn from."""
    # Far beyond these bounds nothing changes but that z / τ is no longer a float32.
    if not (temperature == 0 or 1e-9 <= temperature <= 1e9):
        raise InputError(
            f"temperature is {temperature}; give a number in [1e-9, 1e9], "
            "or 0 for the likeliest token each time"
        )
    if top_k is not None and not (isinstance(top_k, int | np.integer) and 1 <= top_k <= vocabulary):
        raise InputError(
            f"top_k is {top_k}; give an integer from 1 to the vocabulary's {vocabulary}, "
            "or None for all tokens"
        )
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise InputError(f"{name} is {share}; give a number in (0, 1], or None for all tokens")
    if not 1e-3 <= repetition_penalty <= 1e3:
        raise InputError(
            f"repetition_penalty is {repetition_penalty}; give a number in [0.001, 1000]: 1 for "
            "none, 1.2 for a little"
        )
