"""Which class a row is of: accuracy, and what it hides.

A model that calls every review positive is right for as many as are positive.  So each class is
looked at for itself: of the rows that were called so, how many are (precision), and of those that
are, how many were called so (recall); F1 is high only where both are; and macro F1, the mean over
classes, counts a rare class as much as a frequent one.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from reference.errors import DtypeError, InputError
from reference.metrics.checks import pairs


@dataclass(frozen=True, eq=False)
class Classification:
    """What became of the rows of each class; C classes, in the order of `labels`.

    labels     the classes' names or numbers
    confusion  (C, C) int64: rows of class i that were called class j
    """

    labels: tuple
    confusion: np.ndarray

    @property
    def accuracy(self):
        """The share of rows that were called what they are: Σᵢ Mᵢᵢ / Σᵢⱼ Mᵢⱼ."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def support(self):
        """How many rows each class has: Σⱼ Mᵢⱼ, (C,)."""
        return self.confusion.sum(axis=1)

    @property
    def precision(self):
        """Mᵢᵢ / Σⱼ Mⱼᵢ, (C,): 0 for a class that no row was called."""
        return share(np.diag(self.confusion), self.confusion.sum(axis=0))

    @property
    def recall(self):
        """Mᵢᵢ / Σⱼ Mᵢⱼ, (C,): 0 for a class that no row is of."""
        return share(np.diag(self.confusion), self.support)

    @property
    def f1(self):
        """2 Mᵢᵢ / (Σⱼ Mᵢⱼ + Σⱼ Mⱼᵢ), (C,): the harmonic mean of precision and recall, or 0."""
        return share(2 * np.diag(self.confusion), self.support + self.confusion.sum(axis=0))

    @property
    def macro_f1(self):
        """The mean of the classes' F1, each counting the same however many rows it has."""
        return float(self.f1.mean())


def accuracy(expected, predicted):
    """The share of rows whose label was predicted.  Raises as `classification`."""
    return classification(expected, predicted).accuracy


def classification(expected, predicted, *, labels=None):
    """Compare the predicted label of each row with the true one -> Classification.

    expected, predicted (N,): labels, all integers or all str.  labels: the classes and their order;
    None for those that occur, sorted.  A class that never occurs has F1 0 and lowers the mean.

    Raises InputError for no rows, two lengths, or a label that is not among `labels`; DtypeError
    for labels of another kind or of two.
    Source: van Rijsbergen 1979, "Information retrieval", ch. 7 (F is 1 − E); macro F1 as
    scikit-learn's f1_score(average="macro", zero_division=0), and not the F1 of the mean precision
    and recall, as others have it.
    """
    truths, guesses = pairs(expected, predicted)
    kinds = [
        _kind(f"{name}[{i}]", label)
        for name, rows in (("expected", truths), ("predicted", guesses))
        for i, label in enumerate(rows)
    ]
    if len(set(kinds)) > 1:
        raise DtypeError("some labels are integers and some are str: make all of them the same")
    chosen = sorted({*truths, *guesses}) if labels is None else list(labels)
    places = {label: i for i, label in enumerate(chosen)}
    if len(places) < len(chosen):
        twice = Counter(chosen).most_common(1)[0][0]
        raise InputError(f"labels has {twice!r} twice: name each class once")
    for name, rows in (("expected", truths), ("predicted", guesses)):
        for i, label in enumerate(rows):
            if label not in places:
                raise InputError(
                    f"{name}[{i}] is {label!r:.40}, and must be one of {str(chosen):.200}: add it "
                    "to labels, or correct it"
                )
    size = len(chosen)
    cells = [places[a] * size + places[b] for a, b in zip(truths, guesses, strict=True)]
    return Classification(tuple(chosen), np.bincount(cells, minlength=size**2).reshape(size, size))


def _kind(name, label):
    """int or str; a DtypeError for what else a label is."""
    if isinstance(label, str):
        return str
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise DtypeError(
            f"{name} is of type {type(label).__name__}, and must be an integer or str: take the "
            "argmax of logits first"
        )
    return int


def share(part, whole):
    """part / whole, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=np.asarray(whole) > 0)
