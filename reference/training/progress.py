"""How far a run is, while it runs.

In a terminal, two lines that change:

    step 1,240 of 2,000 ━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━ 35,000 tokens/s   0:12 left
    loss 1.8342   validation 1.9012, best 1.8834

Elsewhere, a few that stay:

    step 1200: loss 1.8419, 35,000 tokens/s, 0:13 left
    step 1250: validation loss 1.9012, best 1.8834
"""

import math
import time
from collections import deque

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PAUSE = 0.1  # seconds between two looks at the loss, at least, in a terminal
LINES = 10  # of a whole run, elsewhere
WINDOW = 5  # seconds of training that a speed is measured over, at least


class Progress:
    """Shows a run: `with Progress(…) as show`, then show.step(…) after each step.

    steps: of the whole run;  start: steps done before;  tokens_per_step: of all sequences of a
    batch;  best: the best validation loss before, if any.
    console: of rich; standard output where it is left out.  quiet: show nothing.
    clock: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        *,
        steps,
        start=0,
        tokens_per_step,
        best=None,
        console=None,
        quiet=False,
        clock=time.perf_counter,
    ):
        self.steps, self.done, self.best = steps, start, best
        self.quiet, self.clock = quiet, clock
        self.console = console or Console()
        self.speed = Speed(tokens_per_step)
        self.loss = self.rate = self.validation = None
        self.live = None
        if self.console.is_terminal and not self.console.is_dumb_terminal and not quiet:
            options = {"auto_refresh": False, "console": self.console}
            self.live = Live(get_renderable=self._picture, **options)
        self._given = start, None, None
        self._every, self._next_time = math.ceil(steps / LINES), 0
        self._next_step = math.inf if quiet else steps if self.live is not None else start + 1

    def __enter__(self):
        if self.live is not None:
            self.live.start(refresh=True)
        return self

    def __exit__(self, kind, *exception):
        try:
            if kind is None and not self.quiet and self._given[0] > self.done:
                self._show(*self._given)  # of a run that ends early
        finally:
            if self.live is not None:
                self.live.stop()

    def step(self, step, loss, rate=None):
        """After a training step; `step` are done then.

        loss: of the step, or an array of those since the last call, of which the last counts;
        rate: the learning rate, likewise.  They are looked at only when they are shown, for to look
        is to wait for the device: 10 times a second in a terminal, elsewhere 10 times in a run.
        """
        self._given = step, loss, rate
        if step >= self._next_step or (self.live is not None and self.clock() >= self._next_time):
            self._show(step, loss, rate)

    def _show(self, step, loss, rate):
        self.done, self.loss = step, _last(loss)
        self.rate = None if rate is None else _last(rate)
        self.speed.trained(step, self.clock())
        if self.live is not None:
            self.live.refresh()
            self._next_time = self.clock() + PAUSE
        else:
            self._say(f"step {step}: " + ", ".join((*self._training(), *self._pace())))
            following = (step // self._every + 1) * self._every
            self._next_step = min(following, self.steps) if step < self.steps else math.inf

    def evaluation(self, step, loss, best):
        """After an evaluation; best: whether this validation loss is the best so far."""
        if self.quiet:
            return
        self.validation = float(loss)
        self.best = self.validation if best else self.best
        self.speed.paused(step, self.clock())
        if self.live is not None:
            self.live.refresh()
        else:
            self._say(f"step {step}: validation loss {self._validated()}")

    def note(self, text):
        """A line that stays, such as "saved step-100"; nothing in it is taken for markup."""
        if not self.quiet:
            self._say(text)

    def _say(self, text):
        self.console.print(Text(text), soft_wrap=True)

    def _picture(self):
        """The two lines of a terminal."""
        top = Table.grid(expand=True, padding=(0, 1))
        for ratio in (None, 1, None):
            top.add_column(no_wrap=True, ratio=ratio)
        bar = ProgressBar(total=max(self.steps, 1), completed=self.done)
        top.add_row(f"step {self.done:,} of {self.steps:,}", bar, "   ".join(self._pace()))
        below = self._training() if self.loss is not None else ["waiting for the first step"]
        if self.validation is not None:
            below.append(f"validation {self._validated()}")
        return Group(top, Text("   ".join(below), no_wrap=True, overflow="ellipsis"))

    def _training(self):
        rate = [] if self.rate is None else [f"learning rate {self.rate:.3g}"]
        return [f"loss {_number(self.loss)}", *rate]

    def _validated(self):
        if self.best is None:
            return _number(self.validation)
        if self.best == self.validation:
            return f"{_number(self.validation)}, the best so far"
        return f"{_number(self.validation)}, best {_number(self.best)}"

    def _pace(self):
        """Tokens per second and the time left, once they are known."""
        if self.speed.seconds_per_step is None:
            return []
        left = self.speed.seconds_left(self.steps - self.done)
        pace = [f"{self.speed.tokens_per_second:,.0f} tokens/s"]
        return [*pace, f"{_duration(left)} left"] if self.done < self.steps else pace


class Speed:
    """How fast training is now: the last seconds count, the first step and evaluations do not.

    Only moments are known at which the device had done all that it was given.  Between two, it has
    trained; unless an evaluation lies between, whose end is such a moment, too.
    """

    def __init__(self, tokens_per_step):
        self.tokens_per_step = tokens_per_step
        self.seconds_per_step = None
        self._first = self._last = None  # a step; a step and its time
        self._spans, self._pauses = deque(), (0, 0.0)

    def trained(self, step, now):
        """A step is done.  The first may have been compiled, and only starts the clock."""
        if self._last is None:
            self._first, self._last = step, (step, now)
        if step > self._last[0]:
            self._spans.append((step - self._last[0], now - self._last[1]))
            self._last = step, now
            while sum(seconds for _, seconds in self._spans) - self._spans[0][1] >= WINDOW:
                self._spans.popleft()
            steps, seconds = map(sum, zip(*self._spans, strict=True))
            self.seconds_per_step = max(seconds, 1e-9) / steps  # a clock may stand still

    def paused(self, step, now):
        """An evaluation after a step is done."""
        if self._last is not None:
            steps, seconds = self._pauses
            self._pauses = steps + step - self._last[0], seconds + now - self._last[1]
            self._last = step, now

    @property
    def tokens_per_second(self):
        """Of training alone."""
        return self.tokens_per_step / self.seconds_per_step

    def seconds_left(self, steps):
        """For some more steps, with pauses as frequent as so far."""
        steps_within, seconds = self._pauses
        paused = max(seconds - steps_within * self.seconds_per_step, 0)
        return steps * (self.seconds_per_step + paused / (self._last[0] - self._first))


def _last(values):
    """A number, or the last of an array."""
    return float(np.ravel(values)[-1])


def _number(loss):
    """A loss in figures that do not jump."""
    return f"{loss:.4f}" if loss == 0 or 0.01 <= abs(loss) < 1e5 else f"{loss:.3g}"


def _duration(seconds):
    """Seconds as 0:12, 3:04:05 or, beyond two days, "3 days"."""
    seconds = max(round(seconds), 1)
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.0f} days"
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds % 60:02}"
    return f"{minutes}:{seconds % 60:02}"
