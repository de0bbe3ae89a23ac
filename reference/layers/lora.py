"""LoRA: fine-tune a model by adding to its kernels products of two thin matrices, and train nothing
else.  What is learnt is small, and can be merged into the kernels so that nothing is slower.

    lora               one linear map with its adapter beside it
    lora_merge         a whole model with its adapters merged in: any model is trained through it
    lora_unmerge       the model as it was
    initial_adapters   where training starts: as if there were none
"""

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.linear import linear, rows

__all__ = ["lora", "lora_merge"]


def lora(params, x, *, frozen, alpha):
    """A linear map that is not trained, plus one of low rank that is: r (D + F) numbers to learn
    in place of D F.

        y = x W + b + α/r (x A) B

    params: lora_a A (D, r), lora_b B (r, F).  x (..., D) -> y (..., F).  frozen: the parameters of
    a `linear`, kernel W (D, F), bias b (F,) or absent.  α/r spares a new learning rate where the
    rank is changed.
    Raises InputError unless A and B fit W and each other, and r is in [1, min(D, F)].
    Source: Hu et al. 2021, "LoRA: low-rank adaptation of large language models", sec. 4.1, eq. 3.
    Differs from the paper: x is a row, not a column, so the paper's matrices are ours transposed.

    Backward: with h = x A and dh = α/r dy Bᵀ,
        dA = xᵀ dh,   dB = α/r hᵀ dy,   dx = dy Wᵀ + dh Aᵀ;   W and b get none.
    """
    a, b = params["lora_a"], params["lora_b"]
    kernel = frozen["kernel"]
    check_adapter(a.shape, b.shape, kernel.shape, name="the kernel")
    scale = alpha / a.shape[-1]
    base, _ = linear(frozen, x)
    h = rows(x) @ a
    y = base + (scale * h @ b).reshape(base.shape)

    def backward(dy):
        scaled = scale * rows(dy)
        dh = scaled @ b.T
        dx = rows(dy) @ kernel.T + dh @ a.T
        return {"lora_a": rows(x).T @ dh, "lora_b": h.T @ scaled}, dx.reshape(x.shape)

    return y, backward


def lora_merge(params, *, frozen, alpha):
    """A model's parameters with their adapters added: the model itself need not know of LoRA.

        W' = W + α/r A B   for every kernel that has an adapter;   the others stay what they are

    params: {path: {lora_a A (D, r), lora_b B (r, F)}}, path that of a kernel W (D, F), such as
    "blocks.0.up.kernel".  frozen: any tree of parameters -> a tree like it.
    A `linear` of it maps x (..., D) -> y (..., F) as `lora` does, at the cost of the linear alone.
    To train: the model's gradient of what comes out here, then this backward.
    Used for GPT-3, on query and value.
    Raises InputError for a path that is not in the tree, and as `lora`.
    Source: Hu et al. 2021, sec. 4.1, "No additional inference latency".

    Backward: the gradient of a kernel is that of the product,
        dA = α/r dW' Bᵀ,   dB = α/r Aᵀ dW'.
    """
    flat = tree.flatten(frozen)
    check_adapters(params, flat)
    merged = {path: flat[path] + update(adapter, alpha) for path, adapter in params.items()}

    def backward(dy):
        gradients, dparams = tree.flatten(dy), {}
        for path, adapter in params.items():
            a, b = adapter["lora_a"], adapter["lora_b"]
            dupdate = alpha / a.shape[-1] * gradients[path]
            dparams[path] = {"lora_a": dupdate @ b.T, "lora_b": a.T @ dupdate}
        return dparams

    return tree.unflatten(flat | merged), backward


def lora_unmerge(params, *, merged, alpha):
    """The frozen tree that `lora_merge` was given, but for rounding: W = W' - α/r A B.

    Another task's adapters can then be merged.  JAX's arrays are taken too.
    Raises InputError as `lora_merge`.
    """
    flat = tree.flatten(merged)
    check_adapters(params, flat)
    base = {path: flat[path] - update(adapter, alpha) for path, adapter in params.items()}
    return tree.unflatten(flat | base)


def initial_adapters(frozen, *, rank, targets, key):
    """Adapters that change nothing yet: A random, B zero, one for each kernel of a tree whose part
    is a target, such as "query" and "value" (which the paper adapts).

    -> {path: {lora_a, lora_b}} as `lora_merge` takes it, in the dtype of the kernel.  A is normal
    with standard deviation 1/r, as in Hugging Face's peft with "gaussian"; the paper says Gaussian
    and no more, its code and peft's default take a uniform number up to 1/√D.  Drawn in float32,
    for the i-th path in the order of sorting with fold_in(key, i).
    Raises InputError for a target that is nowhere, or a rank outside [1, min(D, F)] of a kernel.
    Source: Hu et al. 2021, sec. 4.1.
    """
    kernels = {p: a for p, a in tree.flatten(frozen).items() if p.endswith(".kernel")}
    part = {path: path.split(".")[-2] for path in kernels}
    for target in targets:
        if target not in part.values():
            known = ", ".join(sorted(set(part.values())))
            raise InputError(f"targets has {target!r}, which no kernel is part of; give {known}")
    adapters = {}
    for i, path in enumerate(sorted(path for path in kernels if part[path] in targets)):
        kernel = kernels[path]
        check_rank(rank, kernel.shape, name=path)
        a = random.normal(random.fold_in(key, i), (kernel.shape[0], rank)) * np.float32(1 / rank)
        b = np.zeros((rank, kernel.shape[1]))
        adapters[path] = {"lora_a": a.astype(kernel.dtype), "lora_b": b.astype(kernel.dtype)}
    return adapters


def update(adapter, alpha):
    """What an adapter adds to its kernel: α/r A B."""
    a, b = adapter["lora_a"], adapter["lora_b"]
    return alpha / a.shape[-1] * a @ b


def check_adapters(params, flat):
    """Raise InputError unless each adapter is for a kernel of a flattened tree, and fits it."""
    for path, adapter in params.items():
        if path not in flat:
            raise InputError(
                f"params has an adapter for {path!r}, which the model lacks; give a path of it, "
                f"such as {min(flat)!r}"
            )
        shapes = (adapter["lora_a"].shape, adapter["lora_b"].shape, flat[path].shape)
        check_adapter(*shapes, name=path)


def check_adapter(a, b, kernel, *, name):
    """Raise InputError unless A (D, r), B (r, F) and the kernel (D, F) fit; all are shapes."""
    fits = len(a) == len(b) == len(kernel) == 2
    if not fits or (a[0], *b) != (kernel[0], a[1], kernel[1]):
        raise InputError(
            f"lora_a is {tuple(a)} and lora_b {tuple(b)}, while {name} is {tuple(kernel)}; give "
            "(D, r) and (r, F) for a kernel of (D, F)"
        )
    check_rank(a[1], kernel, name=name)


def check_rank(rank, kernel, *, name):
    """Raise InputError unless an adapter of a kernel of this shape can have this rank."""
    if len(kernel) != 2:
        raise InputError(f"{name} has shape {tuple(kernel)}; adapters are for matrices (D, F)")
    if not isinstance(rank, int) or not 1 <= rank <= min(kernel):
        raise InputError(
            f"the rank is {rank!r}, {name} {tuple(kernel)}; give an integer in [1, {min(kernel)}]"
        )
