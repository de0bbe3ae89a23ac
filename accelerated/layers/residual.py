"""How a sub-layer is wired to the residual stream.

sublayer is a module; norm makes one: `partial(LayerNorm, width)`.  A call hands on to the sub-layer
what it is given beside the stream, and `options`, a dict of keyword arguments.
"""

import jax.numpy as jnp
from flax import nnx

from accelerated.layers.dropout import dropout

__all__ = ["DeepNorm", "LayerScale", "PostNorm", "PreNorm", "ReZero", "SandwichNorm"]


class PostNorm(nnx.Module):
    def __init__(self, sublayer, *, norm):
        self.sublayer, self.norm = sublayer, norm()

    def __call__(self, x, *others, drop=dropout, rate=0.0, key=None, options=None):
        return self.norm(x + drop(self.sublayer(x, *others, **(options or {})), rate=rate, key=key))


class PreNorm(nnx.Module):
    def __init__(self, sublayer, *, norm):
        self.norm, self.sublayer = norm(), sublayer

    def __call__(self, x, *others, drop=dropout, rate=0.0, key=None, options=None):
        change = self.sublayer(self.norm(x), *others, **(options or {}))
        return x + drop(change, rate=rate, key=key)


class SandwichNorm(nnx.Module):
    def __init__(self, sublayer, *, norm):
        self.norm, self.sublayer, self.norm_after = norm(), sublayer, norm()

    def __call__(self, x, *others, drop=dropout, rate=0.0, key=None, options=None):
        change = self.norm_after(self.sublayer(self.norm(x), *others, **(options or {})))
        return x + drop(change, rate=rate, key=key)


class DeepNorm(nnx.Module):
    def __init__(self, sublayer, *, alpha, norm):
        self.sublayer, self.norm, self.alpha = sublayer, norm(), alpha

    def __call__(self, x, *others, drop=dropout, rate=0.0, key=None, options=None):
        change = drop(self.sublayer(x, *others, **(options or {})), rate=rate, key=key)
        return self.norm(self.alpha * x + change)


class LayerScale(nnx.Module):
    """`start`: what each scale is at first."""

    def __init__(self, sublayer, *, norm, width, start=1e-4):
        self.norm, self.sublayer = norm(), sublayer
        self.scale = nnx.Param(jnp.full(width, start))

    def __call__(self, x, *others, drop=dropout, rate=0.0, key=None, options=None):
        change = self.scale[...] * self.sublayer(self.norm(x), *others, **(options or {}))
        return x + drop(change, rate=rate, key=key)


class ReZero(nnx.Module):
    def __init__(self, sublayer):
        self.sublayer, self.scale = sublayer, nnx.Param(jnp.zeros(()))

    def __call__(self, x, *others, drop=dropout, rate=0.0, key=None, options=None):
        change = drop(self.sublayer(x, *others, **(options or {})), rate=rate, key=key)
        return x + self.scale[...] * change
