"""Where the time of one training step goes: the same parts in NumPy, Flax and PyTorch."""

import cProfile
import math
import os
import re
import statistics
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import jax
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table

import accelerated
import reference
from reference.errors import InputError

REST = "residuals and the rest"
# The parts of source files, by name or else by folder, and of functions that are of another part.
FILES = {
    "linear": "linear maps",
    "attention": "attention",
    "mask": "attention",
    "normalization": "normalization",
    "activation": "activation",
    "embedding": "embedding and loss",
    "position": "embedding and loss",
    "loss": "embedding and loss",
    "training": "optimizer",
}
FUNCTIONS = {
    "unembed": "linear maps",
    "softmax": "attention",
    "log_softmax": "embedding and loss",
    "loss_and_gradients": REST,
}
# Of PyTorch's functions, and of the nodes of its backward, by how their names begin.
TORCH = {
    "linear maps": ("linear", "addmm", "mm", "AddmmBackward", "MmBackward", "TBackward"),
    "attention": ("scaled_dot_product", "ScaledDotProduct"),
    "normalization": ("layer_norm", "NativeLayerNormBackward"),
    "activation": ("gelu", "GeluBackward"),
    "embedding and loss": (
        *("embedding", "cross_entropy", "EmbeddingBackward", "LogSoftmaxBackward", "NllLoss"),
        *("SliceBackward", "AddBackward"),  # of the positions: their table, their sum over a batch
    ),
    "optimizer": ("Optimizer", "_foreach", "linalg_vector_norm"),
}
PARTS = (*TORCH, REST)
TOP = 5
OURS = tuple(str(Path(package.__file__).parent) + os.sep for package in (reference, accelerated))
# What a number costs in an instruction of XLA, roughly: a fusion is of the part that costs it most.
MOVES = ("parameter", "constant", "bitcast", "broadcast", "reshape", "transpose", "copy", "fusion")
COSTS = {"dot": 1e3} | dict.fromkeys(MOVES, 1e-3)
INSTRUCTION = r" +(?:ROOT )?%?([\w.-]+) = \(?\w+\[(.*?)\].*? ([a-z][\w-]*)\("
CALLS = r"(?:calls|to_apply|body|condition|computations?)=(\{.*?\}|\S+)"


class Profile(NamedTuple):
    """One engine's step, in seconds; `_asdict()` is for JSON."""

    wall: float  # of the whole step, while it is not being profiled
    parts: dict  # of each of PARTS
    operations: list  # the TOP most expensive: (name, seconds, how often)


def numpy_profile(step, rounds):
    """Profile the reference by its functions, each with what it calls of NumPy.

    step: a function without arguments that runs one step and waits for it.  Raises InputError for
    fewer than one round.
    """
    wall = wall_time(step, rounds)
    with cProfile.Profile(builtins=False) as profiler:  # what is written in C is its caller's time
        for _ in range(rounds):
            step()
    rows = []
    for code, calls, _, _, seconds, callees in profiler.getstats():
        if is_ours(code):
            outside = sum(call.totaltime for call in callees or () if not is_ours(call.code))
            *names, last = code.co_qualname.split(".")
            name = " ".join(word for word in (*names, last) if not word.startswith("<"))
            # A lambda or a generator is a piece of the function around it.
            count = 0 if last.startswith("<") else calls
            part = part_of(code.co_filename, code.co_qualname)
            rows.append((part, name, seconds + outside, count))
    return summed(wall, rounds, rows)


def flax_profile(step, compiled_text, rounds):
    """Profile a compiled step by XLA's instructions, whose parts are those of their source lines.

    compiled_text: the optimized programs that the step runs, as `Compiled.as_text()` gives them,
    one after another.  Raises InputError where the step runs none of these programs, or for fewer
    than one round.
    """
    texts = re.split(r"^(?=HloModule )", compiled_text, flags=re.MULTILINE)[1:]
    instructions = {key: found for text in texts for key, found in read_program(text).items()}
    wall = wall_time(step, rounds)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow the step down
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(rounds):
                step()
        spans = [span for file in Path(folder).rglob("*.xplane.pb") for span in read_spans(file)]
    if not any(key in instructions for key, _, _ in spans):
        names = ", ".join({program for program, _ in instructions}) or "no program"
        raise InputError(f"compiled_text has {names}, which the step does not run; give its own")
    leaves = without_callers(spans, instructions)
    counts = Counter(key for key, _, _ in leaves)
    rows = []
    for key, seconds in shared(leaves).items():
        part, file = instructions[key].source if key in instructions else (REST, key[0])
        kind = re.sub(r"[.\d]+$", "", key[1])
        rows.append((part, f"{kind} ({file})", seconds, counts[key]))
    return summed(wall, rounds, rows)


