import math
import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from matplotlib.image import imread

from reference.errors import InputError
from reference.training.curve import draw_curve, limits, smoothed
from reference.training.log import Log, read_log

LOSSES = st.floats(-10, 1e3) | st.sampled_from([math.nan, math.inf, -math.inf])
CURVES = arrays(np.float64, st.integers(1, 150), elements=LOSSES)


def step(step, loss, rate=1e-3):
    return {"kind": "step", "step": step, "loss": loss, "learning_rate": rate}


def evaluation(step, loss):
    return {"kind": "evaluation", "step": step, "loss": loss}


def learning(steps):
    """A run whose validation loss is best at step 300."""
    for n in range(1, steps + 1):
        yield step(n, 2 + 3 / n)
        if n % 100 == 0:
            yield evaluation(n, 2.5 + abs(n - 300) / 1000)


@pytest.fixture
def words(monkeypatch):
    """All words in the pictures that are drawn."""
    found, drawn = [], Figure.savefig

    def savefig(figure, *args, **kwargs):
        drawn(figure, *args, **kwargs)
        found.extend(t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text())

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def test_a_run_is_drawn_from_its_folder_as_from_its_records(tmp_path):
    with Log(tmp_path) as log:
        for record in learning(150):
            log.write(**record)
    path = tmp_path / "curve.png"
    assert draw_curve(tmp_path, path) == path
    height, width, _ = imread(path).shape
    assert height > 500 and width > 1000
    draw_curve(read_log(str(tmp_path)), str(tmp_path / "other.png"))
    assert path.read_bytes() == (tmp_path / "other.png").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["curve.png", "log.jsonl", "other.png"]


def test_the_picture_says_what_it_shows(tmp_path, words):
    draw_curve(learning(2000), tmp_path / "a.png", title=r"GPT on a$\b$_{c}.txt")
    assert r"GPT on a$\b$_{c}.txt" in words
    assert "2,000 steps   ·   best validation loss 2.500, at step 300" in words
    assert {"best 2.500", "training 2.002", "validation 4.200", "0.001"} <= set(words)
    assert {"loss", "learning\nrate", "training step", "1,500"} <= set(words)


def test_names_at_the_ends_do_not_cover_each_other(tmp_path, monkeypatch):
    boxes, drawn = [], Figure.savefig

    def savefig(figure, *args, **kwargs):
        drawn(figure, *args, **kwargs)
        texts = figure.findobj(matplotlib.text.Annotation)
        names = [text for text in texts if text.get_text().startswith(("training", "validation"))]
        boxes.append([name.get_window_extent() for name in names])

    monkeypatch.setattr(Figure, "savefig", savefig)
    run = [step(n, 5 - n) for n in range(4)] + [evaluation(n, 5 - n) for n in range(4)]
    for ends in ((2, 2), (2, 2.01), (2.01, 2), (1, 5), (5, 4.99), (9e9, 8e9), (0, 0)):
        draw_curve([*run, step(4, ends[0]), evaluation(4, ends[1])], tmp_path / "a.png")
        first, second = boxes.pop()
        assert not first.overlaps(second), ends


