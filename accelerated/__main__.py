"""python -m accelerated train | generate: a GPT compiled by XLA, from a text to what it writes."""

import sys

import jax

from accelerated.inference.decoding import generate
from accelerated.training.compilation import (
    ATTENTION,
    COMPUTE_DTYPES,
    RECOMPUTE,
    Compilation,
    keep_compiled,
)
from accelerated.training.loop import portable, train
from reference.commands import Engine, main


def prepare(dtype):
    """JAX makes float32 of float64 unless it is told not to."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    keep_compiled()


def add_options(add):
    """The fields of Compilation; without a default, as all that describes a run."""
    add(
        "--steps-per-call", type=int, metavar="N", help="steps in one call: 32 for small models (1)"
    )
    add(
        "--compute-dtype",
        choices=COMPUTE_DTYPES,
        metavar="DTYPE",
        help="bfloat16 beside float32 weights (the weights' own)",
    )
    add("--attention", choices=ATTENTION, metavar="KERNEL", help="cudnn, on NVIDIA's GPUs (none)")
    add("--unroll", type=int, metavar="N", help="layers in a turn of a compiled loop (no loop)")
    add(
        "--recompute",
        choices=RECOMPUTE,
        metavar="POLICY",
        help=f"to save memory: {', '.join(RECOMPUTE)} (keep all)",
    )
    add("--vocabulary-multiple", type=int, metavar="N", help="pad the token table's rows to it (1)")


ENGINE = Engine("accelerated", train, generate, prepare, Compilation, add_options, portable)

if __name__ == "__main__":
    sys.exit(main(ENGINE))
