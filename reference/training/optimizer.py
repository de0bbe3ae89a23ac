"""From gradients to new parameters."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from reference import tree

# Weights shrink, biases and norms do not: told by the last name of a parameter's path.
DECAYED = ("kernel", "embedding")


def global_norm(gradients):
    """The length of a tree of gradients, as if it were one vector.

    ‖g‖² = Σ over all parameters of their squares
    """
    return math.sqrt(sum(float(np.vdot(g, g)) for g in tree.leaves(gradients)))


def clip_factor(norm, *, limit):
    """What shortens a gradient to a length, its direction kept: one odd batch cannot do harm.

        g ← g · min(1, limit / ‖g‖)

    norm: ‖g‖;  limit > 0 -> the factor, for `adamw` to apply.
    Source: Pascanu et al. 2013, algorithm 1.
    """
    return limit / max(norm, limit)


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
    factor=1.0,
):
    """One step along the gradient's running mean, each number at a pace of its own.

        m ← β₁ m + (1 - β₁) g,        m̂ = m / (1 - β₁ᵗ)
        s ← β₂ s + (1 - β₂) g²,       ŝ = s / (1 - β₂ᵗ)
        p ← p - rate · (m̂ / (√ŝ + ε) + decay · p),     decay only for `kernel` and `embedding`

    params, gradients and the moments m and s: trees of one structure;  step t counts from 1;
    factor: of `clip_factor`, g is the gradient times it -> params, mean, square, as new trees.
    ε stands outside the root, as in the paper and optax.
    Source: Loshchilov & Hutter 2019, algorithm 2, with the decay scaled by the rate, as in its
    authors' code; the moments: Kingma & Ba 2015, algorithm 1.
    """
    rate, shrink = learning_rate / (1 - beta1**step), 1 - learning_rate * weight_decay
    unbias = (1 - beta2**step) ** -0.5

    def update(p, gradient, m, s, decays):
        g = factor * gradient
        new_m = beta1 * m
        new_m += (1 - beta1) * g
        new_s = beta2 * s
        new_s += (1 - beta2) * (g * g)
        direction = np.sqrt(new_s)
        direction *= unbias
        direction += epsilon
        np.divide(new_m, direction, out=direction)
        direction *= rate
        return (shrink * p if decays else p) - direction, new_m, new_s

    flat = [tree.flatten(part) for part in (params, gradients, mean, square)]
    new = {}, {}, {}
    for path in flat[0]:
        decays = path.split(".")[-1] in DECAYED
        results = in_blocks(partial(update, decays=decays), *(part[path] for part in flat))
        for part, result in zip(new, results, strict=True):
            part[path] = result
    return tuple(tree.unflatten(part) for part in new)


def in_blocks(function, *arrays, outputs=3, size=1 << 18):
    """An elementwise function of equal arrays, applied to a block of them at a time.

    A block stays in the processor's cache between the passes over it, of which AdamW has fifteen,
    and each processor takes one: the same numbers, for large arrays in about half the time.
    """
    results = [np.empty(arrays[0].shape, arrays[0].dtype) for _ in range(outputs)]
    flat, into = ([a.reshape(-1) for a in part] for part in (arrays, results))

    def compute(start):
        block = slice(start, start + size)
        for result, part in zip(into, function(*(a[block] for a in flat)), strict=True):
            result[block] = part

    starts = range(0, flat[0].size, size)
    if len(starts) < 2:
        list(map(compute, starts))
    else:
        with ThreadPoolExecutor() as pool:  # NumPy lets go of the interpreter while it computes
            list(pool.map(compute, starts))
    return results
