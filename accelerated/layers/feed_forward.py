"""Computation at each position by itself."""

from flax import nnx

from accelerated.layers.activation import gelu_tanh
from accelerated.layers.linear import Linear

__all__ = ["FeedForward"]


class FeedForward(nnx.Module):
    def __init__(self, width, *, hidden, rngs):
        self.up = Linear(width, hidden, rngs=rngs)
        self.down = Linear(hidden, width, rngs=rngs)

    def __call__(self, x, *, activation=gelu_tanh):
        return self.down(activation(self.up(x)))
