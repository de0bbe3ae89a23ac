"""Scores to probabilities: in float32 or wider, and then in the dtype of the scores."""

import jax
import jax.numpy as jnp

__all__ = ["log_softmax", "softmax", "softmax_with_sink"]


@jax.custom_vjp
def softmax(x):
    """Equals `reference.layers.softmax.softmax`, its backward too; faster because JAX's own goes
    through the maximum and both guards once more.  A row of -inf gives zeros.
    """
    wide = widen(x)
    highest = wide.max(axis=-1, keepdims=True)
    weights = jnp.exp(wide - jnp.where(highest == -jnp.inf, 0, highest))
    total = weights.sum(axis=-1, keepdims=True)
    return (weights * (1 / jnp.where(total == 0, 1, total))).astype(x.dtype)


def _softmax_forward(x):
    y = softmax(x)
    return y, y


def _softmax_backward(y, dy):
    wide_y, wide_dy = widen(y), widen(dy)
    dx = wide_y * (wide_dy - (wide_y * wide_dy).sum(axis=-1, keepdims=True))
    return (dx.astype(y.dtype),)


softmax.defvjp(_softmax_forward, _softmax_backward)


def log_softmax(x):
    return jax.nn.log_softmax(widen(x), axis=-1).astype(x.dtype)


def softmax_with_sink(x, sink):
    wide, score = widen(x), widen(sink)[:, None, None]
    highest = jax.lax.stop_gradient(jnp.maximum(wide.max(axis=-1, keepdims=True), score))
    weights = jnp.exp(wide - highest)
    total = weights.sum(axis=-1, keepdims=True) + jnp.exp(score - highest)
    return (weights / total).astype(x.dtype)


def widen(x):
    """In float32 or wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
