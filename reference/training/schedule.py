"""The learning rate over a run, as functions of the step, which counts from 1.

optax, PyTorch and Hugging Face count from 0: with the same numbers their schedules give our rates
one step later, and first a rate of 0 where there is a warm-up: a step that changes nothing.
"""

import math

from reference.errors import InputError

# How a rate falls from 1 to 0, by the share p of the fall that is behind it.
SHAPES = {
    "linear": lambda p: 1 - p,
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
    "1-sqrt": lambda p: 1 - math.sqrt(p),
}


def constant(step, *, peak, warmup=0):
    """Rise in a line to the peak, and stay there.

        step <= warmup:  peak · step / warmup
        after it:        peak

    step: from 1 -> the rate of that step.
    Raises InputError for a step below 1, or a warm-up or peak below 0.
    Source: Goyal et al. 2017, sec. 2.2 (the warm-up).
    """
    check_schedule(step=step, warmup=warmup, peak=peak)
    return peak * step / warmup if step < warmup else peak


def linear(step, *, peak, warmup, steps, final=0.0, start=None):
    """Rise in a line to the peak, then fall in a line.

        step < warmup:  peak · step / warmup
        from it on:     final + (peak - final) (1 - p),   p = (step - start) / (steps - start)

    step: from 1 to `steps` -> the rate of that step.  It stays at `final` from `steps` on.
    start: where the falling line has the peak; if left out, where the warm-up ends.  BERT's
    released code has 0, so that its rate jumps to peak (1 - warmup / steps) after the warm-up;
    so has that of GPT-1's fine-tuning, where the line is also a factor of the warm-up.
    Raises InputError for a step below 1, a rate below 0, or unless 0 <= start <= warmup < steps.
    Source: Devlin et al. 2019, appendix A.2; Radford et al. 2018, sec. 4.1.
    """
    check_schedule(step=step, warmup=warmup, steps=steps, peak=peak, final=final)
    start = warmup if start is None else start
    if not 0 <= start <= warmup:
        raise InputError(
            f"start is {start}, with a warmup of {warmup}; give at least 0 and at most the warmup"
        )
    if step < warmup:
        return peak * step / warmup
    progress = min((step - start) / (steps - start), 1)
    return final + (peak - final) * (1 - progress)


def warmup_cosine(step, *, peak, warmup, steps, final=0.0):
    """Rise in a line to the peak while the moments are still guesses, then fall as half a cosine.

        step <= warmup:  peak · step / warmup
        after it:        final + (peak - final) (1 + cos(π p)) / 2,
                         p = (step - warmup) / (steps - warmup)

    step: from 1 to `steps` -> the rate of that step.  It stays at `final` from `steps` on.
    Raises InputError for a step below 1, a rate below 0, or unless 0 <= warmup < steps.
    Source: Loshchilov & Hutter 2017, "SGDR", eq. 5; the warm-up: Goyal et al. 2017, sec. 2.2.
    """
    check_schedule(step=step, warmup=warmup, steps=steps, peak=peak, final=final)
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / (steps - warmup), 1)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


def inverse_square_root(step, *, width, warmup, factor=1.0):
    """Rise in a line, then fall as the root of the step, for a run of any length.

        rate = factor · width^-½ · min(step^-½, step · warmup^-1.5)

    step: from 1 -> the rate of that step.  Its peak is factor · (width · warmup)^-½, at `warmup`.
    Raises InputError for a step, width or warm-up below 1, or a factor below 0.
    Used by the Transformer of 2017: factor 1, warm-up 4000.  The settings released with it, in
    tensor2tensor, have factor 2.
    Source: Vaswani et al. 2017, eq. 3.
    """
    check_schedule(step=step, factor=factor)
    for name, value in (("width", width), ("warmup", warmup)):
        if not 1 <= value < math.inf:
            raise InputError(f"{name} is {value!r}; give 1 or more")
    return factor * width**-0.5 * min(step**-0.5, step * warmup**-1.5)


def warmup_stable_decay(step, *, peak, warmup, decay, steps, final=0.0, shape="linear"):
    """Rise in a line, stay at the peak, and fall at the end: how long to stay can be settled late,
    and any checkpoint on the way can be finished.

        step <= warmup:         peak · step / warmup
        up to steps - decay:    peak
        after it:               final + (peak - final) f(p),   p = (step - (steps - decay)) / decay

        f(p) = 1 - p,  or (1 + cos(π p)) / 2,  or 1 - √p

    step: from 1 to `steps` -> the rate of that step.  It stays at `final` from `steps` on.
    decay: the number of steps that fall, the last ones;  shape: of f, "linear", "cosine" or
    "1-sqrt", as in Hugging Face's get_wsd_schedule, which has the cosine as its default, and
    starts its warm-up at `final`, not at 0.
    Raises InputError for a step below 1, a rate below 0, another shape, or unless
    0 <= warmup < steps and 1 <= decay <= steps - warmup.
    Source: Hu et al. 2024, "MiniCPM", sec. 4; "1-sqrt": Hägele et al. 2024.
    Differs from the paper: it leaves f open, and itself takes one that falls exponentially.
    """
    check_schedule(step=step, warmup=warmup, steps=steps, peak=peak, final=final)
    if not 1 <= decay <= steps - warmup:
        raise InputError(
            f"decay is {decay} of {steps} steps, {warmup} of which are the warmup; "
            "give at least 1 and at most the rest"
        )
    if shape not in SHAPES:
        raise InputError(f"shape is {shape!r}; give one of {', '.join(SHAPES)}")
    if step < warmup:
        return peak * step / warmup
    progress = min(max(step - (steps - decay), 0) / decay, 1)
    return final + (peak - final) * SHAPES[shape](progress)


def check_schedule(*, step, warmup=0, steps=None, **rates):
    """Raise InputError for what no schedule can have."""
    if not 1 <= step:
        raise InputError(f"step is {step!r}; steps count from 1: give 1 or more")
    if steps is None and not 0 <= warmup < math.inf:
        raise InputError(f"warmup is {warmup!r}; give at least 0")
    if steps is not None and not 0 <= warmup < steps:
        raise InputError(f"warmup is {warmup} of {steps} steps; give at least 0 and less than all")
    for name, value in rates.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} is {value!r}; give a number of at least 0")
