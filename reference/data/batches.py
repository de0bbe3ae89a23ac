"""What each step of training is computed on: batches of few shapes, in a random order.

Three kinds of data sets: `Windows` of one long stream of tokens, `Arrays` of equal shapes and, in
`buckets`, `Rows` of unequal lengths.  Each has
    each_epoch      batches in an epoch
    batch(step)     the batch of a step, from 0: a dict of arrays (B, …).  It follows from the data,
                    the key and the step alone, so that a run can go on anywhere
    position(step)  the epoch, and the batch within it
    in_order()      batches with each row once, without randomness: for evaluation
    fingerprint     what tells its content from another's, sha256: is a resumed run on the same?
Batches of the same T have the same shape, since each shape is compiled anew.  Where rows are
missing, ones that count nothing fill up: labels are `ignore`, booleans False, all else 0.

Epoch e is drawn by the two keys of split(fold_in(key, e)).  What is drawn for an epoch is kept
until another is asked for.
"""

from functools import cached_property, lru_cache

import numpy as np

from reference import random
from reference.data.mapped import fingerprint, taken
from reference.data.order import random_order
from reference.data.packing import int32
from reference.errors import DtypeError, InputError
from reference.layers.embedding import check_integers
from reference.layers.mask import check_at_least

IGNORE = -100
LABELS = ("label", "labels", "starts", "ends")  # what is learnt, or not where it is IGNORE


