"""The loss curve of a run, as a picture for people."""

import os
from array import array
from collections import defaultdict
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reference.training.log import NAME, named_errors, records

TRAINING, VALIDATION, GREY = "#0b3c5d", "#f2a541", "#555555"
WORDS = {"training": TRAINING, "validation": "#a86200"}  # orange is too faint for words on white
FEW, MANY = 20, 100  # points: up to here with dots, from here with a smoothed line
RING = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.8, "clip_on": False}
HALO = [withStroke(linewidth=3, foreground="white")]
POINTS = {"textcoords": "offset points"}
STYLE = {
    "font.size": 12,
    "text.parse_math": False,  # a $ in a file's name is a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.labelcolor": GREY,
}


def draw_curve(source, path, *, title="Loss"):
    """Draw the losses and learning rates of a run into a PNG file.  -> its path.

    None, and no file, where nothing is logged that could be drawn.

    source: a run's folder, or records as `read_log` gives them.  Read are `loss` and
    `learning_rate` of those of the kind "step", and `loss` of "evaluation".
    title: what was trained, such as "GPT nano on shakespeare.txt".
    The picture that was there before is replaced in one go.  Raises InputError for a log with a
    line that is no record, OSError with the file's name for a full disk.
    """
    path, lines = Path(path), source
    if isinstance(source, (str, os.PathLike)):
        lines = records(source) if (Path(source) / NAME).is_file() else ()
    losses, rates, validation = _series(lines)
    if not len(losses[0]) and not len(validation[0]):
        return None
    with style.context(["default", STYLE]):  # whatever style the user has set
        picture = _picture(losses, rates, validation, title)
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with named_errors(unfinished):
            unfinished.write_bytes(picture)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def smoothed(values, *, ceiling=np.inf):
    """The mean of the values around each, a fiftieth of all to either side (N,) -> (N,).

    At the beginning, where a loss falls fast, as many before as after are taken, or the line would
    run beside the points.  What is not finite or above the ceiling does not count, and stays what
    it is; so does what is near the latter, or a loss would seem to rise before it does.
    """
    n, finite = len(values), np.isfinite(values)
    reach = np.minimum(np.arange(n), max(n // 50, 1))

    def total(of, reach):
        sums = np.cumsum(np.r_[0, of])
        first, end = np.arange(n) - reach, np.arange(n) + reach + 1
        return sums[np.minimum(end, n)] - sums[np.maximum(first, 0)]

    above = finite & (values > ceiling)
    counted = finite & ~above
    mean = total(np.where(counted, values, 0), reach) / np.maximum(total(counted, reach), 1)
    return np.where(counted & (total(above, 2 * reach) == 0), mean, values)


def limits(*curves):
    """Where the axis of losses begins and ends; None where no loss is finite.

    All of a run that learns can be seen.  Of one that diverges the worst leaves the picture, which
    would be flat otherwise: 2.5 times the range is shown in which the run began, or was for half of
    its time.
    """
    finite = [values[np.isfinite(values)] for values in curves]
    finite = [values for values in finite if len(values)]
    if not finite:
        return None
    low, high = min(v.min() for v in finite), max(v.max() for v in finite)
    usual = max(max(v[0], np.median(v)) for v in finite)
    high = min(high, low + 2.5 * (usual - low)) if usual > low else high
    margin = 0.06 * (high - low) or 0.05 * abs(low) or 1
    return low - margin, high + margin


def _series(lines):
    """Steps and values, two arrays each, of training losses, learning rates, validation losses."""
    found = defaultdict(lambda: (array("d"), array("d")))
    for record in lines:
        for name in ("loss", "learning_rate"):
            if isinstance(record.get(name), (int, float)):
                steps, values = found[record["kind"], name]
                steps.append(record["step"])
                values.append(record[name])
    wanted = ("step", "loss"), ("step", "learning_rate"), ("evaluation", "loss")
    return [tuple(np.array(part) for part in found[key]) for key in wanted]


def _picture(losses, rates, validation, title):
    """The bytes of the PNG."""
    figure = Figure(figsize=(9, 6 if len(rates[0]) else 5), layout="constrained")
    heights = [4, 1] if len(rates[0]) else [1]
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _draw_losses(panels[0], losses, validation)
    panels[0].set_title(title, loc="left", fontsize=15, fontweight="bold", pad=30)
    last = int(max(steps[-1] for steps, _ in (losses, validation) if len(steps)))
    summary = _summary(last, _best(validation))
    panels[0].text(0, 1.04, summary, color=GREY, transform=panels[0].transAxes)
    if len(rates[0]):
        panels[1].plot(*rates, color=GREY, linewidth=1.5, marker=_marker(rates[1]), markersize=4)
        panels[1].set_ylabel("learning\nrate")
        panels[1].margins(y=0.15)
        panels[1].set_ylim(bottom=0)
        panels[1].set_yticks([0, rates[1].max()])
        panels[1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    figure.align_ylabels()
    panels[-1].set_xlabel("training step")
    panels[-1].set_xlim(0, 1.01 * max(last, 1))
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=130, facecolor="white")
    return drawn.getvalue()


def _draw_losses(axes, losses, validation):
    """Both curves, named at their ends, with the best and what is no number."""
    axes.set_ylabel("loss")
    steps, line = losses
    extent = limits(line, validation[1])
    if extent:
        axes.set_ylim(*extent)
    else:
        axes.set_yticks([])
    if extent and len(line) > MANY:
        axes.plot(steps, line, color=TRAINING, linewidth=0.7, alpha=0.35)
        line = smoothed(line, ceiling=extent[1])
    axes.plot(steps, line, color=TRAINING, linewidth=1.8, marker=_marker(line), markersize=5)
    axes.plot(*validation, color=VALIDATION, linewidth=1.8, marker="o", markersize=6)
    _name_ends(axes, {"training": (steps, line), "validation": validation})
    best = _best(validation)
    if best:
        axes.plot(*best, "o", color=WORDS["validation"], **RING)
    if best and best[0] < validation[0][-1]:
        words = {"color": WORDS["validation"], "ha": "center", "path_effects": HALO}
        axes.annotate(f"best {_number(best[1])}", best, (0, 14), **words, **POINTS)
    lost = steps[~np.isfinite(losses[1])]
    if len(lost):
        axes.axvline(lost[0], color=GREY, linewidth=1, linestyle=":")
        place = {"xycoords": axes.get_xaxis_transform(), "color": GREY, "va": "top"}
        words = f"not finite {_where(lost, steps)}"
        axes.annotate(words, (lost[0], 0.85), (6, 0), **place, **POINTS)


def _name_ends(axes, curves):
    """The name and last value of each line, right of its end; the lower makes room."""
    low, high = axes.get_ylim()
    ends = []
    for name, (steps, values) in curves.items():
        finite = np.flatnonzero(np.isfinite(values))
        if len(finite):
            ends.append((values[finite[-1]], steps[finite[-1]], name))
    ends.sort()
    room = 0.06 * (high - low)
    top = high - room / 2
    for value, step, name in reversed(ends):
        place = min(value, top)
        top = place - room
        words = {"color": WORDS[name], "va": "center", "path_effects": HALO}
        outside = " ↑" if value > high else ""
        text = f"{name} {_number(value)}{outside}"
        axes.annotate(text, (step, place), (12, 0), annotation_clip=False, **words, **POINTS)


def _best(validation):
    """The step and loss of the best evaluation, the first of equals; None without any."""
    steps, values = validation
    if not np.isfinite(values).any():
        return None
    i = np.argmin(np.where(np.isfinite(values), values, np.inf))
    return steps[i], values[i]


def _summary(last, best):
    """The run in a line of words."""
    steps = "1 step" if last == 1 else f"{last:,} steps"
    if best is None:
        return steps
    return f"{steps}   ·   best validation loss {_number(best[1])}, at step {best[0]:,.0f}"


def _where(lost, steps):
    """Some of the steps in words."""
    if len(lost) > 1 and len(lost) == np.sum(steps >= lost[0]):
        return f"from step {lost[0]:,.0f}"
    return f"at step {lost[0]:,.0f}" if len(lost) == 1 else f"at {len(lost):,} steps"


def _number(loss):
    """A loss in words."""
    return f"{loss:,.0f}" if 1e4 <= abs(loss) < 1e7 else f"{loss:#.4g}"


def _marker(values):
    """Dots where there are so few that a line alone would hide, or could not be drawn."""
    return "o" if len(values) <= FEW else None
