"""Which rows a model learns from, and which it is judged by: training and validation.

A model may know by heart what it has seen.  So a part of the data is kept from it, and the loss on
that part says what it has learnt.  Both parts must be alike, and share nothing.  Three kinds:

  split          Rows that can be counted: a random part of exactly the size asked for, and of the
                 same mixture of labels, if they are given.
  in_validation  Rows that come one after another and are not counted yet: each is decided for
                 itself.
  cut            One long text: its end.
"""

import math
import operator
from hashlib import blake2b
from numbers import Real

import numpy as np

from reference import random
from reference.errors import DtypeError, InputError


def split(number, share, *, key, labels=None):
    """The rows 0 … number − 1 as two parts, of which the second, for validation, is a random share.

    Validation gets v = number · share rows, rounded, but neither part is left empty.  Put the rows
    in a random order, and, if there are labels, in groups of one label, in which the order stays
    random; then take every row i for which ⌊(i v + o) / number⌋ is about to rise, o being a random
    number below `number`.  That is v rows in all, and of each label its share, rounded up or down.
    (Every row is equally likely to be taken.)  A label of few rows may be missing from one part.

    number an integer; share in (0, 1); labels one a row, such as strings or integers.
    -> training, validation: (number − v,) and (v,) int64, ascending.  The order is
    `permutation` of the first key of split(key), and o `randint` of the second.
    Raises InputError for fewer than 2 rows, another share, or another number of labels, and
    DtypeError for labels that cannot be told apart, such as lists.
    Source: Cochran 1977, "Sampling techniques", ch. 8 (systematic sampling).
    """
    _check_share(share)
    number = _count("number", number, 2**31)
    order_key, offset_key = random.split(key)
    order = random.permutation(order_key, number)
    if labels is not None:
        order = order[np.argsort(_groups(labels, number)[order], kind="stable")]
    size = _within(round(number * share), number)
    steps = (np.arange(number + 1) * size + random.randint(offset_key, (), 0, number)) // number
    taken = np.zeros(number, bool)
    taken[order] = np.diff(steps) > 0
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def in_validation(rows, share, *, key):
    """Whether each of these rows is for validation, whatever the others are and how many.

    Row i is, where word i of random.bits(fold_in(key, 0), …) is below share · 2³².  That word is
    the counter i encrypted, so that none before it has to be made: rows may come in pieces of any
    size, in any order, today and tomorrow.  Give many at once: a call costs more than a row.  The
    share is met as by tossing a coin: of n rows, to within about √(share (1 − share) / n).

    With `group_number` of a text, an author or a source in place of the row's own number, all rows
    that have it in common fall on the same side.

    rows: integers in [0, 2⁶³), of any shape -> bool of that shape.  Raises DtypeError for what are
    no integers, InputError for negative ones and for a share outside (0, 1).
    """
    _check_share(share)
    rows = np.asarray(rows)
    if rows.dtype.kind not in "iu" and rows.size:
        raise DtypeError(f"rows are {rows.dtype}; give integers, the numbers of rows from 0 on")
    if rows.size and rows.min() < 0:
        raise InputError(f"rows has {rows.min()}; give numbers of rows from 0 on")
    counters = rows.ravel().astype(np.uint64)
    high, low = (counters >> 32).astype(np.uint32), counters.astype(np.uint32)
    high, low = random.threefry(random.fold_in(key, 0), high, low)
    return ((high ^ low) < share * 2**32).reshape(rows.shape)


def group_number(name):
    """A number in [0, 2⁶³) for a text or any other name: equal names have the same.

    63 bits of its BLAKE2b digest: different names share one about never.  Raises DtypeError unless
    name is a str.
    """
    if not isinstance(name, str):
        raise DtypeError(
            f"name is of type {type(name).__name__}, and must be str: give a text, or str(name)"
        )
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def cut(length, share):
    """Where to cut one long text, whose last share is for validation: how much comes before.

    The end, and not windows from all over: neighbouring passages speak of the same things in the
    same words, so that a window between two that were learnt from would be half known.

    ⌊length · (1 − share)⌋, as nanoGPT cuts tiny Shakespeare (share 0.1 of 1,115,394 characters: at
    1,003,854), but neither part is left empty.  length counts characters, bytes or tokens.
    Raises InputError for a length below 2 or a share outside (0, 1).
    """
    _check_share(share)
    length = _count("length", length, 2**63)
    return _within(math.floor(length * (1 - share)), length)


def _check_share(share):
    if not isinstance(share, Real) or not 0 < share < 1:
        raise InputError(f"share is {share!r}; give a number between 0 and 1, such as 0.1")


def _count(name, value, limit):
    """An int that can be split in two, or the InputError that says it is none."""
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or not 2 <= count < limit:
        raise InputError(
            f"{name} is {value!r}; give an integer in [2, {limit}), for both parts need something"
        )
    return count


def _within(part, whole):
    """The part nearest to this that leaves something on both sides."""
    return min(max(part, 1), whole - 1)


def _groups(labels, number):
    """Each row's label as a number, by first appearance.  -> (number,) int64."""
    numbers = {}
    try:
        listed = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
        groups = [numbers.setdefault(label, len(numbers)) for label in listed]
    except TypeError as error:
        raise DtypeError(f"labels are no labels ({error}); give strings or integers") from None
    if len(groups) != number:
        raise InputError(f"labels has {len(groups)} for {number} rows; give one for each")
    return np.array(groups)
