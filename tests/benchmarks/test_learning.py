import gzip
import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import image

import benchmarks.__main__
from benchmarks import captions, digits, learning, translation
from reference import random
from reference.errors import InputError
from reference.models.clip import initial_params, zero_shot
from reference.models.transformer import TransformerConfig
from reference.models.vit import ViTConfig
from reference.training import TrainingConfig
from tests.peers import peer

DIGITS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
TRAINING = TrainingConfig(steps=6, batch=16, warmup=1, learning_rate=0.01)
VIT = ViTConfig(8, 4, layers=1, heads=2, width=8, hidden=12, labels=10, channels=1)
CLIP = replace(
    captions.CONFIG,
    text=replace(captions.CONFIG.text, layers=1, heads=2, width=8, hidden=12),
    vision=replace(captions.CONFIG.vision, image=8, patch=4, layers=1, heads=2, width=8, hidden=12),
    projection=6,
)
TRANSFORMER = partial(TransformerConfig, context=40, layers=1, heads=2, width=8, hidden=12)
COLORS = {"red": "rote", "blue": "blaue", "green": "grüne", "old": "alte", "small": "kleine"}
THINGS = {"cat": "Katze", "door": "Tür", "woman": "Frau", "city": "Stadt"}


@pytest.fixture
def command(monkeypatch):
    """The command line, with the threads of the tests left as they are."""
    monkeypatch.setattr(benchmarks.__main__, "pin_threads", lambda number: None)
    return benchmarks.__main__.main


def idx(array):
    """An array of bytes as an idx file has it."""
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder as MNIST's, of images that say their digit by one bright line; one file packed."""
    folder = tmp_path_factory.mktemp("mnist")
    rng = np.random.default_rng(0)
    for part, number in (("train", 60), ("t10k", 30)):
        labels = np.arange(number) % 10
        images = rng.integers(0, 100, (number, 8, 8))
        for picture, label in zip(images, labels, strict=True):
            (picture if label < 5 else picture.T)[label % 5] = 255
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


@pytest.fixture(scope="module")
def multi30k(tmp_path_factory):
    """A folder as Multi30k's."""
    folder = tmp_path_factory.mktemp("multi30k")
    pairs = [
        (f"The {color} {thing}.\n", f"Die {farbe} {ding}.\n")
        for color, farbe in COLORS.items()
        for thing, ding in THINGS.items()
    ]
    for name, part in (("train", pairs), ("val", pairs[::3]), ("test_2016_flickr", pairs[::5])):
        for language, texts in zip(("en", "de"), zip(*part, strict=True), strict=True):
            (folder / f"{name}.{language}").write_text("".join(texts), encoding="utf-8")
    return folder


def left_by(name, out, printed):
    """The figures that a command left, after a look at all that it must leave."""
    assert {path.name for path in out.iterdir()} - {"translation.de"} == {
        f"{name}.json",
        f"{name}.png",
    }
    assert image.imread(out / f"{name}.png").shape[1] > 900
    figures = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    assert {"device", "versions", "commit", "command"} <= figures["header"].keys()
    assert figures["header"]["command"] == "as typed"
    seconds = figures["seconds"]
    assert 0 < seconds["training"] < seconds["all"]
    for words in ("asked for", "seconds of training", "seconds of the whole command", "weights"):
        assert words in printed
    assert len(figures["losses"]["evaluation"]) >= 6
    return figures


def run_by(engine, module, data, out, capsys, **options):
    """The figures of a command by an engine."""
    module.run(data, out, engine=engine, command="as typed", seed=3, **options)
    figures = left_by(module.__name__.split(".")[-1], out, capsys.readouterr().out)
    assert figures["engine"] == engine and figures["training"]["seed"] == 3
    return figures


def run_by_both(module, data, folder, capsys, **options):
    """The figures of a command by each engine, which must have the same losses."""
    both = [
        run_by(engine, module, data, folder / engine, capsys, **options)
        for engine in ("reference", "accelerated")
    ]
    losses = [[loss for _, loss in each["losses"]["evaluation"]] for each in both]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    return both


