"""One training step, timed: NumPy, Flax and PyTorch from the same weights, in turn."""

import importlib.util
import os
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import accelerated.training.loop
import reference.training.loop
from accelerated.training.compilation import PLAIN
from benchmarks.report import (
    COLORS,
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
from reference import random
from reference.models.gpt import GPTConfig, flops_per_token
from reference.training.loop import TrainingConfig, initial_state
from reference.training.optimizer import clip_by_global_norm


class Size(NamedTuple):
    """What is trained, on how much at a time, and how often it is timed."""

    layers: int
    width: int
    length: int
    batch: int
    vocabulary: int
    heads: int
    rounds: int

    def __str__(self):
        return (
            f"{self.layers} layers, width {self.width}, T {self.length}, batch {self.batch}, "
            f"V {self.vocabulary}"
        )


SIZES = (Size(4, 128, 64, 12, 65, 4, rounds=21), Size(6, 384, 256, 4, 1024, 6, rounds=15))
VERSIONS = ("numpy", "jax", "flax", "torch")
PARTS = {"gradients": "forward and backward", "step": "the whole step, with AdamW"}


def run(out, *, rounds=None, sizes=SIZES):
    """Time all engines at all sizes; a table, a picture and figures as JSON go to `out`.

    `rounds`, where given, is for all sizes.  Raises Mismatch where losses or gradients differ:
    then nothing is timed; InputError for too few rounds.
    """
    sizes = [size if rounds is None else size._replace(rounds=rounds) for size in sizes]
    for size in sizes:
        check_enough("rounds", size.rounds)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True, highlight=False)
    head = header("float32", ["torch"] if has_torch() else [])
    console.print(described(head), "The allocator is as the system has it.", sep="\n")
    if has_torch():
        console.print("PyTorch runs eagerly, with its scaled_dot_product_attention.\n")
    else:
        install = "pip install -e '.[peers]'"
        console.print(f"PyTorch is not installed; {install} brings it.\n", markup=False)
    measured = [measure(size, console) for size in sizes]
    figures = {"header": head, "sizes": measured}
    console.print(*(table(size, part) for size in measured for part in PARTS))
    save_json(out / "training.json", figures)
    draw(out / "training.png", figures)
    console.print(f"Figures are in {out / 'training.json'}, a picture in {out / 'training.png'}.")
    return figures


def has_torch():
    return importlib.util.find_spec("torch") is not None


def measure(size, console):
    """All engines at one size: checked against each other, warmed up, then timed in turn."""
    config = GPTConfig(
        size.vocabulary, size.length, layers=size.layers, heads=size.heads, width=size.width
    )
    training = TrainingConfig(steps=1000, batch=size.batch, length=size.length)
    rng = np.random.default_rng(0)
    shape = (2, size.batch, size.length)
    tokens, labels = rng.integers(0, size.vocabulary, shape).astype(np.int32)
    engines = {
        "NumPy": numpy_calls(config, training, tokens, labels),
        "Flax": flax_calls(config, training, tokens, labels),
    }
    if has_torch():
        engines["PyTorch"] = torch_calls(config, training, tokens, labels)
    console.print(f"{size}: {verify(engines)}")
    with console.status(f"{size.rounds} rounds of {', '.join(engines)}"):
        timings = {
            part: timed([calls[part] for calls in engines.values()], size.rounds) for part in PARTS
        }
    flops = flops_per_token(config, size.length) * size.batch * size.length
    return {"size": str(size), "rounds": size.rounds, "tokens": tokens.size, "flops": flops} | {
        part: dict(zip(engines, results, strict=True)) for part, results in timings.items()
    }


def numpy_calls(config, training, tokens, labels):
    """What there is to time in the reference, and what to verify: (loss, length of gradient)."""
    loop, batch = reference.training.loop, {"tokens": tokens, "labels": labels, "config": config}
    state = initial_state(config, training)

    def step():
        nonlocal state
        state, _ = loop.train_step(state, **batch, key=random.key(0), training=training)

    def values():
        loss, gradients = loop.loss_and_gradients(initial_state(config, training).params, **batch)
        return float(loss), clip_by_global_norm(gradients, limit=np.inf)[1]

    gradients = partial(loop.loss_and_gradients, state.params, **batch)
    return {"gradients": gradients, "step": step, "values": values}


