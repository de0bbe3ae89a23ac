"""What every benchmark states and how it writes it down."""

import json
import os
import platform
import statistics
import subprocess
from importlib import metadata
from pathlib import Path

import jax

COLORS = {
    "NumPy": "#0b3c5d",
    "Flax": "#f2a541",
    "PyTorch": "#8c8c8c",
}  # told apart by the colour-blind


class Mismatch(Exception):
    """Two engines that should agree do not; nothing is timed then."""


def header(dtype):
    """Where and with what a figure was obtained."""
    packages = ("numpy", "jax", "jaxlib", "flax", "optax", "torch")
    return {
        "device": device(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or "all",
        "dtype": dtype,
        "versions": {"python": platform.python_version()}
        | {name: found for name in packages if (found := version(name))},
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


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit():
    """The commit that was checked out, with a + for changes since; None outside a checkout."""

    def git(*arguments):
        options = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
        return subprocess.run(["git", *arguments], check=True, **options).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(
            git("status", "--porcelain", "-uno")
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def described(head):
    """A header as two lines."""
    versions = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
    threads = f"{head['threads']} threads for every engine"
    return f"{head['device']}; {threads}; {head['dtype']}; commit {head['commit']}\n{versions}"


def median(seconds):
    """The median and its 95 % interval, by the binomial distribution of ranks."""
    ordered = sorted(seconds)
    n = len(ordered)
    rank = max(int(n / 2 - 0.98 * n**0.5), 0)
    return {
        "median": statistics.median(ordered),
        "low": ordered[rank],
        "high": ordered[n - 1 - rank],
        "n": n,
    }


def milliseconds(timing):
    """A timing as text: median and interval."""
    middle, low, high = (1e3 * timing[name] for name in ("median", "low", "high"))
    return f"{middle:.1f} ({low:.1f}–{high:.1f})"


def save_json(path, figures):
    """Write figures for programs."""
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
