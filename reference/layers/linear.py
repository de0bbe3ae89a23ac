"""Linear maps: each new feature is a weighted sum of all old ones."""

import numpy as np

__all__ = ["linear"]


def rows(x):
    """Flatten all axes but the last: (..., D) -> (N, D)."""
    return x.reshape(-1, x.shape[-1])


def linear(params, x):
    """Map the last axis by a matrix, and add a bias if there is one: how features are mixed.

        y = x W + b

    params: kernel W (D, F), bias b (F,) or absent.  x (..., D) -> y (..., F).
    Source: Goodfellow et al. 2016, "Deep learning", sec. 6.5.6, has the product's derivative.

    Backward: each factor of a product is differentiated by the other,
        dW = Σₙ xₙᵀ dyₙ,   db = Σₙ dyₙ,   dx = dy Wᵀ.
    """
    # One product of two matrices, whatever the leading axes: a single call of the BLAS.
    y = (rows(x) @ params["kernel"]).reshape(*x.shape[:-1], params["kernel"].shape[-1])
    if "bias" in params:
        np.add(y, params["bias"], out=y)  # in place: another array would double the time

    def backward(dy):
        dparams = {"kernel": rows(x).T @ rows(dy)}
        if "bias" in params:
            dparams["bias"] = rows(dy).sum(axis=0)
        return dparams, (rows(dy) @ params["kernel"].T).reshape(x.shape)

    return y, backward
