"""The commands `train` and `generate`, the same for both engines."""

import argparse
import hashlib
import shlex
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from reference.data.text import python_documentation, read_text
from reference.errors import InputError
from reference.memory import keep_freed_memory
from reference.models.gpt import PRESETS, parameter_count
from reference.tokenizers import BPE
from reference.training import checkpoint
from reference.training.checkpoint import Checkpoint
from reference.training.loop import State, TrainingConfig, check_data, initial_state, keys_of


@dataclass(frozen=True)
class Engine:
    """What one of the two packages has to offer to the commands."""

    name: str
    train: Any  # as reference.training.loop.train
    generate: Any  # as reference.inference.decoding.generate
    prepare: Any = lambda dtype: None  # called before any work in a dtype
    compilation: Any = None  # a dataclass of settings that `train` takes beside those of all
    add_options: Any = lambda add: None  # the options of `train` that give these
    portable: Any = lambda state, config: state  # of a state that `train` yielded, the reference's


def main(engine, arguments=None):
    """Run a command line.  -> the exit status: 0, 1 for bad input, 130 where Ctrl-C ended it."""
    options = parser(engine).parse_args(arguments)
    keep_freed_memory()
    try:
        return {"train": train, "generate": generate}[options.name](engine, options)
    except (InputError, OSError) as error:
        print(f"{engine.name} {options.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{engine.name} {options.name}: stopped at once", file=sys.stderr)
        return 130


def parser(engine):
    """The command line: `train` and `generate`."""
    program = f"python -m {engine.name}"
    top = argparse.ArgumentParser(prog=program, description="Train and use a GPT.")
    commands = top.add_subparsers(dest="name", required=True, metavar="train | generate")
    wide = {"formatter_class": lambda prog: argparse.HelpFormatter(prog, 2, 32, 88)}

    trainer = commands.add_parser("train", help="train a GPT on a text", **wide)
    train_options(trainer.add_argument)
    engine.add_options(trainer.add_argument_group("how the step is compiled").add_argument)
    writer = commands.add_parser("generate", help="write text with a trained GPT", **wide)
    generate_options(writer.add_argument)
    return top


def train_options(add):
    """What describes a run has no default here, so that one that is resumed keeps its own."""
    add("--out", metavar="FOLDER", default="runs/gpt", help="the run's folder (runs/gpt)")
    add("--resume", action="store_true", help="go on from the folder's latest checkpoint")
    add("--data", metavar="FILE", help="UTF-8 text (the documentation that Python carries)")
    sizes = ", ".join(PRESETS)
    add("--size", choices=PRESETS, metavar="SIZE", help=f"one of {sizes} (nano)")
    add(
        "--vocabulary",
        type=int,
        metavar="N",
        help="tokens of a tokenizer made for it (at most 1024)",
    )
    add("--tokenizer", metavar="FOLDER", help="a saved tokenizer, for one made for the text")
    add("--dropout", type=float, metavar="RATE", help="share of activations dropped (the size's)")
    add("--steps", type=int, metavar="N", help="length of the run (300)")
    add("--batch", type=int, metavar="N", help="sequences in a step (12)")
    add("--length", type=int, metavar="N", help="tokens in a sequence (the model's context)")
    add("--accumulation", type=int, metavar="N", help="parts that a batch is computed in (1)")
    add("--learning-rate", type=float, metavar="RATE", help="at its peak (1e-3)")
    add("--warmup", type=int, metavar="N", help="steps up to the peak (a tenth, at most 100)")
    add("--weight-decay", type=float, metavar="RATE", help="of kernels and embeddings (0.1)")
    add("--dtype", choices=["float32", "float64"], help="precision (float32)")
    add("--seed", type=int, metavar="N", help="decides all that is random (0)")
    add("--checkpoint-interval", type=int, default=100, metavar="N", help="in steps (100)")


