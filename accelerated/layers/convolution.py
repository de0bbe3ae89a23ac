"""Images: from pixels to features and to the tokens of a Transformer, and back."""

import jax.numpy as jnp
from flax import nnx

from accelerated.layers.linear import rows
from reference.layers.convolution import (
    check_divisible,
    check_image,
    check_kernel,
    geometry,
    grid_of,
    pair,
    pool_geometry,
)

__all__ = ["Conv2d", "PatchEmbed", "assemble", "max_pool", "nearest_upsample", "patches"]


def nearest_upsample(x, *, factor):
    check_image(x.shape)
    down, across = pair(factor, name="factor")
    return jnp.repeat(jnp.repeat(x, down, axis=-3), across, axis=-2)


def patches(x, *, size):
    check_divisible(x.shape, size)
    *leading, height, width, channels = x.shape
    tiles = x.reshape(-1, height // size, size, width // size, size, channels)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(*leading, -1, size * size * channels)


def assemble(x, *, size, grid):
    down, across = grid_of(x.shape, size, grid)
    tiles = x.reshape(-1, down, across, size, size, x.shape[-1] // size**2)
    image = tiles.transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(*x.shape[:-2], down * size, across * size, -1)


class Conv2d(nnx.Conv):
    """Flax's own, whose padding is "SAME" unless it is told otherwise."""

    def __init__(
        self, in_features, out_features, window, *, stride=1, padding=0, use_bias=True, rngs
    ):
        options = {"padding": padding, "use_bias": use_bias, "rngs": rngs}
        size = pair(window, name="window")
        super().__init__(in_features, out_features, size, stride, **options)

    def __call__(self, x):
        check_kernel(x.shape, self.kernel.shape)
        geometry(x.shape, self.kernel.shape[:2], self.strides, self.padding)
        return super().__call__(x)


class PatchEmbed(Conv2d):
    """Equals `Conv2d` with stride = size; faster because it is one product: with the gradient in x
    it takes XLA:CPU a sixth of the time.
    """

    def __init__(self, in_features, out_features, *, size, use_bias=True, rngs):
        options = {"stride": size, "use_bias": use_bias, "rngs": rngs}
        super().__init__(in_features, out_features, (size, size), **options)
        self.size = size

    def __call__(self, x):
        check_kernel(x.shape, self.kernel.shape, size=self.size)
        tokens = patches(x, size=self.size)
        y = rows(tokens) @ self.kernel[...].reshape(tokens.shape[-1], -1)
        if self.use_bias:
            y = y + self.bias[...]
        return y.reshape(*tokens.shape[:-1], -1)


def max_pool(x, *, window, stride=None, padding=0):
    """XLA's gradient of a maximum, too, goes to the first of equals."""
    size, steps, margins = pool_geometry(x.shape, window, stride, padding)
    y = nnx.max_pool(x.reshape(-1, *x.shape[-3:]), size, steps, margins)
    return y.reshape(*x.shape[:-3], *y.shape[1:])
