"""Whole runs by `fit`, in both engines: to the end, stopped, resumed, failing."""

import errno
import io
import os
import signal
import tempfile
import threading
import time
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import accelerated.training as accelerated
import reference.training as reference
from accelerated.training import Compilation
from accelerated.training.loop import measure, portable, train
from reference import tree
from reference.data.batches import Windows
from reference.errors import InputError
from reference.models.gpt import GPTConfig
from reference.tokenizers import Characters
from reference.training import TrainingConfig, checkpoint, curve, run
from reference.training.config import rate
from reference.training.log import Log, read_log
from reference.training.run import REFERENCE, Loop, Result, passed
from reference.training.state import TREES, keys_of

CONFIG = GPTConfig(vocabulary=17, context=8, layers=1, heads=2, width=8, dropout=0.1)
TRAINING = TrainingConfig(
    steps=24,
    batch=2,
    length=8,
    warmup=3,
    learning_rate=0.1,
    final_learning_rate=0.05,
    average=0.7,
    evaluation_interval=7,
    evaluation_batches=3,
)
COMPILED = Loop(train, measure, portable)
FITS = {"reference": reference.fit, "accelerated": accelerated.fit}
LOOPS = {"reference": REFERENCE, "accelerated": COMPILED}
TOKENIZER = Characters.train(["ab\ncdefghijklmno"])
each_engine = pytest.mark.parametrize("name", FITS)


class Data(Windows):
    """Random tokens, and something to do where the batch of a step is asked for.

    The compiled engine asks for it while it is at work on the step before.
    """

    def __init__(self, tokens=200, seed=1, at=None, do=None):
        text = np.random.default_rng(seed).integers(0, CONFIG.vocabulary, tokens)
        super().__init__(text, length=8, batch=2, key=keys_of(0).data)
        self.at, self.do = at, do

    def batch(self, step):
        if step == self.at:
            self.do()
        return super().batch(step)


def fitted(name, folder=None, data=None, training=TRAINING, config=CONFIG, **options):
    """A run with the usual data, of which nothing is shown."""
    options = {"validation": Data(100, seed=2), "tokenizer": TOKENIZER, "quiet": True} | options
    fit = FITS.get(name, partial(reference.fit, engine=name))
    return fit(config, training, data or Data(), folder=folder, **options)


@lru_cache
def unbroken(name, folder):
    """The run that all others are compared with, once for each engine."""
    return folder, fitted(name, folder, checkpoint_interval=5)


@pytest.fixture
def whole(name, tmp_path_factory):
    base = tmp_path_factory.getbasetemp() / "whole"
    return unbroken(name, base / name)


def press(*numbers):
    """Send signals to this process; each one's handler has run when this returns."""
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0)


def assert_same_run(folder, expected):
    """The same to the last bit: files, checkpoints, log."""
    assert files_in(folder) == files_in(expected)
    assert (folder / "log.jsonl").read_bytes() == (expected / "log.jsonl").read_bytes()
    for pointer in ("latest", "best"):
        found, other = (checkpoint.load(f, pointer=pointer) for f in (folder, expected))
        assert_same_state(found.state, other.state)
        bare = replace(other, state=None, tokenizer=None)
        assert replace(found, state=None, tokenizer=None) == bare


def assert_same_state(state, expected):
    """The same to the last bit, in dtype too."""
    for name in TREES:
        one, other = (tree.flatten(getattr(each, name) or {}) for each in (state, expected))
        assert sorted(one) == sorted(other)
        for path in one:
            assert one[path].dtype == other[path].dtype
            np.testing.assert_array_equal(one[path], other[path], err_msg=f"{name} {path}")
    assert state._replace(**dict.fromkeys(TREES)) == expected._replace(**dict.fromkeys(TREES))


