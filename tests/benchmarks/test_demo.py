import json

import numpy as np
import pytest
from rich.console import Console

import benchmarks.__main__
import reference.training.loop
from benchmarks import demo, training
from benchmarks.report import Mismatch, median
from reference.models.gpt import GPTConfig, initial_params
from reference.random import key
from reference.training.loop import TrainingConfig
from tests.peers import peer

SENTENCES = "".join(f"The sum of {a} and {b} is {a + b}.\n" for a in range(30) for b in range(30))


@pytest.fixture
def command(monkeypatch):
    """The command line, with the threads of the tests left as they are."""
    monkeypatch.setattr(benchmarks.__main__, "pin_threads", lambda number: None)
    return benchmarks.__main__.main


def test_the_demo_leaves_all_that_it_says(tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "new" / "out"
    text.write_text(SENTENCES, encoding="utf-8")
    demo.run(text, out, steps=4, preset="nano", gate_steps=3)
    printed = capsys.readouterr().out
    for words in (
        "the engines are equal",
        "loss at step 4",
        "tokens per second",
        "Flax writes: The",
    ):
        assert words in printed
    figures = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    assert figures["gate"]["steps"] == 3 and figures["gate"]["loss_gap"] <= 1e-9
    losses = [figures["engines"][name]["losses"] for name in ("NumPy", "Flax")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(losses[0]) == 4 and figures["engines"]["Flax"]["compile_seconds"] > 0
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")


def tokens():
    return np.random.default_rng(0).integers(0, 50, 2000)


def gate():
    return demo.gate(tokens(), 50, steps=4, seed=0, console=Console(quiet=True))


def test_the_gate_finds_a_wrong_gradient_and_names_it(monkeypatch):
    right = reference.training.loop.gpt_loss

    def wrong(*args, **kwargs):
        loss, backward = right(*args, **kwargs)

        def slightly_wrong(dloss):
            gradients = backward(dloss)
            gradients["blocks"][1]["feed_forward"]["up"]["kernel"][3, 4] *= 1 + 1e-6
            return gradients

        return loss, slightly_wrong

    gate()
    monkeypatch.setattr(reference.training.loop, "gpt_loss", wrong)
    with pytest.raises(Mismatch, match=r"first gradient in float64: that of blocks\.1\.feed_forw"):
        gate()


def test_the_gate_finds_a_wrong_step_and_says_which(monkeypatch):
    right = reference.training.loop.adamw

    def wrong(*args, **kwargs):
        return right(*args, **kwargs | {"epsilon": 2e-8})

    monkeypatch.setattr(reference.training.loop, "adamw", wrong)
    with pytest.raises(Mismatch, match=r"part at step [23] in float64: NumPy's loss is \d\.\d{12}"):
        gate()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("nowhere.txt", None, "No such file"),
        ("latin.txt", b"\xe4\xf6\xfc", "latin.txt is not UTF-8: byte 0"),
        ("short.txt", b"too short", "too few for a batch"),
    ],
)
def test_a_text_that_cannot_be_used_is_named(tmp_path, capsys, command, name, content, message):
    path, out = tmp_path / name, tmp_path / "out"
    if content is not None:
        path.write_bytes(content)
    assert command(["--data", str(path), "--out", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


# The timing of a step


def test_a_step_of_every_engine_is_timed(tmp_path, capsys, command):
    peer("torch")
    sizes = ((2, 12, 7, 3, 11, 3),)
    figures = training.run(tmp_path / "out", rounds=2, sizes=sizes)
    printed = capsys.readouterr().out
    assert "in all engines" in printed and "with AdamW" in printed
    (size,) = json.loads((tmp_path / "out" / "training.json").read_text("utf-8"))["sizes"]
    assert size == figures["sizes"][0]
    for part in ("gradients", "step"):
        assert set(size[part]) == {"NumPy", "Flax", "PyTorch"}
        assert all(t["low"] <= t["median"] <= t["high"] for t in size[part].values())
    assert (tmp_path / "out" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert command(["training", "--rounds", "0"]) == 1


def test_what_differs_is_not_timed():
    calls = {"NumPy": {"values": lambda: (2.0, 1.0)}, "Flax": {"values": lambda: (2.0001, 1.0)}}
    with pytest.raises(Mismatch, match="Flax has the loss 2.0001000 .* is not timed"):
        training.verify(calls)
    calls["Flax"]["values"] = lambda: (2.0, 1.01)
    with pytest.raises(Mismatch, match="gradient of length 1.010000"):
        training.verify(calls)


def test_pytorch_s_training_is_ours():
    """Ten steps of the peer that is timed beside us.  Turns red if a bias decays there."""
    torch = peer("torch")
    from benchmarks.torch_gpt import TorchGPT

    config = GPTConfig(50, 8, layers=2, heads=3, width=12)
    settings = TrainingConfig(steps=10, batch=4, length=8, warmup=2, dtype="float64")
    params = initial_params(config, key=key(0), dtype=np.float64)
    model = TorchGPT(params, config, settings)
    state = reference.training.loop.initial_state(config, settings)._replace(params=params)
    batches = reference.training.loop.batches(tokens(), length=8, batch=4, key=key(1))
    for _, (inputs, labels) in zip(range(10), batches, strict=False):
        batch = {"tokens": inputs, "labels": labels, "key": key(2)}
        state, loss = reference.training.loop.train_step(
            state, **batch, config=config, training=settings
        )
        theirs = model.train_step(torch.tensor(inputs), torch.tensor(labels))
        np.testing.assert_allclose(theirs.item(), loss, rtol=1e-9)


def test_the_interval_is_made_of_ranks():
    timing = median([float(i) for i in range(1, 16)])
    assert (timing["median"], timing["low"], timing["high"], timing["n"]) == (8, 4, 12, 15)
    assert median([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0, "n": 1}
