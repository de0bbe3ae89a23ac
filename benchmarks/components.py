"""Every component, timed beside its twin and beside what PyTorch's users write for it."""

import importlib
from contextlib import nullcontext
from pathlib import Path

import jax
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import reference
from benchmarks.cases import CASES
from benchmarks.cases.calls import ENGINES, TOLERANCE, verify
from benchmarks.cases.case import ON_CPU, ON_GPU, cotangent
from benchmarks.cases.picture import LIMIT, by_family, draw
from benchmarks.report import (
    Mismatch,
    check_enough,
    described,
    header,
    interval,
    ratio,
    save_json,
    timed,
)
from benchmarks.training import allocator, has
from reference.errors import InputError

ROUNDS = 15
PARTS = {"forward": "the value", "gradients": "the value and all gradients"}
WHOLE_FAMILIES = ("block", "residual", "feed_forward")
WHOLE = ("multi_head_attention", "cross_attention")


def run(out, *, only=None, rounds=None, memory_kept=False, sizes=None):
    """Time the components of these names, or all; a table, a picture and JSON go to `out`.

    A component whose engines differ is not timed: the others are, and Mismatch names it at the end.
    Raises InputError for a name that is none, or too few rounds.
    """
    names, rounds = chosen(only), ROUNDS if rounds is None else rounds
    check_enough("rounds", rounds)
    on_gpu = jax.default_backend() == "gpu"
    sizes = sizes or (ON_GPU if on_gpu else ON_CPU)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, 150)  # of the table
    head = header("float32", ["torch"] if has("torch") else [])
    head["allocator"] = allocator(memory_kept)
    console.print(described(head), head["allocator"], "", sep="\n")
    found, wrong = [], []
    # On a GPU the products of float32 are else those of fewer bits.
    with jax.default_matmul_precision("highest") if on_gpu else nullcontext():
        for i, name in enumerate(names, 1):
            try:
                with console.status(f"{name}, {i} of {len(names)}"):
                    found.append(measure(name, sizes, rounds, engines_here(on_gpu)))
            except Mismatch as error:
                wrong.append(str(error))
    if found:
        figures = {"header": head, "sizes": sizes._asdict(), "rounds": rounds}
        figures |= {"tolerance": TOLERANCE, "verdict": verdict(found), "components": found}
        show(figures, out, console)
    if wrong:
        raise Mismatch("\n".join(wrong))
    return figures


def chosen(only):
    """The names of the components to time, in the order of their files."""
    unknown = [name for name in only or () if name not in CASES]
    if unknown:
        raise InputError(
            f"only has {', '.join(unknown)}, which is no component; give names of "
            f"{', '.join(CASES)}"
        )
    return [name for name in CASES if not only or name in only]


def families():
    """The file of every component: {name: file}.  Models are timed as a whole, by `training`."""
    files = sorted(Path(reference.__file__).parent.glob("layers/[a-z]*.py"))
    modules = {
        file.stem: importlib.import_module(f"reference.layers.{file.stem}") for file in files
    }
    return {name: family for family, there in modules.items() for name in there.__all__}


def engines_here(on_gpu):
    """The names of those that can run here."""
    return [*([] if on_gpu else ["NumPy"]), "Flax", *(["PyTorch"] if has("torch") else [])]


def measure(name, sizes, rounds, engines):
    """One component in these engines: checked against each other, then timed in turn."""
    case = CASES[name](sizes)
    dy = cotangent(case)
    family = families()[name]
    calls = {e: ENGINES[e](case, dy) for e in engines if e != "PyTorch" or case.torch}
    compared = {e: c for e, c in calls.items() if not (case.noise and e == "PyTorch")}
    verify(name, compared)
    each = timed(calls, rounds, PARTS)
    timings = {part: {engine: times[part] for engine, times in each.items()} for part in PARTS}
    return {
        "name": name,
        "family": family,
        "whole": family in WHOLE_FAMILIES or name in WHOLE,
        "compared": list(compared),
        "compile_seconds": calls["Flax"].compile_seconds,
        "ratios": {part: ratios(times) for part, times in timings.items()},
    } | {part: without_seconds(times) for part, times in timings.items()}


def without_seconds(timings):
    """Medians and intervals alone: every timing of seventy components would be a large file."""
    return {e: {k: v for k, v in t.items() if k != "seconds"} for e, t in timings.items()}


def ratios(timings):
    """Each engine's time as a multiple of PyTorch's."""
    if "PyTorch" not in timings:
        return {}
    return {e: ratio(t, timings["PyTorch"]) for e, t in timings.items() if e != "PyTorch"}


def verdict(found):
    """The whole block that takes NumPy longest beside PyTorch, and its ratio; None without one."""
    whole = {
        each["name"]: each["ratios"]["gradients"]["NumPy"]["ratio"]
        for each in found
        if each["whole"] and "NumPy" in each["ratios"]["gradients"]
    }
    if not whole:
        return None
    worst = max(whole, key=whole.get)
    over = [name for name, times in whole.items() if times > LIMIT]
    return {"name": worst, "ratio": whole[worst], "limit": LIMIT, "over": over}


def show(figures, out, console):
    """Print the table and the verdict, and write the picture and the JSON."""
    console.print(table(figures["components"]))
    console.print(
        "Milliseconds: the value / value and gradients; of the latter are the ratios, with their "
        "95 % interval, and the time to compile.\n"
        f"Verified first: all engines agree within {TOLERANCE:.0e} of each array's largest element;"
        " *: but for PyTorch, which draws its own noise there.\n"
        "Bold: whole layers and blocks."
    )
    if figures["verdict"]:
        console.print(verdict_line(figures["verdict"]))
    save_json(out / "components.json", figures)
    console.print(f"Figures are in {out / 'components.json'}.")
    if any(each["ratios"]["gradients"] for each in figures["components"]):
        draw(out / "components.png", figures)
        console.print(f"A picture is in {out / 'components.png'}.")


def verdict_line(found):
    over = f"; above it: {', '.join(found['over'])}" if found["over"] else ""
    return (
        f"Whole blocks in NumPy: at most {found['ratio']:.2f} times PyTorch (limit "
        f"{found['limit']}), {found['name']}{over}."
    )


def table(found):
    """Milliseconds of each engine and their ratios, a section for each family."""
    engines = [e for e in ENGINES if any(e in each["gradients"] for each in found)]
    rows = Table(box=SIMPLE)
    rows.add_column("component", no_wrap=True)
    beside = [e for e in engines if e != "PyTorch"]
    for name in [*engines, *(f"{e} / PyTorch" for e in beside), "compile, s"]:
        rows.add_column(name, justify="right", no_wrap=True)
    for family, members in by_family(found):
        rows.add_section()
        rows.add_row(f"[dim]{family}.py[/dim]")
        for each in members:
            cells = [milliseconds(each, engine) for engine in engines]
            cells += [times_pytorch(each, engine) for engine in beside]
            cells.append(f"{each['compile_seconds']['gradients']:.1f}")
            noisy = "PyTorch" in each["gradients"] and "PyTorch" not in each["compared"]
            name = f"  {each['name']}{'*' * noisy}"
            rows.add_row(f"[bold]{name}[/bold]" if each["whole"] else name, *cells)
    return rows


def milliseconds(each, engine):
    if engine not in each["gradients"]:
        return "-"
    times = [1e3 * each[part][engine]["median"] for part in PARTS]
    return " / ".join(f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" for ms in times)


def times_pytorch(each, engine):
    times = each["ratios"]["gradients"].get(engine)
    return f"{times['ratio']:.2f} ({interval(times, '.2f', 1)})" if times else "-"
