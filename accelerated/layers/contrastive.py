"""Contrastive losses: of all pairs of a batch, those that belong together should agree."""

import jax.numpy as jnp

from accelerated.layers.loss import binary_cross_entropy, cross_entropy
from accelerated.layers.normalization import l2_norm
from accelerated.layers.softmax import widen
from reference.layers.contrastive import check_pairs

__all__ = ["clip_loss", "siglip_loss"]


def clip_loss(images, texts, log_scale):
    """In float32 or wider."""
    check_pairs(images, texts, log_scale=log_scale)
    scores = pair_scores(images, texts, log_scale)
    labels = jnp.arange(len(scores))
    both = cross_entropy(scores, labels=labels) + cross_entropy(scores.T, labels=labels)
    return both / 2


def siglip_loss(images, texts, log_scale, bias):
    """In float32 or wider."""
    check_pairs(images, texts, log_scale=log_scale, bias=bias)
    logits = pair_scores(images, texts, log_scale) + widen(bias)
    labels = jnp.eye(len(logits), dtype=bool)
    return len(logits) * binary_cross_entropy(logits, labels=labels)


def pair_scores(images, texts, log_scale):
    """The cosine of each image with each text, times exp(log_scale): (N, N)."""
    cosines = l2_norm(widen(images)) @ l2_norm(widen(texts)).T
    return jnp.exp(widen(log_scale)) * cosines
