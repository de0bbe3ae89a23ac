import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from reference import memory

FAULTS = """
import resource, sys
import numpy as np
from reference.memory import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
np.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(10_000_000)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    """Whether memory was kept, and the pages that five arrays of 80 MB had to be given anew."""
    command = [sys.executable, "-c", FAULTS, how]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    kept, number = done.stdout.split()
    return kept == "True", int(number)


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own allocator")
def test_memory_that_is_kept_is_not_mapped_anew():
    kept, few = faults("keep")
    if not kept:
        pytest.skip("another C library than glibc")
    _, many = faults("leave")
    assert few < 100 and few < many / 2


def test_another_c_library_is_left_as_it_is(monkeypatch):
    def without_mallopt(name):
        return object()

    monkeypatch.setattr(ctypes, "CDLL", without_mallopt)
    assert memory.keep_freed_memory() is False
