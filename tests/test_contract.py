"""What holds of every component, so that none can be added without it."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import reference

ROOT = Path(__file__).parent.parent
FILES = [
    path.relative_to(ROOT / "reference").with_suffix("")
    for folder in ("layers", "models")
    for path in sorted((ROOT / "reference" / folder).glob("[a-z]*.py"))
]
SOURCES = sorted((ROOT / "reference").rglob("*.py"))


def module(engine, file):
    return importlib.import_module(f"{engine}.{'.'.join(file.parts)}")


COMPONENTS = [(file, name) for file in FILES for name in module("reference", file).__all__]
each_component = pytest.mark.parametrize("file, name", COMPONENTS, ids=lambda x: str(x))


def plain(name):
    """What LayerNorm and layer_norm have in common."""
    return name.replace("_", "").lower()


def twin_of(file, name):
    """The function of the same name, the class, or a class's method; and its arguments' names."""
    there = module("accelerated", file)
    for other in there.__all__:
        twin = getattr(there, other)
        if not inspect.isclass(twin):
            if other == name:
                return twin, arguments(twin)
            continue
        if plain(other) == plain(name):
            return twin, arguments(twin.__init__) | arguments(twin.__call__)
        method = name.removeprefix(f"{plain(other)}_")
        if method in vars(twin):
            return vars(twin)[method], arguments(twin.__init__) | arguments(vars(twin)[method])
    pytest.fail(f"accelerated/{file}.py has no twin of {name}")


def arguments(function):
    return set(inspect.signature(function).parameters)


@each_component
def test_a_component_has_a_twin_with_the_same_arguments(file, name):
    _, theirs = twin_of(file, name)
    assert arguments(getattr(module("reference", file), name)) - {"params"} <= theirs


@each_component
def test_a_component_separates_what_is_differentiated_from_what_is_not(file, name):
    """Positional arguments have a cotangent, and are left out as None; others are keyword-only."""
    parameters = inspect.signature(getattr(module("reference", file), name)).parameters.values()
    for parameter in parameters:
        assert parameter.kind != parameter.POSITIONAL_ONLY
        if parameter.kind == parameter.POSITIONAL_OR_KEYWORD:
            assert parameter.default in (parameter.empty, None)


@each_component
def test_a_component_says_shapes_source_and_derivative(file, name):
    text = inspect.getdoc(getattr(module("reference", file), name))
    assert re.search(r"\((B, |N, |\.\.\.).*\).*\s->|\(\.\.\.\) -> ", text, re.S), "no shapes"
    assert re.search(r"^Source: .+ \d{4}", text, re.M), "no source"
    assert re.search(r"^Backward: ", text, re.M), "no derivation"
    assert re.search(r"^ {4}\S", text, re.M), "no equation"


@each_component
def test_a_component_has_a_mirror_test_and_a_gradient_test(file, name):
    """Found by its name in the functions that call them, or in what those call."""
    tree = ast.parse((ROOT / "tests" / file.parent / f"test_{file.name}.py").read_text("utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for check in ("assert_mirror", "assert_gradient"):
        tests = [f for f in functions if f.startswith("test_") and check in names(functions[f])]
        used = set().union(*(reachable(f, functions) for f in tests))
        assert name in used, f"no {check} of {name}"


def test_there_are_many_properties_and_each_names_a_bug_that_it_notices():
    """Hypothesis looks for a counterexample, or one case stands for all."""
    texts = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    tests = [f for text in texts for f in ast.parse(text).body if isinstance(f, ast.FunctionDef)]
    named = {f.name for f in tests if "Turns red " in (ast.get_docstring(f) or "")}
    assert len(named) >= 50


def names(node):
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def reachable(function, functions):
    """The names in a function and in the module's functions that it names."""
    found, todo = set(), [function]
    while todo:
        new = names(functions[todo.pop()]) - found
        found |= new
        todo += new & set(functions)
    return found


@each_component
def test_a_component_has_a_row_in_the_readme(file, name):
    text = (ROOT / "README.md").read_text("utf-8")
    assert re.search(rf"^\| `{name}` \|.*`(accelerated/)?{file}\.py`", text, re.M)


def test_the_package_hands_on_every_component():
    assert {name for _, name in COMPONENTS} <= set(reference.__all__)
    assert all(hasattr(reference, name) for name in reference.__all__)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_that_a_backward_reads_is_bound_twice(path):
    """A closure sees the last value of a name, not the one that it had when it was made."""
    for function in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(function, ast.FunctionDef):
            for inner in scope(function):
                if is_backward(inner):
                    twice = read_by(inner) & bound_twice(function)
                    assert not twice, f"{function.name}: line {inner.lineno} reads {twice}"


def is_backward(node):
    """A function of that name, or a lambda of a cotangent."""
    if isinstance(node, ast.Lambda):
        return any(re.fullmatch("d[a-z_]+", arg.arg) for arg in node.args.args)
    return isinstance(node, ast.FunctionDef) and "backward" in node.name


def scope(function):
    """The nodes of a function's own scope."""
    todo = list(function.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            todo += ast.iter_child_nodes(node)


def bound_twice(function):
    bound = [a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)]
    stored = (n for n in scope(function) if isinstance(n, ast.Name))
    bound += [n.id for n in stored if isinstance(n.ctx, ast.Store)]
    return {name for name in bound if bound.count(name) > 1}


def read_by(function):
    own = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
    inside = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
    own |= {n.id for n in inside if isinstance(n.ctx, ast.Store)}
    return {n.id for n in inside if isinstance(n.ctx, ast.Load)} - own


def test_the_reference_runs_without_jax():
    """All of it is imported where jax and its relatives are not to be had."""
    found = pkgutil.walk_packages(reference.__path__, "reference.")
    every = [info.name for info in found if not info.name.endswith("__main__")]
    forbidden = ["jax", "jaxlib", "flax", "optax", "torch", "accelerated"]
    script = f"""
import importlib, sys
sys.modules |= dict.fromkeys({forbidden})
for name in {every}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_example_in_the_readme_is_true():
    """It ends by asserting that value and gradient are equal."""
    text = (ROOT / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert "backward" in example and "jax.vjp" in example
    subprocess.run([sys.executable, "-c", example], check=True, cwd=ROOT)
