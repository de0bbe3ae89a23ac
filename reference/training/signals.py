"""Ctrl-C, and what the system sends to end a program, as a wish that training asks for."""

import os
import signal
import threading
from contextlib import contextmanager, suppress


@contextmanager
def stop_on_signal(quiet):
    """Give a function that tells whether Ctrl-C was pressed: a step is finished, then saved.

    A second Ctrl-C ends the program at once.  Outside of the main thread signals are not ours.
    """
    pressed, ours = [], (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(number, frame):
        pressed.append(number)
        for each in ours:
            signal.signal(each, signal.default_int_handler)
        if not quiet:
            with suppress(OSError):  # print could be interrupted in the middle of another print
                os.write(2, b"\nthe step is finished first; Ctrl-C again ends it at once\n")

    before = {number: signal.signal(number, handle) for number in ours}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None is one that is not Python's
