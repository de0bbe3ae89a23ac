"""From gradients to new parameters: each optimizer is one step, from trees to new trees.

Rates, decays and factors are Python numbers, which leave every array's dtype as it is.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from reference import tree
from reference.errors import InputError

# Weights shrink, biases and norms do not: told by the last name of a parameter's path.
DECAYED = ("kernel", "embedding")


def sgd(params, gradients, *, learning_rate, factor=1.0):
    """One step against the gradient, the direction in which the loss falls fastest.

        p ← p - rate · g

    params, gradients: trees of one structure;  factor: of `clip_factor`, g is the gradient times
    it -> params, as a new tree.  Equal to optax.sgd and torch.optim.SGD.
    Raises InputError for trees that differ, or a rate below 0.
    Source: Robbins & Monro 1951.
    Differs from the paper: there the rates fall, with Σ rate = ∞ and Σ rate² < ∞; here they are
    whatever the schedule says.
    """
    check_trees(params=params, gradients=gradients)
    check_numbers(learning_rate=learning_rate)
    rate = learning_rate * factor
    return tree.map(lambda p, g: p - rate * g, params, gradients)


def momentum(params, gradients, velocity, *, learning_rate, decay, factor=1.0):
    """One step along the sum of all gradients so far, the older ones faded: what they have in
    common adds up, what changes its sign cancels.

        v ← decay · v + g
        p ← p - rate · v

    params, gradients and the velocity v, zeros at first: trees of one structure;  factor: as for
    `sgd` -> params, velocity, as new trees.  A constant gradient makes v grow to g / (1 - decay).
    Raises InputError for trees that differ, a rate below 0, or a decay outside [0, 1).
    Used with decay 0.9 to fine-tune the Vision Transformer.
    Source: Polyak 1964.
    Differs from the paper, and from Sutskever et al. 2013, eq. 1 and 2: there the rate is in the
    velocity, v ← decay · v - rate · g and p ← p + v, which is the same while the rate is constant.
    When it changes, ours (and optax's, PyTorch's) changes the whole step, theirs what is added.
    PyTorch's velocity starts as the first gradient, not as zeros: the same without its dampening.
    """
    check_trees(params=params, gradients=gradients, velocity=velocity)
    check_numbers(learning_rate=learning_rate, decay=decay)
    new_velocity = tree.map(lambda v, g: decay * v + factor * g, velocity, gradients)
    return tree.map(lambda p, v: p - learning_rate * v, params, new_velocity), new_velocity


def nesterov(params, gradients, velocity, *, learning_rate, decay, factor=1.0):
    """Momentum with the gradient of where the velocity is about to lead, so that it turns in time.

        v ← decay · v + g
        p ← p - rate · (g + decay · v)

    Arguments, results and errors: as for `momentum`.
    Source: Nesterov 1983, as in Sutskever et al. 2013, eq. 3 and 4: with the gradient ∇,
        u ← decay · u - rate · ∇(x + decay · u),   x ← x + u
    Differs from the paper: p is the point ahead, x + decay · u, so that one sequence is enough, as
    in optax and PyTorch; while the rate is constant, u = -rate · v.  And the decay stays the same,
    where Nesterov's grows with the step.
    """
    check_trees(params=params, gradients=gradients, velocity=velocity)
    check_numbers(learning_rate=learning_rate, decay=decay)
    new_velocity = tree.map(lambda v, g: decay * v + factor * g, velocity, gradients)

    def update(p, g, v):
        return p - learning_rate * (factor * g + decay * v)

    return tree.map(update, params, gradients, new_velocity), new_velocity


def adam(
    params,
    gradients,
    mean,
    square,
    *,
    step,
    learning_rate,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    factor=1.0,
    bias_correction=True,
):
    """One step along the gradient's running mean, each number at a pace of its own.

        m ← β₁ m + (1 - β₁) g,        m̂ = m / (1 - β₁ᵗ)
        s ← β₂ s + (1 - β₂) g²,       ŝ = s / (1 - β₂ᵗ)
        p ← p - rate · m̂ / (√ŝ + ε)

    Arguments, results and errors: as for `adamw`, of which it is the case without decay.
    Used by the Transformer of 2017, with β₂ 0.98 and ε 1e-9.
    Source: Kingma & Ba 2015, algorithm 1.
    ε stands outside the root and is added to the corrected ŝ, as in algorithm 1, optax and PyTorch.
    At the end of its sec. 2 the paper has a faster form, which is TensorFlow's and that of GPT-1's
    released code: p ← p - rate · √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√s + ε̂).  It is this one with
    ε = ε̂ / √(1 - β₂ᵗ), which may be given anew for each step.
    """
    return adamw(
        params,
        gradients,
        mean,
        square,
        step=step,
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        weight_decay=0.0,
        factor=factor,
        bias_correction=bias_correction,
    )


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
    bias_correction=True,
):
    """Adam, and beside it the weights shrink: a decay that the moments do not rescale.

        m ← β₁ m + (1 - β₁) g,        m̂ = m / (1 - β₁ᵗ)
        s ← β₂ s + (1 - β₂) g²,       ŝ = s / (1 - β₂ᵗ)
        p ← p - rate · (m̂ / (√ŝ + ε) + decay · p),     decay only for `kernel` and `embedding`

    params, gradients and the moments m and s, zeros at first: trees of one structure;  step t
    counts from 1;  factor: of `clip_factor`, g is the gradient times it;  bias_correction: False
    for m̂ = m and ŝ = s, as in BERT's released code (with β₂ 0.999, ε 1e-6 and decay 0.01)
    -> params, mean, square, as new trees.
    Raises InputError for trees that differ, a step below 1, or a number outside its range.
    Used by GPT-3, whose numbers are the defaults, BERT, CLIP and DALL-E.
    Source: Loshchilov & Hutter 2019, algorithm 2; the moments: Kingma & Ba 2015, algorithm 1.
    Differs from the paper: the decay is scaled by the whole rate, as in its authors' code, optax
    and PyTorch, not by the schedule alone.  optax and PyTorch let every parameter decay unless
    told otherwise, with β₂ 0.999.  ε stands outside the root, as in both: see `adam`.
    """
    flat = check_trees(params=params, gradients=gradients, mean=mean, square=square)
    check_numbers(
        step=step,
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        weight_decay=weight_decay,
    )
    weights = [1 - beta**step if bias_correction else 1.0 for beta in (beta1, beta2)]
    rate, shrink = learning_rate / weights[0], 1 - learning_rate * weight_decay
    unbias = weights[1] ** -0.5

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

    new = {}, {}, {}
    for path in flat[0]:
        decays = path.split(".")[-1] in DECAYED
        results = in_blocks(partial(update, decays=decays), *(part[path] for part in flat))
        for part, result in zip(new, results, strict=True):
            part[path] = result
    return tuple(tree.unflatten(part) for part in new)


def moving_average(average, params, *, decay):
    """Parameters averaged over the last steps, to be used in place of the last ones: the noise of
    single batches is gone from them.

        a ← decay · a + (1 - decay) · p

    average a, params p: trees of one structure -> a new tree.  a starts as the first parameters,
    or as zeros, for which `debiased` makes up.  With decay 1 - 1/t for the t-th of several sets of
    parameters it is their plain mean, as of the Transformer's last checkpoints in 2017.
    Raises InputError for trees that differ, or a decay outside [0, 1).
    Used by DALL-E's image tokenizer, with decay 0.999.  Equal to optax.incremental_update.
    Source: Kingma & Ba 2015, sec. 7.2, after Polyak & Juditsky 1992, whose mean is the plain one.
    """
    check_trees(average=average, params=params)
    check_numbers(decay=decay)
    return tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def debiased(average, *, decay, step):
    """A moving average that started as zeros, without their share in it.

        â = a / (1 - decayᵗ),   1 - decayᵗ = Σᵢ (1 - decay) decayᵗ⁻ⁱ,   i = 1 … t

    average: a tree;  step t, from 1: how often `moving_average` was called -> a new tree.
    Both together are equal to optax.ema.
    Raises InputError for a decay outside [0, 1) or a step below 1.
    Source: Kingma & Ba 2015, sec. 3 and 7.2.
    """
    check_numbers(step=step, decay=decay)
    weight = 1 - decay**step
    return tree.map(lambda a: a / weight, average)


def global_norm(gradients):
    """The length of a tree of gradients, as if it were one vector.

    ‖g‖² = Σ over all parameters of their squares
    """
    return math.sqrt(sum(float(np.vdot(g, g)) for g in tree.leaves(gradients)))


def clip_factor(norm, *, limit):
    """What shortens a gradient to a length, its direction kept: one odd batch cannot do harm.

        g ← g · min(1, limit / ‖g‖)

    norm: ‖g‖;  limit > 0 -> the factor, for the optimizer to apply.
    Raises InputError for another limit.
    Source: Pascanu et al. 2013, algorithm 1.
    """
    if not 0 < limit < math.inf:
        raise InputError(f"limit is {limit!r}; give the length to shorten to, a number above 0")
    return limit / max(norm, limit)


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
    if len(starts) < 2:  # the same numbers either way: one block is not worth a thread
        list(map(compute, starts))
    else:
        with ThreadPoolExecutor() as pool:  # NumPy lets go of the interpreter while it computes
            list(pool.map(compute, starts))
    return results


def check_trees(**trees):
    """The trees, flattened.  Raises InputError where the names or shapes of two differ."""
    flat = {name: tree.flatten(part) for name, part in trees.items()}
    (first, expected), *others = (
        (name, {path: np.shape(a) for path, a in part.items()}) for name, part in flat.items()
    )
    for name, found in others:
        for path in expected | found if found != expected else ():
            here, there = expected.get(path, "missing"), found.get(path, "missing")
            if here != there:
                raise InputError(
                    f"{path or 'the array'} is {here} in {first} and {there} in {name}; "
                    "give trees with the same names and shapes"
                )
    return list(flat.values())


def check_numbers(*, step=1, learning_rate=0.0, epsilon=0.0, weight_decay=0.0, **decays):
    """Raise InputError for what no optimizer can work with."""
    if not step >= 1:
        raise InputError(f"step is {step!r}; steps count from 1: give 1 or more")
    amounts = {"learning_rate": learning_rate, "epsilon": epsilon, "weight_decay": weight_decay}
    for name, value in amounts.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} is {value!r}; give a number of at least 0")
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} is {value!r}; give at least 0 and less than 1")
