"""From scores to a choice: which token comes next."""

import numpy as np

from reference import random
from reference.errors import InputError


def restrict(logits, *, temperature=1.0, top_k=None):
    """Sharpen or flatten a distribution, and cut off its tail, where the model is least reliable.

        p ∝ exp(z / τ) over the k largest z, 0 elsewhere

    logits z (..., V) -> (..., V): z / τ, and -inf but at the k largest of each row; ties at the
    k-th place go to the lower index, so that exactly k stay.  A temperature τ of 0 leaves the
    largest alone: the limit of p.  top_k=None cuts nothing.
    Raises InputError for a temperature or top_k that `check_sampling` refuses.
    Source: Ackley et al. 1985, eq. 5 (temperature); Fan et al. 2018, sec. 5.4 (top-k).
    """
    check_sampling(logits.shape[-1], temperature=temperature, top_k=top_k)
    if temperature == 0:
        return restrict(logits, top_k=1)
    scaled = logits / logits.dtype.type(temperature)
    if top_k is not None:
        tail = np.argsort(-logits, axis=-1, kind="stable")[..., top_k:]
        np.put_along_axis(scaled, tail, -np.inf, axis=-1)
    return scaled


def sample(key, logits, *, temperature=1.0, top_k=None):
    """Choose a token for each row of scores: the likeliest, or with a key one by its probability.

    logits (..., V) -> (...) int64.  Without a key the largest, the lower index of equal ones; with
    one, `random.categorical` of the restricted logits, which at a temperature of 0 is the same.
    Raises InputError as `restrict` and `random.categorical` do.
    """
    if key is None:
        return logits.argmax(axis=-1)
    return random.categorical(key, restrict(logits, temperature=temperature, top_k=top_k))


def check_sampling(vocabulary, *, temperature, top_k):
    """Raise InputError unless these restrict a vocabulary to something that can be drawn from."""
    # Far beyond these bounds nothing changes but that z / τ is no longer a float32.
    if not (temperature == 0 or 1e-9 <= temperature <= 1e9):
        raise InputError(
            f"temperature is {temperature}; give a number in [1e-9, 1e9], "
            "or 0 for the likeliest token each time"
        )
    if top_k is None:
        return
    if not isinstance(top_k, int | np.integer) or not 1 <= top_k <= vocabulary:
        raise InputError(
            f"top_k is {top_k}; give an integer from 1 to the vocabulary's {vocabulary}, "
            "or None for all tokens"
        )
