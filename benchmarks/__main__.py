"""python -m benchmarks: the same GPT by both engines, number for number, and how fast each is."""

import argparse
import os
import sys

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def main(arguments=None):
    """Run a command line.  -> the exit status: 0, 1 for bad input or a failed gate, 130."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments.insert(0, "demo")
    options = parser().parse_args(arguments)
    pin_threads(options.threads)
    # Only now: the libraries read the number of threads when they are imported.
    from benchmarks import demo, training
    from benchmarks.report import Mismatch
    from reference.errors import InputError

    try:
        if options.name == "demo":
            demo.run(options.data, options.out, steps=options.steps, seed=options.seed)
        else:
            training.run(options.out, rounds=options.rounds)
    except (InputError, OSError, Mismatch) as error:
        print(f"benchmarks {options.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nbenchmarks {options.name}: stopped", file=sys.stderr)
        return 130
    return 0


def parser():
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="name", required=True, metavar="demo | training")
    cores = available_processors()

    one = commands.add_parser("demo", help="train both engines on a text, and compare (default)")
    one.add_argument("--data", metavar="FILE", help="UTF-8 text (the documentation of Python)")
    one.add_argument("--steps", type=int, default=300, help="float32 steps of each (300)")
    one.add_argument("--seed", type=int, default=0, help="decides all that is random (0)")
    two = commands.add_parser("training", help="time one training step, PyTorch's beside")
    two.add_argument("--rounds", type=int, default=15, help="timings of each engine (15)")
    for command, folder in ((one, "runs/benchmarks/demo"), (two, "runs/benchmarks/training")):
        command.add_argument(
            "--out", metavar="FOLDER", default=folder, help=f"for files ({folder})"
        )
        command.add_argument(
            "--threads", type=int, default=cores, help=f"of every engine ({cores})"
        )
    return top


def available_processors():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def pin_threads(number):
    """One policy for all engines: their BLAS by the environment, XLA by the affinity."""
    for name in THREADS:
        os.environ[name] = str(number)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])


if __name__ == "__main__":
    sys.exit(main())
