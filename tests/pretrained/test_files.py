"""Files that cannot be believed: each is refused by name, or does no harm."""

import copy
import json
import math
import os
import re
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.models import model_of
from reference.models.bert import BertConfig
from reference.models.clip import ClipConfig, ClipImageConfig, ClipTextConfig
from reference.models.gpt import GPTConfig
from reference.models.gpt1 import GPT1Config
from reference.models.llama import LlamaConfig, Scaling
from reference.models.transformer import TransformerConfig
from reference.models.vit import ViTConfig
from reference.pretrained import FAMILIES, family_of, load, save
from reference.pretrained.files import read
from reference.training import array_files
from reference.training.array_files import BYTES, entries_in
from tests.peers import peer

CONFIG = GPTConfig(vocabulary=7, context=5, layers=1, heads=2, width=6)
ARRAYS, SETTINGS = "model.safetensors", "config.json"
INDEX = f"{ARRAYS}.index.json"
NAME = "transformer.wpe.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small model's directory."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    save(folder, CONFIG, model_of(CONFIG).initial_params(CONFIG, key=random.key(0)))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def refused(folder, *words):
    """load raises CheckpointError, whose message has all these words."""
    with pytest.raises(CheckpointError) as raised:
        load(folder)
    for word in words:
        assert str(word) in str(raised.value)


def assert_same(folder, whole):
    """The same parameters to the last bit."""
    tree.map(np.testing.assert_array_equal, load(folder)[1], load(whole)[1])


