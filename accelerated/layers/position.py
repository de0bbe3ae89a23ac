"""Where a token stands: attention alone sees a set, not a sequence."""

import jax
from flax import nnx

from reference.layers.position import check_length

__all__ = ["LearnedPosition"]


class LearnedPosition(nnx.Module):
    """`offset` may be an array: then no error can be raised, and its range is the caller's."""

    def __init__(self, context, width, *, rngs):
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (context, width)))

    def __call__(self, x, *, offset=0):
        length = x.shape[-2]
        check_length(length + (offset if isinstance(offset, int) else 0), self.embedding.shape[0])
        return x + jax.lax.dynamic_slice_in_dim(self.embedding[...], offset, length)