def test_a_picture_is_the_same_whatever_style_the_user_has_set(tmp_path):
    draw_curve(learning(30), tmp_path / "a.png")
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.grid": True}):
        draw_curve(learning(30), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert dict(matplotlib.rcParams) == before


HUGE = [step(n, 5 - n / 200 if n < 400 else 1e300) for n in range(500)]
UNUSUAL = {
    "one step": ([step(1, 4.5)], {"1 step", "training 4.500"}),
    "one of each": ([step(1, 4.5), evaluation(1, 4.6)], {"training 4.500", "validation 4.600"}),
    "step 0": ([evaluation(0, 4.6)], {"0 steps   ·   best validation loss 4.600, at step 0"}),
    "only evaluations": ([evaluation(5, 4), evaluation(9, 3)], {"validation 3.000"}),
    "zero": ([step(7, 0.0, rate=0), step(8, 0.0, rate=0)], {"training 0.000", "0"}),
    "lost": ([step(1, 3.0), step(2, math.nan), step(3, math.inf)], {"not finite from step 2"}),
    "a gap": ([step(1, 3.0), step(2, -math.inf), step(3, 2.0)], {"not finite at step 2"}),
    "gaps": ([step(n, [2.0, math.nan][n % 2]) for n in range(5)], {"not finite at 2 steps"}),
    "never": ([step(n, math.nan) for n in range(200)], {"not finite from step 0"}),
    "no validation": ([step(1, 3.0), evaluation(1, math.nan)], {"1 step", "training 3.000"}),
    "huge": (HUGE, {"training 1.000e+300 ↑"}),
    "no rate": ([{"kind": "step", "step": 3, "loss": 4.0}], {"3 steps", "training 4.000"}),
}


@pytest.mark.parametrize("lines, said", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_runs_are_drawn(tmp_path, words, lines, said):
    assert draw_curve(lines, tmp_path / "a.png") == tmp_path / "a.png"
    assert said <= set(words)
    assert "nan" not in " ".join(words)


def test_nothing_to_draw_is_no_picture(tmp_path):
    path = tmp_path / "a.png"
    assert draw_curve(tmp_path, path) is None
    Log(tmp_path).close()
    assert draw_curve(tmp_path, path) is None
    assert draw_curve([{"kind": "checkpoint", "step": 3}, step(1, None)], path) is None
    assert not path.exists()


def test_a_damaged_log_is_refused_and_the_old_picture_stays(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    (tmp_path / "log.jsonl").write_bytes(b"damaged\n")
    with pytest.raises(InputError, match="log.jsonl, line 1: "):
        draw_curve(tmp_path, path)
    assert path.read_bytes() == b"old"


def test_a_full_disk_is_named_and_the_old_picture_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device: '.*a.png"):
        draw_curve([step(1, 4.5)], path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]


@given(values=CURVES, ceiling=st.sampled_from([math.inf, 0.0, 50.0]))
def test_a_smoothed_value_is_the_mean_around_it(values, ceiling):
    """Turns red if a window is one too short, or what is not finite is counted."""
    n, out = len(values), smoothed(values, ceiling=ceiling)
    for i, value in enumerate(values):
        reach = min(i, max(n // 50, 1))
        around = values[i - reach : i + reach + 1]
        counted = around[np.isfinite(around) & (around <= ceiling)]
        near = values[max(i - 2 * reach, 0) : i + 2 * reach + 1]
        if value in counted and not np.any(np.isfinite(near) & (near > ceiling)):
            np.testing.assert_allclose(out[i], counted.mean(), atol=1e-9)
        else:
            np.testing.assert_equal(out[i], value)


@given(falling=arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 10)))
def test_all_of_a_run_that_learns_can_be_seen(falling):
    """Turns red if the axis ends at the median, or begins above the lowest loss."""
    falling = np.sort(falling)[::-1]
    low, high = limits(falling, falling[-1:])
    assert low < falling.min() and falling.max() < high


def test_of_a_run_that_diverges_the_part_that_learns_can_be_seen():
    learns = np.linspace(5, 2, 600)
    assert limits(np.r_[learns, 10.0 ** np.arange(200)])[1] < 12
    assert limits(np.r_[learns, np.full(200, np.nan)])[1] < 6
    assert limits(learns, np.array([2.5, 2.4, 30]))[1] < 12
    assert limits(np.array([np.nan]), np.array([])) is None
    assert limits(np.array([3.0]))[0] < 3 < limits(np.array([3.0]))[1]


def test_a_loss_does_not_seem_to_rise_before_it_does():
    flat = np.r_[np.full(700, 2.0), 2 * np.exp(np.arange(60) / 5)]
    assert np.all(smoothed(flat, ceiling=10)[:700] <= 2 + 1e-9)
