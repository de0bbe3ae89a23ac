"""Where a patch stands in an image: positions for a grid that was laid out in rows."""

import jax
import jax.numpy as jnp
from flax import nnx

from accelerated.layers.position import for_each
from reference.layers.grid_position import (
    check_interpolation,
    check_table,
    check_tokens,
    grid_waves,
    interpolation_matrices,
)
from reference.layers.position import check_waves

__all__ = ["LearnedGridPosition", "sinusoidal_grid_position"]


class LearnedGridPosition(nnx.Module):
    """Drawn from N(0, 0.02²), as ViT's.

    The matrices are multiplied in float32 or wider, and not at all for a grid of the table's size.
    """

    def __init__(self, width, *, grid, extra=0, interpolation="bilinear", rngs):
        check_interpolation(interpolation)
        self.grid, self.extra, self.interpolation = tuple(grid), extra, interpolation
        shape = (extra + grid[0] * grid[1], width)
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

    def __call__(self, x, *, to=None):
        table, there = self.embedding[...], self.grid if to is None else tuple(to)
        check_table(len(table), self.grid, self.extra)
        check_tokens(x.shape[-2], there, self.extra)
        if there == self.grid:
            return x + for_each(x, table)
        wide = jnp.promote_types(table.dtype, jnp.float32)
        matrices = interpolation_matrices(self.grid, there, self.interpolation, wide)
        patches = table[self.extra :].reshape(*self.grid, -1).astype(wide)
        new = jnp.einsum("pr,qc,rcd->pqd", *matrices, patches, precision="highest")
        new_rows = new.reshape(-1, table.shape[-1]).astype(table.dtype)
        return x + for_each(x, jnp.concatenate([table[: self.extra], new_rows]))


def sinusoidal_grid_position(x, *, grid, extra=0, spacing="paper"):
    check_waves(x.shape[-1], spacing, axes=2)
    check_tokens(x.shape[-2], grid, extra)
    return x + grid_waves(*grid, extra, x.shape[-1], spacing, x.dtype)