def torch_profile(step, rounds):
    """Profile PyTorch by its operators, less what they call; on a GPU, by their kernels.

    Raises InputError for fewer than one round.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler reports on itself
    from torch.autograd import DeviceType
    from torch.profiler import profile

    wall = wall_time(step, rounds)
    with profile() as profiler:
        for _ in range(rounds):
            step()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
    on_device = any(event.self_device_time_total for event in events)
    time_of = "self_device_time_total" if on_device else "self_cpu_time_total"
    rows = [(torch_part(e), e.name, 1e-6 * getattr(e, time_of), 1) for e in events]
    return summed(wall, rounds, rows)


def wall_time(step, rounds):
    """The median seconds of a step, after two to warm up."""
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; give a positive integer")
    seconds = []
    for _ in range(2 + rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def summed(wall, rounds, rows):
    """A Profile of the rows (part, operation, seconds, count) of all rounds."""
    parts, times, counts = dict.fromkeys(PARTS, 0.0), Counter(), Counter()
    for part, name, seconds, count in rows:
        parts[part] += seconds / rounds
        times[name] += seconds / rounds
        counts[name] += count
    top = [(name, seconds, counts[name] / rounds) for name, seconds in times.most_common(TOP)]
    return Profile(wall, parts, top)


def is_ours(code):
    """Whether a code object is of the reference or of its twin."""
    return getattr(code, "co_filename", "").startswith(OURS)


def part_of(file, function):
    """The part of a function, by its file and its qualified name."""
    path = Path(file)
    part = FILES.get(path.stem, FILES.get(path.parent.name, REST))
    return next((FUNCTIONS[name] for name in function.split(".") if name in FUNCTIONS), part)


def torch_part(event):
    """The part of an operator: that of the outermost function of TORCH that it is in."""
    names = [event.name.removeprefix("aten::")]
    while (event := event.cpu_parent) is not None:
        names.append(re.sub("^aten::|^autograd::engine::evaluate_function: ", "", event.name))
    if names[0] in ("add", "add_") and names[-1].endswith("Backward0"):
        return REST  # where a gradient comes from several sides, whatever was differentiated
    for name in reversed(names):
        for part, beginnings in TORCH.items():
            if name.startswith(beginnings):
                return part
    return REST


class Instruction(NamedTuple):
    """What is known of an instruction of a compiled program."""

    computation: tuple  # that it stands in: (program, computation)
    called: set  # of such
    source: tuple  # (part, file)


def read_program(text):
    """{(program, instruction): Instruction} of a program as XLA prints it: what is called first."""
    program, sources = re.match(r"HloModule ([\w.-]+)", text)[1], read_sources(text)
    instructions, votes = {}, defaultdict(Counter)
    for line in text.splitlines():
        if found := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            computation = program, found[1]
        elif found := re.match(INSTRUCTION, line):
            name, shape, opcode = found.groups()
            frame = re.search(r"stack_frame_id=(\d+)", line)
            vote = Counter()
            if frame and int(frame[1]) in sources:
                size = math.prod(map(int, re.findall(r"\d+", shape)))
                vote[sources[int(frame[1])]] = size * COSTS.get(opcode, 1)
            calls = " ".join(re.findall(CALLS, line))
            called = {(program, inner) for inner in re.findall(r"%([\w.-]+)", calls)}
            for inner in called:
                vote.update(votes[inner])
            votes[computation].update(vote)
            source = max(vote, key=vote.get, default=(REST, "no source"))
            instructions[program, name] = Instruction(computation, called, source)
    return instructions


def read_sources(text):
    """{a Python stack's number: (part, file) of the innermost of our functions on it}."""

    def table(name, pattern):
        found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        rows = re.findall(rf"^(\d+) {pattern}", found[1] if found else "", re.MULTILINE)
        return {int(number): row for number, *row in rows}

    numbers = r"\{\w+=(\d+) \w+=(\d+)"
    files, functions = table("FileNames", '"(.*)"'), table("FunctionNames", '"(.*)"')
    locations, sources = table("FileLocations", numbers), {}
    for stack, (location, parent) in table("StackFrames", numbers).items():
        file, function = map(int, locations[int(location)])
        (file_name,), (function_name,) = files[file], functions[function]
        if file_name.startswith(OURS):
            sources[stack] = part_of(file_name, function_name), Path(file_name).name
        elif int(parent) - 1 in sources:  # XLA prints a parent's number plus one
            sources[stack] = sources[int(parent) - 1]
    return sources


def read_spans(file):
    """[((program, instruction), start, end)] of all that ran, in nanoseconds."""
    devices, hosts, ends = [], [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a type has no __module__
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            spans = devices if plane.name.startswith("/device:") else hosts
            for event in (event for line in plane.lines for event in line.events):
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    key = stats["hlo_module"], stats["hlo_op"]
                    spans.append((key, event.start_ns, event.end_ns, stats.get("_p")))
                elif "_c" in stats and event.name.startswith("end: "):
                    ends[stats["_c"]] = event.start_ns
    # On a processor some instructions are only launched; their end is then an event of its own.
    return [(key, start, max(end, ends.get(p, end))) for key, start, end, p in devices or hosts]


def without_callers(spans, instructions):
    """The spans of all but the loops and calls whose inside is among the spans too."""
    seen = {instructions[key].computation for key, _, _ in spans if key in instructions}
    return [s for s in spans if s[0] not in instructions or not instructions[s[0]].called & seen]


def shared(spans):
    """{key: seconds} of (key, start, end) in nanoseconds; those that run at once share the time."""
    edges = [(s[i], s[0], change) for s in spans if s[1] < s[2] for i, change in ((1, 1), (2, -1))]
    seconds, running, before = Counter(), Counter(), 0
    for at, key, change in sorted(edges):
        for other, times in running.items():
            seconds[other] += 1e-9 * (at - before) * times / running.total()
        running[key] += change
        running = +running  # those above 0
        before = at
    return seconds


def table(title, profiles):
    """Milliseconds of a step, part by part, and the most expensive operations: a rich Group.

    profiles: {engine: Profile}.
    """
    parts = Table("ms a step", title=title, box=SIMPLE, show_footer=True)
    parts.columns[0].footer = "the whole step"
    for name, profile in profiles.items():
        for head, foot in ((name, f"{1e3 * profile.wall:.2f}"), ("share", "")):
            parts.add_column(head, foot, justify="right", no_wrap=True)
    engines = profiles.values()
    others = [profile.wall - sum(profile.parts.values()) for profile in engines]
    rows = {part: [profile.parts[part] for profile in engines] for part in PARTS}
    rows["not in any operation"] = [max(seconds, 0.0) for seconds in others]
    for part, times in rows.items():
        shares = (f"{100 * s / p.wall:.0f} %" for s, p in zip(times, engines, strict=True))
        milliseconds = (f"{1e3 * seconds:.2f}" for seconds in times)
        parts.add_row(part, *sum(zip(milliseconds, shares, strict=True), ()))
    if min(others) < 0:
        parts.caption = "A last 0: profiled, the operations took longer than the step by itself."
    return Group(parts, operations_table(profiles))


def operations_table(profiles):
    """Each engine's most expensive operations, by its own names."""
    operations = Table("", box=SIMPLE)
    operations.add_column("operation", overflow="fold")
    for head in ("ms a step", "times a step"):
        operations.add_column(head, justify="right")
    for engine, profile in profiles.items():
        for i, (name, seconds, count) in enumerate(profile.operations):
            operations.add_row("" if i else engine, name, f"{1e3 * seconds:.2f}", f"{count:g}")
        operations.add_section()
    return operations
