"""Losses: one number to descend.

Each takes scores of any size, never probabilities, which would round to 0 or 1.
"""

import numpy as np

from reference.errors import DtypeError, InputError
from reference.layers.embedding import check_ids, check_integers
from reference.layers.softmax import log_softmax

__all__ = [
    "binary_cross_entropy",
    "cross_entropy",
    "masked_language_modelling",
    "next_sentence",
    "smoothed_cross_entropy",
    "z_loss",
]


def binary_cross_entropy(logits, *, labels):
    """The mean surprisal, in nats, at the answers to yes-or-no questions, from the scores of yes.

        loss = mean over n of  -yₙ log σ(zₙ) - (1 - yₙ) log σ(-zₙ)

    logits z (...);  labels y (...), booleans or probabilities in [0, 1] -> a scalar, 0 if empty.
    Raises InputError for a label outside [0, 1] or for a shape that is not the logits'.
    Source: Goodfellow et al. 2016, "Deep learning", sec. 6.2.2.2.

    Backward: log σ(z) has the slope σ(-z), so
        dz = ((1 - y) σ(z) - y σ(-z)) / N,
    which is (σ(z) - y) / N, but stays exact where σ(z) rounds to 1.
    """
    check_same_shape(labels, logits, names=("labels", "logits"))
    check_probabilities(labels)
    count = max(logits.size, 1)
    yes = labels.astype(logits.dtype)
    no = 1 - yes
    # -log σ(z) = log(1 + exp -z), with no exponential above 1.
    both = np.log1p(np.exp(-np.abs(logits)))
    surprisal_of_yes = both + np.maximum(-logits, 0)
    surprisal_of_no = both + np.maximum(logits, 0)
    loss = (yes * surprisal_of_yes + no * surprisal_of_no).sum() / count

    def backward(dloss):
        dlogits = no * np.exp(-surprisal_of_yes)
        dlogits -= yes * np.exp(-surprisal_of_no)
        dlogits *= dloss / count
        return dlogits

    return loss, backward


def cross_entropy(logits, *, labels, ignore=-100):
    """The mean surprisal, in nats, at the labels that are kept.

        loss = mean over the kept n of  -log softmax(zₙ)[labelₙ]

    logits z (..., V);  labels (...), integers in [0, V) or `ignore` -> a scalar, 0 if none is kept.
    Raises DtypeError for labels that are no integers, InputError for one outside the vocabulary or
    for a shape that is not the logits'.
    Source: Goodfellow et al. 2016, "Deep learning", sec. 6.2.1.1.

    Backward: dz = (softmax z - one-hot of the label) / kept, and 0 where ignored.
    """
    kept, count = kept_labels(logits, labels, ignore)
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


def smoothed_cross_entropy(logits, *, labels, smoothing, ignore=-100):
    """Cross-entropy with a little of the target given to every class: no score has to go to
    infinity to please it.

        loss = mean over the kept n of  -Σᵥ q log softmax(zₙ),   q = (1 - ε) one-hot + ε/V

    logits z (..., V);  labels (...), integers in [0, V) or `ignore` -> a scalar, 0 if none is kept.
    smoothing: ε.  Used by the Transformer with 0.1, but in tensor2tensor's form, where ε is shared
    by the V - 1 other classes: what ε is there is ε V / (V - 1) here.  (And there the entropy of
    q, a constant, is taken off.)
    Raises InputError unless 0 <= ε < 1, and what `cross_entropy` does.
    Source: Szegedy et al. 2016, sec. 7.

    Backward: dz = (softmax z - q) / kept, and 0 where ignored.
    """
    check_smoothing(smoothing)
    kept, count = kept_labels(logits, labels, ignore)
    at_label = np.where(kept, labels, 0)[..., None]
    log_probabilities, _ = log_softmax(logits)
    log_at_label = np.take_along_axis(log_probabilities, at_label, axis=-1)[..., 0]
    surprisal = -(1 - smoothing) * log_at_label - smoothing * log_probabilities.mean(axis=-1)
    loss = np.where(kept, surprisal, 0).sum(dtype=logits.dtype) / count

    def backward(dloss):
        dlogits = np.exp(log_probabilities)
        dlogits -= smoothing / logits.shape[-1]
        at_label_less_target = np.take_along_axis(dlogits, at_label, axis=-1) - (1 - smoothing)
        np.put_along_axis(dlogits, at_label, at_label_less_target, axis=-1)
        dlogits *= np.where(kept, dloss / count, 0).astype(logits.dtype)[..., None]
        return dlogits

    return loss, backward