def files_in(folder):
    """Names, in which a step that was saved twice is the same step."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name.replace("step-0", "step-") for name in names)


def snapshot(folder):
    """What is in each file, and when it was written; the lock aside, which each process takes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def scripted(losses, loop=REFERENCE):
    """An engine whose evaluations find these losses, one after another."""
    left = iter(losses)
    return loop._replace(measure=lambda *_: {"loss": next(left)})


def from_step(first, loop=REFERENCE, **figures):
    """An engine whose steps have other figures from one on."""

    def train(config, training, data, *, state):
        for after, found in loop.train(config, training, data, state=state):
            yield after, found | (figures if after.step >= first else {})

    return loop._replace(train=train)


def counting(calls=1):
    """An engine that only counts: so many steps a call, and its loss is that of the weights."""

    def train(config, training, data, *, state):
        step, weights = state.step, state.params["token"]["embedding"]
        while step < training.steps:
            several = range(step, min(step + calls, training.steps))
            for step in several:
                weights = weights * 0.5 + step
            step += 1
            figures = np.full(len(several), weights.mean())
            params = state.params | {"token": {"embedding": weights}}
            found = dict.fromkeys(("loss", "gradient_norm"), figures)
            yield state._replace(step=step, params=params), found

    def measure(state, *_):
        return {"loss": float(np.sin(state.step) + 2)}

    return Loop(train, measure, lambda state, config: state)


# A run to its end.


