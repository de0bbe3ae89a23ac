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
from reference.models.gpt import (
    PRESETS,
    GPTConfig,
    initial_params,
    parameter_count,
    parameter_shapes,
)
from reference.tokenizers import BPE, Characters
from reference.training import checkpoint as checkpoints
from reference.training.checkpoint import Checkpoint, load, save
from reference.training.optimizer import moving_average
from reference.training.run_folder import checkpoints_in, remove_older
from reference.training.state import State
from tests.disk import WRITES, Disk

CONFIG = GPTConfig(vocabulary=263, context=7, layers=2, heads=3, width=6, dropout=0.2)
TOKENIZERS = {
    "bpe": BPE.train("the cat and the hat and the bat " * 9, 260),
    "bpe with a border": BPE.train("the cat and the hat " * 9, 259, ("<|endoftext|>",)),
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
        return {
            path: rng.standard_normal(shape).astype(dtype)
            for path, shape in parameter_shapes(CONFIG).items()
        }

    params, mean, square, averaged = (tree.unflatten(draw()) for _ in TREES)
    state = State(step, params, mean, square, averaged if average else None, scaling)
    return Checkpoint(
        state,
        CONFIG,
        SETTINGS | {"average": average},
        TOKENIZERS[tokenizer],
        (seed, 2**32 - 1),
        POSITION,
        EVALUATION,
    )


def assert_same(actual, expected):
    """Equal to the last bit, in dtype too."""
    for name in TREES:
        one, other = getattr(actual.state, name), getattr(expected.state, name)
        assert (one is None) == (other is None)
        if one is not None:
            tree.map(assert_equal, one, other)
    rest = [replace(c, state=c.state._replace(**dict.fromkeys(TREES))) for c in (actual, expected)]
    assert rest[0] == rest[1]


def assert_equal(actual, expected):
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == expected.dtype


def changed(checkpoint, function):
    """A checkpoint with other arrays."""
    trees = {name: tree.map(function, getattr(checkpoint.state, name)) for name in TREES}
    return replace(checkpoint, state=checkpoint.state._replace(**trees))


OLD, NEW, EARLY = made(step=11, seed=11), made(step=12, seed=12), made(step=2, seed=2)


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
    st.none() | st.booleans() | NUMBERS | st.text("aä\n\\\"😀\udcff"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("bü"), inner, max_size=3),
    max_leaves=5,
)
COUNTS = st.integers(0, 2**63 - 1)


@given(
    settings=st.dictionaries(st.text("cd"), PLAIN, max_size=3),
    position=st.dictionaries(st.text("ef"), PLAIN, max_size=3),
    words=st.tuples(*[st.integers(0, 2**32 - 1)] * 2),
    scale=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    counts=st.tuples(COUNTS, COUNTS, COUNTS),
)
@settings(max_examples=25)
def test_what_is_no_array_is_loaded_as_it_was(
    tmp_path_factory, settings, position, words, scale, loss, counts
):
    """Turns red if the text is not escaped, numbers lose digits, or what may be is refused."""
    one, two, step = counts
    saved = replace(
        OLD,
        state=OLD.state._replace(
            step=step,
            average=None,
            scaling=None if scale is None else {"scale": scale, "streak": one, "skipped": two},
        ),
        settings=settings,
        position=position,
        random_key=words,
        evaluation={}
        if loss is None
        else {"best_loss": loss, "best_step": one, "waited": two},
        tokenizer=None,
    )
    folder = tmp_path_factory.mktemp("run")
    save(folder, saved)
    loaded = load(folder)
    assert repr(replace(loaded, state=None)) == repr(replace(saved, state=None))
    assert loaded.state.scaling == saved.state.scaling and loaded.step == step


def test_loaded_arrays_are_their_owners_alone(run):
    loaded, again = load(run), load(run)
    for a in tree.leaves([getattr(loaded.state, name) for name in TREES]):
        assert type(a) is np.ndarray
        a += 1
    assert_same(load(run), again)
    assert_same(again, OLD)


def test_loaded_trees_have_the_order_of_new_ones(run):
    new = initial_params(CONFIG, key=random.key(0))
    loaded = load(run)
    for name in TREES:
        assert list(tree.flatten(getattr(loaded.state, name))) == list(tree.flatten(new))


def test_what_jax_holds_is_saved(tmp_path):
    save(tmp_path, replace(OLD, state=OLD.state._replace(**jax.device_put(
        {name: getattr(OLD.state, name) for name in TREES}
    ))))
    assert_same(load(tmp_path), OLD)


@pytest.mark.parametrize(
    "view", [np.asfortranarray, lambda a: np.repeat(a, 2, axis=-1)[..., ::2], read_only := None]
    [:2],
    ids=["columns", "every second"],
)
def test_arrays_that_are_views_are_saved(tmp_path, view):
    save(tmp_path, changed(OLD, view))
    assert_same(load(tmp_path), OLD)
