"""One GPT trained twice from one seed: the same losses, number for number, and two speeds."""

import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import jax
import matplotlib
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

import accelerated.inference.decoding
import accelerated.training.loop
import reference.inference.decoding
import reference.training.loop
from benchmarks.report import (
    COLORS,
    FEWEST,
    GREY,
    Mismatch,
    check_enough,
    described,
    header,
    interval,
    median,
    ratio,
    save_json,
)
from reference import tree
from reference.data.batches import Windows
from reference.data.text import python_documentation, read_text
from reference.models import parameter_count
from reference.models.gpt import PRESETS, GPTConfig
from reference.tokenizers import BPE
from reference.training.config import TrainingConfig
from reference.training.state import initial_state, keys_of

ENGINES = {"NumPy": reference, "Flax": accelerated}
LOSSES, GRADIENTS = 1e-9, 1e-8  # how far float64 runs may be apart
PROMPT = "The"  # the blank comes with the next word


def run(data, out, *, steps=300, seed=0, preset="micro", gate_steps=50):
    """The whole demonstration; figures and a picture go to the folder `out`.

    Raises Mismatch where the engines part, InputError for a text that cannot be used.
    """
    check_enough("steps", steps, FEWEST + 1)  # the first, which compiles, does not count
    console = Console(soft_wrap=True, highlight=False)
    with console.status("making a tokenizer for the text"):
        text = python_documentation() if data is None else read_text(data)
        tokenizer = BPE.train(text)
        tokens = np.array(tokenizer.encode(text), np.int32)
    config = replace(PRESETS[preset], vocabulary=tokenizer.vocabulary_size)
    training = TrainingConfig(steps=steps, seed=seed, warmup=min(20, steps - 1))
    windows(tokens, training).position(0)  # raises for a text that is too short
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    head = header("float32, after a gate in float64")
    console.print(described(head))
    source = "the documentation that Python carries" if data is None else data
    console.print(
        f"\nText: {source}, {len(tokens):,} tokens of {config.vocabulary:,}.", markup=False
    )

    with console.status("in float64: are the engines equal?"), double_precision():
        passed = gate(tokens, config.vocabulary, steps=gate_steps, seed=seed, console=console)
    engines, params = race(config, training, tokens, console)
    figures = {
        "header": head,
        "model": asdict(config) | {"parameters": parameter_count(config)},
        "training": asdict(training),
        "gate": passed,
        "engines": engines,
        "flax_speed_to_numpy": ratio(*(engines[name]["step"] for name in ENGINES)),
        "text": write(params, config, seed, tokenizer),
    }
    report(figures, console)
    save_json(out / "demo.json", figures)
    draw(out / "demo.png", figures)
    console.print(f"Figures are in {out / 'demo.json'}, the picture in {out / 'demo.png'}.")
    return figures