@each_engine
def test_without_a_folder_nothing_is_written(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    result = fitted(name, validation=None, tokenizer=None)
    assert (result.ended, result.evaluation, result.folder) == ("done", {}, None)
    steps = LOOPS[name].train(CONFIG, TRAINING, Data())
    *_, (state, _) = ((LOOPS[name].portable(s, CONFIG), f) for s, f in steps)
    assert_same_state(result.state, state)
    assert result.params is result.state.params and result.state.step == 24
    assert all(type(leaf) is np.ndarray for leaf in tree.leaves(result.params))
    assert os.listdir(tmp_path) == [] and capfd.readouterr() == ("", "")


@each_engine
def test_the_folder_of_a_run(name, whole):
    folder, result = whole
    best = result.evaluation["best_step"]
    assert {path.name for path in folder.iterdir()} == {
        *("best", "curve.png", "latest", "log.jsonl", "run.lock", "step-24", f"step-{best}")
    }
    latest = checkpoint.load(folder)
    assert result.ended == "done" and result.folder == folder / "step-24"
    assert_same_state(latest.state, result.state)
    assert latest.evaluation == result.evaluation and latest.config == CONFIG
    assert latest.tokenizer.characters == TOKENIZER.characters
    assert latest.settings.items() >= asdict(TRAINING).items()
    assert latest.position["fingerprint"] == Data().fingerprint
    assert (latest.position["epoch"], latest.position["batch"]) == divmod(24, 12)
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


@each_engine
def test_averaged_weights_are_evaluated_and_the_best_is_kept(name, whole):
    """Turns red if the last weights are evaluated, or saved for the best."""
    folder, result = whole
    seen = [line for line in read_log(folder) if line["kind"] == "evaluation"]
    losses = [line["loss"] for line in seen]
    best = int(np.argmin(losses))
    assert [line["step"] for line in seen] == [7, 14, 21, 24] and best < 3
    assert [line["best"] for line in seen] == [
        loss == min(losses[: i + 1]) for i, loss in enumerate(losses)
    ]
    assert result.evaluation == {
        "best_loss": losses[best],
        "best_step": seen[best]["step"],
        "waited": 3 - best,
    }
    found = checkpoint.load(folder, pointer="best")
    assert found.step == result.evaluation["best_step"]
    evaluate = partial(reference.evaluate, config=CONFIG, data=Data(100, seed=2), batches=3)
    assert evaluate(found.weights)["loss"] == pytest.approx(min(losses), rel=1e-5)
    assert abs(evaluate(found.state.params)["loss"] - min(losses)) > 1e-3


@each_engine
def test_the_log_has_each_tenth_step_and_every_evaluation(name, whole):
    """Turns red if the rate logged is that of the next step, or a step's line comes after its
    evaluation's.
    """
    folder, _ = whole
    log = read_log(folder)
    assert [(line["kind"], line["step"]) for line in log] == [
        ("evaluation", 7),
        ("step", 10),
        ("evaluation", 14),
        ("step", 20),
        ("evaluation", 21),
        ("evaluation", 24),
    ]
    figures = [found for _, found in LOOPS[name].train(CONFIG, TRAINING, Data())]
    for line in log:
        if line["kind"] == "step":
            expected = {key: float(value) for key, value in figures[line["step"] - 1].items()}
            expected["learning_rate"] = rate(TRAINING)(line["step"])
            assert line == {"kind": "step", "step": line["step"]} | expected
        else:
            assert list(line) == ["kind", "step", "loss", "best"]


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_shown_unless_quiet(quiet, capfd):
    fitted(counting(), quiet=quiet)
    out, err = capfd.readouterr()
    assert err == "" and (out == "") == quiet
    assert quiet or ("step 24: loss" in out and "step 7: validation loss" in out)


@pytest.mark.parametrize(
    "keep, interval, left", [(1, 5, {24}), (2, 5, {20, 24}), (9, 9, {9, 18, 24}), (1, 99, {24})]
)
def test_how_many_checkpoints_are_kept_and_how_often(tmp_path, keep, interval, left):
    """The best beside them."""
    fitted(counting(), tmp_path / "run", validation=None, checkpoint_interval=interval, keep=keep)
    assert left == {int(path.name[5:]) for path in (tmp_path / "run").glob("step-*")}
    losses = scripted([3.0, 1.0, 2.0, 2.0], counting())
    fitted(losses, tmp_path / "best", checkpoint_interval=interval, keep=keep)
    kept = {int(path.name[5:]) for path in (tmp_path / "best").glob("step-*")}
    assert left <= kept | {7} and 14 in kept and 24 in kept and len(kept) <= keep + 1
    assert checkpoint.load(tmp_path / "best", pointer="best").step == 14


# Stopped and gone on with.


@each_engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_and_resumed_is_the_unbroken_one(
    name, number, whole, tmp_path, capfd
):
    """Turns red if a step is lost or done twice, what evaluation has found is, the data begin anew,
    or a signal's handler is not put back.
    """
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    folder = tmp_path / "run"
    data = Data(at=16, do=partial(press, number))
    result = fitted(name, folder, data, checkpoint_interval=5)
    step = {"reference": 17, "accelerated": 16}[name]
    assert result.ended == "stopped" and result.folder == folder / f"step-{step}"
    assert_same_state(result.state, checkpoint.load(folder).state)
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert (folder / "curve.png").is_file() and capfd.readouterr() == ("", "")
    with open(folder / "log.jsonl", "ab") as file:  # as one that is killed later leaves it
        file.write(b'{"kind": "step", "step": 20, "loss": 3.0}\n{"kind": "eval')
    result = fitted(name, folder, resume=True, checkpoint_interval=5)
    assert result.ended == "done"
    assert_same_run(folder, whole[0])
    assert_same_state(result.state, whole[1].state)
    assert result.evaluation == whole[1].evaluation


@settings(max_examples=25)
@given(data=st.data())
def test_a_run_stopped_anywhere_has_the_log_of_an_unbroken_one(data):
    """Whatever the intervals and the steps in a call are, if it is stopped where a call ends.

    Turns red if `waited`, the log or a step is lost at a stop, or if an interval is counted from
    where the run was gone on with.
    """
    numbers = st.integers(1, 7)
    calls, patience = data.draw(numbers), data.draw(st.none() | st.integers(1, 3))
    every = data.draw(numbers, label="evaluation_interval")
    training = replace(TRAINING, steps=18, evaluation_interval=every, patience=patience)
    options = {"training": training, "checkpoint_interval": data.draw(numbers, label="checkpoint")}
    stops = data.draw(st.lists(st.integers(0, 4), max_size=2), label="calls until each stop")
    engine = counting(calls)
    with tempfile.TemporaryDirectory() as temporary:
        one, other = Path(temporary, "unbroken"), Path(temporary, "stopped")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "draw", lambda folder: None)  # it and fsync take longest
            patch.setattr(os, "fsync", lambda descriptor: None)
            expected = fitted(engine, one, **options)
            for i, stop in enumerate([*stops, None]):
                result = fitted(stopped_after(stop, engine), other, resume=i > 0, **options)
        assert result.ended == expected.ended and result.evaluation == expected.evaluation
        assert_same_run(other, one)


