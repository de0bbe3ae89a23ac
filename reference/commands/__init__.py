"""The commands `train`, `evaluate` and `generate`, the same for both engines.

Each says at its end what to run next.  What it was asked for goes to the output, errors and hints
go to the error output, and the exit status is 0, 1 for bad input, or 130 where Ctrl-C ended it.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reference.commands import evaluate, generate, train
from reference.errors import InputError
from reference.memory import keep_freed_memory

COMMANDS = {"train": train, "evaluate": evaluate, "generate": generate}


@dataclass(frozen=True)
class Engine:
    """What one of the two packages has to offer to the commands."""

    name: str
    fit: Callable  # as reference.training.fit
    evaluate: Callable  # as reference.training.evaluate
    generate: Callable  # as reference.inference.decoding.generate
    prepare: Callable = lambda dtype: None  # called before any work in a dtype
    encoder: Callable = lambda tokenizer: tokenizer.encode  # makes of a tokenizer what encodes
    compilation: Any = None  # a dataclass of settings that `fit` takes beside those of all
    add_options: Callable = lambda add: None  # the options of `train` that give these


def main(engine, arguments=None):
    """Run a command line -> the exit status."""
    options = parser(engine).parse_args(arguments)
    keep_freed_memory()
    try:
        return COMMANDS[options.name].run(engine, options)
    except (InputError, OSError) as error:
        print(f"{engine.name} {options.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{engine.name} {options.name}: stopped at once", file=sys.stderr)
        return 130


def parser(engine):
    """The command line of an engine."""
    top = argparse.ArgumentParser(
        prog=f"python -m {engine.name}", description="Train, measure and use a GPT."
    )
    commands = top.add_subparsers(dest="name", required=True, metavar=" | ".join(COMMANDS))
    for name, command in COMMANDS.items():
        described = command.__doc__.splitlines()[0]
        one = commands.add_parser(
            name,
            help=described,
            description=described,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 32, 88),
        )
        command.add_options(one)
        if command is train:
            engine.add_options(one.add_argument_group("how the step is compiled").add_argument)
    return top
