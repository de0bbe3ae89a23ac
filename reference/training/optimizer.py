"""From gradients to new parameters."""

import math

import numpy as np

from reference import tree

# Weights shrink, biases and norms do not: told by the last name of a parameter's path.
DECAYED = ("kernel", "embedding")


def clip_by_global_norm(gradients, *, limit):
    """Shorten the whole gradient to a length, its direction kept: one odd batch cannot do harm.

        g ← g · min(1, limit / ‖g‖),   ‖g‖² = Σ over all parameters of their squares

    gradients: a tree; limit > 0 -> the clipped tree, and ‖g‖ before.
    Source: Pascanu et al. 2013, algorithm 1.
    """
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in tree.leaves(gradients)))
    if norm < limit:
        return gradients, norm
    return tree.map(lambda g: g * (limit / norm), gradients), norm


def adamw(
    params,
    gradients,
    mean,
    square,
    *,
    step,
    learning_rate,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.1,
):
    """One step along the gradient's running mean, each number at a pace of its own.

        m ← β₁ m + (1 - β₁) g,        m̂ = m / (1 - β₁ᵗ)
        s ← β₂ s + (1 - β₂) g²,       ŝ = s / (1 - β₂ᵗ)
        p ← p - rate · (m̂ / (√ŝ + ε) + decay · p),     decay only for `kernel` and `embedding`

    params, gradients and the moments m and s: trees of one structure; step t counts from 1
    -> params, mean, square, as new trees.  ε stands outside the root, as in the paper and optax.
    Source: Loshchilov & Hutter 2019, algorithm 2, with the decay scaled by the rate, as in its
    authors' code; the moments: Kingma & Ba 2015, algorithm 1.
    """
    moments = tree.flatten(mean), tree.flatten(square), tree.flatten(gradients)
    new_params, new_mean, new_square = {}, {}, {}
    for path, p in tree.flatten(params).items():
        m, s, g = (moment[path] for moment in moments)
        new_mean[path] = beta1 * m + (1 - beta1) * g
        new_square[path] = beta2 * s + (1 - beta2) * (g * g)
        root = np.sqrt(new_square[path] / (1 - beta2**step))
        root += epsilon
        update = new_mean[path] / root
        update *= learning_rate / (1 - beta1**step)
        if path.split(".")[-1] in DECAYED:
            update += (learning_rate * weight_decay) * p
        new_params[path] = p - update
    return tuple(tree.unflatten(flat) for flat in (new_params, new_mean, new_square))
