"""Would the tests notice?  Puts single bugs into the reference, one at a time, and runs the tests.

    python tests/seeded_bugs.py                                  a sample of all rules and files
    python tests/seeded_bugs.py reference/layers/softmax.py --sample 0      all bugs of one file

The bugs are made by the rules of tests/mutations.py.  Each goes into a copy of the tree, where the
tests of its file run until one is red; if none is, also the tests of those that import the file.
First all these tests have to be green without a bug.  The status is 1 if too few bugs were noticed,
2 if there is no figure.
"""

import argparse
import ast
import contextlib
import importlib.util
import inspect
import json
import multiprocessing
import os
import queue
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from itertools import permutations, product
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `tests`, where this is run as a script

from tests.mutations import RULES, Bug, bugs  # noqa: E402

FILES = ["reference/layers", "reference/training/optimizer.py", "reference/training/schedule.py"]
FILES += ["reference/models/gpt.py", "reference/models/gpt_sizes.py"]
NEEDED = ("reference", "accelerated", "tests", "benchmarks", "pyproject.toml", "README.md")
# Imported once; each run of pytest is a fork of the process that has them.
WARM = ["numpy", "jax", "jax.numpy", "flax.nnx", "optax", "torch", "transformers"]
# How pytest ends: 2 is red while tests are collected, 4 a wrong option, 5 no test.
GREEN, RED, WRONG_TREE = 0, (1, 2), 70
MEANINGLESS = (4, 5, WRONG_TREE)
PYTEST = "-x -q -rfE --color=no --assert=plain -p no:xdist -p no:cacheprovider --rootdir=."
PYTEST += " --basetemp=temporary --hypothesis-profile=seeded_bugs"
# In place of pyproject's, which would start more processes.
PYTEST += " -o addopts=--import-mode=importlib"


class Refused(Exception):
    """No figure would mean anything."""


@dataclass
class Result:
    bug: Bug
    verdict: str  # noticed, hung, crashed, which are noticed too, or survived
    by: str  # the first test that was red
    seconds: float


