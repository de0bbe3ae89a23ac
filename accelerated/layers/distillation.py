"""A small model learns from what a large one believes, not only from what is true."""

import jax
import optax

from accelerated.layers.loss import widen
from accelerated.layers.softmax import log_softmax
from reference.layers.loss import check_positive, check_same_shape

__all__ = ["distillation"]


def distillation(logits, *, teacher_logits, temperature):
    """In float32 or wider."""
    check_same_shape(teacher_logits, logits, names=("teacher_logits", "logits"))
    check_positive(temperature, name="temperature")
    student = widen(logits)
    teacher = jax.lax.stop_gradient(teacher_logits).astype(student.dtype)
    each = optax.losses.kl_divergence_with_log_targets(
        log_softmax(student / temperature), log_softmax(teacher / temperature)
    )
    return temperature**2 * each.sum() / max(each.size, 1)
