import errno
import json
import math
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.models import parameter_count
from reference.models.gpt import (
    PRESETS,
    GPTConfig,
    initial_params,
    parameter_shapes,
)
from reference.tokenizers import BPE, Characters
from reference.training import checkpoint as checkpoints
from reference.training.checkpoint import Checkpoint, load, save
from reference.training.optimizer import moving_average
from reference.training.run_folder import checkpoint_in, checkpoints_in, remove_older
from reference.training.state import State, updates
from tests.disk import WRITES, Disk

CONFIG = GPTConfig(vocabulary=263, context=7, layers=2, heads=3, width=6, dropout=0.2)
TOKENIZERS = {
    "bpe": BPE.train("the cat and the hat and the bat " * 9, 260),
    "border": BPE.train("the cat and the hat " * 9, 259, special_tokens=["<|endoftext|>"]),
    "characters": Characters.train("the cat and the hät"),
    "none": None,
}
SETTINGS = {"steps": 30, "learning_rate": 1e-3, "data": None, "nested": {"names": ["ä", "b"]}}
SCALING = {"scale": 1024.0, "streak": 7, "skipped": 2}
EVALUATION = {"best_loss": 1 / 3, "best_step": 2, "waited": 1}
POSITION = {"epoch": 1, "batch": 4, "fingerprint": "abc", "validation": None}
TREES = ("params", "mean", "square", "average")


def made(step=3, dtype=np.float32, seed=0, average=0.5, tokenizer="bpe", scaling=None):
    """A checkpoint with numbers of its own."""
    rng = np.random.default_rng(seed)

    def draw():
        shapes = parameter_shapes(CONFIG).items()
        return tree.unflatten({path: rng.standard_normal(s).astype(dtype) for path, s in shapes})

    state = State(step, draw(), draw(), draw(), draw() if average else None, scaling)
    kept = SETTINGS | {"average": average}
    key = (seed, 2**32 - 1)
    return Checkpoint(state, CONFIG, kept, TOKENIZERS[tokenizer], key, POSITION, EVALUATION)


OLD, NEW, EARLY = made(step=11, seed=11), made(step=12, seed=12), made(step=2, seed=2)


def assert_same(actual, expected):
    """Equal to the last bit, in dtype too."""
    for name in TREES:
        one, other = getattr(actual.state, name), getattr(expected.state, name)
        if one is None or other is None:
            assert one is other
        else:
            tree.map(assert_equal, one, other)
    assert without_arrays(actual) == without_arrays(expected)


def assert_equal(actual, expected):
    assert np.array_equal(actual, expected) and actual.dtype == expected.dtype


def without_arrays(checkpoint):
    return replace(checkpoint, state=checkpoint.state._replace(**dict.fromkeys(TREES)))


def mapped(function, checkpoint, trees=TREES):
    """A checkpoint with other arrays."""
    new = {name: tree.map(function, getattr(checkpoint.state, name)) for name in trees}
    return replace(checkpoint, state=checkpoint.state._replace(**new))


@pytest.fixture(autouse=True)
def not_waited_for(monkeypatch):
    """No test can tell whether the disk has what it was asked to have; but it takes its time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    save(folder, EARLY, best=True)
    save(folder, OLD)
    return folder


@pytest.fixture
def run(tmp_path, whole_run):
    """A run of two checkpoints, the first of which is the best."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


@pytest.fixture
def step(run):
    return run / "step-11"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("average, scaling", [(None, SCALING), (0.25, None)])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_what_is_saved_is_loaded(tmp_path, dtype, average, scaling, tokenizer):
    """Turns red if anything is left out of a checkpoint, or comes back in another form."""
    saved = made(dtype=dtype, average=average, scaling=scaling, tokenizer=tokenizer)
    folder = save(tmp_path / "a" / "run", saved)
    assert folder == tmp_path / "a" / "run" / "step-3"
    assert_same(load(tmp_path / "a" / "run"), saved)
    assert_same(load(str(folder)), saved)


NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text('aä\n\\"😀\udcff'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("bü"), inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.text("cd"), PLAIN, max_size=3)
COUNTS = st.integers(0, 2**63 - 1)


@given(
    step=COUNTS,
    kept=st.tuples(OBJECTS, OBJECTS),
    key=st.tuples(*[st.integers(0, 2**32 - 1)] * 2),
    scaling=st.none()
    | st.fixed_dictionaries(
        {
            "scale": st.floats(0, exclude_min=True, allow_infinity=False),
            "streak": COUNTS,
            "skipped": COUNTS,
        }
    ),
    evaluation=st.just({})
    | st.fixed_dictionaries(
        {
            "best_loss": st.floats(allow_nan=False, allow_infinity=False),
            "best_step": COUNTS,
            "waited": COUNTS,
        }
    ),
)
@settings(max_examples=25)
def test_what_is_no_array_is_loaded_as_it_was(
    tmp_path_factory, step, kept, key, scaling, evaluation
):
    """Turns red if the text is not escaped, if numbers lose digits, or what may be is refused."""
    folder = tmp_path_factory.mktemp("run")
    state = OLD.state._replace(step=step, average=None, scaling=scaling)
    saved = Checkpoint(state, CONFIG, kept[0], None, key, kept[1], evaluation)
    save(folder, saved)
    assert repr(without_arrays(load(folder))) == repr(without_arrays(saved))
    shutil.rmtree(folder)


def test_loaded_arrays_are_their_owners_alone(run):
    loaded, again = load(run), load(run)
    for a in tree.leaves([getattr(loaded.state, name) for name in TREES]):
        assert type(a) is np.ndarray
        a += 1
    assert_same(load(run), again)
    assert_same(again, OLD)


def test_loaded_trees_have_the_order_of_new_ones(tmp_path):
    """Turns red if they have that of the file: JAX sorts names, and runs compare by position."""
    backwards = {
        name: tree.unflatten(dict(reversed(tree.flatten(getattr(OLD.state, name)).items())))
        for name in TREES
    }
    save(tmp_path, replace(OLD, state=OLD.state._replace(**backwards)))
    loaded, new = load(tmp_path), initial_params(CONFIG, key=random.key(0))
    assert_same(loaded, OLD)
    for name in TREES:
        assert list(tree.flatten(getattr(loaded.state, name))) == list(tree.flatten(new))


ON_DEVICE = {
    "in JAX": jax.device_put,
    "by columns": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
}


@pytest.mark.parametrize("form", ON_DEVICE.values(), ids=ON_DEVICE)
def test_arrays_are_saved_however_they_lie(tmp_path, form):
    save(tmp_path, mapped(form, OLD))
    assert_same(load(tmp_path), OLD)


def test_a_single_number_stays_one(tmp_path):
    """Turns red with np.ascontiguousarray, which makes a row of it."""
    checkpoints._write_arrays(tmp_path / "one", {"scale": np.float32(2.5)})
    assert load_file(tmp_path / "one")["scale"].shape == ()


def test_the_weights_of_a_run_that_averages_are_without_the_zeros_at_its_start(tmp_path):
    """Turns red if the average is taken as it is, or the last weights are."""
    average = tree.map(np.zeros_like, OLD.state.params)
    for _ in range(3):
        average = moving_average(average, EARLY.state.params, decay=0.5)
    saved = replace(OLD, state=OLD.state._replace(step=3, average=average))
    save(tmp_path, saved)
    found = load(tmp_path)
    tree.map(assert_equal, found.weights, saved.weights)
    for weight, mean in zip(*map(tree.leaves, (found.weights, EARLY.state.params)), strict=True):
        np.testing.assert_allclose(weight, mean, rtol=1e-6)
    tree.map(assert_equal, made(average=None).weights, made(average=None).state.params)
    begun = replace(OLD, state=OLD.state._replace(step=0))
    assert begun.weights is OLD.state.params


