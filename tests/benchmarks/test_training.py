import json

import pytest
from matplotlib import image

from benchmarks import training
from benchmarks.report import Mismatch
from tests.peers import peer

SMALL = (training.Size(1, 12, 7, 3, 11, 3, rounds=21),)


def test_a_step_of_every_engine_is_timed(tmp_path, capsys):
    peer("torch")
    figures = training.run(tmp_path / "out", rounds=6, sizes=SMALL)
    printed = capsys.readouterr().out
    for words in ("in all engines", "with AdamW", "scaled_dot_product_attention", "allocator"):
        assert words in printed
    (size,) = json.loads((tmp_path / "out" / "training.json").read_text("utf-8"))["sizes"]
    assert size == figures["sizes"][0] and size["rounds"] == 6 and size["tokens"] == 21
    for part in ("gradients", "step"):
        assert list(size[part]) == ["NumPy", "Flax", "PyTorch"]
        for timing in size[part].values():
            assert 0 < timing["low"] <= timing["median"] <= timing["high"]
            assert len(timing["seconds"]) == 6
    assert image.imread(tmp_path / "out" / "training.png").shape[1] > 900


def test_without_pytorch_the_table_has_dashes():
    timings = {
        "NumPy": {"median": 2.0, "seconds": [2.0] * 6},
        "Flax": {"median": 1.0, "seconds": [1.0] * 6},
    }
    assert training.compared(timings, "Flax", "PyTorch") == ("-", "-")
    assert training.compared(timings, "Flax", "NumPy") == ("0.50", "0.50–0.50")
    assert training.compared(timings, "NumPy", "NumPy") == ("1.00", "")


@pytest.mark.parametrize(
    "theirs, message",
    [
        ((2.0001, 1.0), "Flax has the loss 2.0001000 .* is not timed"),
        ((2.0, 1.01), "gradient of length 1.010000"),
        ((float("nan"), 1.0), "Flax has the loss nan"),
    ],
)
def test_what_differs_is_not_timed(tmp_path, monkeypatch, theirs, message):
    def must_not_run():
        pytest.fail("timed all the same")

    def calls(values):
        return lambda *_: {
            "values": lambda: values,
            "gradients": must_not_run,
            "step": must_not_run,
        }

    monkeypatch.setattr(training, "has_torch", lambda: False)
    monkeypatch.setattr(training, "numpy_calls", calls((2.0, 1.0)))
    monkeypatch.setattr(training, "flax_calls", calls(theirs))
    with pytest.raises(Mismatch, match=message):
        training.run(tmp_path, sizes=SMALL)
    assert not list(tmp_path.iterdir())


def test_engines_take_turns():
    order = []
    timings = training.timed([lambda: order.append("A"), lambda: order.append("B")], 6)
    assert "".join(order) == "AABB" + 6 * "AB" and len(timings) == 2