class Windows:
    """A long text as batches of short sequences, each token in turn the next one's label.

    The text is cut into windows of T tokens, which each epoch takes in another order.  What is left
    over at its end, less than two windows, comes to the front by another cut: epoch e begins
    randint(0, T) tokens in, by the second key; the first orders it.

    tokens (n,): integers, in memory or a `numpy.memmap`, never copied as a whole.
    separator: the token that each document begins with, where they are to be kept apart.
    A batch has tokens and labels (B, T), int32; with a separator also documents (B, T) for
    `mask.documents`: how many documents have begun in the row, and -1 where nothing stands.
    Memory: 8 bytes a window for the order, and three times as much while it is drawn; for more than
    2²² windows next to none (see `scattered`).  What was read from a file is let go at once.
    A text too short for one batch can be evaluated on, in order.
    Raises InputError for a place in such a text, DtypeError for tokens of another kind.
    """

    def __init__(self, tokens, *, length, batch, key, separator=None):
        check_integers(tokens, name="tokens")
        check_at_least(1, length=length, batch=batch)
        if separator is not None:
            check_at_least(0, separator=separator)
        if tokens.ndim != 1:
            raise InputError(f"tokens has shape {tokens.shape}; give one long text, (n,)")
        if len(tokens) < 2:
            raise InputError(
                f"the text has {len(tokens)} tokens, too few for a batch, or to be evaluated on; "
                "give 2 at least"
            )
        self._tokens, self._length, self._rows, self._key = tokens, length, batch, key
        self._separator = separator
        self._windows = len(tokens) // length - 1
        self.each_epoch = max(self._windows // batch, 0)
        self._drawn = lru_cache(maxsize=1)(self._draw)

    def position(self, step):
        if self.each_epoch < 1:
            raise InputError(
                f"the text has {len(self._tokens)} tokens, too few for a batch of {self._rows} "
                f"sequences of {self._length}; give {(self._rows + 1) * self._length} at least, or "
                "a smaller batch or length"
            )
        return position(step, self.each_epoch)

    def batch(self, step):
        epoch, i = self.position(step)
        order, cut = self._drawn(epoch)
        windows = order(np.arange(i * self._rows, (i + 1) * self._rows))
        return self._cut_out(cut + windows * self._length)

    def in_order(self):
        """Each token but the first is a label once; behind the last one, labels are ignored."""
        for first in range(0, len(self._tokens) - 1, self._rows * self._length):
            yield self._cut_out(first + np.arange(self._rows) * self._length)

    @cached_property
    def fingerprint(self):
        return fingerprint([("tokens", self._tokens)])

    def _draw(self, epoch):
        order_key, cut_key = random.split(random.fold_in(self._key, epoch))
        cut = int(random.randint(cut_key, (), 0, self._length))
        return random_order(order_key, self._windows), cut

    def _cut_out(self, starts):
        """The batch of the windows that begin at some tokens (B,)."""
        places = starts[:, None] + np.arange(self._length + 1)
        there = places < len(self._tokens)
        read = taken(self._tokens, np.minimum(places, len(self._tokens) - 1))
        windows = int32(read, name="tokens")
        tokens, known = np.where(there, windows, 0)[:, :-1], there[:, :-1]
        batch = {"tokens": tokens, "labels": np.where(there, windows, IGNORE)[:, 1:]}
        if self._separator is not None:
            begun = np.cumsum(tokens == self._separator, axis=1, dtype=np.int32)
            batch["documents"] = np.where(known, begun, -1)
        return batch


class Arrays:
    """Arrays that have a row for each example, such as images and labels.

    Each row comes once an epoch, in the order of the first key.

    arrays: a dict of (N, …), in memory or memory-mapped; of the latter, only a batch's rows are
    read.  Without labels the last rows, too few for a batch, are left out.  `labels` names those
    that become int32, and `ignore` where the last batch is filled up (NaN where they are floats);
    the others keep their dtype, and are 0 there.
    Raises InputError for unequal numbers of rows or none, DtypeError for what is no number.
    """

    def __init__(self, arrays, *, batch, key, ignore=IGNORE, labels=LABELS):
        check_at_least(1, batch=batch)
        for name, array in arrays.items():
            dtype = getattr(array, "dtype", np.dtype(object))
            if dtype.kind not in "biuf":
                raise DtypeError(f"arrays[{name!r}] is of {dtype}; give an array of numbers")
        shapes = {name: array.shape for name, array in arrays.items()}
        sizes = {shape[:1] for shape in shapes.values()}
        if len(sizes) != 1 or sizes & {(), (0,)}:
            raise InputError(
                f"arrays have the shapes {shapes}; give one at least, and all with as many rows, "
                "1 or more"
            )
        self._arrays, self._rows, self._key = dict(arrays), batch, key
        self._ignore, self._labels = ignore, labels
        self._examples = len(next(iter(arrays.values())))
        if not set(arrays) & set(labels):  # no row can be made that counts nothing
            self._examples -= self._examples % batch
        self.each_epoch = -(-self._examples // batch)
        self._drawn = lru_cache(maxsize=1)(self._draw)

    def position(self, step):
        return position(step, self.each_epoch)

    def batch(self, step):
        epoch, i = self.position(step)
        last = min((i + 1) * self._rows, self._examples)
        return self._filled(self._drawn(epoch)(np.arange(i * self._rows, last)))

    def in_order(self):
        for first in range(0, self._examples, self._rows):
            yield self._filled(np.arange(first, min(first + self._rows, self._examples)))

    @cached_property
    def fingerprint(self):
        return fingerprint(sorted(self._arrays.items()))

    def _draw(self, epoch):
        return random_order(random.split(random.fold_in(self._key, epoch))[0], self._examples)

    def _filled(self, numbers):
        """The batch of some rows, B or fewer."""
        batch = {}
        for name, array in self._arrays.items():
            rows = taken(array, numbers)
            if name in self._labels and rows.dtype.kind in "biu":
                rows = int32(rows, name=name)
            value = nothing(name, rows.dtype, self._labels, self._ignore)
            batch[name] = filled_up(rows, self._rows, value)
        return batch


def position(step, each_epoch):
    """The epoch of a step, and its batch within it."""
    check_at_least(0, step=step)
    return divmod(int(step), each_epoch)


def filled_up(rows, batch, value):
    """Rows (n, …), n <= B, and as many more of one value as make it B."""
    missing = np.full((batch - len(rows), *rows.shape[1:]), value, rows.dtype)
    return np.concatenate([rows, missing])


def nothing(name, dtype, labels, ignore):
    """What fills up a field."""
    if name not in labels:
        return 0
    return np.nan if dtype.kind == "f" else ignore
