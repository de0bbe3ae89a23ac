"""A whole run: training, with all that lets one watch it, stop it, go on with it and trust it.

After each step it is asked, in this order, whether it is time for
    a line in the log      every LOG_INTERVAL steps
    an evaluation          every evaluation_interval steps and at the last; it goes to the log, too
    a checkpoint           every checkpoint_interval steps, at a new best, and where the run ends
A checkpoint comes last, so that what the log has up to its step is all that there ever will be: a
run that goes on from it continues the log as if there had been no break.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reference.errors import InputError
from reference.training import checkpoint as checkpoints
from reference.training import loop
from reference.training.checkpoint import Checkpoint
from reference.training.config import TrainingConfig, check_count, rate
from reference.training.identity import identity, same_run
from reference.training.log import Log
from reference.training.progress import Progress
from reference.training.run_folder import (
    CURVE,
    LOG,
    checkpoint_in,
    claimed,
    remove_older,
    remove_unfinished,
)
from reference.training.signals import stop_on_signal
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
    params=None,
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
    params: to start from, in place of the model's initial weights; of the training's dtype.
    resume: go on from the folder's latest checkpoint, bit for bit as if the run had not ended: with
    the same config, training and data.  checkpoint_interval: in steps; also at each new best, at
    the end, and where Ctrl-C (SIGINT) or SIGTERM ends it: the step is finished, then saved; a
    second Ctrl-C ends it at once.  keep: how many checkpoints, beside the best.  quiet: show
    nothing.  engine: a Loop; the reference's own if left out.

    Raises InputError for a folder that is not empty or in which another process trains, for a run
    that is resumed with something else than it was begun with, and where a loss is not finite any
    more: the checkpoint before it stays.  OSError where the disk is full, likewise.
    """
    check_count("checkpoint_interval", checkpoint_interval)
    check_count("keep", keep)
    if folder is None and resume:
        raise InputError("resume is given without the folder of a run; give both")
    data.position(0)  # raises where there is not one batch
    if validation is not None:
        loop.check_batch(config, next(iter(validation.in_order())))
    ours = identity(config, training, data, validation, settings or {})
    with nullcontext() if folder is None else claimed(folder, resume=resume) as held:
        if resume:
            start = same_run(checkpoints.load(held.path), ours)
            remove_unfinished(held.path)
        else:
            kept = {name: ours[name] for name in ("settings", "position", "random_key")}
            start = Checkpoint(
                initial_state(config, training, params), config, tokenizer=tokenizer, **kept
            )
        run = Run(
            start,
            training,
            engine or REFERENCE,
            folder=held and held.path,
            checkpoint_interval=checkpoint_interval,
            keep=keep,
            saved=checkpoint_in(held.path) if resume else None,
        )
        return run.to_the_end(data, validation, quiet=quiet)


