"""How a training step is compiled: what it computes stays the same, its speed and memory do not."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from reference import tree
from reference.errors import InputError
from reference.models import model_of, name_of

DECODERS = ("gpt", "llama")
VOCABULARY = {"token.embedding": 0, "output.kernel": 1}  # of these: the axis with all tokens
ATTENTION, COMPUTE_DTYPES = ("cudnn",), ("bfloat16", "float16")
RECOMPUTE = (
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
)


@dataclass(frozen=True)
class Compilation:
    """What there is to choose.  Raises InputError for what there is not."""

    steps_per_call: int = 1  # training steps in one compiled call: small models need not wait
    compute_dtype: str | None = None  # of forward and backward, beside float32 masters
    attention: str | None = None  # "cudnn": the fused kernel of NVIDIA's GPUs
    unroll: int | None = None  # layers in a turn of a compiled loop over all; None: no loop
    recompute_policy: str | None = None  # what the backward finds kept: a policy of jax.checkpoint
    vocabulary_multiple: int = 1  # of the token table's rows: GPUs like 128

    def __post_init__(self):
        for name in ("steps_per_call", "unroll", "vocabulary_multiple"):
            value = getattr(self, name)
            if not (value is None and name == "unroll" or isinstance(value, int) and value > 0):
                raise InputError(f"{name} is {value!r}; give a positive integer")
        for name, allowed in (
            ("compute_dtype", COMPUTE_DTYPES),
            ("attention", ATTENTION),
            ("recompute_policy", RECOMPUTE),
        ):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise InputError(f"{name} is {value!r}; give one of {', '.join(allowed)}, or none")

    @property
    def model(self):
        """What `GPT` takes of it."""
        options = {name: getattr(self, name) for name in ("attention", "unroll")}
        return options | {"recompute": self.recompute_policy}


PLAIN = Compilation()


def pack(params, compilation):
    """The reference's tree, or one like it, as the compiled step wants it: equal layers stacked,
    and what has a place for each token filled up with zeros.  Both are done once, not in each step.
    """
    packed = params if compilation.unroll is None else with_stacks(params)
    if compilation.vocabulary_multiple == 1:
        return packed
    flat = tree.flatten(packed)
    for path, axis in VOCABULARY.items():
        if path in flat:
            missing = [(0, 0), (0, 0)]
            missing[axis] = 0, -flat[path].shape[axis] % compilation.vocabulary_multiple
            flat[path] = np.pad(flat[path], missing)
    return tree.unflatten(flat)


def unpack(packed, config):
    """The reference's tree again, for a checkpoint: what `pack` did, undone, in host memory."""
    flat = tree.flatten(without_stacks(tree.map(np.array, packed)))
    shapes = model_of(config).parameter_shapes(config)
    return tree.unflatten(
        {path: flat[path][tuple(map(slice, shape))] for path, shape in shapes.items()}
    )


def with_stacks(params):
    """A tree in which each list of blocks is one stack of them, with a leading axis."""
    if not isinstance(params, dict):
        return params
    return {
        name: tree.map(lambda *layers: np.stack(layers), *child)
        if name == "blocks"
        else with_stacks(child)
        for name, child in params.items()
    }


def without_stacks(packed):
    """What `with_stacks` did, undone; lists stay."""
    if not isinstance(packed, dict):
        return packed
    return {
        name: unstacked(child)
        if name == "blocks" and isinstance(child, dict)
        else without_stacks(child)
        for name, child in packed.items()
    }


def unstacked(stack):
    """A list of blocks of one stack of them."""
    layers = len(tree.leaves(stack)[0])
    return [tree.map(lambda a, i=i: a[i], stack) for i in range(layers)]


def check_model(compilation, config):
    """Raise InputError for what the twin of this model cannot be told."""
    if compilation.vocabulary_multiple > 1 and name_of(config) not in DECODERS:
        raise InputError(
            f"vocabulary_multiple is {compilation.vocabulary_multiple}, which is for "
            f"{' and '.join(DECODERS)}; leave it out"
        )


def check_device(compilation):
    """Raise InputError for a kernel of a device that is not there."""
    device = jax.devices()[0]
    if compilation.attention == "cudnn" and device.platform != "gpu":
        raise InputError(
            f"attention is 'cudnn', which NVIDIA's GPUs have, and this is a {device.device_kind}; "
            "leave it out"
        )


def keep_compiled(folder=None):
    """Keep what XLA compiles on the disk, so that the next start of the same program finds it.

    folder: else the environment's JAX_COMPILATION_CACHE_DIR, else one in the user's cache.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    default = os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache / "twinformer"
    jax.config.update("jax_compilation_cache_dir", str(folder or default))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
