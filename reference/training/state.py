"""What a run carries from step to step, and the streams of random numbers that it draws from."""

from typing import NamedTuple

import numpy as np

from reference import random, tree
from reference.errors import DtypeError
from reference.models import model_of
from reference.training.array_files import check_fit
from reference.training.optimizer import debiased

TREES = ("params", "mean", "square", "average")  # the fields of a State that have params' structure


class State(NamedTuple):
    """All that a run carries from step to step, the same in both engines."""

    step: int  # steps done
    params: dict
    mean: dict  # AdamW's moments, trees like params
    square: dict
    average: dict | None = None  # `moving_average` of params, from zeros on, where it is asked for
    scaling: dict | None = None  # of a float16 loss: see `accelerated.training.scaling`


class Keys(NamedTuple):
    """The streams of random numbers of one seed: split(key(seed), 4), in this order."""

    params: np.ndarray
    data: np.ndarray
    dropout: np.ndarray
    sample: np.ndarray


def keys_of(seed):
    """The keys of a run."""
    return Keys(*random.split(random.key(seed), 4))


def initial_state(config, training, params=None):
    """The state before the first step: published initial weights, or others; moments of zero."""
    key, dtype = keys_of(training.seed).params, np.dtype(training.dtype)
    if params is None:
        params = model_of(config).initial_params(
            config, key=key, initialization=training.initialization, dtype=dtype
        )
    else:
        check_params(config, training, params)
    zeros = [tree.map(np.zeros_like, params) for _ in TREES[1:]]
    mean, square, average = zeros
    return State(0, params, mean, square, None if training.average is None else average)


def check_params(config, training, params):
    """Raise CheckpointError or DtypeError for parameters that are not this model's."""
    flat = tree.flatten(params)
    check_fit("params", flat, model_of(config).parameter_shapes(config))
    for name, array in flat.items():
        if array.dtype != np.dtype(training.dtype):
            raise DtypeError(
                f"params {name} is {array.dtype}, and the training's dtype {training.dtype}; give "
                "both alike"
            )


def over_trees(function, state):
    """A State with function(tree) in place of each tree of it."""
    trees = {name: getattr(state, name) for name in TREES if getattr(state, name) is not None}
    return state._replace(**{name: function(part) for name, part in trees.items()})


def weights(state, decay):
    """The weights to use: the last ones or, where the run averages, by this decay, the mean."""
    if state.average is None or state.step == 0:
        return state.params
    return debiased(state.average, decay=decay, step=state.step)


def updates(state):
    """How often AdamW has moved the weights: a float16 step that overflowed has not."""
    return state.step - (0 if state.scaling is None else state.scaling["skipped"])
