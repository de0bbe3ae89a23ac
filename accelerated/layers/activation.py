"""Elementwise nonlinearities."""

import jax
import jax.numpy as jnp
from jax.nn import relu, sigmoid, silu, softplus
from jax.numpy import tanh

from reference.layers.activation import check_cap

__all__ = [
    "relu",
    "relu_squared",
    "sigmoid",
    "tanh",
    "softplus",
    "silu",
    "quick_gelu",
    "gelu",
    "gelu_tanh",
    "soft_cap",
]


def relu_squared(x):
    return jnp.square(relu(x))


def quick_gelu(x):
    return x * sigmoid(1.702 * x)


def gelu(x):
    """`jax.nn.gelu` is the tanh form unless told otherwise."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x):
    return jax.nn.gelu(x, approximate=True)


def soft_cap(x, *, cap):
    check_cap(cap)
    return cap * tanh(x / cap)
