"""One training step, timed: NumPy, Flax, plain JAX and PyTorch from the same weights."""

import importlib.util
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import nnx
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from accelerated import functional
from accelerated.layers.embedding import Embed
from accelerated.training.compilation import PLAIN
from benchmarks import overhead, profile
from benchmarks.engines import ENGINES, ON_GPU, SIZES, Problem
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
    time_of,
    timed,
)

PARTS = {"gradients": "forward, loss and backward", "step": "the whole step, with AdamW"}
VERSIONS = ("numpy", "jax", "flax", "torch")
PROFILED = ("NumPy", "Flax", "PyTorch")
# What the makers state for dense bfloat16 products, in FLOP/s, by what JAX calls the device.
STATED_PEAKS = {
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def run(out, *, sizes=None, rounds=None, alone=True, profiled=False, memory_kept=False):
    """Time all engines at the sizes of these names; tables, a picture and JSON go to `out`.

    Engines take turns in this process, and with `alone` each also has one of its own.  Raises
    Mismatch where losses or gradients differ: then nothing is timed; InputError for too few rounds.
    """
    on_gpu = jax.default_backend() == "gpu"
    names = sizes or (["gpt2"] if on_gpu else ["small", "medium", "large"])
    given = {} if rounds is None else {"rounds": rounds}
    chosen = {name: SIZES[name]._replace(**given) for name in names}
    for size in chosen.values():
        check_enough("rounds", size.rounds)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, 104)  # of the tables
    head = header("bfloat16" if on_gpu else "float32", ["torch"] if has("torch") else [])
    head["allocator"] = allocator(memory_kept)
    console.print(described(head), head["allocator"], sep="\n")
    head["peak"] = peak(on_gpu)
    console.print(f"Matrix products reach {head['peak'] / 1e9:,.0f} GFLOP/s here.\n")
    figures = {"header": head, "sizes": []}
    for name, size in chosen.items():
        measured = measure(size, head, console, on_gpu=on_gpu)
        if alone and not on_gpu:
            measured["alone"] = {e: by_itself(e, name, size.rounds) for e in measured["step"]}
        figures["sizes"].append(measured)
        console.print(*(table(measured, part, head) for part in PARTS))
    if on_gpu:
        figures["repeated_ids"] = repeated_ids(next(iter(chosen.values())), console)
    else:
        figures["overhead"] = overhead.measure(console)
    if profiled:
        figures["profile"] = show_profiles(list(chosen.values())[:2], console)
    save_json(out / "training.json", figures)
    draw(out / "training.png", figures)
    console.print(f"Figures are in {out / 'training.json'}, a picture in {out / 'training.png'}.")
    return figures


def has(package):
    return importlib.util.find_spec(package) is not None


def engines_here(on_gpu):
    """The names of those that can run here."""
    names = ["Flax"] if on_gpu else ["NumPy", "Flax", "JAX"]
    if has("torch"):
        names.append("PyTorch")
        if on_gpu or any(shutil.which(compiler) for compiler in ("g++", "clang++")):
            names.append("PyTorch compiled")
    return names


def allocator(memory_kept):
    """What was done about memory, in words."""
    return "The allocator keeps what is freed." if memory_kept else "The allocator is as it comes."


def peak(on_gpu):
    """FLOP/s of the fastest of the engines' own products of two large square matrices."""
    n, dtype = (8192, "bfloat16") if on_gpu else (2048, "float32")
    a, b = np.random.default_rng(0).standard_normal((2, n, n), np.float32)
    pair = jax.device_put((a, b))
    narrow = [x.astype(dtype) for x in pair]
    product = jax.jit(lambda a, b: a @ b)
    calls = [lambda: jax.block_until_ready(product(*narrow))]
    if not on_gpu:
        calls.append(lambda: a @ b)
    seconds = [median([time_of(call) for _ in range(15)])["median"] for call in calls]
    return 2 * n**3 / min(seconds)


def repeated_ids(size, console):
    """How many times as long the embedding's gradient takes for one id as for different ones.

    Some versions of jaxlib add repeated rows hundreds of times too slowly on GPUs: openxla/xla
    46225.  A text repeats its words, so that a batch of random ids shows nothing of it.
    """
    module = nnx.eval_shape(lambda: Embed(size.vocabulary, size.width, rngs=nnx.Rngs(0)))
    apply, shapes = functional(module)
    table = jax.tree.map(lambda a: jnp.ones(a.shape, jnp.bfloat16), shapes)
    rows = size.batch * size.length
    dy = jnp.ones((rows, size.width), jnp.bfloat16)
    gradient = jax.jit(lambda table, ids: jax.vjp(lambda t: apply(t, ids=ids), table)[1](dy))

    def seconds(ids):
        call = partial(gradient, table, jnp.asarray(ids, jnp.int32))
        return median([time_of(lambda: jax.block_until_ready(call())) for _ in range(15)])["median"]

    times = seconds(np.zeros(rows)) / seconds(np.arange(rows) % size.vocabulary)
    console.print(f"The embedding's gradient takes {times:.1f} times as long for one repeated id.")
    return times


