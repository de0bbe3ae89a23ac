"""Texts of unequal length as rows of equal length: padded, or packed with little room lost."""

from bisect import bisect_left, insort
from heapq import heappop, heappush

import numpy as np

from reference.errors import DtypeError, InputError
from reference.layers.mask import check_at_least


def pad(sequences, *, length, value=0):
    """Fill each sequence up to T, and say where something stands: `kept` is for `mask.padding`.

    sequences: B 1-D arrays or lists -> (B, T), integers as int32, and kept (B, T), booleans.
    Raises InputError for one that is longer, DtypeError for what is no number.
    """
    check_at_least(1, length=length)
    rows = [numbers(s, name=f"sequences[{i}]") for i, s in enumerate(sequences)]
    sizes = np.array([len(row) for row in rows], np.int64)
    if (sizes > length).any():
        i = int(np.argmax(sizes > length))
        raise InputError(
            f"sequences[{i}] has {sizes[i]} entries, more than the length {length}; cut it off, or "
            "give a larger length"
        )
    kept = np.arange(length) < sizes[:, None]
    content = np.concatenate([row for row in rows if row.size] or [np.zeros(0, np.int32)])
    padded = np.full(kept.shape, value, content.dtype)
    padded[kept] = content
    return padded, kept


def pack(sequences, *, length, ignore=-100):
    """Put several texts into each row of T, so that hardly a place is computed for nothing.

    The longest goes first, each into the fullest row that still has room for it, and into a new
    one where there is none (best-fit decreasing).  Of several such rows it is the first, of texts
    of one length the first comes first.  A text longer than T is cut into pieces of T and a rest,
    which then are texts of their own, but the last label of a piece is the next one's first token.

    sequences: the texts, 1-D arrays or lists of token ids -> a dict of int32 (N, T):
        tokens      0 where nothing stands
        labels      the next token of the same text; `ignore` at a text's end and where nothing is
        documents   for `mask.documents`: the row's texts are 1, 2, …, and 0 is nothing
        positions   0, 1, … in each text
    With `both(causal, documents(…))` and these positions a model computes what it would for each
    text alone.  Time O(n log n) for n texts; all of it is in memory, 16 bytes a place: pack part
    by part what would be too much.
    Raises DtypeError for texts that are no integers, InputError for other shapes.
    Source: Johnson 1973, "Near-optimal bin packing algorithms" (best-fit decreasing);  Krell et
    al. 2021, "Efficient sequence packing without cross-contamination".
    """
    check_at_least(1, length=length)
    texts = [token_ids(s, name=f"sequences[{i}]") for i, s in enumerate(sequences)]
    pieces, places = placed([len(text) for text in texts], length)
    rows = 1 + max((row for row, _, _ in places), default=-1)
    packed = {
        "tokens": np.zeros((rows, length), np.int32),
        "labels": np.full((rows, length), ignore, np.int32),
        "documents": np.zeros((rows, length), np.int32),
        "positions": np.zeros((rows, length), np.int32),
    }
    for (i, start, stop), (row, column, document) in zip(pieces, places, strict=True):
        following = texts[i][start + 1 : stop + 1]
        there = slice(column, column + stop - start)
        packed["tokens"][row, there] = texts[i][start:stop]
        packed["labels"][row, column : column + len(following)] = following
        packed["documents"][row, there] = document
        packed["positions"][row, there] = np.arange(stop - start)
    return packed


def unpack(values, *, sizes):
    """Give each text its own again of what was packed, or was computed of it: `pack`, undone.

    values (N, T, ...): one of `pack`'s arrays, or a model's outputs for them;  sizes: the lengths
    of the texts that were packed, in their order -> a list of (size, ...), in that order.
    Raises InputError for values that do not have the rows of such texts.
    """
    pieces, places = placed(sizes, values.shape[1])
    rows = 1 + max((row for row, _, _ in places), default=-1)
    if len(values) != rows:
        raise InputError(
            f"values has {len(values)} rows of {values.shape[1]}, but texts of these sizes fill "
            f"{rows}; give the sizes of the texts that were packed, and all rows"
        )
    texts = [np.empty((size, *values.shape[2:]), values.dtype) for size in sizes]
    for (i, start, stop), (row, column, _) in zip(pieces, places, strict=True):
        texts[i][start:stop] = values[row, column : column + stop - start]
    return texts


def placed(sizes, length):
    """Where texts of these sizes go: pieces (text, start, stop), places (row, column, document)."""
    pieces = [
        (i, start, min(start + length, size))
        for i, size in enumerate(sizes)
        for start in range(0, size, length)
    ]
    longest_first = sorted(range(len(pieces)), key=lambda i: pieces[i][1] - pieces[i][2])
    places = [None] * len(pieces)
    documents = []  # in each row, so far
    rooms, rows_with = [], {}  # the sizes of free room in rising order, and the rows that have each
    for i in longest_first:
        size = pieces[i][2] - pieces[i][1]
        at = bisect_left(rooms, size)
        if at == len(rooms):
            row, room = len(documents), length
            documents.append(0)
        else:
            room = rooms[at]
            row = heappop(rows_with[room])
            if not rows_with[room]:
                del rows_with[room], rooms[at]
        documents[row] += 1
        places[i] = row, length - room, documents[row]
        if room - size not in rows_with:
            rows_with[room - size] = []
            insort(rooms, room - size)
        heappush(rows_with[room - size], row)
    return pieces, places


def token_ids(sequence, *, name):
    """A text as (n,) int32.  Raises DtypeError unless it is of integers; an empty list is."""
    array = numbers(sequence, name=name)
    if array.size and array.dtype != np.int32:
        raise DtypeError(f"{name} is of {array.dtype}; give token ids, which are integers")
    return array


def numbers(sequence, *, name):
    """A 1-D array of a sequence, integers as int32.  Raises InputError or DtypeError for others."""
    array = number_or_numbers(sequence, name=name)
    if array.ndim != 1:
        raise InputError(f"{name} has shape {array.shape}; give a sequence, (n,)")
    return array


def number_or_numbers(value, *, name):
    """An array of a number or a sequence of them, integers as int32."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(f"{name} is no number and no sequence of numbers: {value!r:.60}") from None
    if array.dtype.kind not in "biuf":
        raise DtypeError(f"{name} is of {array.dtype}; give numbers")
    return int32(array, name=name) if array.dtype.kind in "iu" else array


def int32(array, *, name):
    """An array of integers as int32.  Raises InputError for one that is too large for it."""
    converted = array.astype(np.int32, copy=False)
    if array.dtype.itemsize >= 4 and (converted != array).any():
        wrong = array[converted != array].flat[0]
        raise InputError(f"{name} has {wrong}; give integers of 32 bits, below 2**31")
    return converted