def test_the_form_on_disk(step):
    """What other programs may rely on."""
    assert (step.parent / "latest").read_bytes() == b"step-11\n"
    assert (step.parent / "best").read_bytes() == b"step-2\n"
    assert sorted(os.listdir(step.parent)) == ["best", "latest", "step-11", "step-2"]
    files = ["checkpoint.json", "merges.txt", "optimizer.safetensors", "params.safetensors"]
    assert sorted(os.listdir(step)) == [*files, "vocab.json"]
    assert json.loads((step / "checkpoint.json").read_text(encoding="utf-8")) == {
        "format": "twinformer checkpoint",
        "version": 2,
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
        "settings": SETTINGS | {"average": 0.5},
        "random_key": [11, 2**32 - 1],
        "position": POSITION,
        "evaluation": EVALUATION,
        "scaling": None,
        "tokenizer": True,
    }
    kinds = {"params": "", "optimizer": ("mean.", "square.", "average.")}
    for name, prefixes in kinds.items():
        expected = {
            prefix + path for path in parameter_shapes(CONFIG) for prefix in prefixes or [""]
        }
        assert load_file(step / f"{name}.safetensors").keys() == expected
    assert "square.blocks.0.attention.norm.scale" in expected


def test_all_files_may_be_read_by_whom_the_user_lets(tmp_path):
    """Turns red without copymode: safetensors writes for the owner alone."""
    before = os.umask(0o027)
    try:
        folder = save(tmp_path / "run", OLD)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_earlier_steps_are_kept(run):
    assert_same(load(run / "step-2"), EARLY)
    assert_same(load(run, pointer="best"), EARLY)


def test_a_run_that_has_no_best_has_its_latest_for_it(run):
    (run / "best").unlink()
    assert_same(load(run, pointer="best"), OLD)


def test_a_step_folder_can_be_the_working_directory(step, monkeypatch):
    monkeypatch.chdir(step)
    assert_same(load("."), OLD)


def test_a_step_that_is_there_is_not_touched(run):
    """Turns red if the folder that `latest` names is removed, even for a moment."""
    before = {file: file.read_bytes() for file in (run / "step-11").iterdir()}
    for seed, name in ((12, "step-011"), (13, "step-0011")):
        folder = save(run, made(step=11, seed=seed))
        assert folder == run / name
        assert_same(load(run), made(step=11, seed=seed))
        assert_same(load(folder), made(step=11, seed=seed))
    assert {file: file.read_bytes() for file in (run / "step-11").iterdir()} == before


def test_what_a_killed_run_left_is_removed(run):
    """Turns red if only what has the name of the new one is: of another step it would stay."""
    for step in (7, 12):
        (run / f"step-{step}.tmp" / "folder").mkdir(parents=True)
        (run / f"step-{step}.tmp" / "params.safetensors").write_bytes(b"half")
    for pointer in ("latest", "best"):
        (run / f"{pointer}.tmp").write_text("step-1")
    assert_same(load(run), OLD)
    folder = save(run, NEW)
    assert_same(load(run), NEW)
    assert sorted(os.listdir(run)) == ["best", "latest", "step-11", "step-12", "step-2"]
    assert not (folder / "folder").exists()


def save_and_remove(folder, checkpoint):
    """All that a run does with its folder from one step to the next."""
    save(folder, checkpoint, best=True)
    remove_older(folder, 1)


def assert_named_ones_are_whole(run, new):
    """Each checkpoint that has its name -> the steps of the two that are named in files."""
    found = {folder: load(folder) for folder in checkpoints_in(run)}
    for checkpoint in found.values():
        assert_same(checkpoint, {2: EARLY, 11: OLD, 12: new}[checkpoint.step])
    return tuple(found[checkpoint_in(run, name)].step for name in ("latest", "best"))


