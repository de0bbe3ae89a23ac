import json
from functools import partial

import jax
import numpy as np
import pytest
from matplotlib import image
from rich.console import Console

from benchmarks import __main__ as commands
from benchmarks import components
from benchmarks.cases import CASES
from benchmarks.cases.calls import ENGINES, furthest, verify
from benchmarks.cases.case import Sizes, cotangent
from benchmarks.report import Mismatch, median
from reference.errors import InputError
from tests.peers import peer

TINY = Sizes(2, 16, 5, 24, 3, 40, 11, side=8, channels=3, patch=2, rank=2)
BESIDE = ("NumPy", "Flax", "PyTorch")


def test_every_component_has_a_case_and_no_case_is_left_over():
    """Turns red when a component is added: give it a case."""
    assert set(CASES) == set(components.families())


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_the_same_in_numpy_and_in_pytorch_and_for_flax_of_the_same_shapes(name):
    """Turns red with a case that no longer fits its component, or another option in PyTorch."""
    peer("torch")
    case = CASES[name](TINY)
    dy = cotangent(case)  # of the shapes that Flax's value has
    calls = {engine: ENGINES[engine](case, dy) for engine in ("NumPy", "PyTorch")}
    value, _ = calls["NumPy"].values()
    assert jax.tree.map(np.shape, value) == jax.tree.map(np.shape, dy)
    if not case.noise:
        verify(name, calls)


def test_two_components_are_timed(tmp_path, capsys):
    peer("torch")
    out = tmp_path / "new" / "out"
    components.run(out, only=["rezero", "dropout"], rounds=6, sizes=TINY)
    printed = capsys.readouterr().out
    for words in ("NumPy / PyTorch", "dropout*", "Whole blocks in NumPy: at most ", "rezero"):
        assert words in printed
    figures = json.loads((out / "components.json").read_text("utf-8"))
    noisy, whole = figures["components"]
    assert (noisy["name"], noisy["family"], noisy["whole"]) == ("dropout", "dropout", False)
    assert (whole["name"], whole["family"], whole["whole"]) == ("rezero", "residual", True)
    assert noisy["compared"] == ["NumPy", "Flax"] and whole["compared"] == list(BESIDE)
    for each in (noisy, whole):
        assert each["compile_seconds"]["gradients"] > 0
        for part in components.PARTS:
            assert list(each[part]) == list(BESIDE)
            for timing in each[part].values():
                assert 0 < timing["low"] <= timing["median"] <= timing["high"]
                assert 0 < timing["low"] <= timing["median"] <= timing["high"]
    assert figures["verdict"]["name"] == "rezero"
    assert sorted(path.name for path in out.iterdir()) == ["components.json", "components.png"]


def test_on_a_gpu_numpy_is_left_out(tmp_path, capsys, monkeypatch):
    """All of it but the device, on whatever is here."""
    peer("torch")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    figures = components.run(tmp_path, only=["relu", "reglu"], rounds=6, sizes=TINY)
    assert [list(each["gradients"]) for each in figures["components"]] == 2 * [["Flax", "PyTorch"]]
    assert figures["verdict"] is None and "NumPy /" not in capsys.readouterr().out
    assert (tmp_path / "components.png").exists()


@pytest.fixture
def without_timing(monkeypatch):
    monkeypatch.setattr(components, "engines_here", lambda on_gpu: ["NumPy", "PyTorch", "Flax"])
    monkeypatch.setattr(components, "timed", lambda *_: pytest.fail("timed all the same"))


def wrong_gradient(right, factor, *args, **kwargs):
    y, backward = right(*args, **kwargs)

    def wrong(dy):
        dparams, dx = backward(dy)
        dparams["up"]["kernel"][3, 4] *= factor
        return dparams, dx

    return y, wrong


@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_a_wrong_gradient_is_a_mismatch_and_nothing_of_it_is_timed(
    tmp_path, capsys, monkeypatch, without_timing, factor
):
    peer("torch")
    right = CASES["feed_forward"]

    def case(sizes):
        good = right(sizes)
        return good._replace(reference=partial(wrong_gradient, good.reference, factor))

    monkeypatch.setitem(CASES, "feed_forward", case)
    message = r"feed_forward: PyTorch's gradient\[0\]\['up'\]\['kernel'\] is .* it is not timed"
    with pytest.raises(Mismatch, match=message):
        components.run(tmp_path, only=["feed_forward"], sizes=TINY)
    assert "feed_forward" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_agrees_is_shown_beside_a_mismatch(tmp_path, capsys, monkeypatch):
    def measure(name, *_):
        if name == "gelu":
            raise Mismatch("gelu: differs")
        return timings_of(name)

    monkeypatch.setattr(components, "measure", measure)
    with pytest.raises(Mismatch, match="^gelu: differs$"):
        components.run(tmp_path, only=["relu", "gelu"], sizes=TINY)
    printed = capsys.readouterr().out
    assert "relu" in printed and "gelu" not in printed
    assert (tmp_path / "components.json").exists()


