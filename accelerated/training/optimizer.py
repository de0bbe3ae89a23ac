"""From gradients to new parameters."""

import jax
import optax

from reference.training.optimizer import DECAYED


def optimizer(training):
    """Clipping and AdamW of a TrainingConfig, by optax: equal to the reference's, step by step."""
    return optax.chain(
        optax.clip_by_global_norm(training.clip),
        optax.adamw(
            lambda count: warmup_cosine(count + 1, training),
            b1=training.beta1,
            b2=training.beta2,
            eps=training.epsilon,
            weight_decay=training.weight_decay,
            mask=decayed,
        ),
    )


def warmup_cosine(step, training):
    """optax's schedule; its step counts from 0, ours from 1, lest the first rate be 0."""
    schedule = optax.warmup_cosine_decay_schedule(
        0, training.learning_rate, training.warmup, training.steps, training.final_learning_rate
    )
    return schedule(step)


def decayed(params):
    """Which parameters shrink, as a tree of booleans."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)
