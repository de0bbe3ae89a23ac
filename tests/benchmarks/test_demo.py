import json

import jax
import numpy as np
import pytest
from matplotlib import image
from rich.console import Console

import reference.models
import reference.training.loop
from benchmarks import demo
from benchmarks.report import Mismatch
from reference.tokenizers import BPE

SENTENCES = "".join(f"The sum of {a} and {b} is {a + b}.\n" for a in range(30) for b in range(30))
GATE_STEPS = 4


def test_the_demo_leaves_all_that_it_says(tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "new" / "out"
    text.write_text(SENTENCES, encoding="utf-8")
    demo.run(text, out, steps=7, preset="nano", gate_steps=GATE_STEPS)
    printed = capsys.readouterr().out
    for words in (
        "the engines are equal",
        "step 7 of 7",
        "loss at step 7",
        "tokens per second",
        "Flax writes: The",
        str(out / "demo.json"),
    ):
        assert words in printed
    figures = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    assert figures["gate"]["steps"] == GATE_STEPS and figures["gate"]["loss_gap"] <= 1e-9
    losses = [figures["engines"][name]["losses"] for name in ("NumPy", "Flax")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(losses[0]) == 7 and losses[0][6] < losses[0][0]
    for engine in figures["engines"].values():
        assert len(engine["step"]["seconds"]) == 6  # all but the first
        assert engine["tokens_per_second"] == 12 * 64 / engine["step"]["median"]
    assert figures["engines"]["Flax"]["compile_seconds"] > 0
    times = figures["flax_speed_to_numpy"]
    assert times["low"] <= times["ratio"] <= times["high"]
    assert figures["text"]["tokens"] == len(figures["text"]["ids"]["Flax"]) == 60
    picture = image.imread(out / "demo.png")
    assert picture.shape[1] > 900 and picture[..., :3].std() > 0.1
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "demo.png"]


def test_precision_is_put_back_even_after_a_mismatch():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(Mismatch), demo.double_precision():
            assert jax.numpy.zeros(1).dtype == np.float64
            raise Mismatch
        assert jax.numpy.zeros(1).dtype == np.float32
    finally:
        jax.config.update("jax_enable_x64", before)


def gate():
    """With the sizes of the demo above, whose compiled step serves again."""
    tokenizer = BPE.train(SENTENCES)
    tokens = np.array(tokenizer.encode(SENTENCES), np.int32)
    size = tokenizer.vocabulary_size
    return demo.gate(tokens, size, steps=GATE_STEPS, seed=0, console=Console(quiet=True))


def test_the_gate_finds_a_wrong_gradient_and_names_it(monkeypatch):
    right = reference.models.MODELS["gpt"]

    def wrong(*args, **kwargs):
        loss, backward = right.loss(*args, **kwargs)

        def slightly_wrong(dloss):
            gradients = backward(dloss)
            gradients["blocks"][1]["feed_forward"]["sublayer"]["up"]["kernel"][3, 4] *= 1 + 1e-6
            return gradients

        return loss, slightly_wrong

    monkeypatch.setitem(reference.models.MODELS, "gpt", right._replace(loss=wrong))
    path = r"blocks\.1\.feed_forward\.sublayer\.up\.kernel"
    with pytest.raises(Mismatch, match=f"first gradient in float64: that of {path} is "):
        gate()


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_gradient_that_is_no_number_is_found_wherever_it_stands(monkeypatch, wrong):
    right = {"first": np.ones(3), "second": np.ones(3), "third": np.ones(3)}
    results = [right, right | {"second": np.array([1, np.nan, 1])}]
    for i, engine in enumerate(demo.ENGINES.values()):
        gradients = results[i == wrong]
        monkeypatch.setattr(
            engine.training.loop, "loss_and_gradients", lambda *a, g=gradients, **k: (0, g)
        )
    with pytest.raises(Mismatch, match="that of second is nan apart"):
        gate()


def test_the_gate_finds_a_wrong_step_and_says_which(monkeypatch):
    right = reference.training.loop.adamw

    def wrong(*args, **kwargs):
        return right(*args, **kwargs | {"epsilon": 2e-8})

    monkeypatch.setattr(demo, "compare_gradients", lambda *_: 0)
    monkeypatch.setattr(reference.training.loop, "adamw", wrong)
    losses = r"NumPy's loss is \d\.\d{12}, Flax's \d\.\d{12}, "
    with pytest.raises(Mismatch, match=rf"part at step [23] in float64: {losses}"):
        gate()


@pytest.mark.parametrize("different, words", [(None, "The same 60"), (7, "They part at token 7")])
def test_the_report_says_whether_the_texts_are_one(capsys, different, words):
    timing = {"median": 0.1, "low": 0.09, "high": 0.11}
    engine = {"losses": [7.0, 6.0], "step": timing, "tokens_per_second": 5, "compile_seconds": 2}
    text = {"NumPy": "The [b] a", "Flax": "The [b] c", "tokens": 60, "first_difference": different}
    speed = {"ratio": 1.0, "low": 0.9, "high": 1.1}
    figures = {"engines": {"NumPy": engine, "Flax": engine}, "text": text}
    demo.report(figures | {"flax_speed_to_numpy": speed}, Console())
    printed = capsys.readouterr().out
    assert words in printed and "Flax writes: The [b] c" in printed
