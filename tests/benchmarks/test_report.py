import math
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import report
from reference.errors import InputError


@given(st.permutations([float(i) for i in range(21)]))
def test_the_median_and_its_interval_are_those_of_the_ranks(seconds):
    """The 6th and 16th of 21: outside of them 2.7 % of the time, of the 7th and 15th 7.8 %."""
    timing = report.median(seconds)
    assert (timing["median"], timing["low"], timing["high"]) == (10, 5, 15)
    assert timing["seconds"] == seconds


@pytest.mark.parametrize("n", [6, 15, 16, 17, 21, 50, 299, 2000])
def test_the_interval_is_the_narrowest_that_covers_95_percent(n):
    timing = report.median(range(n))
    rank = timing["low"]
    assert timing["high"] == n - 1 - rank
    outside = [2 * sum(math.comb(n, i) for i in range(r + 1)) / 2**n for r in (rank, rank + 1)]
    assert outside[0] <= 0.05 < outside[1]


def test_too_few_timings_are_refused():
    with pytest.raises(InputError, match="timings is 5; give 6 or more"):
        report.median([1.0] * 5)


def test_a_ratio_is_of_medians_and_its_interval_of_rounds_that_stay_together():
    rounds = np.random.default_rng(0).lognormal(size=50)  # slow and fast together, by far
    ours, theirs = report.median(2 * rounds), report.median(rounds)
    together = report.ratio(ours, theirs)
    np.testing.assert_allclose([together[k] for k in ("ratio", "low", "high")], 2)
    apart = report.ratio(ours, report.median(rounds[::-1]))
    assert apart["low"] < 1.9 and 2.1 < apart["high"] and apart["ratio"] == together["ratio"]


def test_the_header_says_where_and_with_what():
    head = report.header("float32", ["pytest"])
    assert head["versions"]["numpy"] == np.__version__
    assert head["versions"]["pytest"] == pytest.__version__ and "torch" not in head["versions"]
    words = report.described(head | {"commit": "abc1234+"})
    assert f"numpy {np.__version__}" in words and "float32; commit abc1234+" in words
    assert "commit" not in report.described(head | {"commit": None})


def test_the_commit_is_not_that_of_another_project(tmp_path):
    """Installed into a virtual environment inside somebody's checkout."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run([*git, "commit", "-qm", "x", "--allow-empty"], check=True, cwd=tmp_path)
    (tmp_path / "installed").mkdir()
    shutil.copy(report.__file__, tmp_path / "installed" / "copied.py")
    code = "import copied; print(copied.commit())"
    here = {"PYTHONPATH": f"{tmp_path / 'installed'}:{Path(__file__).parents[2]}"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=here, check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == "None"


def test_engines_take_turns_and_begin_with_a_call_that_is_not_timed():
    class Calls:
        def __init__(self, name):
            self.gradients, self.step = (partial(order.append, n) for n in (name, name.lower()))

    order = []
    timings = report.timed({name: Calls(name) for name in "AB"}, 6, ("gradients", "step"))
    assert "".join(order) == 6 * "AAaBBb" and list(timings) == ["A", "B"]
    assert all(len(timings["B"][part]["seconds"]) == 6 for part in ("gradients", "step"))