def main(argv=None, examine=None):
    options = parse(argv)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    sources = {path: (ROOT / path).read_bytes() for path in files_of(options.paths)}
    every = [bug for path, source in sources.items() for bug in bugs(path, source)]
    chosen = spread(every, options.sample or len(every), options.seed)
    if options.rules:
        return list_rules(console, every, chosen)
    console.print(f"{len(chosen)} of {len(every)} bugs in {len(sources)} files")
    results, status, start = {}, None, time.perf_counter()
    try:
        with Progress(console=console, transient=True) as progress:
            examination = (examine or examined)(chosen, sources, options, progress)
            with contextlib.closing(examination):
                for result in examination:
                    results[result.bug] = result
    except KeyboardInterrupt:
        status = 130
        console.print("Interrupted; so far:")
    except Refused as error:
        console.print(str(error))
        return 2
    share = report(console, list(results.values()), sources, time.perf_counter() - start)
    if options.json:
        write_json(options.json, results.values(), sources, share)
    return int(share < options.least) if status is None else status


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", default=FILES, help="files or folders of reference/")
    parser.add_argument("--sample", type=int, default=240, help="how many; 0: all (default 240)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=120,
        help="seconds until a run is hung, at least 3 times what it takes without a bug (120)",
    )
    parser.add_argument("--least", type=float, default=0.97, help="share to be noticed")
    parser.add_argument("--rules", action="store_true", help="list the rules and their numbers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    return parser.parse_args(argv)


def files_of(paths):
    """Files as given, folders with all that is in them; relative to the repository."""
    found = [ROOT / path for path in paths]
    found = [file for path in found for file in ([path] if path.is_file() else path.rglob("*.py"))]
    return sorted({str(file.resolve().relative_to(ROOT)) for file in found})


def spread(every, count, seed):
    """So many of them, of each file and then of each rule the same number as far as there are."""
    waiting = list(every)
    random.Random(seed).shuffle(waiting)
    if count >= len(waiting):
        return waiting
    taken, files, rules = [], Counter(), Counter()
    while len(taken) < count:
        bug = min(waiting, key=lambda b: (files[b.path], rules[b.rule]))
        waiting.remove(bug)
        taken.append(bug)
        files[bug.path] += 1
        rules[bug.rule] += 1
    return taken


# Which tests


@cache
def tests_of(path):
    """The tests of a file, and those of what imports it: both as paths."""
    own = [test for test in [test_file(path)] if (ROOT / test).is_file()]
    module = path.removesuffix(".py").replace("/", ".")
    users = [test_file(user) for user in importers(module, "reference")]
    others = [test for test in users if (ROOT / test).is_file()] + importers(module, "tests")
    # A benchmark's tests measure time, and may be red for another reason than the bug.
    others = [test for test in others if not test.startswith("tests/benchmarks/")]
    return own, sorted(set(others) - set(own))


def test_file(path):
    folder, _, name = path.partition("/")[2].rpartition("/")
    return str(Path("tests", folder, f"test_{name}"))


def importers(module, folder):
    """The files in a folder that import a module."""
    found = (str(file.relative_to(ROOT)) for file in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if module in imports(path)]


@cache
def imports(path):
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


# Running them


def examined(chosen, sources, options, progress):
    """Yields a result for each bug; another where more tests have met it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        laboratory = Laboratory(Path(folder), sources, options)
        pool = ThreadPoolExecutor(options.jobs)

        def results(function, arguments, description):
            runs = [pool.submit(function, *each) for each in arguments]
            done = as_completed(runs)
            for run in progress.track(done, total=len(runs), description=description):
                yield run.result()

        try:
            left = list(chosen)
            for stage, whose in enumerate(("of the file", "of those that import it")):
                tests = sorted({test for bug in left for test in tests_of(bug.path)[stage]})
                # Twice: what the first runs compile serves the second, as it will serve the rest.
                for write, how in ((True, "without a bug"), (False, "compiled before")):
                    list(
                        results(laboratory.check, product(tests, [write]), f"tests {whose}, {how}")
                    )
                    laboratory.share_compiled()
                arguments, left = [(bug, tests_of(bug.path)[stage]) for bug in left], []
                for result in results(laboratory.try_bug, arguments, f"bugs, tests {whose}"):
                    left += [result.bug] if result.verdict == "survived" else []
                    yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            laboratory.stop()
            pool.shutdown()


class Laboratory:
    """Copies of the tree, one for each job, and the runs of pytest in them."""

    def __init__(self, folder, sources, options):
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = "1"
        os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(WARM)
        self.sources, self.timeout = sources, options.timeout
        self.usual = {}  # seconds that a file of tests takes
        self.running, self.stopped, self.copies = set(), False, queue.SimpleQueue()
        for job in range(options.jobs):
            copy = folder / str(job)
            for name in NEEDED:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, copy / name, ignore=lambda *_: ["__pycache__"])
                else:
                    shutil.copy(ROOT / name, copy / name)
            for path, source in sources.items():
                (copy / path).write_bytes(source)
            (copy / "compiled").mkdir()
            self.copies.put(copy)

    @contextlib.contextmanager
    def copy(self):
        copy = self.copies.get()
        try:
            yield copy
        finally:
            self.copies.put(copy)

    def check(self, test, write):
        """Refuses to go on with tests that are red without a bug."""
        with self.copy() as copy:
            status, by, self.usual[test] = self.pytest(copy, [test], timeout=1800, write=write)
            if status != GREEN:
                raise Refused(f"{log_of(copy)}\n{test} is not green without a bug: {status} {by}")

    def share_compiled(self):
        """Each copy gets what the others have kept from the compiler."""
        copies = [self.copies.get() for _ in range(self.copies.qsize())]
        for here, there in permutations(copies, 2):
            shutil.copytree(here / "compiled", there / "compiled", dirs_exist_ok=True)
        for copy in copies:
            self.copies.put(copy)

    def try_bug(self, bug, tests):
        start, status, by = time.perf_counter(), GREEN, ""
        source, tests = self.sources[bug.path], sorted(tests, key=self.usual.get)
        with self.copy() as copy:
            (copy / bug.path).write_bytes(bug.applied(source))
            try:
                if tests:
                    limit = max(self.timeout, 3 * sum(self.usual[test] for test in tests))
                    status, by, _ = self.pytest(copy, tests, timeout=limit, first=bug.within)
            finally:
                (copy / bug.path).write_bytes(source)
        verdicts = {GREEN: "survived", "hung": "hung"} | dict.fromkeys(RED, "noticed")
        return Result(bug, verdicts.get(status, "crashed"), by, time.perf_counter() - start)

    def pytest(self, copy, tests, timeout, first=(), write=False):
        """The exit status, the first red test, and the seconds it took."""
        start = time.perf_counter()
        process = self.context.Process(target=run_pytest, args=(copy, tests, first, write))
        process.start()
        self.running.add(process)
        process.join(0 if self.stopped else timeout)
        status = "hung" if process.is_alive() else process.exitcode
        kill(process)
        self.running.discard(process)
        log = log_of(copy)
        red = re.search(r"^(?:FAILED|ERROR) (\S+)", log, re.M)
        if status in MEANINGLESS or status in RED and not red:
            raise Refused(f"{log}\npytest ended with {status}: {copy}, {tests}")
        return status, red[1] if red else "", time.perf_counter() - start

    def stop(self):
        self.stopped = True
        for process in list(self.running):
            kill(process)


def kill(process):
    """With all that it has started: it leads a group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def log_of(copy):
    return (copy / "log").read_text("utf-8", errors="replace")[-5000:]


class InOrder:
    """A plugin: the tests that name the function with the bug run first, then its users'."""

    def __init__(self, first):
        self.first = first

    def pytest_collection_modifyitems(self, items):
        items.sort(key=self.place)

    def place(self, item):
        words = set(re.findall(r"\w+", inspect.getsource(item.function)))
        return next((i for i, name in enumerate(self.first) if name in words), len(self.first))


def run_pytest(copy, tests, first, write):
    """In a fork of its own: pytest in a copy of the tree, what it prints in a file there."""
    os.setsid()
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[:] = [str(copy)] + [p for p in sys.path if ROOT not in (Path(p), Path(p).parent)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    if not Path(importlib.util.find_spec("reference").origin).is_relative_to(copy):
        os._exit(WRONG_TREE)
    with open("log", "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

    import hypothesis
    import jax
    import pytest

    jax.config.update("jax_compilation_cache_dir", str(copy / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0 if write else 1e9)
    hypothesis.settings.register_profile(
        "seeded_bugs",
        derandomize=True,
        deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # not to shrink
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    status = pytest.main([*PYTEST.split(), *tests], plugins=[InOrder(first)])
    sys.stdout.flush()
    loaded = getattr(sys.modules.get("reference"), "__file__", None)
    os._exit(status if loaded is None or Path(loaded).is_relative_to(copy) else WRONG_TREE)


# Telling


def described(result, sources):
    """A bug as one would read it in a difference."""
    bug = result.bug
    before, after = (
        re.sub(r"(?m)^\s*", f"    {sign} ", text)
        for sign, text in zip("-+", bug.before_and_after(sources[bug.path]), strict=True)
    )
    return f"{result.verdict}: {bug.path}:{bug.line}: {bug.rule}\n{before}\n{after}"


def report(console, results, sources, seconds):
    """Prints what is known, and returns the share that was noticed."""
    verdicts = Counter(result.verdict for result in results)
    noticed = len(results) - verdicts["survived"]
    share = noticed / max(len(results), 1)
    for title, key in (("file", lambda r: r.bug.path), ("rule", lambda r: r.bug.rule)):
        table = Table(title, "bugs", "noticed", "seconds each")
        for name in sorted({key(r) for r in results}):
            part = [r for r in results if key(r) == name]
            seen = sum(r.verdict != "survived" for r in part)
            mean = sum(r.seconds for r in part) / len(part)
            table.add_row(name, str(len(part)), str(seen), f"{mean:.1f}")
        console.print(table)
    for result in sorted(results, key=lambda r: (r.verdict, r.bug.path, r.bug.line)):
        if result.verdict != "noticed":
            console.print(described(result, sources))
    also = ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items()))
    console.print(f"{noticed} of {len(results)} noticed: {share:.1%}  ({also})  {seconds:.0f} s")
    return share


def list_rules(console, every, chosen):
    table = Table("rule", "what it does", "bugs", "in the sample")
    counts = [Counter(bug.rule for bug in part) for part in (every, chosen)]
    for name, rule in RULES.items():
        table.add_row(name, " ".join(rule.__doc__.split()), *(str(c[name]) for c in counts))
    console.print(table)
    console.print(f"{len(every)} bugs, {len(chosen)} in the sample")
    return 0


def write_json(path, results, sources, share):
    rows = []
    for result in results:
        before, after = result.bug.before_and_after(sources[result.bug.path])
        rows.append(asdict(result) | {"before": before, "after": after})
    path.write_text(json.dumps({"share": share, "bugs": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