@contextmanager
def double_precision():
    """JAX with float64, which it leaves out unless asked."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def gate(tokens, vocabulary, *, steps, seed, console):
    """Both engines in float64, with dropout, clipping and accumulation: equal, or Mismatch."""
    config = GPTConfig(vocabulary, 32, layers=2, heads=3, width=48, dropout=0.1)
    training = TrainingConfig(
        steps=steps,
        batch=4,
        length=32,
        accumulation=2,
        warmup=min(5, steps - 1),
        dtype="float64",
        seed=seed,
    )
    gradient_gap = compare_gradients(config, training, tokens)
    data = windows(tokens, training)
    runs = (engine.training.loop.train(config, training, data) for engine in ENGINES.values())
    loss_gap = 0
    for step, both in enumerate(zip(*runs, strict=True), 1):
        ours, theirs = (float(figures["loss"]) for _, figures in both)
        gap = abs(ours - theirs)
        if not gap <= LOSSES:
            raise Mismatch(
                f"the engines part at step {step} in float64: NumPy's loss is {ours:.12f}, "
                f"Flax's {theirs:.12f}, {gap:.1e} apart where {LOSSES} is allowed"
            )
        loss_gap = max(loss_gap, gap)
    console.print(
        f"Gate: {steps} steps in float64, losses at most {loss_gap:.0e} apart, "
        f"all gradients of the first within {gradient_gap:.0e}: the engines are equal.\n"
    )
    return {"steps": steps, "loss_gap": loss_gap, "gradient_gap": gradient_gap}


def windows(tokens, training):
    """The text as a run is trained on it."""
    size = {"length": training.length, "batch": training.batch}
    return Windows(tokens, **size, key=keys_of(training.seed).data)


def compare_gradients(config, training, tokens):
    """The largest difference among the first step's gradients, relative to each array's largest.

    Or to a thousandth of the largest of all, where an array is zero but for rounding.
    """
    state, keys = initial_state(config, training), keys_of(training.seed)
    batch = windows(tokens, training).batch(0)
    options = {"config": config, "key": keys.dropout, "accumulation": training.accumulation}
    ours, theirs = (
        tree.flatten(engine.training.loop.loss_and_gradients(state.params, batch, **options)[1])
        for engine in ENGINES.values()
    )
    floor = 1e-3 * max(np.abs(g).max() for g in ours.values())
    gaps = {p: np.abs(g - theirs[p]).max() / max(np.abs(g).max(), floor) for p, g in ours.items()}
    # NaN is no more than anything, so it is asked for first; the gap says which is worst.
    worst = max(gaps, key=lambda path: (np.isnan(gaps[path]), gaps[path]))
    if not gaps[worst] <= GRADIENTS:
        raise Mismatch(
            f"the engines part at the first gradient in float64: that of {worst} is "
            f"{gaps[worst]:.1e} apart where {GRADIENTS} is allowed"
        )
    return float(gaps[worst])


def race(config, training, tokens, console):
    """Both engines in float32, step by step in turn -> losses and times of each, its weights."""
    result = {name: {"losses": [], "seconds": []} for name in ENGINES}
    params = {}
    data = windows(tokens, training)
    runs = {
        name: engine.training.loop.train(config, training, data) for name, engine in ENGINES.items()
    }
    with progress(console, training.steps) as show:
        for _ in range(training.steps):
            for name, steps in runs.items():
                start = time.perf_counter()
                state, figures = jax.block_until_ready(next(steps))
                result[name]["seconds"].append(time.perf_counter() - start)
                result[name]["losses"].append(float(figures["loss"]))
                params[name] = state.params
                show(name, result)
    for engine in result.values():
        first, *others = engine.pop("seconds")
        engine["step"] = median(others)
        engine["compile_seconds"] = max(first - engine["step"]["median"], 0)
        engine["tokens_per_second"] = training.batch * training.length / engine["step"]["median"]
    result["NumPy"]["compile_seconds"] = 0
    return result, params


@contextmanager
def progress(console, total):
    """Give a function that shows how far an engine is: two bars, or without a terminal lines."""
    columns = (TextColumn("{task.description:6}"), BarColumn(), MofNCompleteColumn())
    columns += (TextColumn("loss {task.fields[loss]}"), TextColumn("{task.fields[gap]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {name: bars.add_task(name, total=total, loss="-", gap="") for name in ENGINES}

        def show(name, result):
            losses = result[name]["losses"]
            gap = losses[-1] - result["NumPy"]["losses"][-1]
            apart = "" if name == "NumPy" else f"gap {abs(gap):.1e}"
            bars.update(tasks[name], completed=len(losses), loss=f"{losses[-1]:.5f}", gap=apart)
            if (
                not console.is_terminal
                and name == "Flax"
                and len(losses) % max(total // 10, 1) == 0
            ):
                console.print(f"step {len(losses)} of {total}: loss {losses[-1]:.5f}, {apart}")

        yield show


def write(params, config, seed, tokenizer):
    """A line by each engine, with its own weights and the same key; where they first differ."""
    prompt = np.array(tokenizer.encode(PROMPT), np.int32)
    room = {"steps": min(60, config.context - len(prompt)), "temperature": 0.8}
    options = room | {"top_k": min(40, config.vocabulary), "key": keys_of(seed).sample}
    written = {}
    for name, engine in ENGINES.items():
        generate = engine.inference.decoding.generate
        written[name] = generate(params[name], tokens=prompt, config=config, **options)
    different = np.flatnonzero(written["NumPy"] != written["Flax"])
    return {name: PROMPT + tokenizer.decode(new.tolist()) for name, new in written.items()} | {
        "tokens": room["steps"],
        "ids": {name: new.tolist() for name, new in written.items()},
        "first_difference": int(different[0]) if len(different) else None,
    }


def report(figures, console):
    """Losses at milestones, speeds and the text of both engines, printed."""
    losses = [engine["losses"] for engine in figures["engines"].values()]
    steps = len(losses[0])
    rows = Table("", *ENGINES, "gap or ratio", title="The same GPT, twice", box=SIMPLE)
    for column in rows.columns[1:]:
        column.justify = "right"
    for step in sorted({1, *(max(round(steps * share), 1) for share in (0.1, 0.25, 0.5, 0.75, 1))}):
        ours, theirs = (of_engine[step - 1] for of_engine in losses)
        rows.add_row(f"loss at step {step}", f"{ours:.6f}", f"{theirs:.6f}", f"{ours - theirs:.1e}")
    rows.add_section()
    engines, times = figures["engines"].values(), figures["flax_speed_to_numpy"]
    steps = [engine["step"] for engine in engines]
    rows.add_row("a step, ms", *(f"{1e3 * step['median']:.1f}" for step in steps), "")
    rows.add_row("  95 % interval", *map(interval, steps), "")
    speeds = (f"{engine['tokens_per_second']:,.0f}" for engine in engines)
    rows.add_row("tokens per second", *speeds, f"{times['ratio']:.2f}")
    rows.add_row("  95 % interval", "", "", interval(times, ".2f", 1))
    compilation = figures["engines"]["Flax"]["compile_seconds"]
    rows.add_row("compilation, s", "none", f"{compilation:.1f}", "")
    console.print(rows)

    text = figures["text"]
    for name in ENGINES:
        console.print(f"{name} writes: {' '.join(text[name].split())}", markup=False)
    first = text["first_difference"]
    same = f"The same {text['tokens']} tokens" if first is None else f"They part at token {first}"
    console.print(f"{same}, from the same random key.\n")


def draw(path, figures):
    """The picture: two curves that are one, how far they are apart, and the speeds."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplot_mosaic(
            [["loss", "speed"], ["gap", "speed"]],
            figsize=(11, 6),
            width_ratios=[1.7, 1],
            height_ratios=[2.4, 1],
            layout="constrained",
        )
        figure.get_layout_engine().set(wspace=0.06)
        apart = draw_losses(axes["loss"], axes["gap"], figures)
        faster = draw_speeds(axes["speed"], figures)
        sizes, head = figures["model"], figures["header"]
        gap = np.format_float_positional(apart, precision=1, fractional=False, trim="-")
        title = f"One GPT, trained twice: losses within {gap} of each other; {faster}"
        figure.suptitle(title, fontsize=15, fontweight="bold")
        versions = ", ".join(
            f"{name} {head['versions'][name]}" for name in ("numpy", "jax", "flax")
        )
        figure.supxlabel(
            f"{sizes['layers']} layers, width {sizes['width']}, {sizes['parameters']:,} weights, "
            f"float32   ·   {head['device']}   ·   {versions}",
            fontsize=11,
            color=GREY,
        )
        figure.savefig(path, dpi=130, facecolor="white")
        pyplot.close(figure)


