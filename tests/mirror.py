"""One comparison for every component and its twin, and one policy of tolerances.

An error is relative to the array's largest element, or to a thousandth of the largest in its tree
where the array is zero but for rounding (a key projection's bias: softmax ignores a shift).

    float64     1e-10 a component, 1e-8 a model; 1e-7 against a central difference
    float32     at most 2 times, bfloat16 at most 3 times the error of the plain computation: the
                twin in the same precision, nothing optimized, each operation rounded
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

COMPONENT, MODEL, DIFFERENCE = 1e-10, 1e-8, 1e-7
NARROW = {np.float32: 2, jnp.bfloat16: 3}
RUN = {"xla_backend_optimization_level": 3}  # as users have it, who set nothing
EVERY = (np.float64, *NARROW)
FLOOR = 1e-3
# What one operation after the other computes, in a fraction of the time that it takes to compile
# each: in bfloat16 bit for bit, also where XLA puts several into one loop.
PLAIN = {
    "xla_allow_excess_precision": False,  # else XLA keeps results of bfloat16 in float32
    "xla_backend_optimization_level": 0,
}
DRAWS = 32  # how far off one rounding is, is luck: errors are means over so many draws


def assert_mirror(
    reference,
    accelerated,
    *args,
    rng,
    tolerance=COMPONENT,
    narrow=NARROW,
    noise_in=(np.float64,),
    **kwargs,
):
    """The same value, and for a random cotangent of it the same cotangent of every argument.

    In every precision; and the reference keeps the contract: each dtype stays what it was, nothing
    is written to, and `backward` is linear and may be called again.  In neither engine does a
    float32 call compute anything in float64.  noise_in: the precisions in which a `key` is given,
    by default float64 alone: dropout, whose own tests say all, draws the same in each, and the
    compilation of it takes twice that of a whole block.
    """
    dy = random_like(reference(*args, **kwargs)[0], rng)
    plain = compiled(accelerated, kwargs, PLAIN)
    assert_close(by_contract(reference, args, dy, **kwargs), plain(args, dy), tolerance)
    assert_no_float64(reference, accelerated, *cast((args, dy), np.float32), **kwargs)
    for dtype, factor in narrow.items():
        if dtype not in noise_in:
            kwargs = {name: value for name, value in kwargs.items() if name != "key"}
        plain, run = (compiled(accelerated, kwargs, options) for options in (PLAIN, RUN))
        ours = partial(computed, reference, **kwargs)
        if dtype == np.float32:
            by_contract(reference, *cast((args, dy), dtype), **kwargs)
        engines = [plain, run] + [ours] * (dtype == np.float32)
        errors = []
        for _ in range(DRAWS):
            rounded = cast((jitter(args, rng), random_like(dy, rng)), dtype)
            exact = ours(*cast(rounded, np.float64))
            errors.append([relative_errors(engine(*rounded), exact) for engine in engines])
        assert_as_exact(errors, factor, float(jnp.finfo(dtype).eps))


def assert_gradient(reference, *args, rng, step=1e-6, **kwargs):
    """`backward` against a central difference of the function itself, along a random direction."""
    y, backward = reference(*args, **kwargs)[:2]
    dy, direction = random_like(y, rng), random_like(args, rng)

    def at(t):
        moved = jax.tree.map(lambda a, d: a + t * d, args, direction)
        return dot(reference(*moved, **kwargs)[0], dy)

    slope = (at(step) - at(-step)) / (2 * step)
    np.testing.assert_allclose(dot(cotangents(backward, dy), direction), slope, rtol=DIFFERENCE)


def computed(reference, args, dy, **kwargs):
    """A component's value and cotangents."""
    y, backward = reference(*args, **kwargs)[:2]
    return y, cotangents(backward, dy)