@pytest.mark.parametrize(
    "after, tokenizer",
    [("once", "bpe"), ("half", "bpe"), ("half", "characters"), ("for good", "characters")],
)
def test_a_disk_that_fails_at_any_moment_leaves_whole_checkpoints(
    whole_run, tmp_path, monkeypatch, after, tokenizer
):
    """A fault in every write, sync, rename and removal, one after another: all at once, with a half
    of what was to be written there, or with all that comes after failing, too.

    Turns red if `latest` is written in place, if what failed is not removed, now or by the next
    one, or if an error does not say what it is about.
    """
    new = made(step=12, seed=12, tokenizer=tokenizer)
    copy = shutil.copytree(whole_run, tmp_path / "unharmed")
    with monkeypatch.context() as patch:
        whole = Disk(patch)
        save_and_remove(copy, new)
    names = [name for name, _ in whole.calls]
    assert names.count("save_file") == 2 and "rmdir" in names
    assert names.count("write") == (5 if tokenizer == "bpe" else 4)
    assert sorted(os.listdir(copy)) == ["best", "latest", "step-12"]
    files = sorted(os.listdir(copy / "step-12"))
    for fault in range(len(names)):
        if after == "half" and names[fault] not in WRITES:
            continue
        copy = shutil.copytree(whole_run, tmp_path / str(fault))
        with monkeypatch.context() as patch:
            disk = Disk(patch, fault, half=after == "half", for_good=after == "for good")
            with pytest.raises(OSError, match="No space left on device") as raised:
                save_and_remove(copy, new)
        name, path = disk.calls[fault]
        assert name == names[fault] and raised.value.errno == errno.ENOSPC
        said = str(raised.value)
        assert str(path) in said or str(path.parent) in said, (name, path, said)
        replaced = [p.stem for n, p in disk.calls[:fault] if n == "replace" and p.parent == copy]
        expected = 12 if "latest" in replaced else 11, 12 if "best" in replaced else 2
        assert assert_named_ones_are_whole(copy, new) == expected
        if after != "for good" and "latest" not in replaced:
            assert not list(copy.glob("step-*.tmp"))
        save_and_remove(copy, new)
        assert assert_named_ones_are_whole(copy, new) == (12, 12)
        (last,) = checkpoints_in(copy)
        assert sorted(os.listdir(copy)) == ["best", "latest", last.name]
        assert sorted(os.listdir(last)) == files
        shutil.rmtree(copy)


@pytest.mark.parametrize("step", [11, 12], ids=["again", "next"])
def test_whoever_looks_at_any_moment_finds_whole_checkpoints(run, monkeypatch, step):
    """Another program that reads, or the one that comes after a kill: the old or the new one.

    Turns red if a checkpoint is removed under its name, or `latest` is removed before it is
    written.
    """
    new, found = made(step=step, seed=12), []

    def seen(*call):
        for folder in checkpoints_in(run):
            load(folder)
        found.append(tuple(load(run, pointer=p).random_key[0] for p in ("best", "latest")))

    with monkeypatch.context() as patch:
        Disk(patch, seen=seen)
        save_and_remove(run, new)
    assert list(dict.fromkeys(found)) == [(2, 11), (12, 11), (12, 12)]


def test_all_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Without these a power cut may leave a name with nothing behind it.

    Turns red if a file, a folder with new names in it, or one around it, is not waited for.
    """
    run, unsynced, renamed, events = tmp_path / "runs" / "mine", set(), set(), []

    def seen(name, path, to):
        if name == "fsync":
            unsynced.discard(path)
            renamed.discard(path)
        elif to is None:
            unsynced.update([path.parent] if name in ("mkdir", "unlink") else [path, path.parent])
        elif to.parent == run:
            assert not [p for p in unsynced if path in (p, *p.parents)] and not renamed
            renamed.add(run)
            unsynced.add(run)
        else:
            unsynced.discard(path)
            unsynced.update([to] if path in unsynced else [], [to.parent])
        if run in (path, path.parent) and name in ("fsync", "rename", "replace"):
            events.append((name, (to or path).name))

    with monkeypatch.context() as patch:
        Disk(patch, seen=seen)
        save(run, NEW, best=True)
    assert not unsynced
    assert events == [
        ("fsync", "step-12.tmp"),
        ("rename", "step-12"),
        ("fsync", "mine"),
        ("fsync", "best.tmp"),
        ("replace", "best"),
        ("fsync", "mine"),
        ("fsync", "latest.tmp"),
        ("replace", "latest"),
        ("fsync", "mine"),
    ]


FULL_DISK = """
import json, resource, signal, sys
from dataclasses import replace
from pathlib import Path
from reference.training.checkpoint import load, save
from reference.training.run_folder import claimed

