"""Losses: one number to descend."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from accelerated.layers.embedding import known, signed, without_negatives
from accelerated.layers.softmax import log_softmax, widen
from reference.layers.embedding import check_ids, check_integers
from reference.layers.loss import (
    check_follows,
    check_labels,
    check_masked,
    check_probabilities,
    check_same_shape,
    check_smoothing,
)

__all__ = [
    "binary_cross_entropy",
    "cross_entropy",
    "masked_language_modelling",
    "next_sentence",
    "smoothed_cross_entropy",
    "z_loss",
]


def binary_cross_entropy(logits, *, labels):
    """In float32 or wider.  A label outside [0, 1] gives NaN where it is not known yet."""
    check_same_shape(labels, logits, names=("labels", "logits"))
    if known(labels):
        check_probabilities(np.asarray(labels))
    each = optax.losses.sigmoid_binary_cross_entropy(widen(logits), labels)
    sound = jnp.where((labels >= 0) & (labels <= 1), each, jnp.nan)
    return sound.sum() / max(each.size, 1)


def cross_entropy(logits, *, labels, ignore=-100):
    """In float32 or wider.  A label outside the vocabulary gives NaN where it is not known yet."""
    check_known_labels(labels, logits, ignore)
    at_label = kept_or_0(labels, logits.shape[-1], ignore)
    each = optax.softmax_cross_entropy_with_integer_labels(widen(logits), at_label)
    return mean_of_kept(each, labels, logits.shape[-1], ignore)


def smoothed_cross_entropy(logits, *, labels, smoothing, ignore=-100):
    """As `cross_entropy`."""
    check_smoothing(smoothing)
    check_known_labels(labels, logits, ignore)
    log_probabilities = log_softmax(widen(logits))
    at_label = kept_or_0(labels, logits.shape[-1], ignore)
    log_at_label = jnp.take_along_axis(log_probabilities, at_label[..., None], axis=-1)[..., 0]
    surprisal = -(1 - smoothing) * log_at_label - smoothing * log_probabilities.mean(axis=-1)
    return mean_of_kept(surprisal, labels, logits.shape[-1], ignore)


def z_loss(logits, *, labels, ignore=-100):
    """As `cross_entropy`."""
    check_known_labels(labels, logits, ignore)
    log_z = jax.nn.logsumexp(widen(logits), axis=-1)
    return mean_of_kept(log_z * log_z, labels, logits.shape[-1], ignore)


def masked_language_modelling(logits, *, tokens, masked):
    """As `cross_entropy`."""
    check_masked(masked, tokens, logits)
    check_integers(tokens, name="tokens")
    if known(tokens) and known(masked):
        check_ids(np.where(masked, tokens, 0), logits.shape[-1], name="tokens")
    labels = jnp.where(masked, without_negatives(tokens, logits.shape[-1]), -100)
    return cross_entropy(logits, labels=labels)


def next_sentence(logits, *, follows):
    """As `cross_entropy`."""
    check_follows(follows, logits)
    return cross_entropy(logits, labels=jnp.where(follows, 0, 1))


def check_known_labels(labels, logits, ignore):
    """Raise what `cross_entropy` does."""
    check_integers(labels, name="labels")
    check_labels(labels.shape, logits.shape)
    if known(labels):
        check_ids(np.asarray(labels), logits.shape[-1], name="labels", ignore=ignore)


def kept_or_0(labels, vocabulary, ignore):
    """The labels to gather at: 0 where there is none, past the end where it is below 0."""
    ids = signed(labels)
    return without_negatives(jnp.where(ids == ignore, 0, ids), vocabulary)


def mean_of_kept(each, labels, vocabulary, ignore):
    """The mean where the label is not `ignore`; NaN if one of those is outside the vocabulary."""
    ids = signed(labels)
    kept = ids != ignore
    sound = jnp.where((ids >= 0) & (ids < vocabulary), each, jnp.nan)
    return jnp.where(kept, sound, 0).sum() / jnp.maximum(kept.sum(), 1).astype(each.dtype)
