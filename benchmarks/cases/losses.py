"""Losses, of the scores of a whole batch."""

from functools import partial

import numpy as np

import reference
from accelerated.layers import contrastive, distillation, loss, regression
from benchmarks.cases import pytorch
from benchmarks.cases.case import Case, normal
from benchmarks.cases.pytorch import functional, torch

SCALE = np.asarray(np.log(10), np.float32)

CASES = {
    "cross_entropy": lambda s: Case(
        reference.cross_entropy,
        loss.cross_entropy,
        pytorch.cross_entropy,
        (s.logits(),),
        {"labels": s.labels()},
    ),
    "smoothed_cross_entropy": lambda s: Case(
        partial(reference.smoothed_cross_entropy, smoothing=0.1),
        partial(loss.smoothed_cross_entropy, smoothing=0.1),
        partial(pytorch.cross_entropy, label_smoothing=0.1),
        (s.logits(),),
        {"labels": s.labels()},
    ),
    "z_loss": lambda s: Case(
        reference.z_loss, loss.z_loss, pytorch.z_loss, (s.logits(),), {"labels": s.labels()}
    ),
    "masked_language_modelling": lambda s: Case(
        reference.masked_language_modelling,
        loss.masked_language_modelling,
        lambda z, tokens, masked: pytorch.cross_entropy(z, torch.where(masked, tokens, -100)),
        (s.logits(),),
        {"tokens": s.ids(), "masked": s.coins(s.batch, s.length)},
    ),
    "next_sentence": lambda s: Case(
        reference.next_sentence,
        loss.next_sentence,
        lambda z, follows: functional.cross_entropy(z, (~follows).long()),
        (normal(64 * s.length, 2),),
        {"follows": s.coins(64 * s.length)},
    ),
    "binary_cross_entropy": lambda s: Case(
        reference.binary_cross_entropy,
        loss.binary_cross_entropy,
        lambda z, labels: functional.binary_cross_entropy_with_logits(z, labels),
        (s.wide(),),
        {"labels": s.coins(s.batch, s.length, s.hidden).astype(np.float32)},
    ),
    "distillation": lambda s: Case(
        partial(reference.distillation, temperature=2.0),
        partial(distillation.distillation, temperature=2.0),
        partial(pytorch.distillation, temperature=2.0),
        (s.logits(),),
        {"teacher_logits": s.logits(1)},
    ),
    "clip_loss": lambda s: Case(
        reference.clip_loss,
        contrastive.clip_loss,
        pytorch.clip_loss,
        (s.embedded(0), s.embedded(1), SCALE),
    ),
    "siglip_loss": lambda s: Case(
        reference.siglip_loss,
        contrastive.siglip_loss,
        pytorch.siglip_loss,
        (s.embedded(0), s.embedded(1), SCALE, np.asarray(-10, np.float32)),
    ),
    "squared_error": lambda s: Case(
        reference.squared_error,
        regression.squared_error,
        lambda x, y: functional.mse_loss(x, y),
        (s.wide(0), s.wide(1)),
    ),
    "huber": lambda s: Case(
        reference.huber,
        regression.huber,
        lambda x, y: functional.huber_loss(x, y),
        (s.wide(0), s.wide(1)),
    ),
}