def parts_of(folder):
    """The header of the arrays, and their data."""
    content = (folder / ARRAYS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(folder, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / ARRAYS).write_bytes(struct.pack("<Q", len(text)) + text + data)


# Arrays


@settings(max_examples=40)
@given(data=st.data())
def test_a_file_that_is_cut_anywhere_is_refused(whole, tmp_path_factory, data):
    """Turns red if the last array may be short."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("cut") / "model")
    content = (folder / ARRAYS).read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    bounds = [entry.end for entry in entries_in(whole / ARRAYS).values()][:-1]
    edges = [n + d for n in (1, 8, length, *bounds, len(content) - 1) for d in (-1, 0, 1)]
    edges = [n for n in edges if 0 <= n < len(content)]
    end = data.draw(st.sampled_from(edges) | st.integers(0, len(content) - 1))
    (folder / ARRAYS).write_bytes(content[:end])
    refused(folder, folder / ARRAYS, "copy it again")
    with pytest.raises(CheckpointError):
        entries_in(folder / ARRAYS)
    shutil.rmtree(folder)


LENGTHS = {"beyond": lambda size: size - 7, "absurd": lambda size: 2**64 - 1}
LENGTHS |= {"none": lambda size: 0, "all": lambda size: size - 8}


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_a_length_of_the_header_that_cannot_be_is_refused(folder, length):
    content = (folder / ARRAYS).read_bytes()
    changed = struct.pack("<Q", length(len(content))) + content[8:]
    (folder / ARRAYS).write_bytes(changed)
    refused(folder, folder / ARRAYS, "copy it again")


def test_a_header_that_is_too_long_is_not_read(folder, monkeypatch):
    """A file may have as many bytes as it says, and only zeros in it."""
    monkeypatch.setattr(array_files, "LONGEST", 1000)
    refused(folder, folder / ARRAYS, "its header would have")
    monkeypatch.setattr(array_files, "LONGEST", 99)
    refused(folder, folder / SETTINGS, "more than 99 bytes")


HEADERS = {
    "no JSON": (b"{'a': 1}", "is torn, or no safetensors file"),
    "no UTF-8": (b'{"\xff": 1}', "is torn, or no safetensors file"),
    "cut": (b'{"a": ', "is torn"),
    "deep": (b"[" * 100_000, "is torn"),
    "a list": (b"[]", "has no JSON object but []"),
    "a number": (b"1", "has no JSON object but 1"),
    "twice": (b'{"a": 1, "b": 2, "a": 1}', "'a' is there twice"),
    "twice inside": (b'{"a": {"dtype": "F32", "dtype": "F32"}}', "'dtype' is there twice"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "is torn"),
    "nothing": (b"{}", "its arrays end at 0, its data at"),
    "about": (b'{"__metadata__": {"format": 1}}', "__metadata__ must map names to texts"),
    "about all": (b'{"__metadata__": "pt"}', "__metadata__ must map names to texts"),
}


@pytest.mark.parametrize("header, words", HEADERS.values(), ids=HEADERS)
def test_a_header_that_cannot_be_is_refused(folder, header, words):
    put(folder, header, parts_of(folder)[1])
    refused(folder, folder / ARRAYS, words, "copy it again")


END = 5 * 6 * 4  # bytes of NAME, which is laid out first
ENTRIES = {
    "no object": (5, f"{NAME} is 5, without a dtype, shape and data_offsets"),
    "no dtype": ({"dtype": ...}, "without a dtype"),
    "no shape": ({"shape": ...}, "without a dtype, shape"),
    "no offsets": ({"data_offsets": ...}, "without a dtype, shape and data_offsets"),
    "dtype": ({"dtype": "F31"}, "of dtype 'F31', and must be of BOOL"),
    "dtype of a kind": ({"dtype": ["F32"]}, "of dtype ['F32']"),
    "negative": ({"shape": [-5, -6]}, "the shape [-5, -6], and must have integers from 0 on"),
    "half": ({"shape": [5.0, 6]}, "the shape [5.0, 6]"),
    "words": ({"shape": ["5", 6]}, "the shape ['5', 6]"),
    "true": ({"shape": [True, 30]}, "the shape [True, 30]"),
    "nested": ({"shape": [[5], 6]}, "the shape [[5], 6]"),
    "no list": ({"shape": 30}, "the shape 30"),
    "huge": ({"shape": [2**70, 6]}, "the shape [1180591620717411303424, 6]"),
    "overflowing": ({"shape": [2**62, 2**62]}, "its numbers are more or less than that"),
    "axes": ({"shape": [1] * 65 + [30]}, "the shape [1, 1"),
    "more": ({"shape": [5, 7]}, "of F32 and shape [5, 7] has 120 bytes"),
    "fewer": ({"shape": [5, 5]}, "of F32 and shape [5, 5] has 120 bytes"),
    "wider": ({"dtype": "F64"}, "of F64 and shape [5, 6] has 120 bytes"),
    "negative offset": ({"data_offsets": [-4, END - 4]}, "the data_offsets [-4, 116]"),
    "turned": ({"data_offsets": [END, 0]}, "the data_offsets [120, 0]: a beginning and an end"),
    "three": ({"data_offsets": [0, END, END]}, "the data_offsets [0, 120, 120]"),
    "text": ({"data_offsets": "ab"}, "the data_offsets 'ab'"),
    "a word": ({"data_offsets": ["0", END]}, "the data_offsets ['0', 120]"),
    "far": ({"data_offsets": [2**70, 2**70 + END]}, "the data_offsets [1180591620717411303424"),
    "out of range": ({"data_offsets": [2**40, 2**40 + END]}, "begins at 120 and leaves a gap"),
    "empty": ({"shape": [0, 2**62], "data_offsets": [0, 0]}, "begins at 120 and leaves a gap"),
    "later": ({"data_offsets": [4, END + 4]}, f"{NAME} begins at 4 and leaves a gap after what"),
}


@pytest.mark.parametrize("change, words", ENTRIES.values(), ids=ENTRIES)
def test_an_array_that_cannot_be_is_refused_by_name(folder, change, words, monkeypatch):
    """Before anything is read: turns red if an array is made by what the header says of it."""
    header, data = parts_of(folder)
    order = [NAME, *(name for name in header if name != NAME)]
    begin = 0
    for name in order[: order.index("__metadata__")] + order[order.index("__metadata__") + 1 :]:
        size = 4 * math.prod(header[name]["shape"])
        header[name]["data_offsets"], begin = [begin, begin + size], begin + size
    put(folder, header, data)
    load(folder)
    changed = header[NAME] | change if isinstance(change, dict) else change
    if isinstance(change, dict):
        changed = {key: value for key, value in changed.items() if value is not ...}
    put(folder, header | {NAME: changed}, data)
    monkeypatch.setattr(array_files, "array_of", None)
    monkeypatch.setattr("reference.pretrained.files.array_of", None)
    refused(folder, folder / ARRAYS, words, "copy it again")


def test_places_that_overlap_or_leave_a_gap_are_refused_by_name(folder):
    header, data = parts_of(folder)
    tokens = header["transformer.wte.weight"]["data_offsets"]
    put(folder, header | {"more": header["transformer.wte.weight"]}, data)
    refused(folder, folder / ARRAYS, "overlaps with what ends at", f"begins at {tokens[0]}")
    put(folder, {name: e for name, e in header.items() if name != NAME}, data)
    refused(folder, folder / ARRAYS, "leaves a gap after")
    put(folder, header, data + b"\0")
    refused(folder, folder / ARRAYS, f"its arrays end at {len(data)}, its data at {len(data) + 1}")
    put(folder, header, data[:-1])
    refused(folder, folder / ARRAYS, f"would end at {len(data)}, the data at {len(data) - 1}")
    put(folder, header, data)
    load(folder)


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.bool_, np.int8, np.uint16])
def test_arrays_of_another_dtype_are_refused_by_name(folder, dtype):
    arrays = load_file(folder / ARRAYS)
    save_file(arrays | {NAME: np.ones((5, 6), dtype)}, folder / ARRAYS)
    refused(folder, folder / ARRAYS, f"{NAME} is ", "give float32, float16 or bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path, dtype, number):
    """In the last of all places.  Turns red if only one dtype is looked at."""
    folder = tmp_path / "model"
    params = model_of(CONFIG).initial_params(CONFIG, key=random.key(0))
    save(folder, CONFIG, params, dtype=dtype)
    load(folder)
    entry = entries_in(folder / ARRAYS)[NAME]
    width = BYTES[entry.dtype]
    bits = np.float32(number).view("<u4") >> 16 if width == 2 else number
    bits = np.float16(number).view("<u2") if dtype == "float16" else bits
    content = bytearray((folder / ARRAYS).read_bytes())
    content[entry.end - width : entry.end] = np.array(
        bits, "<u2" if width == 2 else "<f4"
    ).tobytes()
    (folder / ARRAYS).write_bytes(content)
    refused(folder, folder / ARRAYS, NAME, "not finite")


def test_two_names_of_one_array_are_refused(folder):
    """With the prefix and without: turns red if the later one is taken."""
    arrays = load_file(folder / ARRAYS)
    save_file(arrays | {"wpe.weight": arrays[NAME] + 1}, folder / ARRAYS)
    refused(folder, folder, NAME, "wpe.weight", "two names of one array")


def test_what_changes_nothing_is_let_pass(folder, whole):
    """Another order, other metadata, blanks in the header, more about an array."""
    header, data = parts_of(folder)
    del header["__metadata__"]
    turned = dict(reversed(header.items()))
    turned[NAME] = turned[NAME] | {"more": [1]}
    put(folder, json.dumps({"__metadata__": {"a": "b"}} | turned, indent=3).encode(), data)
    assert_same(folder, whole)


@pytest.mark.parametrize("name", [ARRAYS, SETTINGS])
def test_what_is_no_file_or_cannot_be_read_is_refused(folder, name, monkeypatch):
    content = (folder / name).read_bytes()
    with monkeypatch.context() as patch:
        opening = open

        def denied(path, *args, **kwargs):
            if str(path).endswith(name):
                raise PermissionError(13, "Permission denied", str(path))
            return opening(path, *args, **kwargs)

        patch.setattr("builtins.open", denied)
        refused(folder, folder / name, "cannot be read (Permission denied)")
    if os.geteuid():  # who is root may read all
        (folder / name).chmod(0)
        refused(folder, folder / name, "cannot be read")
    (folder / name).unlink()
    refused(folder, folder / name, "is missing")
    (folder / name).mkdir()
    refused(folder, folder / name, "is no file")
    (folder / name).rmdir()
    (folder / "elsewhere").write_bytes(content)
    (folder / name).symlink_to(folder / "elsewhere")
    load(folder)
    (folder / "elsewhere").unlink()
    refused(folder, folder / name, "is missing")


def test_a_file_that_is_cut_while_it_is_read_is_refused(folder):
    entry = entries_in(folder / ARRAYS)[NAME]
    os.truncate(folder / ARRAYS, entry.end - 1)
    with pytest.raises(CheckpointError, match=f"it ends in {NAME}"):
        read(NAME, entry)


@pytest.mark.parametrize("kind, converter", [("GPT2LMHeadModel",) * 2, ("os; x", "AutoModel")])
def test_a_pickle_is_refused_with_what_converts_it(folder, whole, kind, converter):
    """And that does convert it.  Turns red if a class is named that the settings made up."""
    (folder / ARRAYS).rename(folder / "pytorch_model.bin")
    path = folder / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [kind]}))
    refused(folder, folder, "pytorch_model.bin, and a pickle", f"import {converter}; ")
    if kind != converter:
        return
    transformers, torch = peer("transformers"), peer("torch")
    arrays = load_file(folder / "pytorch_model.bin")
    torch.save({name: torch.tensor(a) for name, a in arrays.items()}, folder / "pytorch_model.bin")
    getattr(transformers, kind).from_pretrained(str(folder)).save_pretrained(str(folder))
    assert_same(folder, whole)


# Several files


def sharded(folder, placed=None, index=None):
    """The arrays in two files with an index, or as `placed` says."""
    arrays = load_file(folder / ARRAYS)
    map_of = {name: f"part-{n % 2}.safetensors" for n, name in enumerate(sorted(arrays))}
    for part in set(map_of.values()):
        names = [name for name in arrays if map_of[name] == part]
        save_file({name: arrays[name] for name in names}, folder / part)
    (folder / ARRAYS).unlink()
    written = {"metadata": {}, "weight_map": map_of | (placed or {})}
    (folder / INDEX).write_text(json.dumps(written if index is None else index))
    return map_of


BAD_NAMES = ["../part-0.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", ".", 5]
BAD_NAMES += [
    "part-0.bin",
    "a\\b.safetensors",
    "a\0.safetensors",
    "\ud800.safetensors",
    None,
    ["a"],
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_an_index_that_leads_elsewhere_is_refused(folder, name):
    sharded(folder, {NAME: name})
    refused(
        folder, folder / INDEX, f"has {NAME} in {name!r}; its weight_map must give files beside"
    )


@pytest.mark.parametrize("map_of", [{}, [1], None, "a", 5])
def test_an_index_without_names_is_refused(folder, map_of):
    sharded(folder, index={"weight_map": map_of})
    refused(folder, folder / INDEX, "no weight_map", "copy it again")


def test_an_index_and_its_files_must_say_the_same(folder, whole):
    map_of = sharded(folder)
    assert_same(folder, whole)
    part, other = map_of[NAME], {"part-0.safetensors": "part-1.safetensors"}.get(map_of[NAME])
    other = other or "part-0.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": map_of | {NAME: other}}))
    refused(folder, folder / INDEX, f"has {NAME} in {other}, which has no such array")
    (folder / INDEX).write_text(json.dumps({"weight_map": map_of | {"more": part}}))
    refused(folder, folder / INDEX, f"has more in {part}, which has no such array")
    (folder / INDEX).write_text(json.dumps({"weight_map": map_of | {NAME: "no.safetensors"}}))
    refused(folder, folder / "no.safetensors", "is missing")
    twice = json.dumps({"weight_map": map_of}).replace(
        "{", f'{{"weight_map": {{"{NAME}": "{part}", "{NAME}": "{other}"}}, ', 1
    )
    (folder / INDEX).write_text(twice)
    refused(folder, folder / INDEX, "is there twice")
    (folder / INDEX).write_text(json.dumps({"weight_map": map_of}))
    arrays = load_file(folder / part)
    save_file(load_file(folder / other) | {NAME: arrays[NAME]}, folder / other)
    refused(folder, f"{NAME} is in ", folder / part, folder / other)


def test_parts_may_lie_elsewhere_by_a_link(folder, whole, tmp_path):
    """As in the hub's cache."""
    for name in set(sharded(folder).values()):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert_same(folder, whole)


# Settings

EACH = {
    "bert": BertConfig(7, 5, 1, 2, 6, 8, head="sequence_classification", labels=3),
    "clip": ClipConfig(ClipTextConfig(7, 5, 1, 2, 6, 8), ClipImageConfig(4, 2, 1, 2, 6, 8), 3),
    "gpt2": CONFIG,
    "gpt_neo": GPTConfig(vocabulary=7, context=5, layers=2, heads=2, width=6, band=3),
    "llama": LlamaConfig(7, 5, 1, 2, 1, 8, 6, scaling=Scaling(8.0, 1.0, 4.0, 16)),
    "marian": TransformerConfig(
        *(7, 5, 1, 2, 8, 6),
        **{"positions": "marian", "activation": "silu", "attention_bias": True},
        **{"output_bias": True, "epsilon": 1e-5, "smoothing": 0.0, "pad": 6, "end": 0},
    ),
    "mistral": LlamaConfig(7, 5, 1, 2, 1, 8, 6, window=3),
    "openai-gpt": GPT1Config(vocabulary=7, context=5, layers=1, heads=2, width=6),
    "vit": ViTConfig((4, 6), 2, 1, 2, 6, 8, labels=3, activation="erf"),
}


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A model of each family -> its directory."""
    folders = {}
    for name, config in EACH.items():
        folders[name] = tmp_path_factory.mktemp("every") / name
        save(folders[name], config, model_of(config).initial_params(config, key=random.key(0)))
        assert json.loads((folders[name] / SETTINGS).read_text())["model_type"] == name
    return folders


def test_each_family_is_tried():
    assert set(EACH) == set(FAMILIES)
    assert all(family_of(config) in FAMILIES.values() for config in EACH.values())


@pytest.mark.parametrize("text", ["", "[]", "null", "5", "{", '{"a": 1, "a": 1}', "\ufeff{}"])
def test_settings_that_are_no_object_are_refused(folder, text):
    (folder / SETTINGS).write_text(text, encoding="utf-8")
    refused(folder, folder / SETTINGS, "JSON", "copy it again")


@pytest.mark.parametrize("kind", ["bort", None, 5, ["gpt2"], {}, "", "vit "])
def test_an_unknown_family_is_refused(folder, kind):
    changed(folder, {"model_type": kind})
    refused(folder, folder / SETTINGS, f"model_type is {kind!r}; give one of bert, ")


def changed(folder, settings):
    path = folder / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("number", [10**9, 2**62, 2**70, True, "1", 1.0, -1, 0, [1]])
@pytest.mark.parametrize("name", ["n_layer", "n_embd", "n_head", "vocab_size", "n_positions"])
def test_a_size_that_cannot_be_is_refused_before_it_makes_anything(folder, name, number):
    """Turns red, and takes all memory, if so many layers are listed first."""
    changed(folder, {name: number})
    refused(folder, folder)
    if name == "n_layer" and type(number) is int and number > 99:
        refused(folder, f"{folder / SETTINGS}: n_layer is {number}")


ANYTHING = st.sampled_from(
    [None, True, False, "", "x", "1", [], [1], ["x"], [[]], [5, 6], {}, {"a": 1}, {"a": {}}]
    + [0, -1, 1, 2, 3, 10**9, 2**63, 10**400, 0.0, -0.5, 0.5, 1e300, math.nan, math.inf]
).map(copy.deepcopy)


@pytest.mark.parametrize("name", EACH)
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_the_settings_say_it_is_read_or_refused(name, every, tmp_path_factory, data):
    """Turns red with a TypeError, AttributeError, OverflowError …; or with a model of other arrays.

    Some settings, such as dropout, are in no array: another value of them is another model.
    """
    folder = shutil.copytree(every[name], tmp_path_factory.mktemp("any") / "model")
    found = json.loads((folder / SETTINGS).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        place = found
        key = data.draw(st.sampled_from(sorted(place)))
        while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            key = data.draw(st.sampled_from(sorted(place)))
        place[key] = data.draw(ANYTHING)
    (folder / SETTINGS).write_text(json.dumps(found))
    try:
        _, params = load(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)
    else:
        before = load(every[name])[1]
        assert list(tree.flatten(params)) == list(tree.flatten(before))
        for path, array in tree.flatten(params).items():
            if name == "gpt_neo" and path.endswith("query.kernel"):
                continue  # the number of heads is in its scale
            np.testing.assert_array_equal(array, tree.flatten(before)[path])
    shutil.rmtree(folder)


# Bytes


@settings(max_examples=150)
@given(data=st.data())
def test_damage_of_any_kind_is_told_or_does_no_harm(whole, tmp_path_factory, data):
    """A wrong array is never taken for the right one.  Turns red with an error that is not
    CheckpointError, and if gaps, overlaps or the data's end are not looked at.

    A changed weight cannot be seen, as it can be any number.
    """
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / "model")
    if data.draw(st.booleans(), label="sharded"):
        sharded(folder)
    path = folder / data.draw(st.sampled_from(sorted(os.listdir(folder))), label="file")
    content = bytearray(path.read_bytes())
    arrays = path.suffix == ".safetensors"
    end = 8 + int.from_bytes(content[:8], "little") if arrays else len(content)
    at = data.draw(st.integers(0, end), label="at")
    until = data.draw(st.just(at) | st.integers(at, min(at + 9, end)), label="until")
    kinds = st.binary(max_size=9) | st.text('0123456789,:[]{}" -.eFB', max_size=9).map(str.encode)
    content[at:until] = data.draw(kinds, label="put there")
    path.write_bytes(content)
    try:
        config, params = load(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)
    else:
        tree.map(np.testing.assert_array_equal, params, load(whole)[1])
        if arrays:
            assert config == CONFIG
    shutil.rmtree(folder)


def test_a_name_that_is_neither_directory_nor_of_the_hub_is_refused(tmp_path):
    for name in (tmp_path / "none", f"{tmp_path}/none/", "a/b/c"):
        with pytest.raises(InputError, match=re.escape(str(name).rstrip("/"))):
            load(name)
