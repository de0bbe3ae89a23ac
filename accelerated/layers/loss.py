"""Losses: one number to descend."""

import jax.numpy as jnp
import numpy as np
import optax

from accelerated.layers.embedding import known, without_negatives
from reference.layers.embedding import check_ids, check_integers
from reference.layers.loss import check_labels

__all__ = ["cross_entropy"]


def cross_entropy(logits, *, labels, ignore=-100):
    """In float32 or wider.  A label outside the vocabulary gives NaN where it is not known yet."""
    check_labels(labels.shape, logits.shape)
    check_integers(labels, name="labels")
    if known(labels):
        check_ids(np.asarray(labels), logits.shape[-1], name="labels", ignore=ignore)
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    kept = labels != ignore
    at_label = without_negatives(jnp.where(kept, labels, 0), logits.shape[-1])
    surprisal = optax.softmax_cross_entropy_with_integer_labels(wide, at_label)
    return jnp.where(kept, surprisal, 0).sum() / jnp.maximum(kept.sum(), 1).astype(wide.dtype)
