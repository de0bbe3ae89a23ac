"""Rotary positions; the frequencies and their scalings are those of `reference.layers.rotary`."""

import jax.numpy as jnp
import numpy as np

from accelerated.layers.embedding import known
from reference.layers.rotary import check_rotation, rotation

__all__ = ["rotary_halves", "rotary_pairs"]


def rotary_pairs(x, *, frequencies, positions=None, scale=1.0):
    """In float32 or wider.  Positions that are not known while it is compiled have their angles in
    that precision too, where each is off by up to 10⁻⁷ of itself: 0.01 at position 100,000.
    """
    check_rotation(x.shape, frequencies, positions)
    cos, sin = rotation_for(x, frequencies, positions, scale)
    turning, rest = jnp.split(x, [2 * len(frequencies)], axis=-1)
    turned = jnp.stack(turn(turning[..., 0::2], turning[..., 1::2], cos, sin), axis=-1)
    return jnp.concatenate([turned.reshape(turning.shape).astype(x.dtype), rest], axis=-1)


def rotary_halves(x, *, frequencies, positions=None, scale=1.0):
    """As `rotary_pairs`."""
    check_rotation(x.shape, frequencies, positions)
    cos, sin = rotation_for(x, frequencies, positions, scale)
    pairs = len(frequencies)
    first, second, rest = jnp.split(x, [pairs, 2 * pairs], axis=-1)
    turned = jnp.concatenate(turn(first, second, cos, sin), axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def turn(first, second, cos, sin):
    return first * cos - second * sin, first * sin + second * cos


def rotation_for(x, frequencies, positions, scale):
    """The reference's cos and sin, or the same of positions that are not known yet."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if positions is None or known(positions):
        at = None if positions is None else np.asarray(positions)
        return rotation(frequencies, at, x.shape[-2], scale, wide)
    angles = positions[..., None].astype(wide) * frequencies.astype(wide)
    return float(scale) * jnp.cos(angles), float(scale) * jnp.sin(angles)