def z_loss(logits, *, labels, ignore=-100):
    """The mean square of log Z: cross-entropy ignores a shift of the scores, and without this they
    may drift to where bfloat16 is coarse.

        loss = mean over the kept n of  (log Zₙ)²,   Z = Σᵥ exp z

    logits z (..., V);  labels (...), of which only matters which are `ignore` -> a scalar, 0 if
    none is kept.  Added to the loss with a small weight, which is the caller's: 1e-4 in PaLM.
    Raises what `cross_entropy` does.
    Source: Chowdhery et al. 2022, sec. 5.

    Backward: the derivative of log Z is softmax z,
        dz = 2 log Z softmax z / kept, and 0 where ignored.
    """
    kept, count = kept_labels(logits, labels, ignore)
    highest = logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits - highest)
    total = weights.sum(axis=-1, keepdims=True)
    log_z = highest + np.log(total)
    loss = np.where(kept, (log_z * log_z)[..., 0], 0).sum(dtype=logits.dtype) / count

    def backward(dloss):
        dsquare = np.where(kept, dloss / count, 0).astype(logits.dtype)[..., None]
        return (2 * dsquare * log_z / total) * weights

    return loss, backward


def masked_language_modelling(logits, *, tokens, masked):
    """The mean surprisal at the tokens that were hidden: BERT learns by filling in blanks.

        loss = mean over the masked n of  -log softmax(zₙ)[tokenₙ]

    logits z (..., V);  tokens (...), the ids before any was hidden;  masked (...), booleans -> a
    scalar, 0 if none is masked.  "Masked" is each position that was chosen, what it shows the model
    aside: of BERT's, a tenth show another token, and a tenth their own.
    Raises DtypeError unless tokens are integers and masked booleans, InputError for a masked token
    outside the vocabulary or for a shape that is not the logits'.
    Source: Devlin et al. 2018, sec. 3.1, task 1.
    Differs from Google's released code, which adds 1e-5 to the number of the masked.

    Backward: that of `cross_entropy`, where all but the masked are ignored.
    """
    check_masked(masked, tokens, logits)
    check_ids(np.where(masked, tokens, 0), logits.shape[-1], name="tokens")
    return cross_entropy(logits, labels=np.where(masked, tokens.astype(np.int64), -100))


def next_sentence(logits, *, follows):
    """The mean surprisal at whether the second segment followed the first in its document.

        loss = mean over n of  -log softmax(zₙ)[0 if it follows else 1]

    logits z (B, 2);  follows (B,), booleans -> a scalar.  Class 0 means "follows", as in BERT's
    released code and weights.
    Raises DtypeError unless follows are booleans, InputError for another shape.
    Source: Devlin et al. 2018, sec. 3.1, task 2.

    Backward: that of `cross_entropy`.
    """
    check_follows(follows, logits)
    return cross_entropy(logits, labels=np.where(follows, 0, 1))


def kept_labels(logits, labels, ignore):
    """Which labels are not ignored, and how many, at least 1; raises what `cross_entropy` does."""
    check_integers(labels, name="labels")
    check_labels(labels.shape, logits.shape)
    check_ids(labels, logits.shape[-1], name="labels", ignore=ignore)
    kept = labels != ignore
    return kept, max(int(kept.sum()), 1)


def check_labels(labels, logits, *, name="labels"):
    """Raise InputError unless there is one label for each row of logits; both are shapes."""
    if labels != logits[:-1]:
        raise InputError(f"{name} has shape {labels}, logits {logits}; give one label for each row")


def check_same_shape(a, b, *, names):
    """Raise InputError for two arrays of two shapes: NumPy would repeat the smaller."""
    if a.shape != b.shape:
        raise InputError(f"{names[0]} has shape {a.shape}, {names[1]} {b.shape}; give equal shapes")


def check_probabilities(labels):
    """Raise InputError unless all labels are in [0, 1]."""
    outside = ~((labels >= 0) & (labels <= 1))
    if outside.any():
        at = tuple(np.argwhere(outside)[0].tolist())
        raise InputError(
            f"labels{list(at) or ''} is {labels[at]}, outside [0, 1]; "
            "give booleans or probabilities"
        )


def check_booleans(array, *, name):
    """Raise DtypeError unless it is an array of booleans."""
    if array.dtype != np.bool:
        raise DtypeError(f"{name} is of {array.dtype}; give an array of booleans")


def check_masked(masked, tokens, logits):
    """Raise an error unless each row of logits has a token, and a boolean for whether masked."""
    check_labels(tokens.shape, logits.shape, name="tokens")
    check_same_shape(masked, tokens, names=("masked", "tokens"))
    check_booleans(masked, name="masked")


def check_follows(follows, logits):
    """Raise an error unless there are two scores and a boolean for each pair of segments."""
    if logits.ndim != 2 or logits.shape[-1] != 2:
        raise InputError(f"logits has shape {logits.shape}; give two scores for each pair, (B, 2)")
    check_labels(follows.shape, logits.shape, name="follows")
    check_booleans(follows, name="follows")


def check_smoothing(smoothing):
    """Raise InputError unless 0 <= smoothing < 1."""
    if not 0 <= smoothing < 1:
        raise InputError(
            f"smoothing is {smoothing}, outside [0, 1); give the share of the target that goes to "
            "all classes alike, such as 0.1"
        )


def check_positive(number, *, name):
    """Raise InputError unless it is above 0, and finite."""
    if not 0 < number < np.inf:
        raise InputError(f"{name} is {number}; give a finite number above 0")