def test_digits_are_learnt_by_both_engines(tmp_path, capsys, mnist):
    options = {"config": VIT, "training": TRAINING, "held_out": 20}
    for figures in run_by_both(digits, mnist, tmp_path, capsys, **options):
        assert figures["images"] == {"training": 40, "held out": 20, "test": 30}
        wrong = figures["misread"]
        assert figures["test_accuracy"] == (30 - len(wrong)) / 30
        assert all(digit == i % 10 != read for i, digit, read in wrong)
        assert [step for step, *_ in figures["held_out_accuracy"]] == [1, 2, 3, 4, 5, 6]


def test_names_are_learnt(tmp_path, capsys, mnist):
    options = {"config": CLIP, "training": TRAINING, "held_out": 20}
    figures = run_by("reference", captions, mnist, tmp_path / "out", capsys, **options)
    counts = np.array(figures["confusion"])
    assert counts.sum(axis=1).tolist() == [3] * 10
    assert figures["zero_shot_accuracy"] == counts.trace() / 30
    assert not set(figures["captions"]) & set(figures["prompts"])


def test_both_engines_find_a_name_equally_near():
    """And as near as `zero_shot` has it, whose probabilities are in the same order."""
    params = initial_params(CLIP, key=random.key(1))
    images = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 1)).astype(np.float32)
    ours, twins = (captions.cosines_of(e, CLIP)(params, images) for e in learning.FITS)
    np.testing.assert_allclose(ours, twins, atol=1e-5)
    probabilities = zero_shot(
        params, images=images, prompts=captions.sentences(captions.PROMPTS), config=CLIP
    )
    np.testing.assert_array_equal(ours.argsort(axis=1), probabilities.argsort(axis=1))


