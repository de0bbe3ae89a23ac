"""Where a token stands: attention alone sees a set, not a sequence."""

import numpy as np

from reference.errors import InputError

__all__ = ["learned_position"]


def learned_position(params, x, *, offset=0):
    """Add a learned vector for each place in the sequence.

        yₜ = xₜ + P[offset + t]

    params: embedding P (C, D), a row for each place of a context of C.  x (..., T, D) -> the same;
    its first token stands at `offset`, which is not 0 where a cache holds those before it.
    Raises InputError where the sequence would reach past the context.
    Source: Gehring et al. 2017, sec. 3.1, as in Radford et al. 2018, sec. 4.1.

    Backward: each row served every sequence of the batch,
        dP[offset + t] = Σ over the batch of dyₜ,   dx = dy.
    """
    table = params["embedding"]
    length = x.shape[-2]
    check_length(offset + length, len(table))
    y = x + table[offset : offset + length]

    def backward(dy):
        dtable = np.zeros_like(table)
        dtable[offset : offset + length] = dy.reshape(-1, *dy.shape[-2:]).sum(axis=0)
        return {"embedding": dtable}, dy

    return y, backward


def check_length(length, context):
    """Raise InputError for a sequence that is longer than what the model can place."""
    if length > context:
        raise InputError(
            f"the sequence has {length} tokens, the model's context only {context}; "
            f"give at most {context}, or take a model with a longer context"
        )
