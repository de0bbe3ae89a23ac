"""Regularization by noise."""

import jax
import jax.numpy as jnp

from reference.layers.dropout import check_rate

__all__ = ["dropout", "stochastic_depth"]


def dropout(x, *, rate, key=None):
    """Not `nnx.Dropout`, which keeps a random state among the parameters."""
    check_rate(rate)
    if key is None or rate == 0:
        return x
    keep = jax.random.uniform(key, x.shape, jnp.float32) >= rate
    return x * (keep.astype(x.dtype) / (1 - rate))


def stochastic_depth(x, *, rate, key=None):
    kept = dropout(jnp.ones(len(x), x.dtype), rate=rate, key=key)
    return x * kept.reshape(-1, *(1,) * (x.ndim - 1))