def generate_options(add):
    """What there is to choose in writing."""
    add("--checkpoint", metavar="FOLDER", default="runs/gpt", help="a run's folder (runs/gpt)")
    add("--prompt", default="The", help='how the text begins ("The")')
    add("--tokens", type=int, default=40, metavar="N", help="how many to write (40)")
    add(
        "--temperature",
        type=float,
        default=1.0,
        help="below 1 safer, above 1 bolder; 0: the likeliest (1)",
    )
    add("--top-k", type=int, metavar="K", help="choose among the K likeliest only (all)")
    add("--seed", type=int, default=0, metavar="N", help="another one, another text (0)")


def generate(engine, options):
    """Write a text with a run's latest checkpoint."""
    run = checkpoint.load(options.checkpoint)
    engine.prepare(run.params["token"]["embedding"].dtype)
    prompt = encode(run.tokenizer, options.prompt)
    written = engine.generate(
        run.params,
        tokens=prompt,
        steps=options.tokens,
        config=run.config,
        key=keys_of(options.seed).sample,
        temperature=options.temperature,
        top_k=options.top_k,
    )
    print(run.tokenizer.decode([*prompt.tolist(), *written.tolist()]))
    return 0


def train(engine, options):
    """Train, or go on; checkpoints on the way, at the end, and where Ctrl-C ends it."""
    if options.checkpoint_interval < 1:
        raise InputError(f"--checkpoint-interval is {options.checkpoint_interval}; give 1 or more")
    if engine.compilation is not None:
        engine.compilation(**compilation_of(engine, {}, options))  # raises before any work
    run, text = resumed(options) if options.resume else begun(options)
    compilation = compilation_of(engine, run.training, options)
    run.training.update(compilation)
    training = training_of(run.training)
    engine.prepare(np.dtype(training.dtype))
    tokens = encode(run.tokenizer, text)
    check_data(tokens, run.config, training)
    print(
        f"{parameter_count(run.config):,} parameters; {len(tokens):,} tokens of text, "
        f"{run.config.vocabulary:,} different ones; {training.steps - run.step} steps to do"
    )
    state, folder = State(run.step, run.params, **run.optimizer), None
    if compilation:
        compilation = {"compilation": engine.compilation(**compilation)}
    steps = engine.train(run.config, training, tokens, state=state, **compilation)
    with stop_on_signal() as stopped, progress(training, run.step) as show:
        done = run.step
        for state, loss in steps:
            show(state.step, loss)
            last = state.step == training.steps or stopped()
            if last or passed(options.checkpoint_interval, done, state.step):
                check_finite(loss, state.step)
                state = engine.portable(state, run.config)
                folder = checkpoint.save(options.out, saved(state, run))
            if last:
                break
            done = state.step
    if folder is not None:
        print(f"saved {folder}")
    if state.step < training.steps:
        print(f"stopped after step {state.step} of {training.steps}; to go on:")
        print(f"    python -m {engine.name} train --out {shlex.quote(options.out)} --resume")
        return 130
    print("all steps are done; to see what the model writes:")
    print(f"    python -m {engine.name} generate --checkpoint {shlex.quote(options.out)}")
    return 0


