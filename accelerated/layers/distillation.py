"""A small model learns from what a large one believes, not only from what is true."""

import jax
import jax.numpy as jnp

from accelerated.layers.softmax import log_softmax, widen
from reference.layers.loss import check_positive, check_same_shape

__all__ = ["distillation"]


def distillation(logits, *, teacher_logits, temperature):
    """In float32 or wider.  Not optax's divergence: NaN where the teacher rules out a class."""
    check_same_shape(teacher_logits, logits, names=("teacher_logits", "logits"))
    check_positive(temperature, name="temperature")
    student = widen(logits)
    teacher = jax.lax.stop_gradient(teacher_logits).astype(student.dtype)
    log_q, log_p = log_softmax(student / temperature), log_softmax(teacher / temperature)
    p = jnp.exp(log_p)
    each = (p * jnp.where(p > 0, log_p - log_q, 0)).sum(axis=-1)
    return temperature**2 * each.sum() / max(each.size, 1)
