"""Runs that are killed, by SIGKILL and at any moment, and gone on with.

    python -m tests.training.test_kills reference float64 FOLDER

is such a run: a new one, or what is left of the one in the folder.
"""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from reference import tree
from reference.data.batches import Windows
from reference.models.gpt import GPTConfig
from reference.tokenizers import Characters
from reference.training import TrainingConfig, checkpoint
from reference.training.log import read_log
from reference.training.run_folder import checkpoints_in
from reference.training.state import TREES, keys_of

ROOT = Path(__file__).resolve().parents[2]
CONFIG = GPTConfig(vocabulary=17, context=8, layers=1, heads=2, width=8, dropout=0.1)
TRAINING = TrainingConfig(
    steps=300,
    batch=2,
    length=8,
    learning_rate=0.02,
    average=0.9,
    evaluation_interval=20,
    evaluation_batches=3,
)
ENGINES = ["reference", "accelerated"]
PATIENCE = 300  # seconds until a process must have come to a moment


def train(engine, dtype, folder, *, checkpoint_interval=7):
    """All of a run, or what is left of it, by the engine of this name -> its Result."""
    fit = importlib.import_module(f"{engine}.training").fit
    text = np.random.default_rng(0).integers(0, 3, 1000).cumsum() % 17  # there is much to learn
    parts = text[:900], text[900:]
    data, validation = (Windows(p, length=8, batch=2, key=keys_of(0).data) for p in parts)
    return fit(
        CONFIG,
        replace(TRAINING, dtype=dtype),
        data,
        validation=validation,
        folder=folder,
        tokenizer=Characters.train(["abcdefghijklmnopq"]),
        resume=folder.exists() and bool(checkpoints_in(folder)),
        checkpoint_interval=checkpoint_interval,
        quiet=True,
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that starts a process with `train`; it ends with the test at the latest."""
    processes, errors = [], tmp_path_factory.mktemp("errors") / "stderr"
    # What one process compiles the next ones find.
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
    compiled["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    precision = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}

    def start(engine, dtype, folder):
        with open(errors, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.training.test_kills", engine, dtype, str(folder)],
                cwd=ROOT,
                env=os.environ | compiled | precision,
                stderr=file,
            )
        process.errors = errors
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run in this process that nobody stops."""

    @lru_cache
    def unbroken(engine, dtype):
        folder = tmp_path_factory.mktemp("unbroken") / engine
        assert train(engine, dtype, folder, checkpoint_interval=100).ended == "done"
        return folder

    return unbroken


def steps_saved(folder):
    """Of the latest checkpoint; 0 where there is none."""
    latest = folder / "latest"
    return int(latest.read_text().removeprefix("step-")) if latest.exists() else 0


def begun(folder):
    """The moment at which there is a log, and no checkpoint."""
    return lambda: (folder / "log.jsonl").exists()


def logged(folder, steps):
    """A moment after so many steps at which the log is ahead of the latest checkpoint."""

    def moment():
        saved = steps_saved(folder)
        return saved >= steps and read_log(folder)[-1]["step"] > saved

    return moment


def after(folder, steps, seconds):
    """A moment so many seconds after a checkpoint of so many steps."""

    def moment():
        reached = steps_saved(folder) >= steps
        if reached:
            time.sleep(seconds)
        return reached

    return moment


def writing(folder, steps):
    """A moment in the writing of a checkpoint of more than so many steps, not in its removal."""

    def moment():
        saved = steps_saved(folder)
        unfinished = (int(path.name[5:-4]) for path in folder.glob("step-*.tmp"))
        return saved >= steps and max(unfinished, default=0) > saved

    return moment


def killed(process, moment):
    """Kill a process at a moment -> whether it had not come to its end before."""
    given_up = time.monotonic() + PATIENCE
    while process.poll() is None and not moment():
        assert time.monotonic() < given_up, process.errors.read_text()
        time.sleep(0.0003)  # or this would take the processor from it
    process.kill()
    status = process.wait()
    assert status in (0, -signal.SIGKILL), process.errors.read_text()
    return status != 0


def check_loadable(folder):
    """Where a checkpoint has its name, the latest and the best are whole."""
    if folder.exists() and checkpoints_in(folder):
        for pointer in ("latest", "best"):
            checkpoint.load(folder, pointer=pointer)


def finish(process):
    """Wait for the end of a run."""
    assert process.wait(PATIENCE) == 0, process.errors.read_text()


def assert_same_run(folder, expected, tolerance=0.0):
    """All that a run leaves is the same: to the last bit where there is no tolerance."""
    assert names_in(folder) == names_in(expected)
    for line, other in zip(read_log(folder), read_log(expected), strict=True):
        assert list(line) == list(other) and line.pop("kind") == other.pop("kind")
        assert line == pytest.approx(other, rel=0, abs=tolerance)
    for pointer in ("latest", "best"):
        found, other = (checkpoint.load(each, pointer=pointer) for each in (folder, expected))
        assert (found.step, found.position) == (other.step, other.position)
        assert found.evaluation == pytest.approx(other.evaluation, rel=0, abs=tolerance)
        for name in TREES:
            one, two = (tree.flatten(getattr(each.state, name)) for each in (found, other))
            assert list(one) == list(two)
            for path in one:
                assert one[path].dtype == two[path].dtype
                np.testing.assert_allclose(one[path], two[path], rtol=0, atol=tolerance)


def names_in(folder):
    """Names, in which a step that was saved twice is the same step."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name.replace("step-0", "step-") for name in names)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_killed_three_times_is_the_unbroken_one(engine, start, unbroken, tmp_path):
    """Before its first checkpoint, where its log is ahead, and while it writes one; then on the
    other engine, too.

    Turns red if the average is not kept, the data or dropout's keys begin anew, or the log keeps
    what is later than the checkpoint.
    """
    rng = np.random.default_rng(ENGINES.index(engine))
    folder, steps = tmp_path / "run", rng.integers([40, 130], [100, 200])
    for moment in (begun(folder), logged(folder, steps[0]), writing(folder, steps[1])):
        assert killed(start(engine, "float64", folder), moment)
        check_loadable(folder)
    assert steps[1] <= steps_saved(folder) < 300
    shutil.copytree(folder, tmp_path / "on the other engine")
    finish(start(engine, "float64", folder))
    assert_same_run(folder, unbroken(engine, "float64"))
    (other,) = set(ENGINES) - {engine}
    assert train(other, "float64", tmp_path / "on the other engine").ended == "done"
    assert_same_run(tmp_path / "on the other engine", unbroken(engine, "float64"), 1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ENGINES)
def test_runs_killed_at_50_moments_are_the_unbroken_one(engine, dtype, start, unbroken, tmp_path):
    """Each third one while a checkpoint is written.  Once there is one, there always is."""
    rng, kills, folder = np.random.default_rng(50), 0, tmp_path / "0"
    while kills < 50:
        saved, more = steps_saved(folder), rng.integers(0, 12)
        moments = [
            writing(folder, saved + more),
            after(folder, saved + more, rng.uniform(0, 0.03)),
            after(folder, 0, rng.uniform(0, 4.0 if engine == "accelerated" else 1.0)),
        ]
        kills += killed(start(engine, dtype, folder), moments[kills % 3])
        check_loadable(folder)
        assert steps_saved(folder) >= saved
        if steps_saved(folder) == 300:
            finish(start(engine, dtype, folder))
            assert_same_run(folder, unbroken(engine, dtype))
            folder = tmp_path / str(kills)
    finish(start(engine, dtype, folder))
    assert_same_run(folder, unbroken(engine, dtype))


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
