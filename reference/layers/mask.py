"""Who may look at whom: predicates over positions, to be asked for any pair of them.

A mask is a function of t, the position that looks, and s, the position looked at.  It is asked with
two arrays of integers, (T, 1) and (1, S), and answers with booleans (..., T, S): for a sequence or
for a tile of it, which an engine that goes through tiles never has to store whole.  It works on
NumPy's arrays and on JAX's, so both engines use these.  Two of them make a third: `both`, `either`.

Those made of a batch's arrays answer with (B, 1, T, S), for every head of `multi_head_attention`.
"""

import functools
import operator

import numpy as np

from reference.errors import DtypeError, InputError
from reference.layers.embedding import check_integers

__all__ = []


def causal(t, s):
    """The mask of a language model: position t may look at s if that is not in its future.

    Source: Vaswani et al. 2017, sec. 3.2.3.
    """
    return s <= t


def padding(kept):
    """Nobody looks at what only fills a batch up.

    kept (B, S): True where there is a token.
    Raises DtypeError unless they are booleans, InputError for another shape.
    Source: Devlin et al. 2018, `input_mask` of the released code.
    """
    if not np.issubdtype(getattr(kept, "dtype", np.object_), np.bool_):
        raise DtypeError("kept is no array of booleans; give True where there is a token")
    check_batch(kept, name="kept")

    def mask(t, s):
        return at(kept, s)

    return mask


def documents(ids):
    """Texts that were packed into one sequence do not see each other.

    ids (B, T): a number for each token, the same for those of one text.  With `causal`, what comes
    out for a text is what would come out for it alone, if its positions are its own too.
    Raises DtypeError unless they are integers, InputError for another shape.
    Source: Krell et al. 2021, "Efficient sequence packing without cross-contamination".
    """
    check_integers(ids, name="ids")
    check_batch(ids, name="ids")

    def mask(t, s):
        return at(ids, t) == at(ids, s)

    return mask


def places(ids):
    """Where each token stands in its own text: 0, 1, 2, … from wherever the number changes.

    ids (B, T), as of `documents` -> (B, T) int32, for `learned_position`.
    Raises DtypeError unless they are integers, InputError for another shape.
    """
    check_integers(ids, name="ids")
    check_batch(ids, name="ids")
    xp = ids.__array_namespace__()
    t = xp.arange(ids.shape[1], dtype=np.int32)
    begins = xp.concat([xp.ones_like(ids[:, :1], dtype=bool), ids[:, 1:] != ids[:, :-1]], axis=1)
    return t - xp.maximum.accumulate(xp.where(begins, t, 0), axis=1)


def prefix(length):
    """All of a prefix sees all of it; what follows is causal.

    length: of the prefix, an integer, or one for each sequence (B,).
    Raises InputError for a negative length.
    Source: Raffel et al. 2020, sec. 3.2.1 and figure 3.
    """
    if isinstance(length, int | float | np.generic | np.ndarray):  # else it is not known yet
        check_at_least(0, length=length)
    lengths = np.reshape(length, (-1, 1, 1, 1)) if np.ndim(length) else length

    def mask(t, s):
        return (s <= t) | (s < lengths)

    return mask


def sliding_window(size):
    """The last `size` positions, its own among them, and none of the future.

    A stack of L layers still reaches L (size - 1) positions back.  Used by Mistral; as the local
    layers of GPT-Neo, and of GPT-3 through `locally_banded`.
    Raises InputError for a size below 1.
    Source: Beltagy et al. 2020, "Longformer", sec. 3.1;  Jiang et al. 2023, "Mistral 7B", sec. 2.
    """
    check_at_least(1, size=size)

    def mask(t, s):
        return (s <= t) & (t - s < size)

    return mask


def locally_banded(layer, *, width, dense=0):
    """GPT-3's mask of a layer: dense and banded ones alternate.

    Layers of the parity of `dense` see all of the past, the others the last `width` positions.
    Neither which parity is dense nor the width was published.
    Source: Brown et al. 2020, sec. 2.1.
    """
    band = sliding_window(width)
    return causal if (layer - dense) % 2 == 0 else band


def every(stride):
    """Each stride-th position of the past, counted back from one's own.

    Raises InputError for a stride below 1.
    Source: Child et al. 2019, "Generating long sequences with sparse Transformers", sec. 4.3, A⁽²⁾.
    """
    check_at_least(1, stride=stride)

    def mask(t, s):
        return (s <= t) & ((t - s) % stride == 0)

    return mask


def strided(stride):
    """The last `stride` positions and each stride-th before: any position is two steps away.

    For data with rows of that length, such as images: the row so far, and the column above.
    Raises InputError for a stride below 1.
    Source: Child et al. 2019, sec. 4.3, both of its sets in one head (the merged one of sec. 5.2).
    """
    return either(sliding_window(stride), every(stride))


def fixed(stride, *, summary):
    """One's own block of `stride` positions, and the last `summary` of every block before.

    For text: those few gather what their block holds, and pass it on.
    Raises InputError unless 1 <= summary <= stride.
    Source: Child et al. 2019, sec. 4.3, both of its sets in one head.
    """
    check_at_least(1, stride=stride, summary=summary)
    if summary > stride:
        raise InputError(f"summary is {summary}, more than the stride {stride}; give at most that")

    def mask(t, s):
        return (s <= t) & ((t // stride == s // stride) | (s % stride >= stride - summary))

    return mask


def both(*masks):
    """What all of these masks show."""

    def mask(t, s):
        return functools.reduce(operator.and_, (each(t, s) for each in masks))

    mask.parts = masks  # one of them alone already hides what the whole hides
    return mask


def either(*masks):
    """What any of these masks shows."""

    def mask(t, s):
        return functools.reduce(operator.or_, (each(t, s) for each in masks))

    return mask


def moved(mask, offset):
    """A mask for queries of which the first stands at `offset`: those before it are in a cache.

    An array is for the queries that there are, and stays what it is.
    """
    if not callable(mask):
        return mask

    def there(t, s):
        return mask(t + offset, s)

    there.parts = [moved(part, offset) for part in getattr(mask, "parts", ())]
    return there


def at(array, positions):
    """An array (B, S) at some positions, as (B, 1, …): the 1 is for the heads.

    Raises InputError where it has fewer positions than are asked for.
    """
    known = isinstance(positions, np.ndarray)  # not while JAX compiles, but it asks before
    if known and positions.max() >= array.shape[-1]:
        raise InputError(
            f"a mask is made of an array {array.shape}, and asked for position {positions.max()}; "
            "give it as many positions as the sequence has"
        )
    if isinstance(array, np.ndarray):  # NumPy's cannot be asked with JAX's positions
        array = positions.__array_namespace__().asarray(array)
    return array[:, None][..., positions]


def check_at_least(least, **sizes):
    """Raise InputError for a size that is less, or no integer, by its name."""
    for name, size in sizes.items():
        if not np.issubdtype(np.asarray(size).dtype, np.integer) or np.min(size) < least:
            raise InputError(f"{name} is {size}; give {least} or more, an integer")


def check_batch(array, *, name):
    """Raise InputError unless there is a row for each sequence of a batch."""
    if array.ndim != 2:
        raise InputError(f"{name} has shape {tuple(array.shape)}; give one row a sequence, (B, S)")