def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.lock"}

run, limits = Path(sys.argv[1]), json.loads(sys.argv[2])
old, before = load(run), files(run)
new = replace(old, state=old.state._replace(step=12))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with claimed(run, resume=True) as held:
            said = str(save(held.path, new))
    except OSError as error:
        said = f"{error.errno} {error}"
        assert files(run) == before
    print(json.dumps([limit, said]), flush=True)
"""


@pytest.mark.parametrize(
    "limits",
    [[0, 300, 2000, 10_000, 30_000], pytest.param(range(0, 10**5, 53), marks=pytest.mark.thorough)],
    ids=["some", "many"],
)
def test_a_disk_that_takes_so_much_of_a_file_and_no_more(run, limits):
    """For real, in a process of its own: from the system, through Python's files and Rust's.

    Turns red if what a buffer still has fails again where a file is closed, without its name.
    """
    largest = (run / "step-11" / "optimizer.safetensors").stat().st_size
    limits = [*(limit for limit in limits if limit < largest), largest]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, run, json.dumps(limits)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [limit for limit, _ in said] == limits
    failed = []
    for _, text in said[:-1]:
        assert text.startswith(f"{errno.EFBIG} ") and "File too large" in text, text
        failed.append(text.split(f"'{run}/")[1].rstrip("'"))
    names = ["", "/params.safetensors", "/optimizer.safetensors"]  # "" is of the tokenizer's
    unfinished = [f"step-12.tmp{name}" for name in ("/checkpoint.json", *names)]
    assert list(dict.fromkeys(failed)) == ["run.lock", *unfinished]
    assert said[-1][1] == str(run / "step-12")
    assert_same(load(run), replace(OLD, state=OLD.state._replace(step=12)))


def test_what_safetensors_cannot_write_is_an_os_error_that_says_why(run, monkeypatch):
    """An error of its own, which has a number in its text where the system gave one."""
    for text, number in (("too much", errno.EIO), ("I/O error (os error 122)", errno.EDQUOT)):

        def fail(*args, text=text):
            raise SafetensorError(text)

        monkeypatch.setattr(checkpoints, "save_file", fail)
        with pytest.raises(OSError) as raised:
            save(run, NEW)
        assert raised.value.errno == number and f"it could not be written ({text})" in str(
            raised.value
        )
        assert raised.value.filename == str(run / "step-12.tmp" / "params.safetensors")
    assert_same(load(run), OLD)


def less(checkpoint, **changes):
    return replace(checkpoint, state=checkpoint.state._replace(**changes))


CANNOT_BE_LOADED = {
    "nan": (replace(NEW, settings={"a": math.nan}), "Out of range float values"),
    "a set": (replace(NEW, settings={"a": {1, 2}}), "set is not JSON serializable"),
    "a tuple": (replace(NEW, settings={"a": (1, 2)}), "there are tuples"),
    "a number for a name": (replace(NEW, position={1: 2}), "names that are no texts"),
    "an array's number": (replace(NEW, position={"epoch": np.int64(2)}), "int64 is not JSON"),
    "infinite": (replace(NEW, evaluation=EVALUATION | {"best_loss": math.inf}), "Out of range"),
    "half an evaluation": (replace(NEW, evaluation={"best_loss": 1.0}), "evaluation is {'best"),
    "a negative step": (less(NEW, step=-1), "step is -1, and must be an integer from 0 on"),
    "a large word": (replace(NEW, random_key=(1, 2**32)), "random_key is [1, 4294967296]"),
    "no scale": (less(NEW, scaling=SCALING | {"scale": 0.0}), "scaling is {'scale': 0.0"),
    "an average that no setting asks for": (
        replace(NEW, settings=SETTINGS),
        "\n  left over: average.token.embedding",
    ),
    "no average that one asks for": (less(NEW, average=None), "missing: average.token.embedding"),
    "no moments": (less(NEW, mean={}), "missing: mean.token.embedding"),
    "another model's": (
        replace(NEW, config=replace(CONFIG, width=9)),
        "params to be saved does not fit the model's sizes: give files that were saved together"
        "\n  of another shape: token.embedding",
    ),
    "halves": (mapped(np.float16, NEW), "has arrays of float16; all must be of float32"),
    "of both": (mapped(np.float64, NEW, ["mean"]), "has arrays of float32 and float64"),
    "a tokenizer of more": (
        replace(NEW, tokenizer=BPE.train("the cat and the hat and the bat " * 9, 264)),
        "the tokenizer has 264 tokens, the model only 263",
    ),
}


@pytest.mark.parametrize("given, words", CANNOT_BE_LOADED.values(), ids=CANNOT_BE_LOADED)
def test_what_could_not_be_loaded_is_not_saved(run, given, words):
    """Turns red if it is seen only after the checkpoints before it are gone."""
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError) as raised:
        save(run, given)
    assert words in str(raised.value)
    assert sorted(run.rglob("*")) == before
    with pytest.raises(InputError):
        save(run.parent / "new", given)
    assert not (run.parent / "new").exists()


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


FILES = ["checkpoint.json", "params.safetensors", "optimizer.safetensors", "vocab.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign", "a folder"])
def test_a_file_that_is_missing_or_torn_is_refused(step, name, damage):
    content = (step / name).read_bytes()
    (step / name).unlink()
    torn = {"empty": b"", "cut": content[: len(content) // 2], "foreign": b"PK\x03\x04\xff" * 9}
    if damage in torn:
        (step / name).write_bytes(torn[damage])
    if damage == "a folder":
        (step / name).mkdir()
    there = damage in torn
    refused(step.parent, step / name if there or name != "vocab.json" else "neither vocab.json")
    refused(step, "copy" if there else "give")


@given(data=st.data())
@settings(max_examples=60)
def test_damage_of_any_kind_is_told_or_does_no_harm(whole_run, tmp_path_factory, data):
    """Turns red with an error that is not CheckpointError: of JSON, of UTF-8, of safetensors.

    A changed weight cannot be seen, as it can be any number.
    """
    names = ["latest", *(f"step-11/{name}" for name in (*FILES, "merges.txt"))]
    run = shutil.copytree(whole_run, tmp_path_factory.mktemp("damaged") / "run")
    path = run / data.draw(st.sampled_from(names), label="file")
    content = bytearray(path.read_bytes())
    header = min(len(content), 5000)  # where it matters
    at = data.draw(st.integers(0, header), label="at")
    until = data.draw(st.just(at) | st.integers(at, min(at + 9, header)), label="until")
    content[at:until] = data.draw(st.binary(max_size=9), label="put there")
    path.write_bytes(content)
    try:
        found = load(run)
    except CheckpointError as error:
        assert str(run) in str(error)
    else:
        assert {p: a.shape for p, a in tree.flatten(found.weights).items()} == parameter_shapes(
            found.config
        )
    shutil.rmtree(run)


def places(value, *path):
    """The path of each value in a JSON object, the inner ones too."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield *path, name
        yield from places(inner, *path, name)