def flax_calls(config, training, tokens, labels):
    loop, batch = accelerated.training.loop, {"tokens": tokens, "labels": labels}
    state = jax.device_put(initial_state(config, training))
    params = jax.device_put(initial_state(config, training).params)
    compiled = jax.jit(partial(loop.loss_and_gradients, config=config))

    def step():
        nonlocal state
        arrays = tokens[None], labels[None], random.key(0)
        state, loss = loop.train_call(
            state, *arrays, config=config, training=training, compilation=PLAIN
        )
        jax.block_until_ready((state, loss))

    def values():
        loss, gradients = compiled(params, **batch)
        host = jax.tree.map(np.asarray, gradients)
        return float(loss), clip_by_global_norm(host, limit=np.inf)[1]

    def gradients():
        jax.block_until_ready(compiled(params, **batch))

    return {"gradients": gradients, "step": step, "values": values}


def torch_calls(config, training, tokens, labels):
    import torch

    from benchmarks.torch_gpt import TorchGPT

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    model = TorchGPT(initial_state(config, training).params, config, training)
    batch = [torch.tensor(a).long() for a in (tokens, labels)]

    def values():
        return model.loss_and_gradients(*batch).item(), model.gradient_norm()

    def call(method):
        return lambda: method(*batch).item()

    steps = {"gradients": call(model.loss_and_gradients), "step": call(model.train_step)}
    return steps | {"values": values}


def verify(engines):
    """That all have the same loss and length of gradient, in words; Mismatch if not."""
    values = {name: calls["values"]() for name, calls in engines.items()}
    loss, norm = values["NumPy"]
    for name, (other_loss, other_norm) in values.items():
        if not (abs(other_loss - loss) <= 1e-5 * loss and abs(other_norm - norm) <= 1e-3 * norm):
            raise Mismatch(
                f"{name} has the loss {other_loss:.7f} and a gradient of length {other_norm:.6f}, "
                f"NumPy {loss:.7f} and {norm:.6f}: what differs is not timed"
            )
    return f"loss {loss:.5f} and gradient {norm:.4f} in all engines"


def timed(calls, rounds):
    """The median seconds of each call: all in turn, each first twice to warm up."""
    seconds = [[] for _ in calls]
    for call in calls:
        call()
        call()
    for _ in range(rounds):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [median(times) for times in seconds]


def table(size, part):
    """Milliseconds, and how they compare: the medians' ratios, with their intervals."""
    rows = Table("ms", title=f"{size['size']}: {PARTS[part]}", box=SIMPLE)
    for name in ("median", "95 %", "/ PyTorch", "95 %", "/ NumPy", "95 %"):
        rows.add_column(name, justify="right", no_wrap=True)
    for name, timing in size[part].items():
        ratios = (compared(size[part], name, other) for other in ("PyTorch", "NumPy"))
        rows.add_row(name, f"{1e3 * timing['median']:.1f}", interval(timing), *sum(ratios, ()))
    return rows


def compared(timings, name, other):
    """One engine's time as a share of another's, and its interval; dashes without the other."""
    if other not in timings:
        return "-", "-"
    if other == name:
        return "1.00", ""
    times = ratio(timings[name], timings[other])
    return f"{times['ratio']:.2f}", interval(times, ".2f", 1)


def draw(path, figures):
    """Bars of milliseconds, a group for each size."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes, head = figures["sizes"], figures["header"]
    style = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(1, len(sizes), figsize=(11, 4.8), layout="constrained")
        for axis, size in zip(np.atleast_1d(axes), sizes, strict=True):
            draw_times(axis, size["step"])
            axis.set_title(f"{size['size']}\n{size['rounds']} rounds", fontsize=11, color=GREY)
        np.atleast_1d(axes)[0].set_ylabel("milliseconds a training step")
        title = "One training step of the same GPT, AdamW included: shorter is faster"
        figure.suptitle(title, fontsize=15, fontweight="bold")
        versions = (f"{n} {v}" for n, v in head["versions"].items() if n in VERSIONS)
        about = f"{head['device']}   ·   {head['dtype']}   ·   {', '.join(versions)}"
        figure.supxlabel(f"{about}   ·   median and 95 % interval", fontsize=11, color=GREY)
        figure.savefig(path, dpi=130, facecolor="white")
        pyplot.close(figure)


def draw_times(axes, timings):
    """A bar for each engine, with its interval and its number."""
    names = list(timings)
    middle, low, high = (
        np.array([1e3 * timings[name][part] for name in names])
        for part in ("median", "low", "high")
    )
    colors = [COLORS[name] for name in names]
    axes.bar(
        names,
        middle,
        yerr=(middle - low, high - middle),
        color=colors,
        width=0.55,
        error_kw={"ecolor": GREY, "elinewidth": 1.5, "capsize": 4},
    )
    for place, (ms, end) in enumerate(zip(middle, high, strict=True)):
        axes.text(place, end + 0.02 * max(high), f"{ms:,.1f}", ha="center", va="bottom")
    axes.set_ylim(0, 1.12 * max(high))