def stopped_after(calls, loop):
    """An engine in which Ctrl-C is pressed after so many calls."""

    def train(config, training, data, *, state):
        for i, found in enumerate(loop.train(config, training, data, state=state)):
            if i == calls:
                press(signal.SIGINT)
            yield found

    return loop._replace(train=train)


def test_several_steps_in_a_call(tmp_path):
    """Of which no interval is a multiple.

    Turns red if an interval must be met exactly.
    """
    options = {"compilation": Compilation(steps_per_call=8), "checkpoint_interval": 5, "keep": 9}
    whole, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    result = fitted("accelerated", whole, **options)
    assert result.ended == "done" and result.state.step == 24
    logged = [(line["kind"], line["step"]) for line in read_log(whole)]
    evaluations = [("evaluation", step) for step in (8, 16, 24)]
    assert logged == [evaluations[0], ("step", 16), evaluations[1], ("step", 24), evaluations[2]]
    assert {path.name for path in whole.glob("step-*")} == {"step-8", "step-16", "step-24"}
    result = fitted("accelerated", stopped, Data(at=8, do=partial(press, signal.SIGINT)), **options)
    assert result.ended == "stopped" and result.state.step == 8
    fitted("accelerated", stopped, resume=True, **options)
    assert_same_run(stopped, whole)


def test_patience_counts_on_where_a_run_is_resumed(tmp_path):
    """Turns red if waiting begins anew, an equal loss counts as better, or the end is not kept."""
    training = replace(TRAINING, patience=3, evaluation_interval=2)
    losses = [3.0, 2.0, 2.0, 1.0, 1.5, 1.0, 1.2, 0.5]
    one, other = tmp_path / "unbroken", tmp_path / "stopped"
    result = fitted(scripted(losses, counting()), one, training=training)
    assert (result.ended, result.state.step) == ("early", 14)
    assert result.evaluation == {"best_loss": 1.0, "best_step": 8, "waited": 3}
    first = stopped_after(10, scripted(losses, counting()))  # the fifth evaluation was at 10
    assert fitted(first, other, training=training).evaluation["waited"] == 1
    again = scripted(losses[5:], counting())
    result = fitted(again, other, training=training, resume=True)
    assert (result.ended, result.state.step) == ("early", 14)
    assert_same_run(other, one)
    before = snapshot(other)
    result = fitted("reference", other, training=training, resume=True)
    assert result.ended == "early" and snapshot(other) == before


def test_patience_that_is_out_with_the_last_step_did_not_end_the_run():
    training = replace(TRAINING, patience=1, evaluation_interval=12)
    assert fitted(scripted([1.0, 2.0], counting()), training=training).ended == "done"


@each_engine
def test_a_run_that_is_done_stays_as_it_is(name, whole):
    folder, result = whole
    before = snapshot(folder)
    assert len(before) == 12
    again = fitted(name, folder, resume=True)
    assert again.ended == "done" and again.folder == result.folder
    assert again.evaluation == result.evaluation
    assert_same_state(again.state, result.state)
    assert snapshot(folder) == before