@given(data=st.data())
@settings(max_examples=100)
def test_a_value_written_by_hand_is_told_or_does_no_harm(whole_run, tmp_path_factory, data):
    """Turns red if the average is not looked at; for the others, see CHANGES."""
    step = shutil.copytree(whole_run / "step-11", tmp_path_factory.mktemp("hand") / "step-11")
    path = step / "checkpoint.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["scaling"] = dict(SCALING)
    free = ("position", "settings")  # but for the average
    able = [p for p in places(described) if p[0] not in free or p[-1] in (*free, "average")]
    *outer, last = data.draw(st.sampled_from(able), label="place")
    inner = described
    for name in outer:
        inner = inner[name]
    numbers = st.integers(-3, 300) if "model" in outer else NUMBERS  # a model may be too large
    inner[last] = data.draw(numbers | PLAIN.filter(lambda v: type(v) is not int) | st.floats())
    path.write_text(json.dumps(described), encoding="utf-8")
    try:
        found = load(step)
    except CheckpointError as error:
        assert str(step) in str(error)
    else:
        assert len(tree.leaves(found.weights)) == len(parameter_shapes(found.config))
        assert (
            math.isfinite(found.evaluation.get("best_loss", 0))
            and type(updates(found.state)) is int
        )
    shutil.rmtree(step)