def draw_losses(axes, gap_axes, figures):
    """Both curves, and their distance beneath -> the largest distance."""
    losses = {name: np.array(e["losses"]) for name, e in figures["engines"].items()}
    steps = np.arange(1, len(losses["NumPy"]) + 1)
    axes.plot(steps, losses["Flax"], color=COLORS["Flax"], linewidth=7, alpha=0.6, label="Flax")
    axes.plot(steps, losses["NumPy"], color=COLORS["NumPy"], linewidth=1.3, label="NumPy")
    axes.set_ylabel("loss, nats a token")
    axes.legend(frameon=False, loc="upper right", title="one on top of the other")
    axes.sharex(gap_axes)
    axes.tick_params(labelbottom=False)

    gap = np.abs(losses["NumPy"] - losses["Flax"])
    apart = gap > 0
    gap_axes.semilogy(steps[apart], gap[apart], ".", color=GREY, markersize=4)
    gap_axes.set_ylim(1e-8, max(1e-3, 100 * gap.max()))
    gap_axes.minorticks_off()
    gap_axes.set_ylabel("gap, nats")
    gap_axes.set_xlabel("training step")
    words = f"equal to the last bit at {np.sum(~apart)} of {len(steps)} steps"
    words += f"; in float64 at most {figures['gate']['loss_gap']:.0e} apart"
    gap_axes.text(0.99, 0.9, words, ha="right", va="top", transform=gap_axes.transAxes, fontsize=11)
    return gap.max()


def draw_speeds(axes, figures):
    """A bar for each engine, and the ratio -> which is faster, in words."""
    engines, times = figures["engines"], figures["flax_speed_to_numpy"]["ratio"]
    speeds = {name: engine["tokens_per_second"] for name, engine in engines.items()}
    colors = [COLORS[name] for name in speeds]
    bars = axes.barh(list(speeds), list(speeds.values()), color=colors, height=0.6)
    axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds.values()], padding=5)
    slow, fast = sorted(speeds, key=speeds.get)
    times = max(times, 1 / times)
    on_bar = {"color": "white" if fast == "NumPy" else "black", "fontsize": 16, "ha": "center"}
    words = f"{times:.2f} times\n{slow}'s"
    axes.text(speeds[fast] / 2, list(speeds).index(fast), words, va="center", **on_bar)
    axes.set_ylim(1.45, -0.45)
    axes.set_xlim(0, 1.25 * speeds[fast])
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="y", length=0, labelsize=14)
    axes.set_xlabel("tokens per second, in training")
    return f"{fast} is {times:.2f} times as fast"
