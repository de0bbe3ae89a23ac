"""A whole run: training, with all that lets one watch it, stop it, go on with it and trust it."""

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reference import random
from reference.errors import InputError
from reference.models import described
from reference.training import checkpoint as checkpoints
from reference.training import loop
from reference.training.checkpoint import Checkpoint
from reference.training.config import TrainingConfig, check_count, rate
from reference.training.log import Log
from reference.training.progress import Progress
from reference.training.run_folder import CURVE, claimed, remove_older
from reference.training.state import State, initial_state, weights

LOG_INTERVAL = 10  # steps: to look at a loss is to wait for the device


class Loop(NamedTuple):
    """What a run needs of an engine."""

    train: Callable  # (config, training, data, *, state) yields (state, figures)
    measure: Callable  # (state, config, training, data) -> {"loss": …}
    portable: Callable  # (state, config) -> the reference's State


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    state: State  # the last one, in host memory
    evaluation: dict  # best_loss, best_step, waited; empty without validation data
    ended: str  # "done"; "early", by patience; "stopped", by Ctrl-C
    folder: Path | None  # of the last checkpoint

    @property
    def params(self):
        """The last parameters."""
        return self.state.params


def fit(
    config,
    training,
    data,
    *,
    validation=None,
    folder=None,
    tokenizer=None,
    settings=None,
    resume=False,
    checkpoint_interval=100,
    keep=1,
    quiet=False,
    engine=None,
):
    """Train a model from its initial weights, or go on with a run -> Result.

    config: a model's, such as GPTConfig;  training: TrainingConfig;  data, validation: data sets of
    `reference.data.batches`.  Without validation data there is no best checkpoint and no early end.
    folder: of the run, see `run_folder`, or a Claimed; None: nothing is written.  tokenizer: kept
    with the checkpoints.  settings: more that decides the run, plain JSON values, kept there too.
    resume: go on from the folder's latest checkpoint, bit for bit as if the run had not ended: with
    the same config, training and data.  checkpoint_interval: in steps; also at each new best, at
    the end, and where Ctrl-C (SIGINT) or SIGTERM ends it: the step is finished, then saved.
    keep: how many checkpoints, beside the best.  quiet: show nothing.
    engine: a Loop; the reference's own if left out.

    Raises InputError for a folder that is not empty or in which another process trains, for a run
    that is resumed with something else than it was begun with, and where the loss is not finite any
    more: the checkpoint before it stays.  OSError where the disk is full, likewise.
    """
    check_count("checkpoint_interval", checkpoint_interval)
    check_count("keep", keep)
    if folder is None and resume:
        raise InputError("resume is given without the folder of a run; give both")
    data.position(0)  # raises where there is not one batch
    identity = {
        "model": described(config),
        "settings": asdict(training) | (settings or {}),
        "position": {"fingerprint": data.fingerprint},
        "random_key": tuple(int(word) for word in random.key(training.seed)),
    }
    with nullcontext() if folder is None else claimed(folder, resume=resume) as held:
        if resume:
            start = same_run(checkpoints.load(held.path), identity)
        else:
            state = initial_state(config, training)
            given = {name: identity[name] for name in ("settings", "random_key", "position")}
            start = Checkpoint(state, config, tokenizer=tokenizer, **given)
        run = Run(
            start,
            training,
            engine or REFERENCE,
            folder=held and held.path,
            checkpoint_interval=checkpoint_interval,
            keep=keep,
        )
        return run.to_the_end(data, validation, quiet=quiet)


def same_run(found, identity):
    """The Checkpoint found, if it is of this run.  Raises InputError for the first difference."""
    theirs = {
        "model": described(found.config),
        "settings": found.settings,
        "position": found.position,
        "random_key": found.random_key,
    }
    if identity["random_key"] != theirs["random_key"]:
        raise InputError("the run was begun with another seed; give that, or begin a new run")
    for part in ("model", "settings", "position"):
        for name, ours in identity[part].items():
            if ours != theirs[part].get(name):
                raise InputError(
                    f"{name} is {ours!r:.80}, but the run was begun with "
                    f"{theirs[part].get(name)!r:.80}; give what it was begun with, or begin a new "
                    "run in another folder"
                )
    return found


