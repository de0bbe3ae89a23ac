"""python -m benchmarks.alone ENGINE SIZE ROUNDS: one engine in a process of its own, as JSON.

Threads come from the process that starts it.
"""

import json
import sys
from pathlib import Path


def main(engine, size, rounds):
    """Times as `benchmarks.report.timed` has them, and how far memory rose above the start."""
    from reference.memory import keep_freed_memory

    keep_freed_memory()  # as every process that times
    from benchmarks.engines import ENGINES, SIZES, Problem
    from benchmarks.report import timed
    from benchmarks.training import PARTS

    before = resident()
    calls = ENGINES[engine](Problem(SIZES[size]))
    calls.step()
    clear_peak()
    timings = timed({engine: calls}, int(rounds), PARTS)[engine]
    return timings | {"peak_bytes": resident("VmHWM") - before}


def resident(what="VmRSS"):
    """Bytes of this process that are in memory; with VmHWM the most that ever were.  0: unknown."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(s for s in status.read_text("utf-8").splitlines() if s.startswith(what))
    return 1024 * int(line.split()[1])


def clear_peak():
    """Let VmHWM begin anew: what compiling took is no part of a step."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