def test_what_a_process_left_that_was_killed_at_the_last_step_is_removed(tmp_path):
    fitted(counting(), tmp_path, checkpoint_interval=5)
    (tmp_path / "step-20.tmp").mkdir()
    (tmp_path / "step-20.tmp" / "params.safetensors").write_bytes(b"half")
    assert fitted(counting(), tmp_path, resume=True).ended == "done"
    assert not list(tmp_path.glob("*.tmp"))


def test_either_engine_goes_on_with_the_runs_of_the_other(whole_of):
    """Turns red if settings that one engine does not have are missed in the other's checkpoint."""
    for name, other in (("reference", "accelerated"), ("accelerated", "reference")):
        folder, result = whole_of(name)
        assert_same_state(fitted(other, folder, resume=True).state, result.state)


@pytest.fixture
def whole_of(tmp_path_factory):
    return lambda name: unbroken(name, tmp_path_factory.getbasetemp() / "whole" / name)


OTHER = [
    ({"config": replace(CONFIG, width=10)}, "the model's width is 10, .* begun with 8"),
    ({"config": replace(CONFIG, dropout=0.2)}, "the model's dropout is 0.2, .* begun with 0.1"),
    ({"training": replace(TRAINING, steps=25)}, "^steps is 25, .* begun with 24"),
    ({"training": replace(TRAINING, average=None)}, "^average is None, .* begun with 0.7"),
    ({"training": replace(TRAINING, seed=1)}, "^seed is 1, .* begun with 0"),
    ({"data": Data(seed=3)}, "the data are not those"),
    ({"validation": Data(100, seed=3)}, "the validation data are not those"),
    ({"validation": None}, "the validation data are not those"),
]
COMPILATION = {"compilation": Compilation(steps_per_call=2)}, "^steps_per_call is 2, .* with 1"


@pytest.mark.parametrize(
    "name, change, words",
    [("reference", *other) for other in OTHER]
    + [("accelerated", *other) for other in (OTHER[2], COMPILATION)],
)
def test_a_run_is_not_gone_on_with_by_something_else(name, change, words, whole):
    before = snapshot(whole[0])
    with pytest.raises(InputError, match=words) as raised:
        fitted(name, whole[0], resume=True, **change)
    assert str(raised.value).endswith("or begin a new run in another folder")
    assert snapshot(whole[0]) == before


# Ended at once, or by an error.


@pytest.mark.parametrize("numbers", [[signal.SIGINT] * 2, [signal.SIGTERM, signal.SIGINT]])
def test_a_second_ctrl_c_ends_a_run_at_once(numbers, tmp_path, capfd):
    """Turns red if the second is counted like the first, or after a SIGTERM as a first one."""
    folder = tmp_path / "run"
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    data = Data(at=16, do=partial(press, *numbers))
    with pytest.raises(KeyboardInterrupt):
        fitted("reference", folder, data, checkpoint_interval=5, quiet=False)
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert "Ctrl-C again ends it at once" in capfd.readouterr().err
    assert checkpoint.load(folder).step == 15
    assert fitted("reference", folder, resume=True).ended == "done"


def test_a_second_ctrl_c_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    folder, fsync = tmp_path / "run", os.fsync

    def interrupted(descriptor):
        if (folder / "step-15.tmp").exists():
            press(signal.SIGINT, signal.SIGINT)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted("reference", folder, checkpoint_interval=5)
    assert checkpoint.load(folder).step == 14 and not (folder / "step-15").exists()


