"""A small model learns from what a large one believes, not only from what is true."""

import numpy as np

from reference.layers.loss import check_positive, check_same_shape
from reference.layers.softmax import log_softmax

__all__ = ["distillation"]


def distillation(logits, *, teacher_logits, temperature):
    """How far a student's distribution is from its teacher's, both softened: the small
    probabilities, which say what resembles what, then count.

        loss = τ² mean over n of  Σᵥ p log(p / q),   p = softmax(tₙ/τ),   q = softmax(zₙ/τ)

    logits z (..., V) of the student, teacher_logits t (..., V), held fixed -> a scalar.  The factor
    keeps the gradient's size as τ grows: towards (z - t) / V, each less its mean.
    Raises InputError for unequal shapes, and unless τ is finite and above 0; a teacher's -inf
    rules a class out.
    Used by DistilBERT, with τ = 2.
    Source: Hinton et al. 2015, sec. 2.
    Differs from the paper: it takes off the teacher's entropy, a constant, so that 0 is the least.

    Backward: log q has the derivative (one-hot - q) / τ, and Σ p = 1,
        dz = τ (q - p) / N.
    """
    check_same_shape(teacher_logits, logits, names=("teacher_logits", "logits"))
    check_positive(temperature, name="temperature")
    count = max(logits.size // logits.shape[-1], 1)
    log_q, _ = log_softmax(logits / temperature)
    log_p, _ = log_softmax(teacher_logits.astype(logits.dtype) / temperature)
    p = np.exp(log_p)
    difference = np.subtract(log_p, log_q, where=p > 0, out=np.zeros_like(p))  # 0 log 0 is 0
    loss = temperature**2 / count * np.vecdot(p, difference).sum()

    def backward(dloss):
        return (temperature / count * dloss) * (np.exp(log_q) - p)

    return loss, backward
