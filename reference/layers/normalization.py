"""Normalization of each position over its features."""

import numpy as np

from reference.layers.linear import rows

__all__ = ["layer_norm"]


def layer_norm(params, x, *, epsilon=1e-5):
    """Give every position mean 0 and variance 1, then a learned scale and bias: no layer has to
    follow the drift of those before it.

        n = (x - mean x) / √(var x + ε),   y = scale ∘ n + bias

    params: scale (D,), bias (D,).  x (..., D) -> y (..., D).  The variance is the population's.
    Source: Ba et al. 2016, eq. 3.

    Backward: x reaches n directly, through the mean and through the variance; with dn = scale ∘ dy,
        dx = (dn - mean dn - n ∘ mean(dn ∘ n)) / √(var x + ε).
    """
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.vecdot(centered, centered)[..., None] / x.shape[-1]
    inverse_std = 1 / np.sqrt(variance + epsilon)
    n = np.multiply(centered, inverse_std, out=centered)
    y = params["scale"] * n
    np.add(y, params["bias"], out=y)

    def backward(dy):
        dparams = {"scale": rows(dy * n).sum(axis=0), "bias": rows(dy).sum(axis=0)}
        dn = params["scale"] * dy
        mean_dn_n = np.vecdot(dn, n)[..., None] / x.shape[-1]
        dn -= dn.mean(axis=-1, keepdims=True)
        dn -= n * mean_dn_n
        dn *= inverse_std
        return dparams, dn  # now dx

    return y, backward