def begun(options):
    """The checkpoint before the first step of a new run, from the options, and its text."""
    checkpoint.new_run(options.out)
    size = options.size or "nano"
    text = text_of(options, {})
    if options.tokenizer and options.vocabulary:
        raise InputError("--tokenizer has its own vocabulary; leave out --vocabulary")
    if options.tokenizer:
        tokenizer = BPE.load(options.tokenizer)
    else:
        tokenizer = BPE.train(text, options.vocabulary)
    config = replace(PRESETS[size], vocabulary=tokenizer.vocabulary_size)
    if options.dropout is not None:
        config = replace(config, dropout=options.dropout)
    given = {name: value for name, value in vars(options).items() if value is not None}
    chosen = {f.name: given[f.name] for f in fields(TrainingConfig) if f.name in given}
    steps = {"steps": 300} | chosen
    training = TrainingConfig(
        **{"length": config.context, "warmup": min(steps["steps"] // 10, 100)} | steps
    )
    settings = asdict(training) | {
        "size": size,
        "vocabulary": config.vocabulary,
        "tokenizer": options.tokenizer,
        "dropout": config.dropout,
        "data": options.data and str(Path(options.data).resolve()),
        "text_sha256": fingerprint(text),
    }
    state = initial_state(config, training)
    return Checkpoint(0, state.params, moments(state), config, settings, tokenizer), text


def resumed(options):
    """The latest checkpoint of a run, and its text.  Raises InputError where options differ."""
    run = checkpoint.load(options.out)
    for name in sorted(set(run.training) - {"data", "text_sha256"}):
        value, begun_with = getattr(options, name, None), run.training[name]
        if value is not None and value != begun_with:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{flag} is {value}, but the run in {options.out} was begun with {begun_with}; "
                "leave it out, or begin a new run in another --out"
            )
    text = text_of(options, run.training)
    if fingerprint(text) != run.training["text_sha256"]:
        raise InputError(
            f"the run in {options.out} was begun on another text; give by --data the one it was"
        )
    return run, text


def text_of(options, settings):
    """The text of --data, else the one that a run was begun on, else Python's documentation."""
    path = options.data or settings.get("data")
    return python_documentation() if path is None else read_text(path)


def fingerprint(text):
    """What tells two texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()


def encode(tokenizer, text):
    """A text as an array of tokens."""
    return np.array(tokenizer.encode(text), np.int32)


def training_of(settings):
    """The TrainingConfig among a checkpoint's settings."""
    return TrainingConfig(**{f.name: settings[f.name] for f in fields(TrainingConfig)})


def compilation_of(engine, settings, options):
    """An engine's own settings: those that a run was begun with, else the options."""
    names = [] if engine.compilation is None else [f.name for f in fields(engine.compilation)]
    chosen = {name: settings.get(name, getattr(options, name)) for name in names}
    return {name: value for name, value in chosen.items() if value is not None}


def passed(interval, before, after):
    """Whether a multiple of the interval was reached on the way from one step to another."""
    return before // interval < after // interval


def saved(state, run):
    """The checkpoint of a state of a run."""
    return replace(run, step=state.step, params=state.params, optimizer=moments(state))


def moments(state):
    """The optimizer's part of a state."""
    return {"mean": state.mean, "square": state.square}


def check_finite(losses, step):
    """Raise InputError rather than keep a model that has diverged."""
    if not np.isfinite(losses).all():
        raise InputError(
            f"the loss is {float(np.ravel(losses)[-1])} at step {step}: training has diverged, and "
            "this step is not saved; begin anew with a lower --learning-rate or a longer --warmup"
        )


@contextmanager
def stop_on_signal():
    """Give a function that tells whether Ctrl-C was pressed: a step is finished, then saved.

    A second Ctrl-C ends the program at once.
    """
    pressed = []

    def handle(number, frame):
        pressed.append(number)
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress(training, start):
    """Give a function of (step, loss) that shows them: a bar in a terminal, else a few lines.

    The loss is looked at where it is shown, and nowhere else: to look is to wait for the device.
    """
    console = Console()
    columns = ("loss {task.fields[loss]}", BarColumn(), MofNCompleteColumn(), "steps")
    columns += (TextColumn("{task.fields[speed]} tokens/s"), TimeRemainingColumn())
    interval = 10 if console.is_terminal else max(training.steps // 10, 1)
    begin, shown = time.perf_counter(), start

    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=training.steps, loss="-", speed="-")

        def show(step, loss):
            nonlocal shown
            if not passed(interval, shown, step) and step < training.steps:
                return
            shown, last = step, float(np.ravel(loss)[-1])
            speed = (
                (step - start) * training.batch * training.length / (time.perf_counter() - begin)
            )
            if console.is_terminal:
                bar.update(task, completed=step, loss=f"{last:.4f}", speed=f"{speed:,.0f}")
            else:
                print(f"step {step}: loss {last:.4f}, {speed:,.0f} tokens/s", flush=True)

        yield show
