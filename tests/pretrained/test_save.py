"""What is saved is whole, or not there; and others read it."""

import errno
import json
import os
import shutil
import stat

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.models import model_of
from reference.models.bert import BertConfig
from reference.models.clip import ClipConfig, ClipImageConfig, ClipTextConfig
from reference.models.gpt import GPTConfig
from reference.models.llama import LlamaConfig
from reference.models.vit import ViTConfig
from reference.pretrained import joined, load, save
from reference.pretrained.fitting import part_of, shapes_of_theirs
from reference.pretrained.names import Stored
from reference.tokenizers import (
    BPE,
    CLIP,
    ByteFallback,
    Characters,
    Unigram,
    WordPiece,
    load_tokenizer,
)
from reference.tokenizers.byte_fallback_files import BYTE_NAMES
from reference.tokenizers.checks import check_tokenizer
from tests.disk import Disk
from tests.peers import peer
from tests.tokenizers.texts import PROSE, SAMPLES

GPT = GPTConfig(vocabulary=600, context=5, layers=1, heads=2, width=6)
TEXT = PROSE[:20_000]
PIECES = ("<unk>", "<s>", "</s>", *BYTE_NAMES, "▁", "t", "h", "e", "th", "the")
LLAMA_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
NAMES = {name: i for i, name in enumerate(PIECES)}
TOKENIZERS = {
    "bpe": BPE.train(TEXT, 400),
    "its own pattern": BPE.train(TEXT, 400, special_tokens=("<|a|>",), pattern=LLAMA_PATTERN),
    "wordpiece": WordPiece.train(TEXT, 300),
    "clip": CLIP([(39, 256 + 78), (83, 71)]),
    "byte fallback": ByteFallback(
        PIECES, [(NAMES["t"], NAMES["h"]), (NAMES["th"], NAMES["e"])], prefix="always"
    ),
    "unigram": Unigram.train(TEXT, 150),
}
MODELS = {
    "gpt2": GPT,
    "llama": LlamaConfig(600, 5, 1, 2, 1, 8, 6),
    "bert": BertConfig(600, 5, 1, 2, 6, 8),
    "clip": ClipConfig(ClipTextConfig(600, 5, 1, 2, 6, 8), ClipImageConfig(4, 2, 1, 2, 6, 8), 3),
}
FILES = ["config.json", "model.safetensors"]


def params_of(config):
    return model_of(config).initial_params(config, key=random.key(0))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_directory_is_whole_with_its_tokenizer(tmp_path, model, name):
    """AutoTokenizer gives the same ids, whichever model it is beside; so does ours.

    Turns red if its class is left to be guessed by the model's.
    """
    config, tokenizer = MODELS[model], TOKENIZERS[name]
    save(tmp_path / "model", config, params_of(config), tokenizer=tokenizer)
    assert load_tokenizer(tmp_path / "model") == tokenizer
    assert load(tmp_path / "model")[0] == config
    theirs = peer("transformers").AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [TEXT[:3000], *SAMPLES.values()]
    for text in texts if name != "clip" else [TEXT[:3000]]:  # for CLIP see tests.tokenizers
        ids = tokenizer.encode(text, allowed_special="all")
        assert theirs.encode(text, add_special_tokens=False) == list(ids), text
    assert len(theirs) == tokenizer.vocabulary_size


def test_characters_are_saved_for_ourselves(tmp_path):
    tokenizer = Characters("abc")
    save(tmp_path, GPT, params_of(GPT), tokenizer=tokenizer)
    assert sorted(os.listdir(tmp_path)) == ["characters.json", *FILES]
    assert load_tokenizer(tmp_path) == tokenizer


def test_a_tokenizer_must_fit_the_model():
    """One with fewer tokens does: many published tables are filled up."""
    tokenizer = TOKENIZERS["bpe"]
    for vocabulary in (400, 401, 5000):
        check_tokenizer(GPTConfig(vocabulary, 5, 1, 2, 6), tokenizer, source="x")
    words = "here: the tokenizer has 400 tokens, the model only 399; give the tokenizer that it"
    with pytest.raises(CheckpointError, match=words):
        check_tokenizer(GPTConfig(399, 5, 1, 2, 6), tokenizer, source="here")
    vision = ViTConfig(4, 2, 1, 2, 6, 8, labels=3)
    with pytest.raises(CheckpointError, match="a ViTConfig reads no tokens"):
        check_tokenizer(vision, tokenizer, source="here")
    check_tokenizer(MODELS["clip"], tokenizer, source="here")


