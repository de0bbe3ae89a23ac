import io
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from reference.training.progress import Progress, Speed

CURSOR_SHOWN = "\x1b[?25h"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Loss:
    """A loss on a device: who looks at it waits."""

    looks = 0

    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        Loss.looks += 1
        return np.array(self.value)


@pytest.fixture(autouse=True)
def unseen():
    Loss.looks = 0


def shown(terminal=False, width=80, clock=None, tokens_per_step=100, **options):
    """A Progress, and the file it writes to."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None)
    options |= {"console": console, "clock": clock or Clock()}
    return Progress(tokens_per_step=tokens_per_step, **options), file


def screen(file):
    """What stands on a terminal at the end, line by line."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[a-zA-Z]|[\r\n])", file.getvalue()):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and part[0] not in "\x1b\r":
            lines[row] += part
    return [line.rstrip() for line in lines if line.strip()]


def test_without_a_terminal_ten_lines_tell_of_a_run():
    clock = Clock()
    progress, file = shown(steps=300, clock=clock, tokens_per_step=3500)
    with progress as show:
        for step in range(1, 301):
            clock.now += 0.1 if step > 1 else 20  # the first is compiled
            show.step(step, Loss(4.5278 if step < 300 else 1.25))
    lines = file.getvalue().splitlines()
    assert lines[:3] == [
        "step 1: loss 4.5278",
        "step 30: loss 4.5278, 35,000 tokens/s, 0:27 left",
        "step 60: loss 4.5278, 35,000 tokens/s, 0:24 left",
    ]
    assert lines[-1] == "step 300: loss 1.2500, 35,000 tokens/s"
    assert len(lines) == Loss.looks == 11


def test_a_terminal_shows_all_in_two_lines():
    clock = Clock()
    progress, file = shown(terminal=True, steps=2000, clock=clock, tokens_per_step=3500)
    with progress as show:
        assert screen(file)[1] == "waiting for the first step"
        for step in range(1, 101):
            clock.now += 0.1
            show.step(step, Loss(4 - step / 100), rate=jnp.float32(0.001))
            if step % 40 == 0:
                show.evaluation(step, jnp.float32(5 + step / 100), best=step == 40)
    top, below = screen(file)
    assert re.fullmatch(r"step 100 of 2,000 ━╸ +35,000 tokens/s   3:10 left", top)
    assert below == "loss 3.0000   learning rate 0.001   validation 5.8000, best 5.4000"
    assert len(top) == 80


def test_a_terminal_looks_at_the_loss_ten_times_a_second():
    clock = Clock()
    progress, file = shown(terminal=True, steps=10_000, clock=clock)
    with progress as show:
        for step in range(1, 5001):
            clock.now += 0.001
            show.step(step, Loss(1.0), rate=Loss(0.1))
        assert 2 * 45 <= Loss.looks <= 2 * 51
    assert "step 5,000 of" in screen(file)[0]  # the last is shown at the end
    assert Loss.looks <= 2 * 52


def test_the_last_step_of_a_run_is_always_shown():
    for terminal in (True, False):
        progress, file = shown(terminal=terminal, steps=37)
        with progress as show:
            for step in range(1, 38):
                show.step(step, float(step))
        assert "loss 37.0000" in "".join(screen(file)[-2:])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_that_ends_early_shows_its_last_step(terminal):
    progress, file = shown(terminal=terminal, steps=100)
    with progress as show:
        for step in range(1, 18):
            show.step(step, Loss(step))
        show.note("early stop")
    assert "step 17" in "".join(screen(file)) and "loss 17.0000" in "".join(screen(file))
    assert "early stop" in screen(file)


@pytest.mark.parametrize("terminal", [True, False])
def test_who_stops_it_need_not_wait_and_finds_the_terminal_in_order(terminal):
    progress, file = shown(terminal=terminal, steps=100)
    with pytest.raises(KeyboardInterrupt), progress as show:
        for step in range(1, 18):
            show.step(step, Loss(step))
        looks = Loss.looks
        raise KeyboardInterrupt
    assert Loss.looks == looks
    assert "\x1b[?25l" not in file.getvalue().rpartition(CURSOR_SHOWN)[2]
    assert (CURSOR_SHOWN in file.getvalue()) == terminal


def test_evaluations_have_a_line_each():
    progress, file = shown(steps=300, best=4.25)
    with progress as show:
        show.evaluation(10, 4.3, best=False)
        show.evaluation(20, np.float32(3.5), best=True)
        show.evaluation(30, math.nan, best=False)
    assert file.getvalue().splitlines() == [
        "step 10: validation loss 4.3000, best 4.2500",
        "step 20: validation loss 3.5000, the best so far",
        "step 30: validation loss nan, best 3.5000",
    ]


