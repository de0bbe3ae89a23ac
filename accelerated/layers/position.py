"""Where a token stands: attention alone sees a set, not a sequence."""

import jax
import jax.numpy as jnp
from flax import nnx

from accelerated.layers.embedding import known
from reference.layers.position import (
    check_length,
    check_offset,
    check_places,
    check_waves,
    wave_frequencies,
    waves,
)

__all__ = ["LearnedPosition", "sinusoidal_position", "sinusoidal_position_concatenated"]


class LearnedPosition(nnx.Module):
    """Of an `offset` that is not known while it is compiled the range is the caller's to check."""

    def __init__(self, context, width, *, rngs):
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (context, width)))

    def __call__(self, x, *, offset=0, places=None):
        length = x.shape[-2]
        if places is not None:
            check_places(places, x.shape, len(self.embedding))
            return x + jnp.take(self.embedding[...], places, axis=0)
        if known(offset):
            check_offset(int(offset))
        check_length(length + (int(offset) if known(offset) else 0), self.embedding.shape[0])
        return x + for_each(x, jax.lax.dynamic_slice_in_dim(self.embedding[...], offset, length))


def sinusoidal_position(x, *, offset=0):
    """With an `offset` that is not known while it is compiled, the table is made on the device, its
    angles in float32 or wider: each is then off by up to 10⁻⁷ of itself.
    """
    check_waves(x.shape[-1], "paper")
    return x + table_for(x, offset, "paper", interleaved=True)


def sinusoidal_position_concatenated(x, *, offset=0, spacing="tensor2tensor"):
    """`offset` as in `sinusoidal_position`."""
    check_waves(x.shape[-1], spacing)
    return x + table_for(x, offset, spacing, interleaved=False)


def for_each(x, table):
    """A table (T, D) for every sequence of x (..., T, D): a product with ones, and so its gradient
    is one too; XLA:CPU's sum over a batch takes four times as long.
    """
    ones = jnp.ones(x.shape[:-2], table.dtype)
    return jnp.einsum("...,td->...td", ones, table, precision="highest")


def table_for(x, offset, spacing, interleaved):
    """The reference's table (T, D), or the same from an offset that is not known yet."""
    length, width = x.shape[-2:]
    if known(offset):
        return waves(int(offset), length, width, spacing, interleaved, x.dtype)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    positions = (offset + jnp.arange(length)).astype(wide)
    angles = positions[:, None] * wave_frequencies(width, spacing).astype(wide)
    table = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1 if interleaved else -2)
    return table.reshape(length, width).astype(x.dtype)
