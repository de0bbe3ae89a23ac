"""Regularization by noise."""

import numpy as np

from reference import random
from reference.errors import InputError

__all__ = ["dropout", "stochastic_depth"]


def dropout(x, *, rate, key=None):
    """Zero each element with probability `rate` and scale the rest, so that the mean stays: no
    feature can rely on another being there.

        y = x ∘ keep / (1 - rate)

    x (...) -> y (...).  Without a key, the identity.  The mask compares float32 uniforms in every
    precision, so that float32 and float64 runs drop the same elements.
    Raises InputError for a rate outside [0, 1).
    Source: Srivastava et al. 2014, sec. 4, in the inverted form of its sec. 10.

    Backward: what was dropped had no effect,
        dx = dy ∘ keep / (1 - rate).
    """
    check_rate(rate)
    if key is None or rate == 0:
        return x, lambda dy: dy
    keep = random.uniform(key, x.shape) >= rate
    scale = keep.astype(x.dtype) / (1 - float(rate))
    return x * scale, lambda dy: dy * scale


def stochastic_depth(x, *, rate, key=None):
    """Drop a residual branch for whole samples: those pass the layer by, as if the network were
    shallower.

        y = x ∘ keep / (1 - rate),   one number of keep for each sample

    x (B, ...) -> y (B, ...), what a layer would add to the residual stream.  Without a key, the
    identity.  Equal to the `dropout` of ones (B,), broadcast over all other axes.
    Raises InputError for a rate outside [0, 1).
    Source: Huang et al. 2016, "Deep networks with stochastic depth", sec. 3.
    Differs from the paper: a draw for each sample, where it has one for the whole batch, and what
    is kept is scaled up in training, where it scales down in testing; both as timm has it.

    Backward:  dx = dy ∘ keep / (1 - rate).
    """
    kept, _ = dropout(np.ones(len(x), x.dtype), rate=rate, key=key)
    scale = kept.reshape(-1, *(1,) * (x.ndim - 1))
    return x * scale, lambda dy: dy * scale


def check_rate(rate):
    """Raise InputError unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise InputError(f"the dropout rate is {rate}; give a number in [0, 1)")
