"""Where a patch stands in an image: positions for a grid that was laid out in rows."""

from functools import lru_cache

import numpy as np

from reference.errors import InputError
from reference.layers.linear import rows
from reference.layers.position import check_waves, waves

__all__ = ["learned_grid_position", "sinusoidal_grid_position"]


def sinusoidal_grid_position(x, *, grid, extra=0, spacing="paper"):
    """Add fixed waves: the first half of the features tells the column, the second half the row.

        PE(r, c) = [sin(c θ) | cos(c θ) | sin(r θ) | cos(r θ)],   θᵢ = 10000^(-i/(D/4)),  i < D/4
        y[extra + r·columns + c] = x[extra + r·columns + c] + PE(r, c)

    x (..., extra + rows·columns, D) -> the same.  grid: (rows, columns).  extra: leading tokens,
    such as a class token, which get nothing.  spacing "paper" is this one; "tensor2tensor" has
    D/4 - 1 for D/4, as in `sinusoidal_position_concatenated`.
    Raises InputError for a width that 4 does not divide, for another number of tokens, or another
    spacing.  Used by MAE ("paper") and by big_vision's sincos2d ("tensor2tensor").
    Source: He et al. 2021 (MAE), app. A.1, and their code, get_2d_sincos_pos_embed.
    Differs from the paper, which leaves the order open: the column comes first, as in both codes.

    Backward: the table is fixed, so dx = dy.
    """
    check_waves(x.shape[-1], spacing, axes=2)
    check_tokens(x.shape[-2], grid, extra)
    y = x + grid_waves(*grid, extra, x.shape[-1], spacing, x.dtype)

    def backward(dy):
        return dy

    return y, backward


def learned_grid_position(params, x, *, grid, to=None, extra=0, interpolation="bilinear"):
    """Add a learned vector for each place in a grid; for an image of another size, one that is
    interpolated between those that were learned.

        P'[r', c'] = Σ over r, c of  R[r', r] C[c', c] P[r, c]
        yₜ = xₜ + P'ₜ, row after row;  the `extra` leading tokens get their own vectors as they are

    params: embedding (extra + rows·columns, D), the leading tokens' first.
    x (..., extra + rows'·columns', D) -> the same.  grid: (rows, columns) of the table; to:
    (rows', columns') of x, the same if left out.  R and C: see `interpolation_matrix`.
    interpolation "bilinear": corner on corner, as Google's ViT (scipy's zoom of order 1);
    "bicubic": edge on edge, as Hugging Face's ViT (PyTorch with align_corners=False).
    Raises InputError where the tokens or the table do not fit, or for another interpolation.
    Source: Dosovitskiy et al. 2021, sec. 3.2, and their code.

    Backward: each factor's transpose; each row served every image of the batch,
        dP[r, c] = Σ over r', c' of  R[r', r] C[c', c] dP'[r', c'],   dP' = Σ dy,   dx = dy.
    """
    table, there = params["embedding"], grid if to is None else to
    check_table(len(table), grid, extra)
    check_tokens(x.shape[-2], there, extra)
    over_rows, over_columns = interpolation_matrices(grid, there, interpolation, table.dtype)
    patches = table[extra:].reshape(*grid, -1)
    new = np.einsum("pr,qc,rcd->pqd", over_rows, over_columns, patches, optimize=True)
    y = x + np.concatenate([table[:extra], rows(new)])

    def backward(dy):
        dadded = dy.reshape(-1, *dy.shape[-2:]).sum(axis=0)
        dnew = dadded[extra:].reshape(*there, -1)
        dpatches = np.einsum("pr,qc,pqd->rcd", over_rows, over_columns, dnew, optimize=True)
        return {"embedding": np.concatenate([dadded[:extra], rows(dpatches)])}, dy

    return y, backward


@lru_cache(maxsize=16)
def grid_waves(height, width, extra, features, spacing, dtype):
    """The table (extra + rows·columns, D), which nobody may write to."""
    row = waves(0, height, features // 2, spacing, False, dtype)
    column = waves(0, width, features // 2, spacing, False, dtype)
    table = np.zeros((extra + height * width, features), dtype)
    # Side by side: the last axis, -1, is 1 here.
    table[extra:] = np.concatenate([np.tile(column, (height, 1)), np.repeat(row, width, 0)], -1)
    table.flags.writeable = False
    return table


def interpolation_matrices(grid, there, interpolation, dtype):
    """One matrix for the rows and one for the columns, from a grid to another."""
    return [
        interpolation_matrix(old, new, interpolation, dtype)
        for old, new in zip(grid, there, strict=True)
    ]


@lru_cache(maxsize=32)
def interpolation_matrix(old, new, interpolation, dtype):
    """(new, old): row j holds the weights of the old places for the new place j, with the sum 1.

        bilinear   u = j (old - 1) / (new - 1),          weight max(0, 1 - |u - k|)
        bicubic    u = (j + 1/2) old / new - 1/2,        weight w(|u - k|),  a = -3/4
            w(z) = (a + 2) z³ - (a + 3) z² + 1           for z ≤ 1
            w(z) = a (z³ - 5 z² + 8 z - 4)               for 1 < z < 2

    u is where the new place falls among the old ones, k.  Where the bicubic's four neighbours reach
    over the edge, the place at the edge gets their weight.  Nobody may write to it.
    Source: Keys 1981, "Cubic convolution interpolation for digital image processing", has a = -1/2;
    PyTorch takes -3/4.
    """
    check_interpolation(interpolation)
    j, k = np.arange(new)[:, None], np.arange(-2, old + 2)
    if interpolation == "bilinear":
        weights = np.maximum(0, 1 - np.abs(j * (old - 1) / max(new - 1, 1) - k))
    else:
        weights = cubic(np.abs((j + 0.5) * old / new - 0.5 - k))
    matrix = np.zeros((new, old))
    np.add.at(matrix, (slice(None), np.clip(k, 0, old - 1)), weights)
    matrix = matrix.astype(dtype)
    matrix.flags.writeable = False
    return matrix


def cubic(z, a=-0.75):
    """w of `interpolation_matrix`, at distances z ≥ 0."""
    near = ((a + 2) * z - (a + 3)) * z * z + 1
    far = a * (((z - 5) * z + 8) * z - 4)
    return np.where(z <= 1, near, np.where(z < 2, far, 0))


def check_tokens(tokens, grid, extra):
    """Raise InputError unless x has the leading tokens and one for each place of the grid."""
    expected = extra + grid[0] * grid[1]
    if tokens != expected:
        raise InputError(
            f"x has {tokens} tokens; give {expected}: {extra} leading and a grid of {grid[0]} x "
            f"{grid[1]}, or another grid"
        )


def check_table(length, grid, extra):
    """Raise InputError unless the table has a row for each leading token and place of the grid."""
    expected = extra + grid[0] * grid[1]
    if length != expected:
        raise InputError(
            f"the table has {length} rows; {extra} leading tokens and a grid of {grid[0]} x "
            f"{grid[1]} have {expected}; give the grid it was learned on"
        )


def check_interpolation(interpolation):
    """Raise InputError for an interpolation that is not here."""
    if interpolation not in ("bilinear", "bicubic"):
        raise InputError(f"interpolation is {interpolation!r}; give 'bilinear' or 'bicubic'")
