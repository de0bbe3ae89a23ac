"""Rotary positions: turn queries and keys by their place, and their product sees only how far apart
they are.  Below the two ways to pair the features: the frequencies, and how published models
stretch them to contexts longer than those they were trained on."""

import math
from functools import lru_cache

import numpy as np

from reference.errors import DtypeError, InputError
from reference.layers.embedding import check_integers

__all__ = ["rotary_halves", "rotary_pairs"]


def rotary_pairs(x, *, frequencies, positions=None, scale=1.0):
    """Turn each pair of neighbouring features by an angle that grows with the position: the product
    of a query at t with a key at s then depends on t - s alone.

        (y₂ᵢ, y₂ᵢ₊₁) = scale · (x₂ᵢ cos a - x₂ᵢ₊₁ sin a,  x₂ᵢ sin a + x₂ᵢ₊₁ cos a),   a = p θᵢ

    x (..., T, K) -> the same.  frequencies θ: a float64 array (R/2,) in radians per position, from
    `rotary_frequencies` or a scaling of it; only the first R ≤ K features turn (and are scaled),
    the rest pass.  positions p: integers that broadcast to (..., T), 0 … T-1 if left out.  scale:
    what `yarn` gives beside its frequencies.  The angles are float64 in every precision.
    Raises DtypeError for frequencies or positions of another kind, InputError for shapes that do
    not fit.  Used by RoFormer, GPT-J (R < K) and DeepSeek; Llama's weights as Hugging Face keeps
    them need `rotary_halves`.
    Source: Su et al. 2021, eq. 34.

    Backward: a rotation's transpose is that by the opposite angle,
        (dx₂ᵢ, dx₂ᵢ₊₁) = scale · (dy₂ᵢ cos a + dy₂ᵢ₊₁ sin a,  dy₂ᵢ₊₁ cos a - dy₂ᵢ sin a).
    """
    check_rotation(x.shape, frequencies, positions)
    cos, sin = rotation(frequencies, positions, x.shape[-2], scale, x.dtype)
    first, second = slice(0, 2 * len(frequencies), 2), slice(1, 2 * len(frequencies), 2)
    y = rotate(x, cos, sin, first, second)

    def backward(dy):
        return rotate(dy, cos, -sin, first, second)

    return y, backward


def rotary_halves(x, *, frequencies, positions=None, scale=1.0):
    """The same rotation for features that are paired across halves, i with i + R/2: two long slices
    instead of every other feature.

        (yᵢ, yⱼ) = scale · (xᵢ cos a - xⱼ sin a,  xᵢ sin a + xⱼ cos a),   a = p θᵢ,  j = i + R/2

    x (..., T, K) -> the same; the arguments and errors as in `rotary_pairs`, which it equals after
    a permutation of the features, and so of the columns of the query's and key's kernels.
    Used by GPT-NeoX (R < K), and by Llama and most others in Hugging Face.
    Source: Su et al. 2021, eq. 34.  Differs from the paper: it pairs neighbours.

    Backward: the rotation by the opposite angle, as in `rotary_pairs`,
        (dxᵢ, dxⱼ) = scale · (dyᵢ cos a + dyⱼ sin a,  dyⱼ cos a - dyᵢ sin a).
    """
    check_rotation(x.shape, frequencies, positions)
    cos, sin = rotation(frequencies, positions, x.shape[-2], scale, x.dtype)
    first, second = slice(0, len(frequencies)), slice(len(frequencies), 2 * len(frequencies))
    y = rotate(x, cos, sin, first, second)

    def backward(dy):
        return rotate(dy, cos, -sin, first, second)

    return y, backward


def rotate(x, cos, sin, first, second):
    """Turn the features `first` towards `second`; what is in neither stays."""
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., first] * sin + x[..., second] * cos
    return y


def rotation(frequencies, positions, length, scale, dtype):
    """scale · cos and scale · sin of every angle: (..., T, R/2), made in float64, rounded once.

    In float32 an angle at position 100,000 would be off by up to 0.01.
    """
    if positions is None:
        return _rotation_from_0(tuple(frequencies.tolist()), length, scale, dtype)
    angles = positions[..., None] * frequencies
    return (scale * np.cos(angles)).astype(dtype), (scale * np.sin(angles)).astype(dtype)


@lru_cache(maxsize=16)
def _rotation_from_0(frequencies, length, scale, dtype):
    """Every layer asks for the same two tables; nobody may write to them."""
    tables = rotation(np.array(frequencies), np.arange(length), length, scale, dtype)
    for table in tables:
        table.flags.writeable = False
    return tables


def rotary_frequencies(width, *, base=10000.0):
    """θᵢ = base^(-2i/R) for i < R/2, from one radian per position down: those of the sinusoidal
    positions.  width R: how many features turn.

    Source: Su et al. 2021, sec. 3.2.2, where the base is 10000; Llama 3 has 500000.
    """
    check_frequency_arguments(width, base)
    return float(base) ** (-np.arange(0, width, 2) / width)


def linear_scaling(frequencies, *, factor):
    """θ' = θ / factor: position p turns as p / factor did, so that a context `factor` times as long
    has only angles that were seen in training.

    Source: Chen et al. 2023, "Extending context window of large language models via positional
    interpolation", sec. 2.3.
    """
    check_factor(factor)
    return frequencies / factor


