"""The rules by which bugs are made, the choice among them, and what is said of a survivor."""

import ast
import json
import textwrap

import pytest

from tests import seeded_bugs
from tests.mutations import RULES, bugs

EXAMPLES = {
    "term dropped": [("a + b", "a", "b"), ("x - (a - 0)", "x", "-(a - 0)", "x - (-0)")],
    "factor dropped": [("2 * a", "2", "a"), ("1 * a / (b + c)", "1 * a", "1 / (b + c)")],
    "operands swapped": [
        ("a - b - c", "c - (a - b)", "b - a - c"),
        ("a.T @ (b + c)", "(b + c) @ a.T"),
        ('einsum("td,dk->tk", a, b)', 'einsum("td,dk->tk", b, a)'),
        ('einsum("d,d->", a, b)',),
    ],
    "other operator": [
        ("a + b * c", "a - b * c", "a + b / c"),
        ("x + 0",),
        ("x * 1",),
        ("a & b or c", "a & b and c", "a | b or c"),
    ],
    "other assignment": [("a += b", "a -= b"), ("a[0] /= b", "a[0] *= b"), ("a &= b", "a |= b")],
    "not added": [("a += b", "a = b"), ("a[i] *= b", "a[i] = b")],
    "statement dropped": [("a += b", "pass"), ("check(a, b)", "pass"), ("a = f(b)",)],
    "comparison off by one": [
        ("0 <= a < b", "0 < a < b", "0 <= a <= b"),
        ("a == b", "a != b"),
        ("a is b",),
    ],
    "condition dropped": [
        ("a or not b", "not b", "a"),
        ("(a) and b and c", "b and c", "(a) and b"),
    ],
    "guard negated": [
        ("a if b < 1 else c", "a if not (b < 1) else c"),
        ("[a for a in b if a]", "[a for a in b if not (a)]"),
    ],
    "check dropped": [("if a < 1:\n    raise Error", "if False:\n    raise Error")],
    "branches swapped": [("np.where(a, b, c)", "np.where(a, c, b)")],
    "mask not inverted": [("copyto(a, b, where=~c)", "copyto(a, b, where=c)")],
    "sign lost": [
        ("a ** -0.5", "a ** 0.5"),
        ("-a", "a"),
        ("a.sum(axis=-1)",),
        ("a.reshape(-1, 7)",),
    ],
    "wrong number": [
        ("def f(a, *, epsilon=1e-5): pass", "def f(a, *, epsilon=2e-05): pass"),
        (
            "[3, -0.5, 0.0, True]",
            "[4, -0.5, 0.0, True]",
            "[3, -1.0, 0.0, True]",
            "[3, -0.5, 1.0, True]",
        ),
        ("a.reshape(-1, b.shape[-1])",),
    ],
    "wrong axis": [
        ("a.mean(axis=-1)", "a.mean(axis=0)"),
        ("a.sum(axis=(-3, 0))", "a.sum(axis=(-2, 0))", "a.sum(axis=(-3, -1))"),
        ("a.shape[-1]", "a.shape[-2]"),
        ("a.swapaxes(-2, -1)", "a.swapaxes(-1, -1)", "a.swapaxes(-2, -2)"),
        ("a[-1]",),
    ],
    "axis not added": [("a(b)[..., None]", "a(b)"), ("a[:, None]", "a[None]")],
    "kept axis dropped": [("a.sum(axis=1, keepdims=True)", "a.sum(axis=1, keepdims=False)")],
    "sum not taken": [
        ("(a * b).sum(axis=0)", "(a * b)[0]"),
        ("a.mean(axis=-1, keepdims=True)", "a[..., :1]"),
        ("a.sum()",),
    ],
    "transposition dropped": [
        ("(a + b).mT @ c.T", "(a + b) @ c.T", "(a + b).mT @ c"),
        ("a.swapaxes(-1, -2)", "a"),
    ],
    "other function": [
        ("np.maximum(a.sum(), b)", "np.minimum(a.sum(), b)", "np.maximum(a.mean(), b)"),
        ("max(f(a, key=np.cos), b)", "min(f(a, key=np.cos), b)", "max(f(a, key=np.sin), b)"),
        ("sum(max)",),
    ],
    "function dropped": [("1 / np.sqrt(a + b)", "1 / (a + b)"), ("reversed(a)", "(a)")],
    "argument negated": [("np.exp(a - b)", "np.exp(-(a - b))"), ("np.cos(a)",)],
    "bound dropped": [("max(a, 1)", "(a)"), ("np.clip(a, b, c)", "(a)"), ("a.max(axis=1)",)],
    "arguments swapped": [("f(a + 1, b, c)", "f(b, a + 1, c)"), ("np.add(a, b)",), ("f(*a, b)",)],
    "option left out": [
        ("f(a, key=key)", "f(a)"),
        ("f(rate=c.rate, heads=3)", "f(heads=3)"),
        ("f(a, out=a)",),
    ],
    "values swapped": [
        (
            '{"a": x, "b": y(1), "c": z}',
            '{"a": y(1), "b": x, "c": z}',
            '{"a": x, "b": z, "c": y(1)}',
        ),
        ('{"a": x, "b": x, **y}',),
    ],
    "pair swapped": [
        ("a, b, c = f(x)", "b, a, c = f(x)"),
        ("def f(): return a, b + 1", "def f(): return b + 1, a"),
        ("def f(): return y, backward",),
    ],
}


