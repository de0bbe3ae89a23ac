"""Losses: one number to descend."""

import numpy as np

from reference.errors import InputError
from reference.layers.embedding import check_ids
from reference.layers.softmax import log_softmax

__all__ = ["cross_entropy"]


def cross_entropy(logits, *, labels, ignore=-100):
    """The mean surprisal, in nats, at the labels that are kept.

        loss = mean over the kept n of  -log softmax(zₙ)[labelₙ]

    logits z (..., V);  labels (...), integers in [0, V) or `ignore` -> a scalar, 0 if none is kept.
    Raises DtypeError for labels that are no integers, InputError for one outside the vocabulary or
    for a shape that is not the logits'.
    Source: Goodfellow et al. 2016, "Deep learning", sec. 6.2.1.1.

    Backward: dz = (softmax z - one-hot of the label) / kept, and 0 where ignored.
    """
    check_labels(labels.shape, logits.shape)
    check_ids(labels, logits.shape[-1], name="labels", ignore=ignore)
    kept = labels != ignore
    count = max(int(kept.sum()), 1)
    at_label = np.where(kept, labels, 0)[..., None]
    log_probabilities, _ = log_softmax(logits)
    surprisal = -np.take_along_axis(log_probabilities, at_label, axis=-1)[..., 0]
    loss = np.where(kept, surprisal, 0).sum(dtype=logits.dtype) / count

    def backward(dloss):
        dlogits = np.exp(log_probabilities)
        at_label_less_one = np.take_along_axis(dlogits, at_label, axis=-1) - 1
        np.put_along_axis(dlogits, at_label, at_label_less_one, axis=-1)
        dlogits *= np.where(kept, dloss / count, 0).astype(logits.dtype)[..., None]
        return dlogits

    return loss, backward


def check_labels(labels, logits):
    """Raise InputError unless there is one label for each row of logits; both are shapes."""
    if labels != logits[:-1]:
        raise InputError(f"labels has shape {labels}, logits {logits}; give one label for each row")
