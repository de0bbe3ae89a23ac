"""Rows of unequal length in batches of few shapes: those of nearly one length go together.

`Rows` is a data set as those in `batches` are.
"""

from functools import cached_property, lru_cache

import numpy as np

from reference import random
from reference.data.batches import IGNORE, LABELS, filled_up, nothing, position
from reference.data.mapped import fingerprint
from reference.data.packing import number_or_numbers, pad
from reference.errors import InputError
from reference.layers.mask import check_at_least

SHORTEST = 8  # the first of the lengths that rows are padded to


class Rows:
    """Rows of unequal length, each padded to the shortest of a few lengths that has room for it.

    Rows of one such length make batches together, so that little is padding.  Each row comes once
    an epoch: the first key orders the rows, the second the batches.

    rows: dicts of equal names.  A field is a 1-D array, with as many entries in a row as its other
    ones have, or a number.  They stay in memory.
    boundaries: the lengths.  Unless given, 8, 16, 32 … and that of the longest row, so that of no
    row over 8 half is padding.  truncate: cut longer rows off at the last; `truncated` counts them.
    A batch has the field's (B, T) or (B,), and kept (B, T), True where there is a token.  Integers
    become int32.  Padding is `ignore` in the fields that `labels` names (NaN where they are
    floats: a loss must leave them out), `pad` in tokens, else 0; in a row that fills up all is.
    Raises InputError for a row too long and for rows that do not fit together, DtypeError for what
    is no number.
    """

    def __init__(
        self,
        rows,
        *,
        batch,
        key,
        boundaries=None,
        pad=0,
        ignore=IGNORE,
        truncate=False,
        labels=LABELS,
    ):
        check_at_least(1, batch=batch)
        check_at_least(0, pad=pad)
        self._fields, lengths = fields_of(rows, labels)
        self.boundaries = checked_boundaries(boundaries, lengths, truncate)
        self.truncated = int((lengths > self.boundaries[-1]).sum())
        self._rows, self._key = batch, key
        self._nothing = {
            name: pad if name == "tokens" else nothing(name, values[0].dtype, labels, ignore)
            for name, values in self._fields.items()
        }
        last = len(self.boundaries) - 1
        self._bucket = np.minimum(np.searchsorted(self.boundaries, lengths), last)
        sizes = np.bincount(self._bucket)
        batches_each = -(-sizes // batch)
        firsts = (np.cumsum(batches_each) - batches_each) * batch
        self._slots = np.concatenate(
            [first + np.arange(size) for first, size in zip(firsts, sizes, strict=True)]
        )
        self.each_epoch = int(batches_each.sum())
        self._drawn = lru_cache(maxsize=1)(self._draw)

    def position(self, step):
        return position(step, self.each_epoch)

    def batch(self, step):
        epoch, i = self.position(step)
        return self._filled(self._drawn(epoch)[i])

    def in_order(self):
        """The shortest first, and those of one boundary as they were given."""
        return map(self._filled, self._plan(np.arange(len(self._bucket))))

    @cached_property
    def fingerprint(self):
        return fingerprint((name, a) for name in sorted(self._fields) for a in self._fields[name])

    def _draw(self, epoch):
        row_key, batch_key = random.split(random.fold_in(self._key, epoch))
        plan = self._plan(random.permutation(row_key, len(self._bucket)))
        return plan[random.permutation(batch_key, self.each_epoch)]

    def _plan(self, order):
        """The rows of all batches (each_epoch, B), of each bucket in this order; -1 is none."""
        plan = np.full(self.each_epoch * self._rows, -1)
        plan[self._slots] = order[np.argsort(self._bucket[order], kind="stable")]
        return plan.reshape(self.each_epoch, self._rows)

    def _filled(self, numbers):
        """The batch of some rows (B,)."""
        present = numbers[numbers >= 0]
        length, batch = self.boundaries[self._bucket[present[0]]], {}
        for name, values in self._fields.items():
            value = self._nothing[name]
            if values[0].ndim:
                cut = [values[i][:length] for i in present]
                rows, kept = pad(cut, length=length, value=value)
                batch["kept"] = filled_up(kept, self._rows, False)
            else:
                rows = np.array([values[i] for i in present])
            batch[name] = filled_up(rows, self._rows, value)
        return batch


def fields_of(rows, labels):
    """The columns of a table {name: [value of each row]}, and the lengths of the rows (N,)."""
    rows = list(rows)
    if not rows:
        raise InputError("there are no rows; give one at least")
    fields = {name: [] for name in rows[0]}
    for i, row in enumerate(rows):
        if row.keys() != fields.keys():
            raise InputError(
                f"rows[{i}] has {sorted(row)}, rows[0] {sorted(fields)}; give each the same fields"
            )
        for name, values in fields.items():
            values.append(field(row[name], f"rows[{i}][{name!r}]", is_label=name in labels))
            if (values[i].dtype, values[i].ndim) != (values[0].dtype, values[0].ndim):
                raise InputError(
                    f"rows[{i}][{name!r}] is {values[i].dtype} {values[i].shape}, rows[0]'s "
                    f"{values[0].dtype} {values[0].shape}; give all of a kind"
                )
    return fields, lengths_of(fields)


def field(value, name, *, is_label):
    """A value of a row as an array; labels that are booleans become numbers, to have a third."""
    array = number_or_numbers(value, name=name)
    if array.ndim > 1 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}; give a number, or (n,) with n > 0")
    return array.astype(np.int32) if is_label and array.dtype == bool else array


def lengths_of(fields):
    """The length of each row, which all of its sequences must have."""
    sequences = {name: values for name, values in fields.items() if values[0].ndim}
    if not sequences or "kept" in fields:
        raise InputError(
            f"rows have the fields {sorted(fields)}; give one that is a sequence, and none named "
            "kept, which is made here"
        )
    first, *others = sequences
    lengths = np.array([len(value) for value in sequences[first]])
    for name in others:
        for i, value in enumerate(sequences[name]):
            if len(value) != lengths[i]:
                raise InputError(
                    f"rows[{i}] has {lengths[i]} {first}, but {len(value)} {name}; give as many"
                )
    return lengths


def checked_boundaries(boundaries, lengths, truncate):
    """The lengths that rows are padded to, as a list; 8, 16, 32 … and the longest by default."""
    longest = int(lengths.max())
    if boundaries is None:
        powers = [SHORTEST << i for i in range(longest.bit_length()) if SHORTEST << i < longest]
        return [*powers, longest]
    check_at_least(1, boundaries=boundaries)
    boundaries = np.atleast_1d(boundaries).tolist()
    if sorted(set(boundaries)) != boundaries:
        raise InputError(f"boundaries are {boundaries}; give rising lengths, such as (32, 64)")
    if longest > boundaries[-1] and not truncate:
        i = int(np.argmax(lengths > boundaries[-1]))
        raise InputError(
            f"rows[{i}] has {lengths[i]} entries, more than the last boundary {boundaries[-1]}; "
            "give a larger one, or truncate=True to cut such rows off"
        )
    return boundaries
