"""How a model learns.

    from reference.training import TrainingConfig, fit

`fit` trains, with checkpoints and all; `train` yields each step of it; `evaluate` measures a model.
"""

from reference.training.config import TrainingConfig
from reference.training.loop import evaluate, train
from reference.training.run import Result, fit

__all__ = ["Result", "TrainingConfig", "evaluate", "fit", "train"]
