"""Token ids to vectors, and back to scores over the vocabulary."""

import numpy as np

from reference.errors import DtypeError, InputError
from reference.layers.linear import rows

__all__ = ["embed", "segment_embed", "unembed"]


def embed(params, *, ids):
    """Look up one row of a table for each id: the only way into the network for a symbol.

        y = E[ids]

    params: embedding E (V, D).  ids (...), integers in [0, V) -> y (..., D).
    Raises DtypeError for ids that are no integers, InputError for one outside the vocabulary.
    Source: Bengio et al. 2003, sec. 2 (the matrix C).

    Backward: a row that was used several times gets the sum of what it caused,
        dE[v] = Σ over n with idₙ = v of dyₙ.
    """
    table = params["embedding"]
    check_ids(ids, len(table))
    y = table[ids]

    def backward(dy):
        # Sorted ids bring each row's gradients together; np.add.at would be 3 times slower.
        order = np.argsort(ids, axis=None, kind="stable")
        used, first = np.unique(ids.ravel()[order], return_index=True)
        dtable = np.zeros_like(table)
        dtable[used] = np.add.reduceat(rows(dy)[order], first)
        return {"embedding": dtable}

    return y, backward


def unembed(params, x):
    """Score every token by its embedding's agreement with x: the output layer tied to the input's.

        y = x Eᵀ

    params: embedding E (V, D).  x (..., D) -> y (..., V).
    Source: Press & Wolf 2017, sec. 2.

    Backward: as `linear` with the kernel Eᵀ,
        dE = Σₙ dyₙᵀ xₙ,   dx = dy E.
    """
    table = params["embedding"]
    y = (rows(x) @ table.T).reshape(*x.shape[:-1], -1)

    def backward(dy):
        return {"embedding": rows(dy).T @ rows(x)}, (rows(dy) @ table).reshape(x.shape)

    return y, backward


def segment_embed(params, x, *, segments):
    """Add a learned vector for the part of the text that a token belongs to, such as question or
    answer: a sequence of several texts is no different from one of one text otherwise.

        yₜ = xₜ + E[segmentₜ]

    params: embedding E (S, D), a row for each kind of segment.  x (..., D) -> the same.
    segments (...), integers in [0, S).
    Raises DtypeError for segments that are no integers, InputError for one outside the table, or
    unless there is one for each vector of x.
    Used by BERT with S = 2, sentence A and sentence B.
    Source: Devlin et al. 2018, sec. 3.

    Backward: of a sum, each term gets dy;  dE as in `embed`,  dx = dy.
    """
    check_ids(segments, len(params["embedding"]), name="segments")
    check_segments(segments.shape, x.shape)
    added, embed_backward = embed(params, ids=segments)
    return x + added, lambda dy: (embed_backward(dy), dy)


def check_segments(segments, x):
    """Raise InputError unless there is one segment for each vector; both are shapes."""
    if tuple(segments) != tuple(x[:-1]):
        raise InputError(
            f"segments has shape {tuple(segments)}, x {tuple(x)}; give one segment for each vector"
        )


def check_ids(ids, vocabulary, *, name="ids", ignore=None):
    """Raise DtypeError unless ids are integers, InputError unless all are in [0, vocabulary).

    `ignore` is one more number that is allowed.
    """
    check_integers(ids, name=name)
    outside = (ids < 0) | (ids >= vocabulary)
    if ignore is not None:
        outside &= ids != ignore
    if outside.any():
        at = tuple(np.argwhere(outside)[0].tolist())
        allowed = "" if ignore is None else f" and not {ignore}, which is left out"
        raise InputError(
            f"{name}{list(at) or ''} is {ids[at]}, outside the vocabulary [0, {vocabulary})"
            f"{allowed}; was it made by the tokenizer of this model?"
        )


def check_integers(ids, *, name):
    """Raise DtypeError unless ids is an array of integers, whatever they are."""
    dtype = getattr(ids, "dtype", None)
    if not np.issubdtype(dtype, np.integer):
        came = f"of {dtype}" if dtype is not None else f"a {type(ids).__name__}"
        raise DtypeError(f"{name} is {came}; give an array of integers, such as int32")