def measure(size, head, console, *, on_gpu):
    """All engines at one size: checked against each other, warmed up, then timed in turn."""
    with console.status(f"{size}: compiling"):
        problem = Problem(size, ON_GPU if on_gpu else PLAIN)
        engines = {name: ENGINES[name](problem) for name in engines_here(on_gpu)}
        verified = verify(engines, loose=on_gpu)
    console.print(f"{size}: {verified}")
    with console.status(f"{size.rounds} rounds of {', '.join(engines)}"):
        for calls in engines.values():
            calls.step()
        timings = timed(engines, size.rounds, PARTS)
    parts = {part: {name: timings[name][part] for name in engines} for part in PARTS}
    return {
        "size": str(size),
        "rounds": size.rounds,
        "tokens": problem.tokens.size,
        "flops": problem.flops,
        "stated_peak": STATED_PEAKS.get(jax.devices()[0].device_kind),
    } | parts


def verify(engines, loose=False):
    """That all have the same loss and length of gradient, in words; Mismatch if not."""
    values = {name: calls.values() for name, calls in engines.items()}
    loss, norm = next(iter(values.values()))
    near = (1e-2, 5e-2) if loose else (1e-5, 1e-3)  # bfloat16 and float32
    for name, (other_loss, other_norm) in values.items():
        if not (
            abs(other_loss - loss) <= near[0] * loss and abs(other_norm - norm) <= near[1] * norm
        ):
            raise Mismatch(
                f"{name} has the loss {other_loss:.7f} and a gradient of length {other_norm:.6f}, "
                f"{next(iter(values))} {loss:.7f} and {norm:.6f}: what differs is not timed"
            )
    return f"loss {loss:.5f} and gradient {norm:.4f} in all engines"


def by_itself(engine, size, rounds):
    """The same of one engine in a process of its own, and that process's peak memory."""
    command = [sys.executable, "-m", "benchmarks.alone", engine, size, str(rounds)]
    here = Path(__file__).parents[1]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=here)
    return json.loads(done.stdout.splitlines()[-1])


def table(size, part, head):
    """Milliseconds, how they compare with their intervals, and how near the device's peak."""
    rows = Table(title=f"{size['size']}: {PARTS[part]}", box=SIMPLE)
    rows.add_column(no_wrap=True)
    columns = ["ms (95 %)", "/ PyTorch (95 %)", "of peak"]
    columns += ["MFU"] if size["stated_peak"] else []
    columns += ["alone, ms", "/ PyTorch", "memory, MB"] if "alone" in size else []
    for name in columns:
        rows.add_column(name, justify="right", no_wrap=True)
    for name, timing in size[part].items():
        cells = [f"{1e3 * timing['median']:.1f} ({interval(timing)})"]
        cells.append(compared(size[part], name, "PyTorch"))
        cells.append(f"{size['flops'] / timing['median'] / head['peak']:.0%}")
        if size["stated_peak"]:
            cells.append(f"{size['flops'] / timing['median'] / size['stated_peak']:.1%}")
        if "alone" in size:
            alone = {engine: parts[part] for engine, parts in size["alone"].items()}
            cells.append(f"{1e3 * alone[name]['median']:.1f}")
            cells.append(compared(alone, name, "PyTorch", paired=False))
            cells.append(f"{size['alone'][name]['peak_bytes'] / 1e6:,.0f}")
        rows.add_row(name, *cells)
    return rows


def compared(timings, name, other, paired=True):
    """One engine's time as a share of another's, with its interval where they took turns."""
    if other not in timings:
        return "-"
    if other == name:
        return "1"
    times = ratio(timings[name], timings[other])
    return f"{times['ratio']:.2f}" + (f" ({interval(times, '.2f', 1)})" if paired else "")


def show_profiles(sizes, console):
    """Where the time goes at some sizes, printed."""
    found = []
    for size in sizes:
        problem = Problem(size)
        profiles = {}
        for name in [name for name in PROFILED if name in engines_here(False)]:
            calls = ENGINES[name](problem)
            profiles[name] = PROFILERS[name](calls)
        console.print(profile.table(str(size), profiles))
        found.append({name: p._asdict() for name, p in profiles.items()} | {"size": str(size)})
    return found


PROFILERS = {
    "NumPy": lambda calls: profile.numpy_profile(calls.step, 5),
    "Flax": lambda calls: profile.flax_profile(calls.step, calls.program(), 5),
    "PyTorch": lambda calls: profile.torch_profile(calls.step, 5),
}


def draw(path, figures):
    """Bars of milliseconds, a group for each size."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes, head = figures["sizes"], figures["header"]
    style = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        wide = max(5.2 * len(sizes), 10)
        figure, axes = pyplot.subplots(1, len(sizes), figsize=(wide, 4.8), layout="constrained")
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
        [name.replace(" ", "\n") for name in names],
        middle,
        yerr=(middle - low, high - middle),
        color=colors,
        width=0.55,
        error_kw={"ecolor": GREY, "elinewidth": 1.5, "capsize": 4},
    )
    for place, (ms, end) in enumerate(zip(middle, high, strict=True)):
        axes.text(place, end + 0.02 * max(high), f"{ms:,.1f}", ha="center", va="bottom")
    axes.set_ylim(0, 1.12 * max(high))