def made(source, rule=None):
    source = source.encode()
    return [
        bug.applied(source).decode() for bug in bugs("x.py", source) if rule in (None, bug.rule)
    ]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_makes_what_it_says_and_nothing_else(rule):
    for source, *expected in EXAMPLES[rule]:
        assert sorted(made(source, rule)) == sorted(expected), source


SOURCE = textwrap.dedent('''
    """Adds 1 + 1, if a < b."""

    import numpy as np
    from a import b as c

    __all__ = ["f"] + ["g"]


    @cache(maxsize=16)
    def f(x: int | None, *, ε=1e-5) -> tuple[int, 3]:
        """y = 2 * x - 1, that is -x.T."""
        if x < 0 and ε:
            raise ValueError(f"x is {x + 1}, " + "not " * 2)
        came = f"of {x + 1}" if x is not None else "nothing " * 2
        "a string, 1 + 1"
        y = (
            x * 2  # twice: 2 * x
            + ε
        )
        return y
''')


def test_only_the_lines_of_an_edit_change():
    """Turns red if places are counted in characters, for ε has two bytes, or by unparsing."""
    source = SOURCE.encode()
    for bug in bugs("x.py", source):
        edited = bug.applied(source).decode()
        ast.parse(edited)
        before, after = bug.before_and_after(source)
        assert before != after and SOURCE.replace(before, after) == edited
        assert SOURCE.split("\n")[bug.line - 1] in before


def test_sentences_imports_annotations_and_errors_are_left_alone():
    """Turns red if one of them is; the conditions of an error are not."""
    touched = {
        bug.before_and_after(SOURCE.encode())[0].split("\n")[0] for bug in bugs("", SOURCE.encode())
    }
    assert touched == {
        "def f(x: int | None, *, ε=1e-5) -> tuple[int, 3]:",
        "    if x < 0 and ε:",
        "        x * 2  # twice: 2 * x",
        "        + ε",
    }
    assert made(SOURCE, "wrong number") == [
        SOURCE.replace("1e-5", "2e-05"),
        SOURCE.replace("x < 0", "x < 1"),
        SOURCE.replace("x * 2 ", "x * 3 "),
    ]


@pytest.mark.parametrize("path", ["reference/layers/linear.py", "reference/training/optimizer.py"])
def test_each_bug_of_a_file_is_a_program_and_made_once(path):
    source = (seeded_bugs.ROOT / path).read_bytes()
    every = [bug.applied(source) for bug in bugs(path, source)]
    assert len(set(every)) == len(every) and source not in every
    assert all(ast.parse(edited) for edited in every)


def test_the_files_are_the_layers_the_optimizer_the_schedule_and_the_model():
    files = seeded_bugs.files_of(seeded_bugs.FILES)
    assert {"reference/layers/softmax.py", "reference/models/gpt.py"} <= set(files)
    assert not any(file.startswith(("tests", "accelerated")) for file in files)


def some_bugs():
    paths = [
        "reference/layers/linear.py",
        "reference/layers/mask.py",
        "reference/layers/dropout.py",
    ]
    return [bug for path in paths for bug in bugs(path, (seeded_bugs.ROOT / path).read_bytes())]


