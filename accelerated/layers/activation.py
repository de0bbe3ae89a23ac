"""Elementwise nonlinearities, and softmax."""

import jax
import jax.numpy as jnp

__all__ = ["gelu", "gelu_tanh", "log_softmax", "softmax"]


def gelu(x):
    """`jax.nn.gelu` is the tanh form unless told otherwise."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x):
    return jax.nn.gelu(x, approximate=True)


def softmax(x):
    """A row of -inf gives zeros, where `jax.nn.softmax` alone would give NaN."""
    return jax.nn.softmax(x, axis=-1, where=x > -jnp.inf)


def log_softmax(x):
    return jax.nn.log_softmax(x, axis=-1)
