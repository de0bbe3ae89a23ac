"""What every benchmark states, and how it measures and writes it down."""

import json
import os
import platform
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

from reference.errors import InputError

FEWEST = 6  # timings: with fewer, not even the least and the greatest make a 95 % interval
RESAMPLES = 1000
# Told apart by the colour-blind, and in grey.
COLORS = {
    "NumPy": "#0b3c5d",
    "Flax": "#f2a541",
    "JAX": "#f9d9a8",
    "PyTorch": "#8c8c8c",
    "PyTorch compiled": "#c4c4c4",
}
GREY = "#555555"


class Mismatch(Exception):
    """Two engines that should agree do not; nothing is timed then."""


def header(dtype, packages=()):
    """Where and with what a figure was obtained; `packages` beside those of the two engines."""
    names = ("numpy", "jax", "jaxlib", "flax", "optax", *packages)
    return {
        "device": device(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or "all",
        "dtype": dtype,
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in names},
        "commit": commit(),
    }


def device():
    """The accelerator that JAX runs on and the processor of everything else."""
    accelerator = jax.devices()[0]
    kind = "" if accelerator.platform == "cpu" else f"{accelerator.device_kind}; "
    return f"{kind}{processor()}"


def processor():
    """The processor's name and how many of its cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), name)
    return f"{name}, {cores} core{'s' * (cores != 1)}"


def commit():
    """The commit that was checked out, with a + for changes since; None outside a checkout."""
    here = Path(__file__)

    def git(*arguments):
        options = {"cwd": here.parent, "capture_output": True, "text": True}
        return subprocess.run(["git", *arguments], check=True, **options).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # or it is another project's checkout
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def described(head):
    """A header as two lines."""
    versions = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
    facts = [head["device"], head["platform"], f"{head['threads']} threads for every engine"]
    facts += [head["dtype"]] + ([f"commit {head['commit']}"] if head["commit"] else [])
    return f"{'; '.join(facts)}\n{versions}"


def check_enough(name, number, fewest=FEWEST):
    """Raise InputError for too few timings to say anything about."""
    if number < fewest:
        raise InputError(
            f"{name} is {number}; give {fewest} or more: fewer have no 95 % interval of their time"
        )


def median(seconds):
    """The median of some timings and its 95 % interval, whatever their distribution.

    Each timing falls below the true median as a coin falls, so the r-th from either end stand
    outside of it with the probability 2 P(Binomial(n, ½) < r): the largest r is taken for which
    that is 5 % at most.  Raises InputError for too few.
    """
    ordered = sorted(seconds)
    n = len(ordered)
    check_enough("timings", n)
    rank, ways, below = -1, 1, 1  # below = Σ C(n, i) over i <= rank + 1, of 2ⁿ
    while below <= 2**n // 40:
        rank += 1
        ways = ways * (n - rank) // (rank + 1)
        below += ways
    middle, low, high = statistics.median(ordered), ordered[rank], ordered[n - 1 - rank]
    return {"median": middle, "low": low, "high": high, "seconds": list(seconds)}


def time_of(call):
    """Seconds that a function without arguments takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def timed(engines, rounds, parts):
    """The medians of some calls of each engine, all in turn: {engine: {part: …}}.

    A turn begins with a call of `gradients` that is not timed: it finds the caches and idle threads
    of the engine before it, which whoever uses one engine would not.
    """
    seconds = {name: {part: [] for part in parts} for name in engines}
    for _ in range(rounds):
        for name, calls in engines.items():
            calls.gradients()
            for part in parts:
                seconds[name][part].append(time_of(getattr(calls, part)))
    return {name: {part: median(s) for part, s in found.items()} for name, found in seconds.items()}


def ratio(ours, theirs):
    """How many times as long one takes as the other: of their medians, with a 95 % interval.

    By the bootstrap: as if other rounds of the same had been run.  A round is one timing of each,
    and they stay together, for what slows the machine slows both.
    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", ch. 13.
    """
    pair = np.array([ours["seconds"], theirs["seconds"]])
    n, rng = pair.shape[1], np.random.default_rng(0)
    a, b = np.median(pair[:, rng.integers(0, n, (RESAMPLES, n))], axis=-1)
    low, high = np.quantile(a / b, (0.025, 0.975))
    return {
        "ratio": ours["median"] / theirs["median"],
        "low": float(low),
        "high": float(high),
    }


def interval(timing, form=".1f", scale=1e3):
    """The ends of an interval as text; in milliseconds, unless told otherwise."""
    return f"{scale * timing['low']:{form}}–{scale * timing['high']:{form}}"


def save_json(path, figures):
    """Write figures for programs."""
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