def test_a_sample_depends_on_its_seed_alone():
    every = some_bugs()
    samples = [seeded_bugs.spread(every, 12, seed) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    assert len(set(samples[0])) == 12 and set(samples[0]) <= set(every)
    assert set(seeded_bugs.spread(every, len(every), 0)) == set(every)


def test_a_sample_has_the_same_number_of_each_file_and_rule():
    """Turns red if it is drawn from all bugs alike, for files differ in size, and rules in use."""
    sample = seeded_bugs.spread(some_bugs(), 12, 3)
    paths, rules = ([getattr(bug, key) for bug in sample] for key in ("path", "rule"))
    assert {paths.count(path) for path in paths} == {4}
    assert max(rules.count(rule) for rule in rules) <= 2


def test_the_tests_of_a_file_come_first_and_then_those_of_what_imports_it():
    own, others = seeded_bugs.tests_of("reference/layers/softmax.py")
    assert own == ["tests/layers/test_softmax.py"]
    assert {"tests/layers/test_attention.py", "tests/layers/test_loss.py"} <= set(others)
    assert not {*own, "tests/layers/test_linear.py"} & set(others)


def test_a_bug_knows_its_function_and_who_uses_that():
    """Nested ones do not count; the tests that name it run first."""
    source = b"""
def f(a):
    def backward(dy):
        return check(dy)
    return backward

def check(a):
    return -a

A = 1
"""
    assert {bug.rule: bug.within for bug in bugs("x.py", source)} == {
        "sign lost": ("check", "f"),
        "wrong number": (),
    }


def test_the_tests_that_name_the_function_run_first():
    class Item:
        def __init__(self, function):
            self.function = function

    items = [Item(every) for every in (made, some_bugs, faked)]
    seeded_bugs.InOrder(("Result", "RULES", "bugs")).pytest_collection_modifyitems(items)
    assert [item.function for item in items] == [faked, made, some_bugs]


def faked(verdict, stop=None):
    """In place of runs of pytest: one verdict for the first bug, the others are noticed."""

    def examine(chosen, sources, options, progress):
        for i, bug in enumerate(chosen):
            if i == stop:
                raise KeyboardInterrupt
            yield seeded_bugs.Result(bug, "noticed" if i else verdict, "" if i else "a test", 1.0)

    return examine


ARGUMENTS = ["reference/layers/linear.py", "--sample", "10"]


def test_a_survivor_is_printed_and_the_status_is_1(capsys, tmp_path):
    options = [*ARGUMENTS, "--json", str(tmp_path / "bugs.json")]
    assert seeded_bugs.main(options, faked("survived")) == 1
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "bugs.json").read_text())
    (survivor,) = [bug for bug in written["bugs"] if bug["verdict"] == "survived"]
    line, rule = (survivor["bug"][key] for key in ("line", "rule"))
    place = f"survived: reference/layers/linear.py:{line}: {rule}\n"
    before, after = (survivor[key].strip().split("\n") for key in ("before", "after"))
    assert f"{place}    - {before[0]}\n" in printed and f"    + {after[0]}\n" in printed
    assert "9 of 10 noticed: 90.0%" in printed and written["share"] == 0.9
    assert seeded_bugs.main([*options, "--least", "0.9"], faked("survived")) == 0


@pytest.mark.parametrize("verdict", ["hung", "crashed"])
def test_what_hangs_or_crashes_is_noticed_and_told(verdict, capsys):
    assert seeded_bugs.main(ARGUMENTS, faked(verdict)) == 0
    printed = capsys.readouterr().out
    assert f"{verdict}: reference/layers/linear.py:" in printed
    assert f"100.0%  (1 {verdict}, 9 noticed)" in printed


def test_an_interruption_tells_what_is_known(capsys):
    assert seeded_bugs.main(ARGUMENTS, faked("survived", stop=4)) == 130
    assert "3 of 4 noticed" in capsys.readouterr().out


def test_a_later_result_of_a_bug_replaces_the_first(capsys):
    """What its own file's tests let through, others may notice."""

    def examine(*args):
        yield from faked("survived")(*args)
        yield from faked("noticed")(*args)

    assert seeded_bugs.main(ARGUMENTS, examine) == 0
    assert "10 of 10 noticed" in capsys.readouterr().out


def test_red_tests_without_a_bug_are_no_figure(capsys):
    def examine(*args):
        raise seeded_bugs.Refused("tests/layers/test_linear.py is not green without a bug")
        yield

    assert seeded_bugs.main(ARGUMENTS, examine) == 2
    assert "not green" in capsys.readouterr().out


def test_the_rules_are_listed_with_their_numbers(capsys):
    assert seeded_bugs.main([*ARGUMENTS, "--rules"]) == 0
    printed = capsys.readouterr().out
    assert all(rule in printed for rule in RULES) and "10 in the sample" in printed