CHANGES = {
    "format": ({"format": "other"}, "'other'"),
    "the first version": ({"version": 1}, "'version': 1"),
    "a later version": ({"version": 3}, "'version': 3"),
    "unknown": ({"more": 1}, "'more'"),
    "negative": ({"step": -1}, "step is -1, and must be an integer from 0 on"),
    "true": ({"step": True}, "step is True"),
    "text": ({"step": "3"}, "step is '3'"),
    "huge": ({"step": 10**300}, "step is 1000"),
    "settings": ({"settings": [1]}, "settings is [1], and must be an object"),
    "average": ({"settings": {"average": 1.0}}, "whose average is null or between 0 and 1"),
    "words": ({"settings": {"average": "0.5"}}, "whose average is null or between 0 and 1"),
    "key": ({"random_key": [1]}, "random_key is [1], and must be two integers of 32 bits"),
    "keys": ({"random_key": [1, 2, 3]}, "random_key is [1, 2, 3]"),
    "large key": ({"random_key": [1, 2**32]}, "random_key is [1, 4294967296]"),
    "true key": ({"random_key": [True, 1]}, "random_key is [True, 1]"),
    "position": ({"position": None}, "position is None"),
    "evaluation": ({"evaluation": []}, "evaluation is [], and must be empty, or have best_loss"),
    "loss": ({"evaluation": EVALUATION | {"best_loss": "low"}}, "evaluation is {'best_loss': 'lo"),
    "whole": ({"evaluation": EVALUATION | {"best_loss": 2}}, "evaluation is {'best_loss': 2"),
    "no loss": ({"evaluation": EVALUATION | {"best_loss": math.nan}}, "evaluation is {'best_loss'"),
    "waited": ({"evaluation": EVALUATION | {"waited": -1}}, "evaluation is {'best_loss'"),
    "scaling": ({"scaling": {}}, "scaling is {}, and must be null, or have a scale above 0"),
    "scale": ({"scaling": SCALING | {"scale": -1.0}}, "scaling is {'scale': -1.0"),
    "skipped": ({"scaling": SCALING | {"skipped": 1.5}}, "scaling is {'scale'"),
    "tokenizer": ({"tokenizer": 1}, "tokenizer is 1, and must be true or false"),
    "list": ({"model": [1]}, "model is [1], and must be an object with a name"),
    "no word": ({"model": {"name": ["gpt"]}}, "model is {'name': ['gpt']"),
    "model": ({"model": {"name": "own"}}, "of the model 'own'"),
    "size": ({"model": {"width": 0}}, "width is 0"),
    "heads": ({"model": {"heads": 4}}, "4 heads do not divide"),
    "rate": ({"model": {"dropout": "a"}}, "'<=' not supported"),
    "unknown size": ({"model": {"depth": 3}}, "'depth'"),
}