def timings_of(name, ratio=1.25, engines=BESIDE):
    """As `measure` has them, had Flax taken 1 ms, PyTorch 2 and NumPy as a multiple of that."""
    family = components.families()[name]
    seconds = {"NumPy": 2e-3 * ratio, "Flax": 1e-3, "PyTorch": 2e-3}
    times = {e: median([seconds[e]] * 6) for e in engines}
    return {
        "name": name,
        "family": family,
        "whole": family in components.WHOLE_FAMILIES or name in components.WHOLE,
        "compared": ["NumPy", "Flax"],
        "compile_seconds": {"forward": 0.5, "gradients": 1.5},
        "ratios": {part: components.ratios(times) for part in components.PARTS},
    } | {part: times for part in components.PARTS}


def shown(found, out):
    console = Console(width=132)
    head = {"device": "none", "dtype": "float32", "versions": {"numpy": "1"}}
    figures = {"header": head, "verdict": components.verdict(found), "components": found}
    components.show(figures, out, console)


def test_all_of_them_fit_a_table_a_picture_and_a_file(tmp_path, capsys):
    shown([timings_of(name) for name in CASES], tmp_path)
    printed = capsys.readouterr().out
    for name in CASES:
        assert f" {name}* " in printed
    assert "…" not in printed and "2.50 / 2.50   1.00 / 1.00   2.00 / 2.00" in printed
    assert "1.25 (1.25–1.25)" in printed and "0.50 (0.50–0.50)" in printed
    assert "at most 1.25 times PyTorch (limit 1.35), " in printed
    picture = image.imread(tmp_path / "components.png")
    assert picture.shape[0] > 1200 and picture.shape[1] > 1200 and picture[..., :3].std() > 0.1
    written = json.loads((tmp_path / "components.json").read_text("utf-8"))
    assert [each["name"] for each in written["components"]] == list(CASES)


def test_the_verdict_is_of_whole_layers_alone(tmp_path, capsys):
    found = [timings_of("relu", 9.0), timings_of("rezero", 1.4), timings_of("reglu", 1.2)]
    shown(found, tmp_path)
    line = "at most 1.40 times PyTorch (limit 1.35), rezero; above it: rezero."
    assert f"Whole blocks in NumPy: {line}" in capsys.readouterr().out
    assert components.verdict([timings_of("relu", 9.0)]) is None
    whole = {name for name in CASES if timings_of(name)["whole"]}
    assert {"cross_attention", "swiglu", "pre_norm", "parallel_block"} <= whole
    assert not whole & {"attention", "layer_norm", "cross_entropy"}


@pytest.mark.parametrize("engines", [("NumPy", "Flax"), ("Flax", "PyTorch")])
def test_an_engine_that_is_not_here_is_a_dash_or_no_column(tmp_path, capsys, engines):
    """Without PyTorch, and on a GPU."""
    found = [timings_of("rezero", engines=engines)]
    shown(found, tmp_path)
    printed = capsys.readouterr().out
    assert "Whole blocks" not in printed
    assert ("NumPy" in printed.splitlines()[1]) == ("NumPy" in engines)
    assert (tmp_path / "components.png").exists() == ("PyTorch" in engines)


def test_errors_are_of_an_array_s_size_or_of_its_tree_s():
    expected = {"large": np.array([100.0, 1.0]), "zero": np.array([0.0])}
    off = {"large": np.array([100.0, 1.5]), "zero": np.array([1e-3])}
    assert furthest(expected, expected)[0] == 0
    error, path = furthest(off, expected)
    assert path == "['large']" and np.isclose(error, 5e-3)
    error, path = furthest(off | {"large": expected["large"]}, expected)
    assert path == "['zero']" and np.isclose(error, 1e-3)
    assert furthest({"large": np.zeros((1, 2)), "zero": np.zeros(1)}, expected)[0] == np.inf


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "gelu", "no_such"], "only has no_such, which is no component; give names of "),
        (["--rounds", "5"], "rounds is 5; give 6 or more"),
    ],
)
def test_what_cannot_be_timed_is_named(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(commands, "pin_threads", lambda number: None)
    out = tmp_path / "out"
    assert commands.main(["components", *arguments, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("benchmarks components: ") and message in error and not out.exists()


def test_the_allowed_names_are_all_components():
    with pytest.raises(InputError, match="linear, .*gelu_tanh, .*huber"):
        components.chosen(["no_such"])
