"""Where a token stands: attention alone sees a set, not a sequence."""

from functools import lru_cache

import numpy as np

from reference.errors import InputError
from reference.layers.embedding import check_ids, embed

__all__ = ["learned_position", "sinusoidal_position", "sinusoidal_position_concatenated"]


def learned_position(params, x, *, offset=0, places=None):
    """Add a learned vector for each place in the sequence.

        yₜ = xₜ + P[offset + t],   or with places   yₜ = xₜ + P[placeₜ]

    params: embedding P (C, D), a row for each place of a context of C.  x (..., T, D) -> the same;
    its first token stands at `offset`, which is not 0 where a cache holds those before it.
    places (..., T): the place of each token, integers in [0, C), in which several texts in one
    sequence each begin at 0 (`mask.places`).
    Raises InputError where the sequence would reach past the context, or for an offset below 0.
    Source: Gehring et al. 2017, sec. 3.1, as in Radford et al. 2018, sec. 4.1.

    Backward: each row served every sequence of the batch,
        dP[offset + t] = Σ over the batch of dyₜ,   dx = dy.
    """
    table = params["embedding"]
    length = x.shape[-2]
    if places is not None:
        check_places(places, x.shape, len(table))
        added, table_backward = embed(params, ids=places)
        return x + added, lambda dy: (table_backward(dy), dy)
    check_offset(offset)
    check_length(offset + length, len(table))
    y = x + table[offset : offset + length]

    def backward(dy):
        dtable = np.zeros_like(table)
        dtable[offset : offset + length] = dy.reshape(-1, *dy.shape[-2:]).sum(axis=0)
        return {"embedding": dtable}, dy

    return y, backward


def sinusoidal_position(x, *, offset=0):
    """Add fixed waves of growing length, as printed in the paper: a step of k positions is then one
    linear map wherever it starts, and no position is too late to have a vector.

        PE(p, 2i) = sin(p θᵢ),   PE(p, 2i+1) = cos(p θᵢ),   θᵢ = 10000^(-2i/D)
        yₜ = xₜ + PE(offset + t)

    x (..., T, D) -> the same; its first token stands at `offset`, as in `learned_position`.  The
    table is made in float64 and rounded once.
    Raises InputError for an odd width.
    Source: Vaswani et al. 2017, sec. 3.5; their code has `sinusoidal_position_concatenated`.

    Backward: the table is fixed, so dx = dy.
    """
    check_waves(x.shape[-1], "paper")
    y = x + waves(offset, *x.shape[-2:], "paper", True, x.dtype)

    def backward(dy):
        return dy

    return y, backward


def sinusoidal_position_concatenated(x, *, offset=0, spacing="tensor2tensor"):
    """Add the same waves, first all sines and then all cosines, as the released code does.

        PE(p) = [sin(p θ₀) sin(p θ₁) … | cos(p θ₀) cos(p θ₁) …],   yₜ = xₜ + PE(offset + t)
        θᵢ = 10000^(-i/(D/2 - 1))   "tensor2tensor",   θᵢ = 10000^(-2i/D)   "paper"

    x (..., T, D) -> the same; offset as in `learned_position`.
    Raises InputError for an odd width, for one below 4 where D/2 - 1 divides, or another spacing.
    spacing: "tensor2tensor" also in FSMT, "paper" in Hugging Face's Marian.
    Source: Vaswani et al. 2017, sec. 3.5, and their code, tensor2tensor's get_timing_signal_1d.
    Differs from the paper: there sine and cosine take turns, and θ has D/2 for D/2 - 1, with which
    the longest wave only nearly has the length 2π 10000 of which the text speaks.

    Backward: the table is fixed, so dx = dy.
    """
    check_waves(x.shape[-1], spacing)
    y = x + waves(offset, *x.shape[-2:], spacing, False, x.dtype)

    def backward(dy):
        return dy

    return y, backward


def wave_frequencies(width, spacing):
    """θ (D/2,) of the sinusoidal positions, in radians per position."""
    steps = width // 2 - 1 if spacing == "tensor2tensor" else width // 2
    return 10000.0 ** (-np.arange(width // 2) / steps)


@lru_cache(maxsize=16)
def waves(offset, length, width, spacing, interleaved, dtype):
    """The table (T, D) of the positions from `offset` on, which nobody may write to.

    The angles are in float64: in float32 one of 10,000 radians would be off by a thousandth.
    """
    angles = np.arange(offset, offset + length)[:, None] * wave_frequencies(width, spacing)
    axis = -1 if interleaved else -2
    table = np.stack([np.sin(angles), np.cos(angles)], axis).reshape(length, width).astype(dtype)
    table.flags.writeable = False
    return table


def check_waves(width, spacing, *, axes=1):
    """Raise InputError for a width or a spacing that `waves` cannot have, along so many axes."""
    if spacing not in ("paper", "tensor2tensor"):
        raise InputError(f"spacing is {spacing!r}; give 'paper' or 'tensor2tensor'")
    multiple = 2 * axes
    least = multiple if spacing == "paper" else 2 * multiple
    if width % multiple or width < least:
        raise InputError(
            f"the width is {width}; sines and cosines in the spacing {spacing!r} need a multiple "
            f"of {multiple}, at least {least}"
        )


def check_places(places, x, context):
    """Raise an error unless there is a place for each vector; x is a shape.

    Of an array that JAX has not computed yet, the values are not looked at.
    """
    if tuple(places.shape) != tuple(x[:-1]):
        raise InputError(
            f"places has shape {tuple(places.shape)}, x {tuple(x)}; give one place for each vector"
        )
    if isinstance(places, np.ndarray):
        check_ids(places, context, name="places")


def check_offset(offset):
    """Raise InputError for a position before the first."""
    if offset < 0:
        raise InputError(f"offset is {offset}; give the number of tokens before, at least 0")


def check_length(length, context):
    """Raise InputError for a sequence that is longer than what the model can place."""
    if length > context:
        raise InputError(
            f"the sequence has {length} tokens, the model's context only {context}; "
            f"give at most {context}, or take a model with a longer context"
        )