def by_contract(reference, args, dy, **kwargs):
    """The same, having kept what DESIGN promises of every component."""
    args = read_only(args)
    y, backward = reference(*args, **kwargs)[:2]
    gradient = cotangents(backward, read_only(dy))
    assert_like(gradient, args)
    assert_like(y, dy)
    # Multiplying by -2 is exact, so a linear function does it exactly.
    twice = cotangents(backward, read_only(jax.tree.map(lambda d: -2 * d, dy)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(-2 * a, b), gradient, twice)
    again = cotangents(backward, read_only(dy))
    jax.tree.map(np.testing.assert_array_equal, gradient, again)
    return y, gradient


def compiled(accelerated, kwargs, options=None):
    """The twin's value and cotangents as a function of (args, dy), with arrays as arguments."""
    arrays = {k: a for k, a in kwargs.items() if isinstance(a, np.ndarray)}
    rest = {k: a for k, a in kwargs.items() if k not in arrays}

    @partial(jax.jit, compiler_options=options)
    def run(args, arrays, dy):
        return value_and_cotangents(accelerated, arrays | rest, args, dy)

    return lambda args, dy: run(args, arrays, dy)


def value_and_cotangents(accelerated, kwargs, args, dy):
    y, vjp = jax.vjp(lambda *args: accelerated(*args, **kwargs), *jax.tree.map(jnp.asarray, args))
    return y, vjp(jax.tree.map(lambda d, a: jnp.asarray(d, a.dtype), dy, y))


class Watched(np.ndarray):
    """An array whose every result is one too, and that refuses to become float64."""

    def __array_finalize__(self, other):
        assert self.dtype != np.float64, "float64 in a float32 call"

    def __array_function__(self, function, types, args, kwargs):
        """np.where, np.einsum and others like them would give arrays that are not watched."""
        results = super().__array_function__(function, types, args, kwargs)
        return jax.tree.map(lambda a: a.view(Watched) if type(a) is np.ndarray else a, results)


def assert_no_float64(reference, accelerated, args, dy, **kwargs):
    """A float32 call stays in float32, on the way too: what is wider costs twice the time.

    NumPy's arrays are watched while they are made, JAX's program is read.
    """
    watched_args, watched_dy = jax.tree.map(lambda a: np.asarray(a).view(Watched), (args, dy))
    _, backward = reference(*watched_args, **kwargs)[:2]
    backward(watched_dy)
    arrays = {k: a for k, a in kwargs.items() if isinstance(a, np.ndarray)}
    rest = {k: a for k, a in kwargs.items() if k not in arrays}

    def program(args, arrays, dy):
        return value_and_cotangents(accelerated, arrays | rest, args, dy)

    made = jax.make_jaxpr(program)(args, arrays, dy)
    wide = re.search(r".*f64\[\d.*", str(made))
    assert wide is None, wide.group()


def random_like(tree, rng):
    """Normal noise in a tree's shapes and dtypes; kernels of the size that keeps that of x."""

    def draw(path, a):
        scale = a.shape[0] ** -0.5 if path and getattr(path[-1], "key", "") == "kernel" else 1
        return np.asarray(scale * rng.standard_normal(np.shape(a)), np.asarray(a).dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


def jitter(tree, rng):
    """A tree with every element changed by about a thousandth."""
    return jax.tree.map(lambda a, noise: a * (1 + 1e-3 * noise), tree, random_like(tree, rng))


def cast(tree, dtype):
    """A tree in another precision."""
    return jax.tree.map(lambda a: np.asarray(a).astype(dtype), tree)


def read_only(tree):
    """A copy that cannot be written to."""

    def lock(a):
        copy = np.array(a)
        copy.flags.writeable = False
        return copy

    return jax.tree.map(lock, tree)


def cotangents(backward, dy):
    """Like jax.vjp's, always a tuple."""
    gradient = backward(dy)
    several = gradient if isinstance(gradient, tuple) else (gradient,)
    while several and several[-1] is None:  # an optional argument that was left out
        several = several[:-1]
    return several


def dot(a, b):
    return sum(np.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def assert_like(tree, other):
    """The same structure, shapes and dtypes."""
    described = [
        jax.tree.map(lambda a: (np.shape(a), np.asarray(a).dtype), t) for t in (tree, other)
    ]
    assert described[0] == described[1]


def assert_close(actual, expected, tolerance):
    """Each array within `tolerance` of what is expected, relative to its largest element."""
    assert_like(actual, expected)
    errors = relative_errors(actual, expected)
    assert all(error <= tolerance for error in errors.values()), errors


def relative_errors(actual, expected):
    """The largest error of each array, by its path in the tree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    wide = jax.tree.map(lambda a: np.asarray(a).astype(np.float64), (actual, expected))
    floor = FLOOR * max(np.abs(a).max(initial=0) for a in jax.tree.leaves(wide[1]))

    def error(a, b):
        scale = max(np.abs(b).max(initial=0), floor)
        difference = np.abs(a - b).max(initial=0)
        return difference / scale if scale else difference

    flat, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(error, *wide))
    return {jax.tree_util.keystr(path): value for path, value in flat}


def assert_as_exact(errors, factor, epsilon):
    """No engine's mean error above the first one's times a factor; rounding once is allowed.

    errors: for each draw, for each engine, the error by path.
    """
    for path in errors[0][0]:
        plain, *others = np.mean([[engine[path] for engine in draw] for draw in errors], axis=0)
        assert all(e <= factor * max(plain, epsilon) for e in others), (path, plain, others)
