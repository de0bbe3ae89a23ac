"""The learning rate over a run."""

import math

from reference.errors import InputError


def warmup_cosine(step, *, peak, warmup, steps, final=0.0):
    """Rise in a line to the peak while the moments are still guesses, then fall as half a cosine.

        step <= warmup:  peak · step / warmup
        after it:        final + (peak - final) (1 + cos(π p)) / 2,
                         p = (step - warmup) / (steps - warmup)

    step: from 1 to `steps` -> the rate of that step.  It stays at `final` from `steps` on.
    Raises InputError unless 0 <= warmup < steps.
    Source: Loshchilov & Hutter 2017, "SGDR", eq. 5; the warm-up: Goyal et al. 2017, sec. 2.2.
    """
    if not 0 <= warmup < steps:
        raise InputError(f"warmup is {warmup} of {steps} steps; give at least 0 and less than all")
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / (steps - warmup), 1)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
