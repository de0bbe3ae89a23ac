import functools
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.models.gpt import (
    PRESETS,
    GPTConfig,
    initial_params,
    parameter_count,
    parameter_shapes,
)
from reference.tokenizers import BPE
from reference.training import checkpoint as checkpoints
from reference.training.checkpoint import Checkpoint, load, new_run, save

CONFIG = GPTConfig(vocabulary=263, context=7, layers=2, heads=3, width=6, dropout=0.2)
TOKENIZER = BPE.train("the cat and the hat and the bat " * 9, 260)
SETTINGS = {"steps": 30, "learning_rate": 1e-3, "data": None, "nested": {"names": ["ä", "b"]}}


def made(step=3, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    params = initial_params(CONFIG, key=random.key(0), dtype=dtype)

    def draw():
        return tree.map(lambda a: rng.standard_normal(a.shape).astype(dtype), params)

    return Checkpoint(step, draw(), {"mean": draw(), "square": draw()}, CONFIG, SETTINGS, TOKENIZER)


def assert_same(actual, expected):
    """Equal to the last bit, in dtype too."""
    trees = ("params", "optimizer")
    for name in trees:
        tree.map(assert_equal, getattr(actual, name), getattr(expected, name))
    bare = dict.fromkeys(trees, {})
    assert replace(actual, **bare) == replace(expected, **bare)


def assert_equal(actual, expected):
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == expected.dtype


@pytest.fixture
def run(tmp_path):
    """A run of two checkpoints."""
    save(tmp_path / "run", made(step=2, seed=2))
    save(tmp_path / "run", made(step=11, seed=11))
    return tmp_path / "run"


@pytest.fixture
def step(run):
    return run / "step-11"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_saved_is_loaded(tmp_path, dtype):
    saved = made(dtype=dtype)
    folder = save(tmp_path / "a" / "run", saved)
    assert folder == tmp_path / "a" / "run" / "step-3"
    assert_same(load(tmp_path / "a" / "run"), saved)
    assert_same(load(str(folder)), saved)


def test_loaded_arrays_are_their_owners_alone(run):
    loaded, again = load(run), load(run)
    for a in tree.leaves([loaded.params, loaded.optimizer]):
        assert type(a) is np.ndarray
        a += 1
    assert_same(load(run), again)
    assert_same(again, made(step=11, seed=11))


def test_loaded_trees_have_the_order_of_new_ones(run):
    new = initial_params(CONFIG, key=random.key(0))
    loaded = load(run)
    for got in (loaded.params, *loaded.optimizer.values()):
        assert list(tree.flatten(got)) == list(tree.flatten(new))
    assert list(loaded.optimizer) == ["mean", "square"]


def test_what_jax_holds_is_saved(tmp_path):
    saved = made()
    on_device = replace(
        saved, params=jax.device_put(saved.params), optimizer=jax.device_put(saved.optimizer)
    )
    save(tmp_path, on_device)
    assert_same(load(tmp_path), saved)


def test_arrays_that_are_views_are_saved(tmp_path):
    saved = made()
    views = replace(saved, params=tree.map(np.asfortranarray, saved.params))
    save(tmp_path, views)
    assert_same(load(tmp_path), saved)


def test_the_form_on_disk(step):
    """What other programs may rely on."""
    assert (step.parent / "latest").read_bytes() == b"step-11\n"
    assert sorted(os.listdir(step.parent)) == ["latest", "step-11", "step-2"]
    files = ["checkpoint.json", "merges.txt", "optimizer.safetensors", "params.safetensors"]
    assert sorted(os.listdir(step)) == [*files, "vocab.json"]
    assert json.loads((step / "checkpoint.json").read_text()) == {
        "format": "twinformer checkpoint",
        "version": 1,
        "step": 11,
        "model": {
            "name": "gpt",
            "vocabulary": 263,
            "context": 7,
            "layers": 2,
            "heads": 3,
            "width": 6,
            "dropout": 0.2,
        },
        "training": SETTINGS,
    }
    assert "blocks.1.attention.sublayer.query.kernel" in load_file(step / "params.safetensors")
    assert "square.blocks.0.norm.scale" not in load_file(step / "optimizer.safetensors")
    assert "square.blocks.0.attention.norm.scale" in load_file(step / "optimizer.safetensors")


def test_earlier_steps_are_kept(run):
    assert_same(load(run / "step-2"), made(step=2, seed=2))


def test_a_step_folder_can_be_the_working_directory(step, monkeypatch):
    monkeypatch.chdir(step)
    assert_same(load("."), made(step=11, seed=11))


def test_a_step_that_is_there_is_not_touched(run):
    """Turns red if the folder that `latest` names is removed, even for a moment."""
    before = {file: file.read_bytes() for file in (run / "step-11").iterdir()}
    for seed in (12, 13):
        folder = save(run, made(step=11, seed=seed))
        assert_same(load(run), made(step=11, seed=seed))
        assert_same(load(folder), made(step=11, seed=seed))
    assert {file: file.read_bytes() for file in (run / "step-11").iterdir()} == before


def test_what_a_killed_run_left_is_removed(run):
    (run / "step-12.tmp" / "folder").mkdir(parents=True)
    (run / "step-12.tmp" / "params.safetensors").write_bytes(b"half")
    (run / "latest.tmp").write_text("step-1")
    assert_same(load(run), made(step=11, seed=11))
    folder = save(run, made(step=12))
    assert_same(load(run), made(step=12))
    assert sorted(os.listdir(run)) == ["latest", "step-11", "step-12", "step-2"]
    assert not (folder / "folder").exists()


class Disk:
    """Every call that changes the disk, in order; `seen` is called before each.

    The one numbered `fault` fails, with `half` after a part of its work.
    """

    def __init__(self, monkeypatch, fault=None, half=False, seen=lambda name, args: None):
        self.calls, self.fault, self.half, self.seen = [], fault, half, seen
        for owner, name in (
            (os, "fsync"),
            (os, "rename"),
            (os, "replace"),
            (Path, "write_text"),
            (Path, "mkdir"),
            (checkpoints, "save_file"),
        ):
            monkeypatch.setattr(owner, name, self.wrapped(name, getattr(owner, name)))

    def wrapped(self, name, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            self.seen(name, args)
            self.calls.append((name, args))
            if len(self.calls) - 1 == self.fault:
                if self.half and name == "save_file":
                    args[1].write_bytes(b"half")
                if self.half and name == "write_text":
                    function(args[0], args[1][: len(args[1]) // 2], **kwargs)
                raise OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return call


def test_a_disk_that_fails_at_any_moment_leaves_a_whole_checkpoint(run, tmp_path, monkeypatch):
    old, new = made(step=11, seed=11), made(step=12, seed=12)
    for half in (False, True):
        for fault in range(100):
            copy = tmp_path / f"{half}-{fault}"
            shutil.copytree(run, copy)
            with monkeypatch.context() as patch:
                disk = Disk(patch, fault, half)
                try:
                    save(copy, new)
                    break
                except OSError as error:
                    assert error.errno == 28
            replaced = "replace" in [c[0] for c in disk.calls if c[1][-1] == copy / "latest"]
            assert_same(load(copy), new if replaced and disk.calls[-1][0] == "fsync" else old)
            save(copy, new)
            assert_same(load(copy), new)
        names = [name for name, _ in disk.calls]
        assert fault == len(names) and names.count("save_file") == 2 and "rename" in names


@pytest.mark.parametrize("step", [11, 12], ids=["again", "next"])
def test_latest_names_a_whole_checkpoint_at_every_moment(run, monkeypatch, step):
    """A program that is killed, or another that reads, finds the old or the new one."""
    old, new, found = made(step=11, seed=11), made(step=step, seed=12), []

    def seen(name, args):
        found.append(load(run).params["norm"]["scale"][0])

    disk = Disk(monkeypatch, seen=seen)
    save(run, new)
    values = [c.params["norm"]["scale"][0] for c in (old, new)]
    assert found == [values[0]] * (len(disk.calls) - 1) + [values[1]]


def test_all_is_on_the_disk_before_it_gets_its_name(run, monkeypatch):
    """Without these a power cut may leave a name with nothing behind it."""
    synced, opened, events = set(), {}, []
    real_open = os.open

    def follow(path, *args, **kwargs):
        descriptor = real_open(path, *args, **kwargs)
        opened[descriptor] = Path(path)
        return descriptor

    def seen(name, args):
        if name == "fsync" and args[0] in opened:
            synced.add(opened[args[0]].name)
            events.append(("fsync", opened[args[0]].name))
        if name in ("rename", "replace") and Path(args[0]).parent == run:
            source = Path(args[0])
            expected = {source.name}
            if source.is_dir():
                expected |= set(os.listdir(source))
            assert expected <= synced
            events.append((name, Path(args[1]).name))

    monkeypatch.setattr(os, "open", follow)
    Disk(monkeypatch, seen=seen)
    save(run, made(step=12))
    assert events[-6:] == [
        ("fsync", "step-12.tmp"),
        ("rename", "step-12"),
        ("fsync", "run"),
        ("fsync", "latest.tmp"),
        ("replace", "latest"),
        ("fsync", "run"),
    ]


def test_a_full_disk_is_an_os_error(run, monkeypatch):
    """safetensors reports it as an error of its own."""

    def full(*args):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="params.safetensors could not be written.*No space left"):
        save(run, made(step=12))
    assert_same(load(run), made(step=11, seed=11))


@pytest.mark.parametrize("setting", [float("nan"), {1, 2}])
def test_settings_that_json_lacks_change_nothing(run, setting):
    with pytest.raises((ValueError, TypeError)):
        save(run, replace(made(step=12), training={"a": setting}))
    assert_same(load(run), made(step=11, seed=11))


def test_a_new_run_starts_in_an_empty_folder(tmp_path):
    new_run(tmp_path / "a" / "b")
    new_run(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("mine")
    for taken in ("a", "file"):
        with pytest.raises(InputError, match=f"{taken} is not empty; give another, or --resume"):
            new_run(tmp_path / taken)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_killed_run_left_unfinished_is_no_run(tmp_path):
    (tmp_path / "step-100.tmp").mkdir()
    new_run(tmp_path)
    (tmp_path / "notes.tmp").touch()
    with pytest.raises(InputError, match="is not empty"):
        new_run(tmp_path)


def test_parameter_shapes_are_those_of_the_model():
    shapes = parameter_shapes(CONFIG)
    new = tree.flatten(initial_params(CONFIG, key=random.key(0)))
    assert {path: a.shape for path, a in new.items()} == shapes and list(new) == list(shapes)
    for config in PRESETS.values():
        sizes = [math.prod(shape) for shape in parameter_shapes(config).values()]
        assert sum(sizes) == parameter_count(config)


def refused(folder, *words):
    """load raises CheckpointError, whose message has all these words."""
    with pytest.raises(CheckpointError) as raised:
        load(folder)
    for word in words:
        assert str(word) in str(raised.value)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, run):
    refused(tmp_path / "none", tmp_path / "none", "give that of a run")
    refused(run / "latest", run / "latest", "no folder")
    (run / "latest").unlink()
    refused(run, run, "no file `latest`", "one of its folders step-N")


@pytest.mark.parametrize(
    "text",
    ["", "step-12", "step-", "step-x", "../run/step-11", "step-11/../step-11", "step-11\n\n"]
    + ["step-11.tmp", " step-11", "step-١١", "/step-11", "step-11\nstep-2\n", "\udcff"],
)
def test_a_latest_that_names_no_checkpoint_is_refused(run, text):
    shutil.copytree(run / "step-11", run / "step-11.tmp")
    (run / "latest").write_bytes(text.encode(errors="surrogateescape"))
    refused(run, run / "latest", "names ", "such as step-100")


@pytest.mark.parametrize(
    "name", ["checkpoint.json", "params.safetensors", "optimizer.safetensors", "vocab.json"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign"])
def test_a_file_that_is_missing_or_torn_is_refused(step, name, damage):
    content = (step / name).read_bytes()
    (step / name).unlink()
    if damage != "missing":
        torn = {"empty": b"", "cut": content[: len(content) // 2], "foreign": b"PK\x03\x04\xff" * 9}
        (step / name).write_bytes(torn[damage])
    refused(step.parent, step, "merges.txt" if name == "vocab.json" == damage else "")
    refused(
        step, step / name if damage != "missing" else "", "give" if damage == "missing" else "copy"
    )


CHANGES = {
    "format": ({"format": "other"}, "'other'"),
    "version": ({"version": 2}, "'version': 2"),
    "unknown": ({"more": 1}, "'more'"),
    "negative": ({"step": -1}, "step must be 0 or more"),
    "true": ({"step": True}, "step must be 0 or more"),
    "text": ({"step": "3"}, "step must be 0 or more"),
    "settings": ({"training": [1]}, "training an object"),
    "list": ({"model": [1]}, "has [1] where it must have ['context'"),
    "model": ({"model": {"name": "bert"}}, "of another model than 'gpt'"),
    "size": ({"model": {"width": 0}}, "width is 0"),
    "heads": ({"model": {"heads": 4}}, "4 heads do not divide"),
    "rate": ({"model": {"dropout": "a"}}, "'<=' not supported"),
    "unknown size": ({"model": {"depth": 3}}, "'depth'"),
}


@pytest.mark.parametrize("change, word", CHANGES.values(), ids=CHANGES)
def test_a_description_that_cannot_be_is_refused(step, change, word):
    path = step / "checkpoint.json"
    described = json.loads(path.read_text())
    for name, value in change.items():
        is_model = name == "model" and isinstance(value, dict)
        described[name] = described[name] | value if is_model else value
    path.write_text(json.dumps(described))
    refused(step, path, word)


@pytest.mark.parametrize("name", ["step", "training", "model", "dropout", "width", "name"])
def test_a_description_that_lacks_something_is_refused(step, name):
    path = step / "checkpoint.json"
    described = json.loads(path.read_text())
    described["model"].pop(name) if name in described["model"] else described.pop(name)
    path.write_text(json.dumps(described))
    refused(step, path, name, "give another checkpoint")


@pytest.mark.parametrize("text", ["[1]", "null", "[" * 100_000, '"a"'])
def test_json_that_is_no_object_is_refused(step, text):
    (step / "checkpoint.json").write_text(text)
    refused(step, step / "checkpoint.json", "JSON", "copy it again")


@pytest.mark.parametrize("name", ["params", "optimizer"])
def test_arrays_that_do_not_fit_are_all_named(step, name):
    path = step / f"{name}.safetensors"
    prefix = "" if name == "params" else "square."
    arrays = load_file(path)
    del arrays[f"{prefix}norm.bias"], arrays[f"{prefix}blocks.1.attention.sublayer.key.bias"]
    more = f"{prefix}blocks.2.attention.sublayer.key.bias", "more"
    arrays |= dict.fromkeys(more, np.ones(6, np.float32))
    arrays[f"{prefix}position.embedding"] = np.ones((6, 7), np.float32)
    save_file(arrays, path)
    refused(
        step,
        f"{path} does not fit",
        f"missing: {prefix}blocks.1.attention.sublayer.key.bias, {prefix}norm.bias;",
        f"{prefix}blocks.2.attention.sublayer.key.bias",
        "more",
        f"of another shape: {prefix}position.embedding (6, 7), not (7, 6):",
    )


def test_many_arrays_that_do_not_fit_are_counted(step):
    save_file({"x": np.ones(3, np.float32)}, step / "params.safetensors")
    total = len(parameter_shapes(CONFIG))
    refused(step, "missing: token.embedding, ", f" and {total - 8} more; left over: x:")


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_arrays_of_another_dtype_are_refused(step, dtype):
    path = step / "params.safetensors"
    arrays = load_file(path)
    save_file(arrays | {"norm.bias": np.ones(6, dtype)}, path)
    refused(step, path, "must be of float32 or 64")


def test_files_of_two_precisions_are_refused(step):
    path = step / "optimizer.safetensors"
    save_file({name: a.astype(np.float64) for name, a in load_file(path).items()}, path)
    refused(step, step, "some arrays in float32 and some in float64")


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(step):
    BPE.train("the cat and the hat and the bat " * 9, 264).save(step)
    refused(step, step, "the tokenizer has 264 tokens, the model only 263")
