import json
import shutil
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from matplotlib import image

from accelerated.training.compilation import PLAIN
from benchmarks import overhead, training
from benchmarks.engines import ENGINES, ON_GPU, SIZES, Calls, Problem, Size
from benchmarks.report import Mismatch, median
from tests.peers import peer

TINY = Size(1, 12, 7, 3, 11, 3, rounds=21)
EAGER = [name for name in ENGINES if name != "PyTorch compiled"]  # compiling takes half a minute


@pytest.fixture
def tiny(monkeypatch):
    """One size that takes no time, and what else would take some left out."""
    monkeypatch.setitem(SIZES, "small", TINY)
    monkeypatch.setattr(training, "engines_here", lambda on_gpu: EAGER)
    monkeypatch.setattr(training.overhead, "measure", lambda console: {})


def test_a_step_of_every_engine_is_timed(tmp_path, capsys, tiny):
    peer("torch")
    figures = training.run(tmp_path / "out", sizes=["small"], rounds=6, alone=False)
    printed = capsys.readouterr().out
    for words in ("in all engines", "with AdamW", "GFLOP/s", "The allocator is as it comes"):
        assert words in printed
    (size,) = json.loads((tmp_path / "out" / "training.json").read_text("utf-8"))["sizes"]
    assert size == figures["sizes"][0] and size["rounds"] == 6 and size["tokens"] == 21
    for part in ("gradients", "step"):
        assert list(size[part]) == EAGER
        for timing in size[part].values():
            assert 0 < timing["low"] <= timing["median"] <= timing["high"]
            assert len(timing["seconds"]) == 6
    assert image.imread(tmp_path / "out" / "training.png").shape[1] > 900


def test_what_runs_on_a_gpu_runs(tmp_path, capsys, monkeypatch, tiny):
    """All of it but the kernel of NVIDIA's, on whatever is here; with the MFU of a known device."""
    peer("torch")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(training, "ON_GPU", replace(ON_GPU, attention=None))
    monkeypatch.setattr(training, "peak", lambda on_gpu: 1e12)
    monkeypatch.setitem(training.STATED_PEAKS, jax.devices()[0].device_kind, 1e12)
    monkeypatch.setattr(training, "engines_here", lambda on_gpu: ["Flax", "PyTorch"])
    monkeypatch.setitem(SIZES, "gpt2", TINY)
    figures = training.run(tmp_path, rounds=6)
    printed = capsys.readouterr().out
    assert "MFU" in printed and "bfloat16" in printed and "one repeated id" in printed
    assert list(figures["sizes"][0]["step"]) == ["Flax", "PyTorch"]
    assert figures["repeated_ids"] > 0 and "alone" not in figures["sizes"][0]


def test_an_engine_by_itself_has_its_times_and_its_memory(monkeypatch):
    """In a process of its own, at a size that it makes itself."""
    monkeypatch.setitem(SIZES, "small", TINY)
    result = training.by_itself("NumPy", "small", 6)
    assert 0 < result["gradients"]["median"] < result["step"]["median"] + 1
    assert sys.platform != "linux" or 1e6 < result["peak_bytes"] < 1e9


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own use of itself
def test_pytorch_compiled_is_pytorch():
    torch = peer("torch")
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a compiler")
    problem = Problem(TINY)
    eager, compiled = (ENGINES[f"PyTorch{kind}"](problem).values() for kind in ("", " compiled"))
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)
    torch.compiler.reset()


def test_without_pytorch_the_table_has_dashes():
    timings = {
        "NumPy": {"median": 2.0, "seconds": [2.0] * 6},
        "Flax": {"median": 1.0, "seconds": [1.0] * 6},
    }
    assert training.compared(timings, "Flax", "PyTorch") == "-"
    assert training.compared(timings, "Flax", "NumPy") == "0.50 (0.50–0.50)"
    assert training.compared(timings, "NumPy", "NumPy") == "1"


@pytest.mark.parametrize(
    "theirs, message",
    [
        ((2.0001, 1.0), "Flax has the loss 2.0001000 .* is not timed"),
        ((2.0, 1.01), "gradient of length 1.010000"),
        ((float("nan"), 1.0), "Flax has the loss nan"),
    ],
)
def test_what_differs_is_not_timed(tmp_path, monkeypatch, tiny, theirs, message):
    def must_not_run():
        pytest.fail("timed all the same")

    def calls(values):
        return lambda problem: Calls(must_not_run, must_not_run, lambda: values)

    monkeypatch.setattr(training, "engines_here", lambda on_gpu: ["NumPy", "Flax"])
    monkeypatch.setitem(ENGINES, "NumPy", calls((2.0, 1.0)))
    monkeypatch.setitem(ENGINES, "Flax", calls(theirs))
    with pytest.raises(Mismatch, match=message):
        training.run(tmp_path, sizes=["small"])
    assert not list(tmp_path.iterdir())


def test_overheads_are_compared_with_the_bare_step_of_the_same_layout():
    ways = {"flat": 0.010, "train": 0.011, "flat, layers in a loop": 0.005}
    ways |= {"train, layers in a loop": 0.006, "nnx.jit": 0.050}
    table = overhead.steps_table({name: median([s] * 6) for name, s in ways.items()})
    assert list(table.columns[2].cells) == ["1.00", "1.10", "1.00", "1.20", "5.00"]
    assert list(table.columns[3].cells) == ["0.20", "0.22", "0.10", "0.12", "1.00"]
    table = overhead.compile_table({"layers in a loop": {2: 3.0, 24: 3.3}})
    assert [list(column.cells)[0] for column in table.columns[1:]] == ["3.00", "3.30", "1.10"]


def test_ways_to_call_a_step_take_the_same_step(monkeypatch):
    """Each can be called, and says how many steps it took."""
    monkeypatch.setattr(overhead, "TINY", replace(overhead.TINY, layers=1))
    assert [overhead.flat_step(c)() for c in (PLAIN, overhead.STACKED)] == [1, 1]
    assert overhead.shipped(replace(overhead.STACKED, steps_per_call=3))() == 3
    assert overhead.nnx_step()() == 1
    assert overhead.compile_time(1, 65, overhead.STACKED) > 0
