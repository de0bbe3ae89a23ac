"""Scores to probabilities."""

import numpy as np

__all__ = ["log_softmax", "softmax"]


def softmax(x):
    """Turn the last axis into a distribution: scores of any size become probabilities.

        y = exp x / Σ exp x

    x (..., S) -> y (..., S).  The largest score is taken off first, which changes nothing but keeps
    exp from overflowing.  A row of -inf gives zeros, and its gradient is zero.
    Source: Bridle 1990, "Probabilistic interpretation of feedforward classification network
    outputs", sec. 4.

    Backward: each output depends on its own input and, through the sum, on all,
        dx = y ∘ (dy - Σ y ∘ dy).
    """
    highest = x.max(axis=-1, keepdims=True)
    shifted = x - np.where(highest == -np.inf, 0, highest)
    weights = np.exp(shifted, out=shifted)
    total = weights.sum(axis=-1, keepdims=True)
    y = np.divide(weights, np.where(total == 0, 1, total), out=weights)

    def backward(dy):
        dx = dy - np.vecdot(y, dy)[..., None]
        dx *= y
        return dx

    return y, backward


def log_softmax(x):
    """The logarithm of `softmax`, exact where the probability itself would round to 0.

        y = x - log Σ exp x

    x (..., S) -> y (..., S).  Each row needs a finite score.
    Source: Goodfellow et al. 2016, "Deep learning", eq. 6.30.

    Backward: the derivative of log Σ exp x is softmax x,
        dx = dy - exp(y) Σ dy.
    """
    shifted = x - x.max(axis=-1, keepdims=True)
    y = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    def backward(dy):
        return dy - np.exp(y) * dy.sum(axis=-1, keepdims=True)

    return y, backward
