"""The learning rate over a run, as optax's schedules.

Each is the reference's function of the same name and arguments, less the step: it makes a function
of optax's count of the steps done, which is one less than our step.

    optax.sgd(linear(peak=0.1, warmup=10, steps=100))
"""

import jax.numpy as jnp
import optax

from reference.training import schedule as reference


def constant(*, peak, warmup=0):
    """optax.warmup_constant_schedule stays at 0 for ever where the warm-up is 0 steps long."""
    reference.constant(1, peak=peak, warmup=warmup)
    return risen(optax.constant_schedule(peak), peak=peak, warmup=warmup)


def linear(*, peak, warmup, steps, final=0.0, start=None):
    reference.linear(1, peak=peak, warmup=warmup, steps=steps, final=final, start=start)
    start = warmup if start is None else start
    fall = optax.linear_schedule(peak, final, steps - start)
    return risen(lambda count: fall(count + warmup - start), peak=peak, warmup=warmup)


def warmup_cosine(*, peak, warmup, steps, final=0.0):
    reference.warmup_cosine(1, peak=peak, warmup=warmup, steps=steps, final=final)
    return from_step_1(optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, final))


def inverse_square_root(*, width, warmup, factor=1.0):
    reference.inverse_square_root(1, width=width, warmup=warmup, factor=factor)
    scale = factor * width**-0.5
    return from_step_1(lambda step: scale * jnp.minimum(step**-0.5, step * warmup**-1.5))


def warmup_stable_decay(*, peak, warmup, decay, steps, final=0.0, shape="linear"):
    sizes = {"warmup": warmup, "decay": decay, "steps": steps}
    reference.warmup_stable_decay(1, peak=peak, **sizes, final=final, shape=shape)
    unit = {
        "linear": optax.linear_schedule(1.0, 0.0, decay),
        "cosine": optax.cosine_decay_schedule(1.0, decay),
        "1-sqrt": lambda count: 1 - jnp.sqrt(jnp.clip(count / decay, 0, 1)),
    }[shape]

    def stay_and_fall(count):
        fallen = unit(jnp.maximum(count - (steps - decay - warmup), 0))
        return final + (peak - final) * fallen

    return risen(stay_and_fall, peak=peak, warmup=warmup)


def risen(schedule, *, peak, warmup):
    """A schedule, counted from 0, after a warm-up."""
    rise = optax.linear_schedule(0.0, peak, warmup)
    return from_step_1(optax.join_schedules([rise, schedule], [warmup]))


def from_step_1(schedule):
    """A function of our step, as one of the steps done.  In float64 where JAX computes in it, lest
    a count of int32 make float32 rates.
    """
    return lambda count: schedule(jnp.asarray(count + 1, float))
