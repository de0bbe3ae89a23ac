"""Contrastive losses: of all pairs of a batch, those that belong together should agree."""

import numpy as np

from reference.errors import InputError
from reference.layers.loss import binary_cross_entropy, check_same_shape, cross_entropy
from reference.layers.normalization import l2_norm

__all__ = ["clip_loss", "siglip_loss"]


def clip_loss(images, texts, log_scale):
    """Each image picks its text among those of the batch, and each text its image: what tells one
    from the others has to be in both.

        Z = exp(s) I Tᵀ,   I, T = the rows of images and texts at length 1
        loss = (cross-entropy of Z + cross-entropy of Zᵀ) / 2,   labels 0 … N-1

    images and texts (N, D), row n of both a pair, log_scale s () -> a scalar.  CLIP starts at
    s = log(1 / 0.07).  A row of zeros has no direction: its cosines and its gradient are 0.
    Raises InputError for other shapes.
    Source: Radford et al. 2021, fig. 3.
    Differs from the paper: it clips exp(s) at 100; here, as in OpenAI's released forward pass, that
    is left to the caller.

    Backward: Z was read by rows and by columns, so dZ is a sum; Z is a product of three,
        dI = exp(s) dZ T,   dT = exp(s) dZᵀ I,   ds = Σ dZ ∘ Z,
    and from I and T on it is that of `l2_norm`.
    """
    check_pairs(images, texts, log_scale=log_scale)
    scores, scores_backward = pair_scores(images, texts, log_scale)
    labels = np.arange(len(scores))
    loss_of_images, images_backward = cross_entropy(scores, labels=labels)
    loss_of_texts, texts_backward = cross_entropy(scores.T, labels=labels)
    loss = (loss_of_images + loss_of_texts) / 2

    def backward(dloss):
        dscores = images_backward(dloss / 2) + texts_backward(dloss / 2).T
        return scores_backward(dscores)

    return loss, backward


def siglip_loss(images, texts, log_scale, bias):
    """Ask of every image and every text whether they belong together: each pair is a question of
    its own, and none needs the sum over the batch that `clip_loss` does.

        loss = -1/N Σᵢⱼ log σ(±zᵢⱼ),   + where i = j, - elsewhere,   Z = exp(s) I Tᵀ + b
        I, T = the rows of images and texts at length 1

    images and texts (N, D), row n of both a pair, log_scale s (), bias b () -> a scalar.  SigLIP
    starts at s = log 10 and b = -10: nearly all pairs do not belong together.  Rows of zeros as in
    `clip_loss`.
    Raises InputError for other shapes.
    Source: Zhai et al. 2023, algorithm 1.

    Backward: the loss is N times the `binary_cross_entropy` of N² questions, which gives dZ; then
    as in `clip_loss`, and
        db = Σ dZ.
    """
    check_pairs(images, texts, log_scale=log_scale, bias=bias)
    scores, scores_backward = pair_scores(images, texts, log_scale)
    pairs = len(scores)
    questions, questions_backward = binary_cross_entropy(
        scores + bias, labels=np.eye(pairs, dtype=np.bool)
    )

    def backward(dloss):
        dscores = questions_backward(pairs * dloss)
        return *scores_backward(dscores), dscores.sum()

    return pairs * questions, backward


def pair_scores(images, texts, log_scale):
    """The cosine of each image with each text, times exp(log_scale): (N, N)."""
    unit_images, images_backward = l2_norm(images)
    unit_texts, texts_backward = l2_norm(texts)
    scale = np.exp(log_scale)
    scores = scale * (unit_images @ unit_texts.T)

    def backward(dscores):
        dcosines = scale * dscores
        dimages = images_backward(dcosines @ unit_texts)
        dtexts = texts_backward(dcosines.T @ unit_images)
        return dimages, dtexts, (dscores * scores).sum()

    return scores, backward


def check_pairs(images, texts, **scalars):
    """Raise InputError unless there is a text for each image, and the scalars are some."""
    check_same_shape(texts, images, names=("texts", "images"))
    if images.ndim != 2 or not len(images):
        raise InputError(f"images has shape {images.shape}; give (N, D), with a row for each pair")
    for name, scalar in scalars.items():
        if np.shape(scalar) != ():
            raise InputError(f"{name} has shape {np.shape(scalar)}; give one number, of shape ()")
