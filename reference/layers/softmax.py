"""Scores to probabilities: any numbers become shares of one, and only differences count."""

import numpy as np

__all__ = ["log_softmax", "softmax", "softmax_with_sink"]


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


def softmax_with_sink(x, sink):
    """`softmax` over the last axis and one score more, which nothing is read from: a head that
    finds nothing worth its attention can give it away.

        y = exp x / (exp sink + Σ exp x)

    x (..., H, T, S), sink (H,), a learned score for each head -> y (..., H, T, S), whose rows sum
    to less than 1.  A row of -inf gives zeros.  Used by GPT-OSS; with sink = 0 it is Miller's
    "softmax plus one".
    Source: Xiao et al. 2023, "Efficient streaming language models with attention sinks", sec. 3.3,
    has the sink with the score 0.

    Backward: softmax's, for the sink's own share of the rest reaches no output but through the sum,
        dx = y ∘ (dy - Σ y ∘ dy),   dsink = -Σ (1 - Σ y) (Σ y ∘ dy).
    """
    score = sink[:, None, None]
    highest = np.maximum(x.max(axis=-1, keepdims=True), score)
    weights = np.exp(x - highest)
    share = np.exp(score - highest)
    total = weights.sum(axis=-1, keepdims=True) + share
    y = np.divide(weights, total, out=weights)

    def backward(dy):
        mean_dy = np.vecdot(y, dy)[..., None]
        dscore = -(share / total) * mean_dy
        dsink = dscore.reshape(-1, *dscore.shape[-3:]).sum(axis=(0, 2, 3))
        return y * (dy - mean_dy), dsink

    return y, backward