def test_a_run_in_another_thread_leaves_signals_alone(monkeypatch):
    monkeypatch.setattr(signal, "signal", pytest.fail)
    results = []
    thread = threading.Thread(target=lambda: results.append(fitted(counting())))
    thread.start()
    thread.join()
    assert results[0].ended == "done"


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("figure", ["loss", "gradient_norm", "validation"])
@each_engine
def test_a_run_that_diverges_keeps_the_checkpoint_before(name, figure, number, tmp_path):
    """Turns red if a state is kept whose gradient was none: its loss was still one."""
    folder, loop = tmp_path / "run", counting()
    if figure == "validation":
        loop = scripted([1.0, number], loop)
    else:
        array = {"reference": np.float32, "accelerated": jax.numpy.float32}[name]
        loop = from_step(8, loop, **{figure: array(number)})
    step, words = {
        "loss": (10, "the loss is"),
        "gradient_norm": (10, "the gradient's norm is"),
        "validation": (14, "the validation loss is"),
    }[figure]
    with pytest.raises(InputError, match=f"{words} {number} at step {step}: .* diverged"):
        fitted(loop, folder, checkpoint_interval=10 if figure != "validation" else 7)
    assert checkpoint.load(folder).step == 7
    assert not list(folder.glob("step-1*"))


def test_a_run_that_diverges_at_once_leaves_nothing(tmp_path):
    """A real one, by a rate of learning that is much too high."""
    training = replace(TRAINING, learning_rate=1e38, warmup=0)
    with np.errstate(all="ignore"), pytest.raises(InputError, match="training has diverged"):
        fitted("reference", tmp_path / "run", training=training, validation=None)
    assert os.listdir(tmp_path) == []


def test_a_step_in_float16_that_overflows_is_not_the_end(tmp_path):
    """It moves no weight, and its gradient is infinite by its nature."""
    loop = from_step(10, counting(), gradient_norm=np.inf)
    scaling = {"scale": 1.0, "streak": 0, "skipped": 1}

    def train(config, training, data, *, state):
        yield from loop.train(config, training, data, state=state._replace(scaling=scaling))

    assert fitted(loop._replace(train=train), tmp_path / "run").ended == "done"


FULL = OSError(errno.ENOSPC, "No space left on device", "somewhere")


def failing(after, function):
    """A function that fails from a call on."""
    calls = []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise FULL
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    "owner, function, after",
    [(os, "fsync", 30), (os, "rename", 3), (os, "replace", 5), (Log, "write", 3), (Log, "sync", 3)],
)
def test_a_full_disk_leaves_a_run_that_can_be_gone_on_with(
    owner, function, after, whole_of, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, failing(after, getattr(owner, function)))
        with pytest.raises(OSError, match="No space left on device"):
            fitted("reference", folder, checkpoint_interval=5)
    assert 5 <= checkpoint.load(folder).step < 24
    assert fitted("reference", folder, resume=True, checkpoint_interval=5).ended == "done"
    assert_same_run(folder, whole_of("reference")[0])


@pytest.mark.parametrize("error", [FULL, RuntimeError("no fonts")])
def test_a_curve_that_cannot_be_drawn_costs_a_run_nothing(error, tmp_path, monkeypatch, capfd):
    """It is told, and drawn when the run is resumed, though there is nothing else to do; so is one
    that is older than the log, as a killed run may leave it.
    """

    def fail(*_):
        raise error

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(curve, "draw_curve", fail)
        result = fitted("reference", folder)
    assert isinstance(result, Result) and result.ended == "done"
    assert capfd.readouterr().err == f"the curve was not drawn: {error}\n"
    assert checkpoint.load(folder).step == 24 and not (folder / "curve.png").exists()
    fitted("reference", folder, resume=True)
    os.utime(folder / "curve.png", (0, 0))
    fitted("reference", folder, resume=True)
    assert (folder / "curve.png").stat().st_mtime > 0


# What is refused before any work.


