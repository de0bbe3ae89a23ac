"""Does it learn?  What the benchmarks on real data share: a run whose states are looked at later.

A run is made by `fit` of either engine, and keeps a checkpoint every so often.  They are evaluated
when it is done, so that its time is that of training alone; the test set is looked at once, with
the weights that are reported.
"""

import math
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import accelerated.training
import reference.training
from benchmarks.report import GREY, described, header, save_json
from reference.data.batches import Arrays
from reference.errors import InputError
from reference.training.averaging import step_of
from reference.training.checkpoint import load
from reference.training.log import read_log
from reference.training.run_folder import checkpoints_in
from reference.training.state import keys_of

FITS = {"accelerated": accelerated.training.fit, "reference": reference.training.fit}
OURS, THEIRS = "#f2a541", "#0b3c5d"  # what was reached, and what is compared with it


class Kept(NamedTuple):
    """A state of a run that was kept."""

    step: int
    seconds: float  # since the run began
    folder: Path

    @property
    def params(self):
        return load(self.folder).state.params


class Run(NamedTuple):
    """A run that is done."""

    kept: list  # of Kept, the last state's last
    seconds: float
    losses: dict  # {"step": [(step, loss)], "evaluation": …}

    def minutes(self, steps):
        """When these steps were done; between two kept states they are taken for equally long."""
        known = [(0, 0.0), *((k.step, k.seconds) for k in self.kept)]
        return np.interp(steps, *zip(*known, strict=True)) / 60


class Report(NamedTuple):
    """Where a benchmark's figures go."""

    console: Console
    out: Path
    header: dict
    begun: float  # time.perf_counter()

    @classmethod
    def begin(cls, out, *, command, begun, packages=()):
        """Say where and with what figures are obtained."""
        console = Console(soft_wrap=True, highlight=False)
        head = header("float32", packages) | {"command": command}
        console.print(f"{described(head)}\n")
        return cls(console, Path(out), head, time.perf_counter() if begun is None else begun)

    @property
    def seconds(self):
        """Of the command, up to now."""
        return time.perf_counter() - self.begun

    def finish(self, name, figures, run):
        """Write the figures of a run, with its losses and the seconds it took."""
        figures["losses"] = run.losses
        figures["seconds"] = {"training": run.seconds, "all": self.seconds}
        save_json(self.out / f"{name}.json", figures)
        self.console.print(f"\nFigures are in {self.out / name}.json, the picture beside them.")

    def table(self, title, reached, asked, sizes, seconds, *, limit=None):
        """What was reached, beside what is asked for; sizes: {name: a number or text}."""
        rows = Table("", "reached", "asked for", title=title, box=SIMPLE)
        for column in rows.columns[1:]:
            column.justify = "right"
        for name, value in reached.items():
            rows.add_row(name, value, asked.get(name, ""))
        rows.add_row("seconds of training", f"{seconds['training']:.0f}", "")
        within = f"at most {limit}" if limit else ""
        rows.add_row("seconds of the whole command", f"{seconds['all']:.0f}", within)
        for name, size in sizes.items():
            rows.add_row(name, size if isinstance(size, str) else f"{size:,}", "")
        self.console.print(rows)


def learn(engine, config, training, data, validation, *, folder, looks=12):
    """Train by `fit` of an engine -> Run, with about so many kept states, equally far apart.

    folder: of the run, which must be empty, and stay as long as the states are looked at.
    """
    every = math.ceil(training.steps / looks)
    settings = {"checkpoint_interval": every, "keep": looks + 1}
    looking = replace(training, evaluation_interval=every)  # a new best is then kept anyway
    begun, clock = time.time(), time.perf_counter()
    result = FITS[engine](config, looking, data, validation=validation, folder=folder, **settings)
    seconds = time.perf_counter() - clock
    if result.ended == "stopped":  # by Ctrl-C, which is of the whole command here
        raise KeyboardInterrupt
    kept = [
        # The log of a run has no times; its files do.
        Kept(step_of(path), max((path / "checkpoint.json").stat().st_mtime - begun, 0.0), path)
        for path in checkpoints_in(Path(folder))
    ]
    log = read_log(folder)
    losses = {
        kind: [(line["step"], line["loss"]) for line in log if line["kind"] == kind]
        for kind in ("step", "evaluation")
    }
    return Run(kept, seconds, losses)


