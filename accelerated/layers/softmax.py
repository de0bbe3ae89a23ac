"""Scores to probabilities."""

import jax
import jax.numpy as jnp

__all__ = ["log_softmax", "softmax", "softmax_with_sink"]


@jax.custom_vjp
def softmax(x):
    """Equals `reference.layers.activation.softmax`, its backward too; faster because JAX's own goes
    through the maximum and both guards once more.  A row of -inf gives zeros.
    """
    highest = x.max(axis=-1, keepdims=True)
    weights = jnp.exp(x - jnp.where(highest == -jnp.inf, 0, highest))
    total = weights.sum(axis=-1, keepdims=True)
    return weights * (1 / jnp.where(total == 0, 1, total))


def _softmax_forward(x):
    y = softmax(x)
    return y, y


def _softmax_backward(y, dy):
    return (y * (dy - (y * dy).sum(axis=-1, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


def log_softmax(x):
    return jax.nn.log_softmax(x, axis=-1)


def softmax_with_sink(x, sink):
    score = sink[:, None, None].astype(x.dtype)
    highest = jax.lax.stop_gradient(jnp.maximum(x.max(axis=-1, keepdims=True), score))
    weights = jnp.exp(x - highest)
    return weights / (weights.sum(axis=-1, keepdims=True) + jnp.exp(score - highest))
