"""python -m accelerated train | generate: a GPT compiled by XLA, from a text to what it writes."""

import sys

import jax

from accelerated.inference.decoding import generate
from accelerated.training.loop import train
from reference.commands import Engine, main


def prepare(dtype):
    """JAX makes float32 of float64 unless it is told not to."""
    jax.config.update("jax_enable_x64", dtype == "float64")


if __name__ == "__main__":
    sys.exit(main(Engine("accelerated", train, generate, prepare)))
