"""One training step, timed: NumPy, Flax and PyTorch from the same weights, in turn."""

import importlib.util
import os
import time
from functools import partial
from pathlib import Path

import jax
import matplotlib
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import accelerated.training.loop
import reference.training.loop
from benchmarks.report import COLORS, Mismatch, described, header, median, milliseconds, save_json
from reference import random
from reference.errors import InputError
from reference.models.gpt import GPTConfig, flops_per_token
from reference.training.loop import TrainingConfig, initial_state
from reference.training.optimizer import clip_by_global_norm

# layers, width, T, batch, V, heads
SIZES = ((4, 128, 64, 12, 65, 4), (6, 384, 256, 4, 1024, 6))
PARTS = {"gradients": "gradients", "step": "with AdamW"}


def run(out, *, rounds=15, sizes=SIZES):
    """Time all engines at all sizes; a table, a picture and figures as JSON go to `out`.

    Raises Mismatch where losses or gradients differ: then nothing is timed.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; give 1 or more")
    console = Console(soft_wrap=True, highlight=False)
    head = header("float32")
    console.print(described(head), "The allocator is as the system has it.\n", sep="\n")
    if not has_torch():
        console.print("PyTorch is not installed; pip install -e '.[peers]' brings it.\n")
    measured = [measure(*size, rounds=rounds, console=console) for size in sizes]
    figures = {"header": head, "rounds": rounds, "sizes": measured}
    console.print(*(table(size) for size in measured))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_json(out / "training.json", figures)
    draw(out / "training.png", figures)
    console.print(f"Figures are in {out / 'training.json'}, a picture in {out / 'training.png'}.")
    return figures


def has_torch():
    return importlib.util.find_spec("torch") is not None


def measure(layers, width, length, batch, vocabulary, heads, *, rounds, console):
    """All engines at one size: checked against each other, warmed up, then timed in turn."""
    config = GPTConfig(vocabulary, length, layers=layers, heads=heads, width=width)
    training = TrainingConfig(steps=1000, batch=batch, length=length)
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, vocabulary, (2, batch, length)).astype(np.int32)
    engines = {
        "NumPy": numpy_calls(config, training, tokens, labels),
        "Flax": flax_calls(config, training, tokens, labels),
    }
    if has_torch():
        engines["PyTorch"] = torch_calls(config, training, tokens, labels)
    size = f"{layers} layers, width {width}, T {length}, batch {batch}, V {vocabulary}"
    console.print(f"{size}: {verify(engines)}")
    timings = {part: timed([e[part] for e in engines.values()], rounds) for part in PARTS}
    flops = flops_per_token(config, length) * batch * length
    return {"size": size, "tokens": batch * length, "flops": flops} | {
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
        key = random.key(0)
        state, loss = loop.train_step(state, **batch, key=key, config=config, training=training)
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


def table(size):
    """Milliseconds, and how they compare."""
    rows = Table("one step", "engine", title=size["size"], box=SIMPLE)
    for name in ("ms (95 % interval)", "tokens/s", "/ PyTorch", "/ NumPy"):
        rows.add_column(name, justify="right")
    for part, words in PARTS.items():
        for name, timing in size[part].items():
            speed = f"{size['tokens'] / timing['median']:,.0f}"
            ratios = (ratio(size[part], name, other) for other in ("PyTorch", "NumPy"))
            rows.add_row(words, name, milliseconds(timing), speed, *ratios)
        rows.add_section()
    return rows


def ratio(timings, name, other):
    """One engine's time as a share of another's; a dash without the other."""
    if other not in timings:
        return "-"
    return f"{timings[name]['median'] / timings[other]['median']:.2f}"


def draw(path, figures):
    """Bars of milliseconds, a group for each size."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = figures["sizes"]
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(1, len(sizes), figsize=(11, 4.6), layout="constrained")
        for axis, size in zip(np.atleast_1d(axes), sizes, strict=True):
            names = list(size["step"])
            middle = np.array([1e3 * size["step"][n]["median"] for n in names])
            error = [
                np.abs([1e3 * size["step"][n][end] for n in names] - middle)
                for end in ("low", "high")
            ]
            colors = [COLORS[n] for n in names]
            bars = axis.bar(names, middle, yerr=error, color=colors, width=0.6, capsize=4)
            axis.bar_label(bars, [f"{ms:,.1f}" for ms in middle], padding=3)
            axis.set_title(size["size"], fontsize=10)
            axis.set_ylabel("milliseconds a training step")
        head = figures["header"]
        figure.suptitle("One training step of the same GPT", fontsize=14, fontweight="bold")
        about = f"{head['device']}, {head['threads']} threads, {head['dtype']}; median and 95 %"
        figure.supxlabel(about, fontsize=9, color="#555555")
        figure.savefig(path, dpi=130, facecolor="white")
        pyplot.close(figure)
