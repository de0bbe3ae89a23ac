"""Losses of regression: how far numbers are from the numbers that they should be."""

import optax

from accelerated.layers.softmax import widen
from reference.layers.loss import check_positive, check_same_shape

__all__ = ["huber", "squared_error"]


def squared_error(prediction, target):
    """In float32 or wider."""
    check_same_shape(target, prediction, names=("target", "prediction"))
    each = optax.losses.squared_error(widen(prediction), widen(target))
    return each.sum() / max(each.size, 1)


def huber(prediction, target, *, delta=1.0):
    """In float32 or wider."""
    check_same_shape(target, prediction, names=("target", "prediction"))
    check_positive(delta, name="delta")
    each = optax.losses.huber_loss(widen(prediction), widen(target), delta=delta)
    return each.sum() / max(each.size, 1)
