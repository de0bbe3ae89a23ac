"""Computation at each position by itself."""

from flax import nnx

from accelerated.layers.activation import gelu, gelu_tanh, relu, silu
from accelerated.layers.linear import Linear

__all__ = ["FeedForward", "GatedFeedForward", "ReGLU", "GeGLU", "SwiGLU"]


class FeedForward(nnx.Module):
    def __init__(self, width, *, hidden, rngs, use_bias=True):
        self.up = Linear(width, hidden, use_bias=use_bias, rngs=rngs)
        self.down = Linear(hidden, width, use_bias=use_bias, rngs=rngs)

    def __call__(self, x, *, activation=gelu_tanh):
        return self.down(activation(self.up(x)))


class GatedFeedForward(nnx.Module):
    """Without biases unless told otherwise, as in the paper."""

    def __init__(self, width, *, hidden, rngs, use_bias=False):
        self.gate = Linear(width, hidden, use_bias=use_bias, rngs=rngs)
        self.up = Linear(width, hidden, use_bias=use_bias, rngs=rngs)
        self.down = Linear(hidden, width, use_bias=use_bias, rngs=rngs)

    def __call__(self, x, *, activation):
        return self.down(activation(self.gate(x)) * self.up(x))


class ReGLU(GatedFeedForward):
    def __call__(self, x):
        return super().__call__(x, activation=relu)


class GeGLU(GatedFeedForward):
    def __call__(self, x):
        return super().__call__(x, activation=gelu)


class SwiGLU(GatedFeedForward):
    def __call__(self, x):
        return super().__call__(x, activation=silu)