@dataclass
class Run:
    """A run from the checkpoint it starts from: what it shows, keeps and has found."""

    start: Checkpoint
    training: TrainingConfig
    engine: Loop
    folder: Path | None
    checkpoint_interval: int
    keep: int
    saved: Path | None  # the latest checkpoint
    evaluation: dict = field(init=False)

    def __post_init__(self):
        self.evaluation = self.start.evaluation

    def to_the_end(self, data, validation, *, quiet):
        """Train until all steps are done, patience is out, or someone stops it -> Result."""
        state = self.start.state
        if not self.ended(state.step):
            state = self.train(data, validation, quiet=quiet)
        if self.folder is not None:
            draw(self.folder)
        return Result(state, self.evaluation, self.ended(state.step) or "stopped", self.saved)

    def train(self, data, validation, *, quiet):
        """Do the steps that are left -> the State after the last of them."""
        config, begun = self.start.config, self.start.state
        before = begun.step
        with self.log() as log, stop_on_signal(quiet) as stopped, self.progress(quiet) as show:
            for state, figures in self.engine.train(config, self.training, data, state=begun):
                show.step(state.step, figures["loss"])
                if log is not None and passed(LOG_INTERVAL, before, state.step):
                    self.record(log, state.step, figures)
                best = False
                if validation is not None and self.evaluates(before, state.step):
                    check_figures(figures, state)
                    best = self.look(state, validation, log, show)
                last = self.ended(state.step) or stopped()
                if last or best or passed(self.checkpoint_interval, before, state.step):
                    check_figures(figures, state)
                    kept = self.engine.portable(state, config)
                    self.save(kept, data, log, best=best)
                if last:
                    return kept
                before = state.step

    def ended(self, step):
        """Why there is no more to do: "done", or "early" where patience is out; else None."""
        if step >= self.training.steps:
            return "done"
        patience = self.training.patience
        waited = self.evaluation.get("waited", 0)
        return "early" if patience is not None and waited >= patience else None

    def log(self):
        """The run's log; without a folder, one that keeps nothing."""
        return nullcontext() if self.folder is None else Log(self.folder, self.start.step)

    def progress(self, quiet):
        """What is shown of the run."""
        return Progress(
            steps=self.training.steps,
            start=self.start.step,
            tokens_per_step=self.training.batch * self.training.length,
            best=self.evaluation.get("best_loss"),
            quiet=quiet,
        )

    def record(self, log, step, figures):
        """A line of the log; of several steps in one call, for the last."""
        loss, norm = (float(np.ravel(figures[name])[-1]) for name in ("loss", "gradient_norm"))
        of_step = rate(self.training)(step)
        log.write("step", step, loss=loss, gradient_norm=norm, learning_rate=of_step)

    def evaluates(self, before, step):
        """Whether it is time to evaluate."""
        return passed(self.training.evaluation_interval, before, step) or self.ended(step) == "done"

    def look(self, state, validation, log, show):
        """Evaluate -> whether this is the best state so far."""
        found = self.engine.measure(state, self.start.config, self.training, validation)
        loss = found["loss"]
        check_finite("validation loss", loss, state.step)
        best = not self.evaluation or loss < self.evaluation["best_loss"]
        if best:
            self.evaluation = {"best_loss": loss, "best_step": state.step, "waited": 0}
        else:
            self.evaluation = self.evaluation | {"waited": self.evaluation["waited"] + 1}
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


def passed(interval, before, after):
    """Whether a multiple of the interval was reached on the way from one step to another."""
    return before // interval < after // interval


def check_figures(figures, state):
    """Raise InputError rather than keep a model that has diverged, or is about to."""
    check_finite("loss", figures["loss"], state.step)
    if state.scaling is None:  # else a gradient may overflow, but then the weights stay
        check_finite("gradient's norm", figures["gradient_norm"], state.step)


def check_finite(name, numbers, step):
    """Raise InputError where a number is not finite."""
    if not np.isfinite(numbers).all():
        raise InputError(
            f"the {name} is {float(np.ravel(numbers)[-1])} at step {step}: training has diverged, "
            "and this step is not saved; begin anew with a lower --learning-rate or a longer "
            "--warmup"
        )


def draw(folder):
    """Draw the losses of a run's log, unless it is done.  A failure is told, and costs nothing."""
    log, curve = folder / LOG, folder / CURVE
    if log.exists() and curve.exists() and log.stat().st_mtime_ns <= curve.stat().st_mtime_ns:
        return
    try:
        from reference.training.curve import draw_curve  # and Matplotlib, which takes a second

        draw_curve(folder, curve)
    except Exception as error:  # whatever it is: the run is done and saved
        print(f"the curve was not drawn: {error}", file=sys.stderr)


def measure(state, config, training, data):
    """`evaluate` of a State's weights, the averaged ones where the run averages."""
    return loop.evaluate(
        weights(state, training.average), config, data, batches=training.evaluation_batches
    )


def training_of(settings):
    """The TrainingConfig among a checkpoint's settings."""
    return TrainingConfig(**{f.name: settings[f.name] for f in fields(TrainingConfig)})


REFERENCE = Loop(loop.train, measure, lambda state, config: state)