def test_german_is_learnt_by_both_engines(tmp_path, capsys, monkeypatch, multi30k):
    peer("sacrebleu")
    monkeypatch.setattr(translation, "BEAMS", 1)  # what the curve is of: one search to compile
    monkeypatch.setattr(translation, "AT_ONCE", 3)
    options = {
        "config": TRANSFORMER,
        "training": TRAINING,
        "vocabulary": 290,
        "boundaries": (16,),
    }
    both = run_by_both(translation, multi30k, tmp_path, capsys, **options)
    for figures in both:
        assert figures["pairs"] == {"train": 20, "val": 7, "test_2016_flickr": 4}
        assert figures["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
        assert [pair["source"] for pair in figures["translations"]][0] == "The red cat."
        assert figures["model"]["vocabulary"] == 290 and figures["epochs"] == 3
        assert figures["model"]["wiring"] == "pre"
    assert both[0]["translations"] == both[1]["translations"]
    lines = (tmp_path / "accelerated" / "translation.de").read_text("utf-8").split("\n")
    assert lines[:4] == [pair["written"] for pair in both[0]["translations"]]


def test_the_translator_gives_each_sentence_its_own(monkeypatch):
    """Whatever length puts it into which batch, and however a batch is filled up."""
    tokenizer = translation.learnt([("a", "b")], 258)
    monkeypatch.setattr(translation, "AT_ONCE", 3)

    def echo(params, *, source, source_kept, config, **_):
        tokens = np.where(source_kept, source, config.pad)[:, None]
        return SimpleNamespace(tokens=tokens)

    monkeypatch.setitem(translation.TRANSLATORS, "reference", echo)
    pad, end = tokenizer.special_ids.values()
    config = TRANSFORMER(258, pad=pad, end=end)
    pairs = [(text, "") for text in ("a longer one", "short", "x", "the longest of all, by far")]
    options = {"engine": "reference", "tokenizer": tokenizer, "config": config, "beams": 1}
    assert translation.translations({}, pairs, **options) == [text for text, _ in pairs]


def test_pairs_are_filled_up_side_by_side():
    tokenizer = translation.learnt([("a", "b")], 258)
    pad, end = tokenizer.special_ids.values()
    (row,) = translation.rows_of([("ab", "c"), ("too long a pair", "c")], tokenizer, 4)
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    assert row["source"] == [a, b, end] and row["source_kept"].tolist() == [True] * 3
    assert row["tokens"] == [pad, c, pad] and row["labels"] == [c, end, -100]
    with pytest.raises(InputError, match="no pair has 1 tokens or fewer"):
        translation.rows_of([("ab", "c")], tokenizer, 1)


def test_the_last_rows_of_all_batches_are_filled_up():
    rows = np.arange(14.0).reshape(7, 2)
    double = learning.in_batches(lambda params, x: params["by"] * x, "reference", batch=3)
    np.testing.assert_array_equal(double({"by": 2}, rows), 2 * rows)


def test_a_run_that_is_stopped_is_not_reported(tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        return SimpleNamespace(ended="stopped")

    monkeypatch.setitem(learning.FITS, "reference", stopped)
    with pytest.raises(KeyboardInterrupt):
        learning.learn("reference", VIT, TRAINING, None, None, folder=tmp_path)


@pytest.mark.parametrize("name", ["digits", "captions", "translation"])
def test_a_folder_that_is_not_there_is_named(tmp_path, capsys, command, name):
    if name == "translation":
        peer("sacrebleu")
    out = tmp_path / "out"
    assert command([name, "--data", str(tmp_path / "nowhere"), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"benchmarks {name}: ") and "nowhere is not there" in error
    assert not out.exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "has no train-images-idx3-ubyte, and none that ends in .gz"),
        (b"a text, and no images at all", "it is no idx file"),
        (idx(np.zeros((60, 8, 8)))[:-1], "less than the 3,840 bytes"),
        (idx(np.zeros((59, 8, 8))), "59 images"),
        (idx(np.zeros((60, 8))), "must be (N, H, W)"),
        (idx(np.zeros((60, 8, 8))), "60 rows, and 5,000 of them are held out"),
    ],
)
@pytest.mark.parametrize("name", ["digits", "captions"])
def test_a_file_of_another_kind_is_named(tmp_path, capsys, command, mnist, name, content, message):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for path in mnist.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    (data / "train-images-idx3-ubyte").unlink()
    if content is not None:
        (data / "train-images-idx3-ubyte").write_bytes(content)
    assert command([name, "--data", str(data), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"benchmarks {name}: ") and message in error
    assert not out.exists()


def test_a_digit_without_a_name_is_refused():
    with pytest.raises(InputError, match="a label is 10; give digits, from 0 to 9"):
        captions.check_named(np.array([3]), np.array([10]))


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "has no train.de, and none that ends in .gz"),
        (b"Die rote Katze.\n", "20 lines and"),
        ("Die grüne Tür.\n".encode("latin-1") * 20, "does not fit utf-8"),
        (b"\n" * 20, "it is empty"),
    ],
)
def test_texts_that_do_not_belong_together_are_named(
    tmp_path, capsys, command, multi30k, content, message
):
    peer("sacrebleu")
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for path in multi30k.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    (data / "train.de").unlink()
    if content is not None:
        (data / "train.de").write_bytes(content)
    assert command(["translation", "--data", str(data), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("benchmarks translation: ") and message in error
    assert not out.exists()


def test_without_sacrebleu_it_is_asked_for(tmp_path, capsys, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert command(["translation", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "pip install 'twinformer[metrics]'" in capsys.readouterr().err


def test_what_was_typed_is_kept(monkeypatch, command):
    given = {}
    monkeypatch.setattr(digits, "run", lambda data, out, **options: given.update(options))
    assert command(["digits", "--data", "my data", "--steps", "3", "--engine", "reference"]) == 0
    assert given.pop("begun") > 0
    typed = "python -m benchmarks digits --data 'my data' --steps 3 --engine reference"
    assert given == {"command": typed, "steps": 3, "seed": 0, "engine": "reference"}