UNSAVED = {
    "nan": ({"position.embedding": np.nan}, {}, "position.embedding has numbers that are not fin"),
    "inf": ({"norm.bias": np.inf}, {}, "norm.bias has numbers that are not finite"),
    "half": ({"norm.bias": 65520.0}, {"dtype": "float16"}, "norm.bias .* that float16 cannot hold"),
    "brain": ({"norm.bias": -3.4e38}, {"dtype": "bfloat16"}, "that bfloat16 cannot hold"),
    "dtype": ({}, {"dtype": "float8"}, "dtype is 'float8'; give one of float32"),
    "tokenizer": ({}, {"tokenizer": CLIP([(i, i + 257) for i in range(90)])}, "has 604 tokens"),
}


@pytest.mark.parametrize("change, options, words", UNSAVED.values(), ids=UNSAVED)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, change, options, words):
    flat = tree.flatten(params_of(GPT))
    for path, number in change.items():
        flat[path] = flat[path].copy()
        flat[path].flat[-1] = number
    with pytest.raises(InputError, match=words):
        save(tmp_path / "model", GPT, tree.unflatten(flat), **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "dtype, number", [("float16", 65519.0), ("bfloat16", 3.39e38), ("float32", 3.4e38)]
)
def test_the_largest_numbers_are_saved(tmp_path, dtype, number):
    params = params_of(GPT)
    params["norm"]["bias"] = np.full(6, -number, np.float32)
    save(tmp_path / "model", GPT, params, dtype=dtype)
    np.testing.assert_allclose(load(tmp_path / "model")[1]["norm"]["bias"], -number, rtol=1e-2)


@pytest.mark.parametrize("number", [1e39, 1e300])
def test_numbers_of_float64_that_no_file_holds_are_not_saved(tmp_path, number):
    params = params_of(GPT)
    params["norm"]["bias"] = np.full(6, number)
    with pytest.raises(InputError, match="norm.bias has numbers that float32 cannot hold"):
        save(tmp_path / "model", GPT, params)


def test_the_other_engine_s_arrays_are_saved(tmp_path):
    params = params_of(GPT)
    save(tmp_path / "model", GPT, tree.map(jnp.asarray, params))
    tree.map(np.testing.assert_array_equal, load(tmp_path / "model")[1], params)


@pytest.mark.parametrize("name", [*FILES, "model.safetensors.index.json"])
def test_nothing_is_saved_over_what_is_there(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"has a model already, {name}"):
        save(tmp_path, GPT, params_of(GPT))
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    ["vocab.txt", "merges.txt", "tokenizer.json", "characters.json", "tokenizer_config.json"],
)
def test_no_tokenizer_is_saved_over_another(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"has a tokenizer, {name}"):
        save(tmp_path, GPT, params_of(GPT), tokenizer=TOKENIZERS["bpe"])
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "mine"
    save(tmp_path, GPT, params_of(GPT))
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_may_be_read_by_whom_the_user_lets(tmp_path, umask):
    before = os.umask(umask)
    try:
        save(tmp_path / "model", GPT, params_of(GPT), tokenizer=TOKENIZERS["bpe"])
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == {0o666 & ~umask}


def saving(folder):
    """Into a directory that has a file, beside one that is made."""
    save(folder / "model", GPT, PARAMS, tokenizer=TOKENIZERS["wordpiece"])


PARAMS = params_of(GPT)


