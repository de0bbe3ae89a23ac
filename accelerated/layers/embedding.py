"""Token ids to vectors, and back to scores over the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from accelerated.layers.linear import rows
from reference.layers.embedding import check_ids, check_integers, check_segments

__all__ = ["Embed", "SegmentEmbed"]


class Embed(nnx.Module):
    """`embed` is its call. Not `nnx.Embed`, which computes in the dtype it was made in.

    While it is compiled the ids are not known yet: one outside the table then gives NaN, never
    another row.
    """

    def __init__(self, vocabulary, width, *, rngs):
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (vocabulary, width)))

    def __call__(self, *, ids):
        check_integers(ids, name="ids")
        if known(ids):
            check_ids(np.asarray(ids), self.embedding.shape[0])
        table = self.embedding[...]
        rows = without_negatives(ids, table.shape[0])
        return jnp.take(table, rows, axis=0, mode="fill", fill_value=jnp.nan)

    def unembed(self, x):
        return (rows(x) @ self.embedding[...].T).reshape(*x.shape[:-1], -1)


class SegmentEmbed(Embed):
    """One row for each kind of segment; one that has no row gives NaN, as in `Embed`."""

    def __call__(self, x, *, segments):
        check_integers(segments, name="segments")
        if known(segments):
            check_ids(np.asarray(segments), self.embedding.shape[0], name="segments")
        check_segments(segments.shape, x.shape)
        return x + super().__call__(ids=segments)


def without_negatives(ids, vocabulary):
    """Ids below 0 sent past the end: JAX would count them from there."""
    wide = signed(ids)
    return jnp.where(wide < 0, vocabulary, wide)


def signed(ids):
    """Integers that can be compared with a vocabulary and with -100: of 8 bits they would wrap."""
    given = jnp.asarray(ids)
    return given.astype(f"int{max(8 * given.dtype.itemsize, 32)}")


def known(array):
    """Whether an array's values can be looked at: not while the function is being compiled."""
    return not isinstance(array, jax.core.Tracer)