def test_a_best_that_is_not_known_is_not_made_up():
    progress, file = shown(steps=300)
    progress.evaluation(10, 4.3, best=False)
    assert file.getvalue() == "step 10: validation loss 4.3000\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_is_without_a_word_and_without_a_look(terminal):
    progress, file = shown(terminal=terminal, steps=5, quiet=True)
    with progress as show:
        for step in range(1, 6):
            show.step(step, Loss(1.0))
            show.evaluation(step, Loss(1.0), best=True)
            show.note("saved")
    assert file.getvalue() == "" and Loss.looks == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_a_note_stands_above_as_it_is(terminal):
    text = f"saved [red]gpt[/red]/:smile:/{'long ' * 30}/step-100"
    progress, file = shown(terminal=terminal, steps=9)
    with progress as show:
        show.step(1, 2.0)
        show.note(text)
        show.step(9, 1.0)
    assert text in screen(file)
    assert "loss 1.0000" in screen(file)[-1]


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_of_several_steps_at_once_the_last_is_shown(array):
    progress, file = shown(steps=96)
    with progress as show:
        for step in (32, 64, 96):
            show.step(step, array(np.arange(32) + step, np.float32))
    assert re.findall(r"step (\d+): loss ([\d.]+)", file.getvalue()) == [
        ("32", "63.0000"),
        ("64", "95.0000"),
        ("96", "127.0000"),
    ]


def test_lines_are_there_at_once():
    """A run in a pipe is followed while it goes on."""

    class Pipe(io.StringIO):
        seen = ""

        def flush(self):
            self.seen = self.getvalue()

    pipe = Pipe()
    progress = Progress(steps=3, tokens_per_step=1, console=Console(file=pipe))
    progress.step(1, 2.0)
    assert pipe.seen == "step 1: loss 2.0000\n"


def test_the_time_left_of_a_run_that_goes_on_is_that_of_its_last_steps():
    """Turns red if the steps before count as done in no time."""
    clock = Clock()
    progress, file = shown(steps=1000, start=900, clock=clock)
    with progress as show:
        for step in range(901, 951):
            clock.now += 2
            show.step(step, 1.0)
            if step == 950:
                show.note("here")
    assert file.getvalue().splitlines() == ["step 901: loss 1.0000", "here"] + [
        "step 950: loss 1.0000, 50 tokens/s, 1:40 left"
    ]


def test_a_terminal_that_is_narrow_gets_no_more_than_two_lines():
    progress, file = shown(terminal=True, width=30, steps=10**6)
    with progress as show:
        for step in range(1, 10):
            show.step(step, 1.0, rate=1e-3)
            show.evaluation(step, 2.0, best=True)
    assert len(screen(file)) == 2 and all(len(line) <= 30 for line in screen(file))


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    progress, file = shown(terminal=True, steps=1)
    with progress as show:
        show.step(1, 2.0)
    assert file.getvalue() == "step 1: loss 2.0000\n"


SIZES = {math.nan: "nan", math.inf: "inf", 1e9: "1e+09", 2e-5: "2e-05", 0: "0.0000"}


@pytest.mark.parametrize("loss, words", SIZES.items())
def test_losses_of_any_size(loss, words):
    progress, file = shown(steps=1)
    progress.step(1, loss)
    assert file.getvalue() == f"step 1: loss {words}\n"


@pytest.mark.parametrize(
    "seconds, words", [(0.2, "0:01"), (61, "1:01"), (3 * 3600 + 245, "3:04:05"), (5e5, "6 days")]
)
def test_the_time_left_in_words(seconds, words):
    clock = Clock()
    progress, file = shown(steps=3, clock=clock)
    for step in (1, 2):
        progress.step(step, 1.0)
        clock.now += seconds
    assert file.getvalue().endswith(f"tokens/s, {words} left\n")


@given(
    seconds=st.floats(1e-4, 100),
    runs=st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1e4)), min_size=1),
)
def test_the_speed_is_that_of_training_alone(seconds, runs):
    """Turns red if an evaluation counts as training, or the first step does.

    The time left has pauses as frequent as they were: for as many steps again, as long again.
    """
    speed, now, step, start = Speed(7), 1e5, 1, 1
    speed.trained(1, now)
    for steps, pause in runs:
        for _ in range(steps):
            now, step = now + seconds, step + 1
            speed.trained(step, now)
        now += pause
        speed.paused(step, now)
    assert math.isclose(speed.tokens_per_second, 7 / seconds, rel_tol=1e-5)
    assert math.isclose(speed.seconds_left(step - start), now - 1e5, rel_tol=1e-5)


def test_training_within_the_time_of_a_pause_is_no_pause():
    """Where losses are looked at rarely, steps pass between the last look and an evaluation."""
    speed, now = Speed(7), 0
    speed.trained(1, now)
    for step in range(10, 100, 10):
        now += 10 if step > 10 else 9
        speed.paused(step, now + 5) if step % 20 else speed.trained(step, now)
        now += 5 * (step % 20 > 0)
    assert speed.tokens_per_second == 7
    assert math.isclose(speed.seconds_left(89), 89 + 5 * 5)


def test_a_speed_forgets():
    """A minute in which the machine slept is not remembered for ever."""
    speed, now = Speed(1), 0
    for step in range(1, 200):
        now += 0.1 if step != 100 else 60
        speed.trained(step, now)
    assert math.isclose(speed.tokens_per_second, 10)
