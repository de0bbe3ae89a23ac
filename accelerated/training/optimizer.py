"""From gradients to new parameters: optax's transformations, equal to the reference's steps.

    reference                           optax
    sgd                                 optax.sgd(rate)
    momentum                            optax.sgd(rate, momentum=decay)
    nesterov                            optax.sgd(rate, momentum=decay, nesterov=True)
    adam                                optax.adam(rate, beta1, beta2, epsilon)
    adamw                               adamw(rate, …), here
    moving_average                      optax.incremental_update(params, average, 1 - decay)
    moving_average, then debiased       optax.ema(decay)
    global_norm                         optax.tree.norm(gradients)
    clip_factor                         optax.clip_by_global_norm(limit), before the others

rate: a number, or one of `schedule`'s.  `optax.chain` puts several together.
"""

import jax
import jax.numpy as jnp
import optax

from accelerated.training import schedule
from reference.training.config import rate
from reference.training.optimizer import DECAYED, check_numbers


def optimizer(training, *, step=None):
    """Clipping and AdamW of a TrainingConfig: equal to the reference's, step by step.

    step: the steps done, where AdamW's count of them leaves out some, as those that overflowed: the
    rate is that of the step.
    """
    scheduled = rate(training, among=schedule)()
    return optax.chain(
        optax.clip_by_global_norm(training.clip),
        adamw(
            scheduled if step is None else lambda count: scheduled(step),
            beta1=training.beta1,
            beta2=training.beta2,
            epsilon=training.epsilon,
            weight_decay=training.weight_decay,
        ),
    )


def adamw(
    learning_rate,
    *,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.1,
    bias_correction=True,
):
    """`optax.adamw` with the reference's defaults and its choice of what decays.

    bias_correction: False is not in optax; with weight_decay=0 it is that of `adam`.
    """
    given = {} if callable(learning_rate) else {"learning_rate": learning_rate}
    check_numbers(beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay, **given)
    betas = {"b1": beta1, "b2": beta2, "eps": epsilon}
    if bias_correction:
        return optax.adamw(learning_rate, **betas, weight_decay=weight_decay, mask=decayed)
    return optax.chain(
        uncorrected(optax.scale_by_adam(**betas)),
        optax.add_decayed_weights(weight_decay, decayed),
        optax.scale_by_learning_rate(learning_rate),
    )


def uncorrected(adam):
    """`optax.scale_by_adam` without its corrections 1 - βᵗ: they are 1 where the count is large."""

    def update(gradients, state, params=None):
        largest = jnp.full_like(state.count, jnp.iinfo(state.count.dtype).max)
        updates, moved = adam.update(gradients, state._replace(count=largest), params)
        return updates, moved._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(adam.init, update)


def decayed(params):
    """Which parameters shrink, as a tree of booleans."""

    def is_decayed(path, _):
        return jax.tree_util.keystr(path[-1:], simple=True) in DECAYED

    return jax.tree_util.tree_map_with_path(is_decayed, params)