class Run:
    """A run between its first step here and its last: what it shows, keeps and has found."""

    def __init__(self, start, training, engine, *, folder, checkpoint_interval, keep):
        self.start, self.training, self.engine = start, training, engine
        self.folder, self.checkpoint_interval, self.keep = folder, checkpoint_interval, keep
        self.evaluation, self.saved, self.step = dict(start.evaluation), None, start.step

    def to_the_end(self, data, validation, *, quiet):
        """Train until all steps are done, patience is out, or someone stops it -> Result."""
        config, training, begun = self.start.config, self.training, self.start.state
        if self.ended(begun.step):
            return Result(begun, self.evaluation, self.ended(begun.step), self.saved)
        bar = Progress(
            steps=training.steps,
            start=begun.step,
            tokens_per_step=training.batch * training.length,
            best=self.evaluation.get("best_loss"),
            quiet=quiet,
        )
        with self.log() as log, stop_on_signal() as stopped, bar as show:
            for state, figures in self.engine.train(config, training, data, state=begun):
                show.step(state.step, figures["loss"])
                self.record(log, state.step, figures)
                best = self.look(state, figures, validation, log, show)
                last = self.ended(state.step) or stopped()
                if last or best or passed(self.checkpoint_interval, self.step, state.step):
                    check_finite(figures["loss"], state.step)
                    self.save(self.engine.portable(state, config), data, log, best=best)
                self.step = state.step
                if last:
                    break
        if self.folder is not None:
            from reference.training.curve import draw_curve  # and Matplotlib, which takes a second

            draw_curve(self.folder, self.folder / CURVE)
        ended = self.ended(state.step) or "stopped"
        return Result(self.engine.portable(state, config), self.evaluation, ended, self.saved)

    def log(self):
        """The run's log; without a folder, one that keeps nothing."""
        return nullcontext() if self.folder is None else Log(self.folder, self.start.step)

    def record(self, log, step, figures):
        """A line of the log for each LOG_INTERVAL steps."""
        if log is not None and passed(LOG_INTERVAL, self.step, step):
            loss, norm = (float(np.ravel(figures[name])[-1]) for name in ("loss", "gradient_norm"))
            of_step = rate(self.training)(step)
            log.write("step", step, loss=loss, gradient_norm=norm, learning_rate=of_step)

    def look(self, state, figures, validation, log, show):
        """Evaluate where it is time to -> whether this is the best state so far."""
        every = self.training.evaluation_interval
        at_end = state.step >= self.training.steps
        if validation is None or not (passed(every, self.step, state.step) or at_end):
            return False
        check_finite(figures["loss"], state.step)
        found = self.engine.measure(state, self.start.config, self.training, validation)
        loss, before = found["loss"], self.evaluation
        best = not before or loss < before["best_loss"]
        if best:
            self.evaluation = {"best_loss": loss, "best_step": state.step, "waited": 0}
        else:
            self.evaluation = before | {"waited": before["waited"] + 1}
        show.evaluation(state.step, loss, best)
        if log is not None:
            log.write("evaluation", step=state.step, loss=loss, best=best)
        return best

    def save(self, state, data, log, *, best):
        """Write a checkpoint, and remove those that are not kept."""
        if self.folder is None:
            return
        epoch, batch = data.position(state.step)
        position = self.start.position | {"epoch": epoch, "batch": batch}
        log.sync()  # or a power cut might leave a checkpoint that is ahead of it
        now = replace(self.start, state=state, position=position, evaluation=self.evaluation)
        self.saved = checkpoints.save(self.folder, now, best=best)
        remove_older(self.folder, self.keep)

    def ended(self, step):
        """Why there is no more to do: "early" where patience is out, "done"; else None."""
        patience = self.training.patience
        if patience is not None and self.evaluation.get("waited", 0) >= patience:
            return "early"
        return "done" if step >= self.training.steps else None


def passed(interval, before, after):
    """Whether a multiple of the interval was reached on the way from one step to another."""
    return before // interval < after // interval


def check_finite(losses, step):
    """Raise InputError rather than keep a model that has diverged."""
    if not np.isfinite(losses).all():
        raise InputError(
            f"the loss is {float(np.ravel(losses)[-1])} at step {step}: training has diverged, and "
            "this step is not saved; begin anew with a lower --learning-rate or a longer --warmup"
        )


@contextmanager
def stop_on_signal():
    """Give a function that tells whether Ctrl-C was pressed: a step is finished, then saved.

    A second Ctrl-C ends the program at once.  Outside of the main thread signals are not ours.
    """
    pressed = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(number, frame):
        pressed.append(number)
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def measure(state, config, training, data):
    """`evaluate` of a State's weights, the averaged ones where the run averages."""
    return loop.evaluate(
        weights(state, training.average), config, data, batches=training.evaluation_batches
    )


def training_of(settings):
    """The TrainingConfig among a checkpoint's settings."""
    return TrainingConfig(**{f.name: settings[f.name] for f in fields(TrainingConfig)})


REFERENCE = Loop(loop.train, measure, lambda state, config: state)