@pytest.mark.parametrize("change, word", CHANGES.values(), ids=CHANGES)
def test_a_description_that_cannot_be_is_refused(step, change, word):
    path = step / "checkpoint.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    for name, value in change.items():
        joined = name in ("model", "settings") and isinstance(value, dict)
        described[name] = described[name] | value if joined else value
    path.write_text(json.dumps(described), encoding="utf-8")
    refused(step, path, word)


@pytest.mark.parametrize(
    "name",
    ["step", "settings", "model", "random_key", "position", "evaluation", "scaling", "tokenizer"]
    + ["dropout", "width", "name"],
)
def test_a_description_that_lacks_something_is_refused(step, name):
    path = step / "checkpoint.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["model"].pop(name) if name in described["model"] else described.pop(name)
    path.write_text(json.dumps(described), encoding="utf-8")
    refused(step, path, name, "give a")


@pytest.mark.parametrize("text", ["[1]", "null", "[" * 100_000, '"a"'])
def test_json_that_is_no_object_is_refused(step, text):
    (step / "checkpoint.json").write_text(text, encoding="utf-8")
    refused(step, step / "checkpoint.json", "JSON", "copy it again")


@pytest.mark.parametrize(
    "name, prefix", [("params", ""), *(("optimizer", f"{k}.") for k in TREES[1:])]
)
def test_arrays_that_do_not_fit_are_all_named(step, name, prefix):
    path = step / f"{name}.safetensors"
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


def test_files_of_another_checkpoint_are_refused(step, tmp_path):
    """Of a smaller model, and of a run that did not average."""
    small = replace(CONFIG, layers=1)
    params = initial_params(small, key=random.key(0))
    of_small = less(replace(NEW, config=small), params=params, mean=params, square=params)
    other = save(tmp_path / "small", less(replace(of_small, settings={}), average=None))
    shutil.copy(other / "params.safetensors", step)
    refused(step, step / "params.safetensors", "missing: blocks.1.attention.norm.scale")
    save(tmp_path / "plain", made(average=None))
    for name in ("params", "optimizer"):
        shutil.copy(tmp_path / "plain" / "step-3" / f"{name}.safetensors", step)
    refused(step, step / "optimizer.safetensors", "missing: average.token.embedding")
    shutil.copy(other / "checkpoint.json", step)
    refused(step, step / "params.safetensors", "left over: blocks.1.")


def test_many_arrays_that_do_not_fit_have_a_line_each(step):
    """Turns red if one is not named, or the order is another from run to run."""
    save_file(dict.fromkeys("yxz", np.ones(3, np.float32)), step / "params.safetensors")
    missing = [f"  missing: {path}" for path in parameter_shapes(CONFIG)]
    over = [f"  left over: {name}" for name in "xyz"]
    with pytest.raises(CheckpointError) as raised:
        load(step)
    first, *lines = str(raised.value).split("\n")
    assert lines == missing + over
    assert first.endswith("does not fit the model's sizes: give files that were saved together")


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_arrays_of_another_dtype_are_refused(step, dtype):
    path = step / "params.safetensors"
    arrays = load_file(path)
    save_file(arrays | {"norm.bias": np.ones(6, dtype)}, path)
    refused(step, path, "must be of float32 or 64")


def test_files_of_two_precisions_are_refused(step):
    path = step / "optimizer.safetensors"
    save_file({name: a.astype(np.float64) for name, a in load_file(path).items()}, path)
    refused(step, step, "arrays of float32 and float64; all must be of float32, or all of float64")


def test_a_tokenizer_that_is_missing_or_knows_more_than_the_model_is_refused(step):
    BPE.train("the cat and the hat and the bat " * 9, 264).save(step)
    refused(step, step, "the tokenizer has 264 tokens, the model only 263")
    TOKENIZERS["characters"].save(step)
    refused(step, step, "files of two tokenizers")
    for name in ("merges.txt", "vocab.json", "characters.json"):
        (step / name).unlink()
    refused(step, step, "has no tokenizer")