@pytest.mark.parametrize(
    "change, words",
    [
        ({"checkpoint_interval": 0}, "checkpoint_interval is 0; give a positive integer"),
        ({"keep": 0}, "keep is 0; give a positive integer"),
        ({"folder": None, "resume": True}, "resume is given without the folder"),
        ({"data": Data(20)}, "the text has 20 tokens, too few"),
        ({"settings": {"step": np.float32(1)}}, "step is .* of float32, which a checkpoint cannot"),
        ({"settings": {"bad": [float("nan")]}}, r"bad is \[nan\] of list, which a checkpoint"),
        ({"training": replace(TRAINING, beta1=np.float32(0.5))}, "beta1 is .* which a checkpoint"),
        ({"validation": Data(100, seed=9)}, "tokens"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(change, words, tmp_path, monkeypatch):
    """Validation data, too, which are looked at much later."""
    monkeypatch.setattr(run, "initial_state", pytest.fail)
    if "validation" in change:
        change["validation"]._tokens[:] = 99
    options = {"name": "reference", "folder": tmp_path / "run"} | change
    with pytest.raises(InputError, match=words):
        fitted(**options)
    assert os.listdir(tmp_path) == []


def test_settings_are_kept_as_json_has_them(tmp_path):
    """And the run is known by them again; those of `training` are what they are."""
    given = {"sizes": (1, 2), "names": {1: "ä"}, "steps": 99}
    fitted(counting(), tmp_path / "run", settings=given)
    kept = checkpoint.load(tmp_path / "run").settings
    assert kept == asdict(TRAINING) | {"sizes": [1, 2], "names": {"1": "ä"}}
    assert fitted(counting(), tmp_path / "run", settings=given, resume=True).ended == "done"


def test_settings_that_are_new_to_a_run_are_kept_from_then_on(tmp_path):
    """Such as those of another engine: an InputError tells them from what they are then."""
    fitted(stopped_after(9, counting()), tmp_path)
    fitted(stopped_after(9, counting()), tmp_path, resume=True, settings={"steps_per_call": 1})
    assert checkpoint.load(tmp_path).settings == asdict(TRAINING) | {"steps_per_call": 1}
    with pytest.raises(InputError, match="^steps_per_call is 2, but the run was begun with 1"):
        fitted(counting(), tmp_path, resume=True, settings={"steps_per_call": 2})


def test_a_folder_with_something_in_it_stays_as_it_is(tmp_path, whole_of):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; give another, or --resume"):
        fitted("reference", tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_float64_is_not_made_float32_of():
    with jax.enable_x64(False), pytest.raises(InputError, match="jax_enable_x64"):
        fitted("accelerated", training=replace(TRAINING, dtype="float64"))


# What it costs.


@given(interval=st.integers(1, 30), before=st.integers(0, 99), size=st.integers(1, 30))
def test_an_interval_is_passed_where_a_multiple_of_it_is(interval, before, size):
    """Turns red if the step before counts, or the last one does not."""
    steps = range(before + 1, before + size + 1)
    assert passed(interval, before, before + size) == any(s % interval == 0 for s in steps)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_loop_costs_little_beside_a_step_of_50_ms(terminal, tmp_path, monkeypatch):
    """Log, progress and a batch, over a million tokens: less than 1.5 ms, which are 3 %.

    Turns red if an epoch's order is drawn for each batch, or the curve at each step.
    """
    console = partial(Console, file=io.StringIO(), force_terminal=terminal, width=100)
    monkeypatch.setattr("reference.training.progress.Console", console)
    training = replace(TRAINING, steps=300, evaluation_interval=1000)
    data, loss = Data(1_000_000), np.float32(1)
    spent = []

    def train(config, training, data, *, state):
        data.batch(0)  # draws the epoch
        before = time.perf_counter()
        for step in range(training.steps):
            data.batch(step)
            yield state._replace(step=step + 1), {"loss": loss, "gradient_norm": loss}
            spent.append(time.perf_counter() - before)
            before = time.perf_counter()

    loop = Loop(train, None, lambda state, config: state)
    options = {"validation": None, "quiet": False, "checkpoint_interval": 1000}
    fitted(loop, tmp_path / "run", data, training, **options)
    assert np.mean(spent) < 1.5e-3
