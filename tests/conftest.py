"""Threads, precision and Hypothesis, settled before anything else is imported."""

import gc
import os

# Two test processes share two cores: more threads than one each would only wait for each other.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# XLA's own passes are all there, LLVM's are not: a program with dropout in it compiles in a quarter
# of the time.  Where rounding is compared (`tests/mirror.py`) they are, and with XLA_FLAGS= in the
# environment they are everywhere.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")  # no TF32 on a GPU, no bf16 on a TPU
settings.register_profile("default", deadline=None)  # the first example compiles
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("default")
# What was imported stays: a collection that walks over all of it each time takes a tenth of a run.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(config, items):
    """Tests marked `thorough` run where they are asked for: by `-m` or the Hypothesis profile."""
    if config.option.markexpr or config.getoption("--hypothesis-profile") == "thorough":
        return
    skip = pytest.mark.skip(reason="thorough: run with --hypothesis-profile=thorough")
    for item in items:
        if item.get_closest_marker("thorough"):
            item.add_marker(skip)
