"""A GPT of characters in nanoGPT's setting for a processor, trained whole by `fit` in each engine.

nanoGPT (Karpathy 2022, README, "I only have a macbook") reports a validation loss of 1.88 on tiny
Shakespeare for 4 layers of width 128, T 64, batch 12, and 2,000 steps; it measures it on 20 random
batches, and this on all of the last tenth of the text.  Its initial weights have the deviations of
GPT-2, which is six times as wide; ours are those of `initial_params`, "scaled".
"""

import io
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import accelerated.training
import reference.training
from benchmarks.report import COLORS, GREY, described, header, save_json
from reference import random
from reference.data.batches import Windows
from reference.data.corpus import Source, prepare
from reference.models import parameter_count
from reference.models.gpt import GPTConfig
from reference.training import TrainingConfig
from reference.training.log import read_log
from reference.training.run import Loop
from reference.training.state import keys_of

FITS = {"NumPy": reference.training.fit, "Flax": accelerated.training.fit}
PUBLISHED = 1.88
STEP = 0.05  # seconds of a step that the overhead is a share of


def run(data, out, *, steps=2000, seed=0, rounds=5):
    """Both runs and the overhead of the loop; figures and a picture go to the folder `out`.

    Raises InputError for a text that cannot be used.
    """
    console = Console(soft_wrap=True, highlight=False)
    out = Path(out)
    head = header("float32")
    console.print(described(head))
    with tempfile.TemporaryDirectory() as folder:
        source = Source(data, tokenizer="characters")
        corpus = prepare(source, Path(folder) / "tokens", key=random.key(seed))
        config = GPTConfig(corpus.tokenizer.vocabulary_size, 64, layers=4, heads=4, width=128)
        training = TrainingConfig(
            steps=steps,
            warmup=min(100, steps // 10),
            beta2=0.99,
            initialization="scaled",
            evaluation_batches=None,
            seed=seed,
        )
        sizes = {"length": 64, "batch": 12, "key": keys_of(seed).data}
        sets = Windows(corpus.tokens, **sizes), Windows(corpus.validation, **sizes)
        sets[0].position(0)  # raises for a text that is too short
        out.mkdir(parents=True, exist_ok=True)
        engines = {
            name: trained(fit, config, training, sets, Path(folder) / name, console)
            for name, fit in FITS.items()
        }
        overhead = overhead_of_the_loop(config, training, sets[0], rounds)
    figures = {
        "header": head,
        "text": {"training": len(corpus.tokens), "validation": len(corpus.validation)},
        "model": asdict(config) | {"parameters": parameter_count(config)},
        "training": asdict(training),
        "engines": engines,
        "overhead_seconds_a_step": overhead,
        "published": PUBLISHED,
    }
    report(figures, console)
    save_json(out / "characters.json", figures)
    draw(out / "characters.png", figures)
    console.print(f"Figures are in {out / 'characters.json'}, the picture beside them.")
    return figures


def trained(fit, config, training, sets, folder, console):
    """A whole run -> its validation losses, its time, and its log's losses."""
    console.print(f"\n{training.steps} steps of {folder.name}:")
    begun = time.perf_counter()
    result = fit(config, training, sets[0], validation=sets[1], folder=folder)
    seconds = time.perf_counter() - begun
    log = read_log(folder)
    losses = {
        kind: [(line["step"], line["loss"]) for line in log if line["kind"] == kind]
        for kind in ("step", "evaluation")
    }
    return {
        "validation_loss": losses["evaluation"][-1][1],
        "best": result.evaluation,
        "seconds": seconds,
        "losses": losses,
    }


def overhead_of_the_loop(config, training, data, rounds, steps=500):
    """Seconds that data, log and progress take of a step, in which nothing else is done: the mean.

    Evaluations and checkpoints are not counted: they are as frequent as one asks for.
    """
    loss, spent = np.float32(4), []
    idling = replace(training, steps=steps, warmup=1)

    def idle(config, training, data, *, state):
        for step in range(1, steps + 1):
            begun = time.perf_counter()
            data.batch(step)
            yield state._replace(step=step), {"loss": loss, "gradient_norm": loss}
            spent.append(time.perf_counter() - begun)  # not of the last step, which saves

    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            reference.training.fit(
                config,
                idling,
                data,
                folder=Path(folder) / "run",
                checkpoint_interval=steps + 1,
                engine=Loop(idle, None, lambda state, config: state),
            )
    return sum(spent) / len(spent)


def report(figures, console):
    """What each engine reached, beside what nanoGPT publishes."""
    engines = figures["engines"]
    rows = Table("", *engines, "nanoGPT says", title="Tiny GPT on characters", box=SIMPLE)
    for column in rows.columns[1:]:
        column.justify = "right"
    losses = (f"{engine['validation_loss']:.4f}" for engine in engines.values())
    rows.add_row("validation loss, nats a character", *losses, f"{figures['published']:.2f}")
    seconds = (f"{engine['seconds']:.0f}" for engine in engines.values())
    rows.add_row("seconds, evaluations and checkpoints included", *seconds, "")
    console.print(rows)
    microseconds = 1e6 * figures["overhead_seconds_a_step"]
    share = figures["overhead_seconds_a_step"] / STEP
    console.print(
        f"Data, log and progress take {microseconds:.0f} µs a step: {share:.2%} of one of "
        f"{1e3 * STEP:.0f} ms.\n"
    )


def draw(path, figures):
    """Both engines' curves, one on top of the other, and what nanoGPT publishes."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(10, 5.5), layout="constrained")
        for (name, engine), width in zip(figures["engines"].items(), (1.3, 7), strict=True):
            look = {
                "color": COLORS[name],
                "zorder": 3 - width / 7,
                "alpha": 1 if width < 2 else 0.6,
            }
            steps, losses = zip(*engine["losses"]["evaluation"], strict=True)
            axes.plot(steps, losses, "o-", linewidth=width, label=f"{name}, validation", **look)
            steps, losses = zip(*engine["losses"]["step"], strict=True)
            axes.plot(steps, losses, linewidth=width / 3, label=f"{name}, each batch", **look)
        axes.axhline(figures["published"], color=GREY, linewidth=1, linestyle="--")
        beside = {"va": "bottom", "color": GREY, "transform": axes.get_yaxis_transform()}
        axes.text(0.02, figures["published"], "nanoGPT's README", **beside)
        axes.set_xlabel("training step")
        axes.set_ylabel("loss, nats a character")
        axes.set_ylim(1.5, 3.5)
        axes.legend(frameon=False)
        reached = " and ".join(f"{e['validation_loss']:.4f}" for e in figures["engines"].values())
        figure.suptitle(
            f"Characters of Shakespeare: validation losses {reached}", fontweight="bold"
        )
        figure.supxlabel(
            f"{figures['model']['parameters']:,} weights, float32   ·   "
            f"{figures['header']['device']}",
            fontsize=11,
            color=GREY,
        )
        figure.savefig(path, dpi=130, facecolor="white")
        pyplot.close(figure)
