"""How a model learns, compiled.

from accelerated.training import Compilation, TrainingConfig, fit
"""

from dataclasses import asdict
from functools import partial

from accelerated.training.compilation import PLAIN, Compilation
from accelerated.training.loop import evaluate, measure, portable, train
from reference.training import Result, TrainingConfig
from reference.training import fit as reference_fit
from reference.training.run import Loop

__all__ = ["Compilation", "Result", "TrainingConfig", "evaluate", "fit", "train"]


def fit(config, training, data, *, compilation=PLAIN, settings=None, **options):
    """As `reference.training.fit`, on the device, by compiled steps.

    compilation: how, see Compilation;  it is kept with the run's settings.  The checkpoints are the
    same: either engine goes on with the other's.
    """
    engine = Loop(
        partial(train, compilation=compilation),
        partial(measure, compilation=compilation),
        portable,
    )
    settings = asdict(compilation) | (settings or {})
    return reference_fit(config, training, data, engine=engine, settings=settings, **options)