@pytest.mark.parametrize("after", ["once", "half", "for good"])
@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
def test_a_disk_that_fails_at_any_moment_leaves_a_whole_model_or_none(
    tmp_path, monkeypatch, after, there
):
    """A fault in every write, sync and rename, one after another.

    Turns red if config.json is not the last, or what was written before it is left.
    """

    def begun(name):
        folder = tmp_path / name
        folder.mkdir()
        if there:
            (folder / "model").mkdir()
            (folder / "model" / "README.md").write_text("mine")
        return folder, sorted(folder.rglob("*"))

    folder, _ = begun("unharmed")
    with monkeypatch.context() as patch:
        whole = Disk(patch)
        saving(folder)
    assert {"write", "replace", "fsync"} <= {name for name, _ in whole.calls}
    for fault, (name, path) in enumerate(whole.calls):
        folder, before = begun(str(fault))
        with monkeypatch.context() as patch:
            disk = Disk(patch, fault, half=after == "half", for_good=after == "for good")
            with pytest.raises(OSError, match="No space left on device") as raised:
                saving(folder)
        assert disk.failed[0] == name and raised.value.errno == errno.ENOSPC
        said = str(raised.value)
        assert str(folder) in said, (name, path, said)
        if (folder / "model" / "config.json").exists():  # it is whole, only not waited for
            tree.map(np.testing.assert_array_equal, load(folder / "model")[1], PARAMS)
            assert load_tokenizer(folder / "model") == TOKENIZERS["wordpiece"]
        else:
            with pytest.raises(InputError):
                load(folder / "model")
            if after != "for good":
                assert sorted(folder.rglob("*")) == before
                saving(folder)
                load(folder / "model")
        shutil.rmtree(folder)


def test_whoever_looks_at_any_moment_finds_a_whole_model_or_none(tmp_path, monkeypatch):
    """Another program, or who comes after a kill.  Turns red if config.json is written in place."""
    found = []

    def seen(*call):
        try:
            params = load(tmp_path / "model")[1]
        except CheckpointError:
            found.append(False)
        else:
            tree.map(np.testing.assert_array_equal, params, PARAMS)
            found.append(True)

    with monkeypatch.context() as patch:
        disk = Disk(patch, seen=seen)
        saving(tmp_path)
    assert sorted(found) == found and found.count(True) == 1
    synced = [path for name, path in disk.calls if name == "fsync"]
    assert {path.name for path in synced} >= {f"{name}.tmp" for name in FILES}
    assert disk.calls[-1] == ("fsync", tmp_path / "model")


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("reference.pretrained.files.narrowed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saving(tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_says_how_it_is_read_is_text_that_others_write_too(tmp_path):
    save(tmp_path, GPT, PARAMS, dtype="bfloat16")
    content = (tmp_path / "config.json").read_bytes()
    assert json.loads(content)["dtype"] == "bfloat16" and content.endswith(b"}\n")


def test_a_single_number_is_saved_and_read(tmp_path):
    """CLIP's temperature, () in the files.  Turns red if what has one part is split."""
    config = MODELS["clip"]
    params = params_of(config)
    save(tmp_path / "model", config, params)
    loaded = load(tmp_path / "model")[1]["logit_scale"]
    assert loaded.shape == params["logit_scale"].shape == (1,)
    np.testing.assert_array_equal(loaded, params["logit_scale"])
    assert load_file(tmp_path / "model" / "model.safetensors")["logit_scale"].shape == ()


def test_what_has_no_axes_with_us_either_is_not_split():
    stored, number = Stored("scale"), np.array(2.5, np.float32)
    assert shapes_of_theirs({"scale": stored}, {"scale": ()}) == {"scale": ()}
    assert joined([(stored, number)]) == part_of(stored.ours(number), stored) == number


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "has no tokenizer, none of tokenizer.json, vocab.txt, merges.txt"),
        (["config.json", "tokenizer_config.json"], "has no tokenizer, none of tokenizer.json"),
        (["vocab.json"], "has neither merges.txt nor vocab.bpe"),
        (["encoder.json"], "has neither merges.txt nor vocab.bpe"),
        (["merges.txt"], "has neither vocab.json nor encoder.json"),
        (
            ["vocab.json", "source.spm", "target.spm"],
            "has source.spm, one of two files of Marian's",
        ),
    ],
    ids=str,
)
def test_a_published_directory_that_lacks_a_tokenizer_s_file_says_which(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=message) as raised:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(raised.value)
