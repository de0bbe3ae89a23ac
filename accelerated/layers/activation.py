"""Elementwise nonlinearities."""

import jax

__all__ = ["gelu", "gelu_tanh"]


def gelu(x):
    """`jax.nn.gelu` is the tanh form unless told otherwise."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x):
    return jax.nn.gelu(x, approximate=True)
