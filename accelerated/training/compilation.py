"""How a training step is compiled: what it computes stays the same, its speed and memory do not."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from reference import tree
from reference.errors import InputError

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
    rows of zeros beneath the token table.  Both are done once, not in each step.
    """
    packed = dict(params)
    if compilation.unroll is not None:
        packed["blocks"] = tree.map(lambda *layers: np.stack(layers), *params["blocks"])
    table = np.asarray(params["token"]["embedding"])
    padding = -len(table) % compilation.vocabulary_multiple
    packed["token"] = {"embedding": np.pad(table, ((0, padding), (0, 0)))}
    return packed


def unpack(packed, config):
    """The reference's tree again, for a checkpoint: what `pack` did, undone, in host memory."""
    params = tree.map(np.array, packed)
    if not isinstance(params["blocks"], list):
        layers = range(config.layers)
        params["blocks"] = [tree.map(lambda a, i=i: a[i], params["blocks"]) for i in layers]
    params["token"] = {"embedding": params["token"]["embedding"][: config.vocabulary]}
    return params


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
