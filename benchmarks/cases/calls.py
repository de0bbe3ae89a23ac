"""A case as each engine has it to time, and whether they agree."""

import os
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.cases import pytorch
from benchmarks.report import Mismatch, time_of

# Of float32, in sums of up to a million numbers: value and gradients of two engines may differ by
# so much of an array's largest element; or of a hundredth of the largest in its tree, where one is
# zero but for rounding, as the gradient of a key projection's bias.
TOLERANCE = 5e-5


class Calls(NamedTuple):
    """Functions without arguments, each of which ends when its work is done."""

    forward: object  # the value alone, without what a gradient would need where that can be told
    gradients: object  # the value, and from a cotangent those of all arguments
    values: object  # -> both, as trees of NumPy arrays
    compile_seconds: dict | None = None


def numpy_calls(case, dy):
    def forward():
        return case.reference(*case.args, **case.arrays)[0]

    def gradients():
        y, backward = case.reference(*case.args, **case.arrays)[:2]
        gradient = backward(dy)
        several = gradient if isinstance(gradient, tuple) else (gradient,)
        return y, several[: len(case.args)]  # after them only None, of arguments left out

    return Calls(forward, gradients, gradients)


def flax_calls(case, dy):
    compiled = jax.jit(lambda args, arrays: case.twin(*args, **arrays))

    @jax.jit
    def compiled_gradients(args, arrays, dy):
        y, backward = jax.vjp(lambda *args: case.twin(*args, **arrays), *args)
        return y, backward(dy)

    args, arrays, there = jax.device_put((case.args, case.arrays, dy))

    def forward():
        return jax.block_until_ready(compiled(args, arrays))

    def gradients():
        return jax.block_until_ready(compiled_gradients(args, arrays, there))

    def values():
        return jax.tree.map(np.asarray, gradients())

    seconds = {"forward": compile_time(forward), "gradients": compile_time(gradients)}
    return Calls(forward, gradients, values, seconds)


def compile_time(call):
    """How much longer the first call takes than the second."""
    times = [time_of(call), time_of(call)]
    return max(times[0] - times[1], 0.0)


def torch_calls(case, dy):
    torch, device = pytorch.torch, "cuda" if pytorch.torch.cuda.is_available() else "cpu"
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    torch.backends.cudnn.allow_tf32 = False  # float32 throughout, as in the others
    args, arrays, there = (to_torch(tree, device) for tree in (case.args, case.arrays, dy))
    leaves, structure = jax.tree.flatten(args)
    for leaf in leaves:
        leaf.requires_grad_()
    cotangents = jax.tree.leaves(there)

    def finished(result):
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    def forward():
        with torch.no_grad():
            return finished(case.torch(*args, **arrays))

    def gradients():
        y = case.torch(*args, **arrays)
        found = torch.autograd.grad(jax.tree.leaves(y), leaves, cotangents)
        return finished((y, found))

    def values():
        y, found = gradients()
        return from_torch(y), from_torch(jax.tree.unflatten(structure, found))

    return Calls(forward, gradients, values)


def to_torch(tree, device):
    """Tensors, the kernels as PyTorch keeps them: (D, F) as (F, D), (…, C, D) as (D, C, …)."""

    def convert(path, a):
        turned = a.transpose(-1, -2, *range(a.ndim - 2)) if is_kernel(path) else a
        tensor = torch.tensor(np.array(turned, order="C"), device=device)
        return tensor.long() if np.issubdtype(a.dtype, np.integer) else tensor

    torch = pytorch.torch
    return jax.tree_util.tree_map_with_path(convert, tree)


def from_torch(tree):
    """Those arrays again."""

    def convert(path, tensor):
        a = tensor.detach().cpu().numpy()
        return a.transpose(*range(2, a.ndim), 1, 0) if is_kernel(path) else a

    return jax.tree_util.tree_map_with_path(convert, tree)


def is_kernel(path):
    return bool(path) and str(getattr(path[-1], "key", "")).split(".")[-1] == "kernel"


ENGINES = {"NumPy": numpy_calls, "Flax": flax_calls, "PyTorch": torch_calls}


def verify(name, calls):
    """Raise Mismatch unless all engines have the same value and gradients."""
    first, *others = calls
    expected = dict(zip(("value", "gradient"), calls[first].values(), strict=True))
    for other in others:
        actual = dict(zip(("value", "gradient"), calls[other].values(), strict=True))
        for part in expected:
            error, path = furthest(actual[part], expected[part])
            if not error <= TOLERANCE:
                raise Mismatch(
                    f"{name}: {other}'s {part}{path} is {error:.1e} of its size off {first}'s, "
                    f"more than {TOLERANCE:.0e}: it is not timed"
                )


def furthest(actual, expected):
    """The largest relative error of an array in a tree, and where that array is."""
    shapes = [jax.tree.map(np.shape, tree) for tree in (actual, expected)]
    if shapes[0] != shapes[1]:
        return np.inf, f", of the shapes {shapes[0]} where {shapes[1]} are expected,"
    wide = [jax.tree.map(np.float64, tree) for tree in (actual, expected)]
    floor = 1e-2 * max(np.abs(a).max() for a in jax.tree.leaves(wide[1]))

    def error(a, b):
        difference = np.abs(a - b).max()
        return difference / (max(np.abs(b).max(), floor) or 1)

    errors, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(error, *wide))
    path, worst = max(errors, key=lambda pair: np.nan_to_num(pair[1], nan=np.inf))
    return worst, jax.tree_util.keystr(path)
