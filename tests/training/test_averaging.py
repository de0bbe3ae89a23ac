from dataclasses import replace

import numpy as np
import pytest

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.gpt import GPTConfig, parameter_shapes
from reference.training.averaging import averaged, last_checkpoints
from reference.training.checkpoint import Checkpoint, load, save
from reference.training.state import State

CONFIG = GPTConfig(vocabulary=19, context=5, layers=1, heads=1, width=3)


def made(step, dtype=np.float32, config=CONFIG, average=None):
    """A checkpoint with numbers of its step."""
    rng = np.random.default_rng(step)

    def draw():
        shapes = parameter_shapes(config).items()
        return tree.unflatten({p: rng.standard_normal(s).astype(dtype) for p, s in shapes})

    moving = None if average is None else draw()
    return Checkpoint(State(step, draw(), draw(), draw(), moving), config, {"average": average})


@pytest.fixture
def run(tmp_path):
    for step in (2, 10, 30, 40):
        save(tmp_path / "run", made(step, average=0.5))
    return tmp_path / "run"


def test_the_last_checkpoints_are_those_of_the_highest_steps(run):
    """Turns red if folders are sorted by their names, where 10 comes before 2."""
    names = [path.name for path in last_checkpoints(run, 3)]
    assert names == ["step-10", "step-30", "step-40"]
    save(run, made(40))  # as step-040
    assert [p.name for p in last_checkpoints(run, 2)] == ["step-30", "step-040"]


def test_the_mean_is_that_of_the_parameters(run):
    """And all else is the last one's.  Turns red if moving averages are averaged instead."""
    found = averaged(last_checkpoints(run, 3))
    parts = [made(step, average=0.5).state.params for step in (10, 30, 40)]
    expected = tree.map(lambda *a: np.mean(a, axis=0, dtype=np.float64).astype(a[0].dtype), *parts)
    tree.map(np.testing.assert_array_equal, found.state.params, expected)
    assert all(a.dtype == np.float32 for a in tree.leaves(found.state.params))
    assert found.step == 40 and found.config == CONFIG and found.state.average is None
    tree.map(np.testing.assert_array_equal, found.state.mean, load(run / "step-40").state.mean)
    tree.map(np.testing.assert_array_equal, found.weights, expected)


def test_what_was_averaged_can_be_saved_and_loaded(run, tmp_path):
    found = averaged(last_checkpoints(run, 2))
    again = load(save(tmp_path / "mean", found))
    tree.map(np.testing.assert_array_equal, again.weights, found.weights)
    assert again.step == 40


@pytest.mark.parametrize("number", [1, 3, 7])
def test_the_mean_of_equal_parameters_is_those(run_of_one, number):
    """Turns red if sums are rounded to float32 on the way, or divided by another number."""
    found = averaged([run_of_one] * number)
    tree.map(np.testing.assert_array_equal, found.state.params, load(run_of_one).state.params)


@pytest.fixture(scope="module")
def run_of_one(tmp_path_factory):
    return save(tmp_path_factory.mktemp("one"), made(7))


def test_what_cannot_be_averaged_is_refused(run, tmp_path):
    for number in (0, 5):
        with pytest.raises(InputError, match=f"{number} checkpoints of .* and it has 4"):
            last_checkpoints(run, number)
    with pytest.raises(InputError, match="it has 0"):
        last_checkpoints(tmp_path / "nowhere", 1)
    with pytest.raises(InputError, match="no checkpoint to average"):
        averaged([])
    other = save(tmp_path / "other", made(3, config=replace(CONFIG, width=4)))
    with pytest.raises(CheckpointError, match="give checkpoints of one run") as raised:
        averaged([run / "step-2", other])
    assert str(other) in str(raised.value)
    (run / "step-30" / "params.safetensors").unlink()
    with pytest.raises(CheckpointError, match="step-30"):
        averaged(last_checkpoints(run, 4))
