"""python -m accelerated train | evaluate | generate | export: by XLA, from a text to texts."""

import sys
from dataclasses import fields

import jax

from accelerated.inference import beam_generate, generate, speculate
from accelerated.tokenizers import bpe
from accelerated.training import evaluate, fit
from accelerated.training.compilation import (
    ATTENTION,
    COMPUTE_DTYPES,
    RECOMPUTE,
    Compilation,
    keep_compiled,
)
from reference.commands import Engine, main
from reference.tokenizers import BPE


def prepare(dtype):
    """JAX makes float32 of float64 unless it is told not to."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    keep_compiled()


def within_memory(function):
    """A function that raises MemoryError where XLA finds the device's memory too small."""

    def call(*arguments, **options):
        try:
            return function(*arguments, **options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise MemoryError(str(error).splitlines()[0]) from error

    return call


def encoder(tokenizer):
    """What encodes: tiktoken in place of the reference's BPE, where that is just as GPT-2's."""
    others = [f for f in fields(BPE) if f.init and f.name not in ("merges", "special_tokens")]
    if isinstance(tokenizer, BPE) and all(getattr(tokenizer, f.name) == f.default for f in others):
        tokenizer = bpe.BPE.of(tokenizer)
    return tokenizer.encode


def add_options(add):
    """The fields of Compilation; without a default, as all that describes a run."""
    add(
        "--steps-per-call", type=int, metavar="N", help="steps in one call: 32 for small models (1)"
    )
    add(
        "--compute-dtype",
        choices=COMPUTE_DTYPES,
        metavar="DTYPE",
        help="bfloat16 or float16, beside float32 weights (the weights' own)",
    )
    add("--attention", choices=ATTENTION, metavar="KERNEL", help="cudnn, on NVIDIA's GPUs (none)")
    add("--unroll", type=int, metavar="N", help="layers in a turn of a compiled loop (no loop)")
    add(
        "--recompute-policy",
        choices=RECOMPUTE,
        metavar="POLICY",
        help=f"what of a block to keep: {', '.join(RECOMPUTE)} (all)",
    )
    add("--vocabulary-multiple", type=int, metavar="N", help="pad the token table's rows to it (1)")


WORK = map(within_memory, (fit, evaluate, generate, beam_generate, speculate))
ENGINE = Engine("accelerated", *WORK, prepare, encoder, Compilation, add_options)

if __name__ == "__main__":
    sys.exit(main(ENGINE))
