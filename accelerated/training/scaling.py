"""Gradients in float16: made larger before they are computed, and smaller again after.

float16 ends at 6·10⁻⁸, and small gradients would be 0.  The loss is multiplied by a scale, so all
gradients are; the step divides them by it in float32, and changes nothing else.  Too large a scale
overflows: such a step moves no weight, and the scale is halved.  Where many steps in a row did not
overflow, it is doubled: it stays as large as it can be.  bfloat16, with the range of float32, needs
none of this.

    scale     what the next loss is multiplied by, a power of 2
    streak    steps since it was changed
    skipped   steps that moved no weight, since the run began

Source: Micikevicius et al. 2018, "Mixed precision training", sec. 3.2; the numbers are those of
PyTorch's GradScaler.
"""

import jax
import jax.numpy as jnp
import numpy as np

FIRST, PATIENCE, LEAST = 2.0**16, 2000, 1.0


def initial_scaling():
    """The scaling before the first step."""
    return {"scale": np.float32(FIRST), "streak": np.int32(0), "skipped": np.int32(0)}


def next_scaling(scaling, finite):
    """The scaling after a step whose gradients were all finite, or were not."""
    scale, streak = scaling["scale"], scaling["streak"] + 1
    grown = jnp.where(streak == PATIENCE, 2 * scale, scale)
    return {
        "scale": jnp.where(finite, grown, jnp.maximum(scale / 2, LEAST)),
        "streak": jnp.where(finite & (streak < PATIENCE), streak, 0),
        "skipped": scaling["skipped"] + ~finite,
    }


def chosen(finite, moved, before):
    """A tree where the gradients were finite, the one before where they were not."""
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, before)
