"""The commands `train`, `evaluate`, `generate` and `export`, the same for both engines.

What was asked for goes to the output; errors, and at the end the line that says what to run next,
go to the error output.  The exit status is 0, 1 for bad input or a failing disk, 2 for a command
line that is none, or 130 where Ctrl-C ended it.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from reference.commands import evaluate, export, generate, train
from reference.errors import InputError
from reference.memory import keep_freed_memory

COMMANDS = {"train": train, "evaluate": evaluate, "generate": generate, "export": export}
EXAMPLES = """\
first steps:
  python -m {0} train --data your.txt --out runs/mine
  python -m {0} evaluate --checkpoint runs/mine
  python -m {0} generate --checkpoint runs/mine --prompt "Once"
  python -m {0} generate --weights a/directory/of/gpt2 --prompt "Once"
"""
DEFAULTS = "In brackets: what is taken where an option is left out."
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Engine:
    """What one of the two packages has to offer to the commands."""

    name: str
    fit: Callable  # as reference.training.fit
    evaluate: Callable  # as reference.training.evaluate
    generate: Callable  # as reference.inference.generate
    beam_generate: Callable  # as reference.inference.beam_generate
    speculate: Callable  # as reference.inference.speculate
    prepare: Callable = lambda dtype: None  # called before any work in a dtype
    encoder: Callable = lambda tokenizer: tokenizer.encode  # makes of a tokenizer what encodes
    compilation: Any = None  # a dataclass of settings that `fit` takes beside those of all
    add_options: Callable = lambda add: None  # the options of `train` that give these


def main(engine, arguments=None):
    """Run a command line -> the exit status."""
    options = parser(engine).parse_args(arguments)
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal may lack a letter that a text has
            stream.reconfigure(errors="backslashreplace")
    try:
        status, following = COMMANDS[options.name].run(engine, options)
        flush()
    except (InputError, OSError, MemoryError, KeyboardInterrupt) as error:
        with suppress(OSError):
            flush()
        status, mark = (130, "\n") if isinstance(error, KeyboardInterrupt) else (1, "")  # after ^C
        lines = [f"{mark}{engine.name} {options.name}: {said(error)}"]
        following = "\n".join(lines + getattr(error, "__notes__", []))
    print(following, file=sys.stderr)
    return status


def flush():
    """Write what was printed, lest it come after the errors where both go into one file."""
    try:
        sys.stdout.flush()
    except OSError:  # on a full disk, or where nobody reads any more: Python must not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def said(error):
    """What an error says to people."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once"
    if isinstance(error, MemoryError):
        return (
            f"the memory does not suffice ({error}); give a smaller --batch, --length or --size, a "
            "larger --accumulation, or --recompute"
        )
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        remedy = "; make room on that disk, or give a folder on another"
        return f"{where}{error.strerror}{remedy if error.errno in FULL else ''}"
    return str(error)


def parser(engine):
    """The command line of an engine."""
    wide = partial(argparse.HelpFormatter, max_help_position=32, width=88)
    top = argparse.ArgumentParser(
        prog=f"python -m {engine.name}",
        description="Train, measure and use a language model.",
        epilog=EXAMPLES.format(engine.name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="name", required=True, metavar=" | ".join(COMMANDS))
    for name, command in COMMANDS.items():
        described = command.__doc__.splitlines()[0]
        one = commands.add_parser(
            name, help=described, description=described, epilog=DEFAULTS, formatter_class=wide
        )
        command.add_options(one)
        if command is train:
            engine.add_options(one.add_argument_group("how the step is compiled").add_argument)
    return top