def shortened(training, steps):
    """The settings of a run with another number of steps."""
    return {} if steps is None else {"steps": steps, "warmup": min(training.warmup, steps // 10)}


def in_batches(function, engine, *, batch):
    """A function of parameters and arrays (B, …), for all rows (N, …): a batch at a time.

    The last batch is filled up with the last row, so that all have one shape to be compiled for.
    """
    call = jax.jit(function) if engine == "accelerated" else function

    def of_all(params, *arrays):
        held = jax.device_put(params) if engine == "accelerated" else params
        rows, found = len(arrays[0]), []
        for first in range(0, rows, batch):
            places = np.minimum(np.arange(first, first + batch), rows - 1)
            found.append(np.asarray(call(held, *(array[places] for array in arrays))))
        return np.concatenate(found)[:rows]

    return of_all


def agreement(scores, labels):
    """The share of rows whose largest score (N, V) is that of their label (N,)."""
    return float((scores.argmax(axis=1) == labels).mean())


def found_in(folder, name):
    """The path of a file in a folder, as it is or packed.  Raises InputError where it is not."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not there, or no folder; give the folder with {name}")
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(
        f"{folder} has no {name}, and none that ends in .gz; give the folder with this file"
    )


def both_sets(arrays, held_out, training):
    """Rows to learn from, and the last so many, to look at while it learns: two `Arrays`.

    Raises InputError where nothing is left to learn from.
    """
    rows = len(next(iter(arrays.values())))
    if rows <= held_out:
        raise InputError(
            f"the training set has {rows:,} rows, and {held_out:,} of them are held out; give more"
        )
    parts = slice(-held_out), slice(-held_out, None)
    key = keys_of(training.seed).data
    return [
        Arrays({name: a[part] for name, a in arrays.items()}, batch=training.batch, key=key)
        for part in parts
    ]


def told_apart(report, engine, config, training, arrays, *, labels, held_out, scores, unseen):
    """Learn from images and what belongs to them, all but the last so many, and score others.

    scores: (params, images) -> (N, V);  labels: of all images, to look at those held out.
    -> the Run, after each kept state (step, seconds, share of the held-out that are told rightly),
    and the last state's scores of `unseen` images.
    """
    sets = both_sets(arrays, held_out, training)
    report.out.mkdir(parents=True, exist_ok=True)
    held, truth = arrays["images"][-held_out:], labels[-held_out:]
    with tempfile.TemporaryDirectory() as folder:
        run = learn(engine, config, training, *sets, folder=Path(folder) / "run")
        shares = [(k.step, k.seconds, agreement(scores(k.params, held), truth)) for k in run.kept]
        return run, shares, scores(run.kept[-1].params, unseen)


@contextmanager
def picture(path, size, *, about):
    """A figure of this size in the house's style, to be drawn on, which is then written.

    about: a line below it, about what it was obtained with.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure = pyplot.figure(figsize=size, layout="constrained")
        yield figure
        figure.supxlabel(about, fontsize=11, color=GREY)
        figure.savefig(path, dpi=130, facecolor="white")
        pyplot.close(figure)


def draw_losses(axes, run):
    """The losses of a run against minutes."""
    steps, losses = np.array(run.losses["step"]).reshape(-1, 2).T
    axes.plot(run.minutes(steps), losses, color=OURS, linewidth=0.8, label="each batch")
    steps, losses = np.array(run.losses["evaluation"]).T
    axes.plot(run.minutes(steps), losses, "o-", color=THEIRS, label="held out from training")
    axes.set_xlabel("minutes of training")
    axes.legend(frameon=False)
