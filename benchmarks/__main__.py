"""The same GPT in both engines: number for number, and how fast each is."""

import argparse
import os
import shlex
import sys
import time

LEARNING = {  # what each learns, and where from
    "digits": ("a Vision Transformer learns to read digits", "MNIST's four files"),
    "captions": ("a CLIP learns what digits are called", "MNIST's four files"),
    "translation": ("the Transformer of 2017 learns German", "Multi30k's files"),
}
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
EXAMPLES = """examples:
  python -m benchmarks                          the demo, on the documentation of Python
  python -m benchmarks --data your.txt          the demo, on a text of yours
  python -m benchmarks training                 NumPy, Flax and PyTorch, step against step
  python -m benchmarks training --sizes small --profile     and where the time goes
  python -m benchmarks components               each component beside PyTorch's
  python -m benchmarks components --only gelu transformer_block
  python -m benchmarks characters --data shakespeare.txt    two whole runs, in nanoGPT's setting
  python -m benchmarks digits --data mnist      a Vision Transformer learns to read digits
  python -m benchmarks captions --data mnist    a CLIP learns what digits are called
  python -m benchmarks translation --data multi30k  the Transformer of 2017 learns German
  python -m benchmarks demo --help              all options of one of them
"""


def main(arguments=None):
    """Run a command line.  -> the exit status: 0, 1 for bad input or a failed gate, 130."""
    begun = time.perf_counter()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments.insert(0, "demo")
    options = parser().parse_args(arguments)
    options.begun, options.command = begun, shlex.join(["python", "-m", "benchmarks", *arguments])
    pin_threads(options.threads)
    try:
        return run(options)
    except KeyboardInterrupt:
        print(f"\nbenchmarks {options.name}: stopped", file=sys.stderr)
        return 130


def run(options):
    # Only now: the libraries read the number of threads when they are imported.
    from reference.memory import keep_freed_memory

    memory_kept = keep_freed_memory()
    from benchmarks.report import Mismatch
    from reference.errors import InputError

    try:
        if options.name in LEARNING:
            learn(options)
        else:
            compare(options, memory_kept)
    except (InputError, OSError, Mismatch) as error:
        print(f"benchmarks {options.name}: {error}", file=sys.stderr)
        return 1
    return 0


def compare(options, memory_kept):
    """Run a benchmark that compares the engines."""
    from benchmarks import characters, components, demo, training

    if options.name == "demo":
        demo.run(options.data, options.out, steps=options.steps, seed=options.seed)
    elif options.name == "components":
        components.run(
            options.out, only=options.only, rounds=options.rounds, memory_kept=memory_kept
        )
    elif options.name == "characters":
        characters.run(options.data, options.out, steps=options.steps, seed=options.seed)
    else:
        training.run(
            options.out,
            sizes=options.sizes,
            rounds=options.rounds,
            alone=options.alone,
            profiled=options.profile,
            memory_kept=memory_kept,
        )


def learn(options):
    """Run a benchmark that learns from real data."""
    from benchmarks import captions, digits, translation

    names = ("engine", "steps", "seed", "command", "begun", "wiring")
    given = {name: value for name, value in vars(options).items() if name in names}
    named = {"digits": digits, "captions": captions, "translation": translation}
    named[options.name].run(options.data, options.out, **given)


def parser():
    names = " | ".join(("demo", "training", "components", "characters", *LEARNING))
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="name", required=True, metavar=names)
    cores = available_processors()
    for name, command in (comparisons(commands) | learners(commands)).items():
        folder = f"runs/benchmarks/{name}"
        command.add_argument(
            "--out", metavar="FOLDER", default=folder, help=f"for figures and picture ({folder})"
        )
        command.add_argument(
            "--threads",
            type=int,
            choices=range(1, cores + 1),
            default=cores,
            metavar="N",
            help=f"of every engine, from 1 to {cores} ({cores})",
        )
    return top


def comparisons(commands):
    """The commands that compare the engines, by their names."""
    one = commands.add_parser("demo", help="train both engines on a text, and compare (default)")
    one.add_argument("--data", metavar="FILE", help="UTF-8 text (the documentation of Python)")
    one.add_argument("--steps", type=int, default=300, metavar="N", help="of each engine (300)")
    one.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random (0)")
    two = commands.add_parser("training", help="time one training step, PyTorch's beside")
    training_options(two.add_argument)
    three = commands.add_parser("components", help="time every component, PyTorch's beside")
    three.add_argument("--only", nargs="+", metavar="NAME", help="of these components (all)")
    three.add_argument("--rounds", type=int, metavar="N", help="timings of each engine (15)")
    four = commands.add_parser("characters", help="two whole runs, in nanoGPT's setting")
    four.add_argument("--data", metavar="FILE", required=True, help="a text, such as Shakespeare's")
    four.add_argument("--steps", type=int, default=2000, metavar="N", help="of each engine (2000)")
    four.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random (0)")
    return {"demo": one, "training": two, "components": three, "characters": four}


def learners(commands):
    """The commands that learn from real data, by their names."""
    named = {}
    for name, (what, files) in LEARNING.items():
        named[name] = commands.add_parser(name, help=what)
        learning_options(named[name].add_argument, files)
    named["translation"].add_argument(
        "--wiring", choices=("pre", "post"), default="pre", help="of the blocks; the paper's: post"
    )
    return named


def training_options(add):
    """What there is to choose of the training benchmark."""
    add("--rounds", type=int, metavar="N", help="timings of each engine (15 or 21)")
    add(
        "--sizes",
        nargs="+",
        choices=("small", "medium", "large", "gpt2"),
        metavar="SIZE",
        help="of small, medium, large and gpt2 (the first three; on a GPU the last)",
    )
    add(
        "--alone",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="each engine also in a process of its own, and its memory (yes)",
    )
    add("--profile", action="store_true", help="where each engine's time goes")


def learning_options(add, files):
    """What there is to choose of a benchmark that learns."""
    add("--data", metavar="FOLDER", required=True, help=f"with {files}, packed or not")
    add("--steps", type=int, metavar="N", help="of training, in place of all, to try it")
    add("--seed", type=int, default=0, metavar="N", help="of all that is random (0)")
    add(
        "--engine",
        choices=("accelerated", "reference"),
        default="accelerated",
        help="that trains and is tested (accelerated)",
    )


def available_processors():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def pin_threads(number):
    """One policy for all engines: their BLAS by the environment, XLA by the affinity.

    OpenBLAS's idle threads are sent to sleep at once.  By default they wait at full speed for tens
    of milliseconds, on the processors that the engine whose turn is next has to share: the compiled
    step took 99 ms after NumPy's and 57 alone.
    """
    for name in THREADS:
        os.environ[name] = str(number)
    os.environ["OPENBLAS_THREAD_TIMEOUT"] = "4"  # 2⁴ cycles, its least; NumPy is as fast as before
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # of a GPU: PyTorch needs some
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])


if __name__ == "__main__":
    sys.exit(main())
