"""How a model learns, compiled.

from accelerated.training import Compilation, TrainingConfig, fit
"""

from dataclasses import asdict
from functools import partial

import jax

from accelerated.training.compilation import PLAIN, Compilation
from accelerated.training.loop import evaluate, measure, portable, train
from reference.errors import InputError
from reference.training import Result, TrainingConfig
from reference.training import fit as reference_fit
from reference.training.run import Loop

__all__ = ["Compilation", "Result", "TrainingConfig", "evaluate", "fit", "train"]


def fit(config, training, data, *, compilation=PLAIN, settings=None, **options):
    """As `reference.training.fit`, on the device, by compiled steps.

    compilation: how, see Compilation;  it is kept with the run's settings.  The checkpoints are the
    same: either engine goes on with the other's.
    Raises InputError for float64 where JAX was not told to compute in it.
    """
    if training.dtype == "float64" and not jax.config.jax_enable_x64:
        raise InputError(
            "dtype is 'float64', which JAX makes float32 of; call "
            "jax.config.update('jax_enable_x64', True) at the beginning, or give float32"
        )
    engine = Loop(
        partial(train, compilation=compilation),
        partial(measure, compilation=compilation),
        portable,
    )
    settings = (settings or {}) | asdict(compilation)
    return reference_fit(config, training, data, engine=engine, settings=settings, **options)
