"""Losses of regression: how far numbers are from the numbers that they should be."""

import numpy as np

from reference.layers.loss import check_positive, check_same_shape

__all__ = ["huber", "squared_error"]


def squared_error(prediction, target):
    """The mean of the squared differences: least for the mean of what is to be predicted.

        loss = mean over n of  (xₙ - yₙ)²

    prediction x (...) and target y (...) -> a scalar, 0 if empty.  Both are differentiated: whose
    target is fixed drops its gradient.
    Raises InputError for unequal shapes: a (B, 1) less a (B,) would be a (B, B), in silence.
    Source: Goodfellow et al. 2016, "Deep learning", sec. 5.1.4.

    Backward: dx = 2 (x - y) / N,   dy = -dx.
    """
    check_same_shape(target, prediction, names=("target", "prediction"))
    count = max(prediction.size, 1)
    error = prediction - target
    loss = (error * error).sum() / count

    def backward(dloss):
        dprediction = (2 / count * dloss) * error
        return dprediction, -dprediction

    return loss, backward


def huber(prediction, target, *, delta=1.0):
    """Half the squared error where it is small, linear beyond: one outlier pulls no harder than δ.

        loss = mean over n of  cₙ (eₙ - cₙ/2),   e = x - y,   c = e clipped to [-δ, δ]

    which is e²/2 where |e| <= δ, and δ (|e| - δ/2) elsewhere.
    prediction x (...) and target y (...) -> a scalar, 0 if empty.  Both are differentiated.
    Raises InputError for unequal shapes, and unless δ > 0.
    Used by DQN, with δ = 1, where it is called clipping the error (Mnih et al. 2015, methods).
    Source: Huber 1964, "Robust estimation of a location parameter".

    Backward: the slope of each part is c,
        dx = c / N,   dy = -dx.
    """
    check_same_shape(target, prediction, names=("target", "prediction"))
    check_positive(delta, name="delta")
    count = max(prediction.size, 1)
    error = prediction - target
    clipped = np.clip(error, -delta, delta)
    loss = (clipped * (error - 0.5 * clipped)).sum() / count

    def backward(dloss):
        dprediction = (dloss / count) * clipped
        return dprediction, -dprediction

    return loss, backward