def dynamic_ntk(width, *, base, factor, context, length):
    """A larger base for a sequence longer than the context: the slowest frequency is divided by s,
    the fastest stays, and within the context nothing changes.

        θᵢ = base'^(-2i/R),   base' = base s^(R/(R-2)),
        s = factor max(length, context) / context - (factor - 1)

    Source: Peng et al. 2023, sec. 3.1 and 3.3.  Differs from the paper: its s is length / context,
    which is factor = 1 here; the factor is Hugging Face's.
    """
    check_frequency_arguments(width, base, least=4)
    check_factor(factor)
    check_context(context)
    s = factor * max(length, context) / context - (factor - 1)
    return rotary_frequencies(width, base=base * s ** (width / (width - 2)))


def yarn(
    width,
    *,
    base,
    factor,
    context,
    beta_fast=32,
    beta_slow=1,
    truncate=True,
    mscale=1.0,
    mscale_all_dim=0.0,
):
    """Interpolate the slow frequencies, which no sequence in training saw turn once, leave the fast
    ones, which tell neighbours apart, and blend between; and sharpen the attention.

        θ'ᵢ = (1 - rᵢ) θᵢ + rᵢ θᵢ / factor,   rᵢ = clip((i - f) / (s - f), 0, 1)
        scale = m(mscale) / m(mscale_all_dim),   m(a) = 0.1 a ln factor + 1

    f and s are the (real) indices whose frequency makes beta_fast and beta_slow turns within the
    context of training, i(β) = R ln(context / 2πβ) / (2 ln base); truncate rounds them outwards;
    f is at least 0, s at most R - 1.
    -> θ' (R/2,), and the scale for `rotary_pairs` and `rotary_halves`: of query and key, so that
    the scores have its square.  truncate=False in GPT-OSS; the mscales are DeepSeek's, which also
    multiplies its scores by m(mscale_all_dim)².
    Source: Peng et al. 2023, sec. 3.2 and 3.4, and their code.
    Differs from the paper: there r falls linearly in the number of turns, as in `llama3`; in the
    code it rises linearly in the index.
    """
    check_frequency_arguments(width, base)
    check_factor(factor)
    check_context(context)
    check_ramp(slow=beta_slow, fast=beta_fast, names=("beta_slow", "beta_fast"))
    fast, slow = (
        width * math.log(context / (2 * math.pi * turns)) / (2 * math.log(base))
        for turns in (beta_fast, beta_slow)
    )
    if truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    fast, slow = max(fast, 0), min(slow, width - 1)
    index = np.arange(width // 2)
    ramp = np.clip((index - fast) / max(slow - fast, 0.001), 0, 1)  # never of length 0
    frequencies = rotary_frequencies(width, base=base)
    sharper, less = (0.1 * a * math.log(factor) + 1 for a in (mscale, mscale_all_dim))
    return (1 - ramp) * frequencies + ramp * frequencies / factor, sharper / less


def llama3(frequencies, *, factor, low_frequency_factor, high_frequency_factor, context):
    """The same three parts as `yarn`, by the number of turns within the context of training.

        θ' = g θ + (1 - g) θ / factor,   g = clip((context θ / 2π - low) / (high - low), 0, 1)

    low and high: the two frequency factors, 1 and 4 in Llama 3.1, with factor 8 and context 8192.
    Source: Grattafiori et al. 2024 (Llama 3.1), only in their code, apply_scaling; the formula is
    that of Peng et al. 2023, sec. 3.2.
    """
    check_factor(factor)
    check_context(context)
    names = ("low_frequency_factor", "high_frequency_factor")
    check_ramp(slow=low_frequency_factor, fast=high_frequency_factor, names=names)
    turns = context * frequencies / (2 * math.pi)
    span = high_frequency_factor - low_frequency_factor
    keep = np.clip((turns - low_frequency_factor) / span, 0, 1)
    return keep * frequencies + (1 - keep) * frequencies / factor


def check_rotation(shape, frequencies, positions):
    """Raise DtypeError or InputError unless frequencies and positions fit x of that shape."""
    dtype = getattr(frequencies, "dtype", None)
    if not isinstance(frequencies, np.ndarray) or dtype != np.float64:
        came = f"a {type(frequencies).__name__}" + (f" of {dtype}" if dtype is not None else "")
        raise DtypeError(f"frequencies is {came}; give the float64 array of `rotary_frequencies`")
    if frequencies.ndim != 1 or 2 * len(frequencies) > shape[-1]:
        raise InputError(
            f"frequencies has shape {frequencies.shape}, x has {shape[-1]} features; give one "
            f"frequency for each pair to turn, at most {shape[-1] // 2}"
        )
    if positions is None:
        return
    check_integers(positions, name="positions")
    try:
        fits = np.broadcast_shapes(positions.shape, shape[:-1]) == shape[:-1]
    except ValueError:
        fits = False
    if not fits:
        raise InputError(
            f"positions has shape {positions.shape}, x {shape}; give a shape that broadcasts to "
            f"{shape[:-1]}"
        )


def check_frequency_arguments(width, base, least=2):
    """Raise InputError unless features can be paired and each wave is longer than the last."""
    if width % 2 or width < least:
        raise InputError(f"the width is {width}; give an even one of at least {least}")
    if not base > 1:
        raise InputError(f"base is {base}; give one above 1, such as 10000")


def check_factor(factor):
    """Raise InputError for a factor that would shorten the context."""
    if not 1 <= factor < math.inf:
        raise InputError(
            f"factor is {factor}; give how many times longer the context is, at least 1"
        )


def check_context(context):
    """Raise InputError unless the context of training has a token."""
    if not context >= 1:
        raise InputError(f"context is {context}; give the length of training, at least 1")


def check_ramp(*, slow, fast, names):
    """Raise InputError unless 0 < slow < fast."""
    if not 0 < slow < fast:
        raise InputError(
            f"{names[0]} is {slow}, {names[1]} {fast}; give 0 < {names[0]} < {names[1]}"
        )
