"""The mean of a run's last checkpoints: weights that the noise of single steps has left.

The Transformer of 2017 was evaluated with the mean of its last 5 checkpoints (base) or 20 (big),
written every 10 minutes.  The moving average that a run can keep (`optimizer.moving_average`) is
the same idea without the files.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.training.checkpoint import load
from reference.training.run_folder import checkpoints_in


def averaged(folders):
    """One checkpoint whose parameters are the mean of those of several.

        θ = Σᵢ θᵢ / n

    folders: of checkpoints, `step-N`, of one model -> Checkpoint: the last of them, with these
    parameters for its own, and without a moving average, to be evaluated, used or saved.  One is
    loaded at a time; sums are in float64, the mean in the dtype of the first.
    Raises InputError for no folder, CheckpointError for one that does not load, or is of a model of
    other sizes.
    Source: Vaswani et al. 2017, sec. 6.1.
    """
    if not folders:
        raise InputError("there is no checkpoint to average; give one folder step-N at least")
    total = None
    for folder in folders:
        last = load(folder)
        if total is None:
            first, total = last, tree.map(np.float64, last.state.params)
        elif last.config == first.config:
            total = tree.map(np.add, total, last.state.params)
        else:
            raise CheckpointError(
                f"{folder} has the model {last.config}, {folders[0]} has {first.config}; give "
                "checkpoints of one run"
            )
    mean = tree.map(lambda a, p: (a / len(folders)).astype(p.dtype), total, first.state.params)
    state = last.state._replace(params=mean, average=None)
    return replace(last, state=state, settings=last.settings | {"average": None})


def last_checkpoints(run, number):
    """The folders of the last so many checkpoints of a run, the oldest first.

    A step that was saved twice counts once, as it was saved last.
    Raises InputError where there are fewer.
    """
    folder = Path(run)
    found = {step_of(path): path for path in checkpoints_in(folder)} if folder.is_dir() else {}
    if not 1 <= number <= len(found):
        raise InputError(
            f"{number} checkpoints of {folder} are asked for, and it has {len(found)}; give a "
            "number from 1 to that, or keep more of them while training"
        )
    return list(found.values())[-number:]


def step_of(path):
    """The N of a folder step-N."""
    return int(path.name.removeprefix("step-"))
