"""How a model is trained: all that decides a run, beside the model, the data and the seed."""

import math
from dataclasses import dataclass
from functools import partial

from reference import random
from reference.errors import InputError
from reference.training import schedule as schedules

SCHEDULES = ("cosine", "linear", "constant", "inverse_square_root", "warmup_stable_decay")


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a run.  Raises InputError for what cannot be."""

    steps: int
    batch: int = 12  # rows in each step, B
    length: int = 64  # tokens in each row, T
    accumulation: int = 1  # parts of a batch that are computed one after another, to save memory
    schedule: str = "cosine"  # of the learning rate, after the warm-up
    learning_rate: float = 1e-3  # the peak, after the warm-up
    final_learning_rate: float = 1e-4  # at the last step; of no use to the schedules without one
    warmup: int = 20  # steps
    decay: int | None = None  # of warmup_stable_decay, its last steps; None: a fifth of all
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 1.0
    average: float | None = None  # decay of the weights' moving average, such as 0.999
    recompute: bool = False  # blocks keep only their input until the backward: less memory
    evaluation_interval: int = 250  # steps from one look at the validation data to the next
    evaluation_batches: int | None = 200  # of the validation data, the first so many; None: all
    patience: int | None = None  # evaluations without a new best, after which training ends
    initialization: str = "paper"
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch", "length", "accumulation", "evaluation_interval"):
            check_count(name, getattr(self, name))
        for name in ("evaluation_batches", "patience", "decay"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.batch % self.accumulation:
            raise InputError(
                f"accumulation is {self.accumulation}, which does not divide the batch of "
                f"{self.batch}; give a divisor of it"
            )
        for name in ("learning_rate", "clip", "epsilon"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InputError(f"{name} is {value!r}; give a positive number")
        if self.average is not None and not 0 < self.average < 1:
            raise InputError(f"average is {self.average!r}; give a decay between 0 and 1")
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype is {self.dtype!r}; give float32 or float64")
        rate(self)(1)
        random.key(self.seed)


def rate(training, among=schedules):
    """The schedule of a run: of `reference.training.schedule` a function of the step, from 1; of
    the twin's, one of the steps done.  Raises InputError for one that cannot be.
    """
    if training.schedule not in SCHEDULES:
        raise InputError(f"schedule is {training.schedule!r}; give one of {', '.join(SCHEDULES)}")
    peak, warmup, steps = training.learning_rate, training.warmup, training.steps
    schedules.warmup_cosine(1, peak=peak, warmup=warmup, steps=steps)  # raises for any of them
    falling = {"warmup": warmup, "steps": steps, "final": training.final_learning_rate}
    decay = training.decay or max(min(steps // 5, steps - warmup), 1)
    name, settings = {
        "cosine": ("warmup_cosine", falling),
        "linear": ("linear", falling),
        "constant": ("constant", {"warmup": warmup}),
        "inverse_square_root": ("inverse_square_root", {"width": 1, "warmup": max(warmup, 1)}),
        "warmup_stable_decay": ("warmup_stable_decay", falling | {"decay": decay}),
    }[training.schedule]
    # That of 2017 is peak · √warmup · min(step^-½, step · warmup^-1.5): the peak is at `warmup`.
    scale = {"factor": peak * max(warmup, 1) ** 0.5} if "width" in settings else {"peak": peak}
    function = getattr(among, name)
    return partial(function, **scale, **settings)


def check_count(name, value):
    """Raise InputError unless it is an integer from 1 on."""
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; give a positive integer")
