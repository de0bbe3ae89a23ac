import errno
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.data import tokens as module
from reference.data.text import text_pieces
from reference.data.tokens import TokenWriter, read_tokens, write_tokens
from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers import BPE, Characters

ROOT = Path(__file__).parents[2]
SIZES = {1: "u1", 256: "u1", 257: "<u2", 65_536: "<u2", 65_537: "<u4", 2**32: "<u4"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens") / "train.npy"


@pytest.fixture(scope="module")
def whole(path):
    return written(path, [1, 2, 299] * 20)


def written(path, ids, vocabulary=300):
    with TokenWriter(path, vocabulary) as writer:
        writer.append(ids)
    return path.read_bytes()


# What is written is read


@given(st.data(), st.sampled_from(list(SIZES)))
def test_what_is_appended_is_read(path, data, vocabulary):
    """Turns red if a dtype is a byte too small, or an append is left out of count or hash."""
    ids = st.one_of(st.integers(0, vocabulary - 1), st.just(vocabulary - 1))
    appended = data.draw(st.lists(st.lists(ids)))
    kinds = [list, np.array, lambda ids: np.array(ids, np.uint32), lambda ids: np.array(ids)[::-1]]
    everything = []
    with TokenWriter(path, vocabulary) as writer:
        for part in appended:
            part = data.draw(st.sampled_from(kinds))(part) if part else part
            writer.append(part)
            everything += list(part)
    read = read_tokens(path, vocabulary=vocabulary)
    assert read.tolist() == everything
    assert read.dtype == np.dtype(SIZES[vocabulary])
    assert writer.count == len(everything) == len(read)
    assert writer.sha256 == hashlib.sha256(read).hexdigest()
    plain = np.load(path, mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(plain, read)
    assert plain.dtype == read.dtype


def test_the_form_on_disk(path):
    """What other programs may rely on: NumPy's own."""
    ids = list(range(299))
    data = written(path, ids)
    np.save(path, np.array(ids, np.uint16))
    assert path.read_bytes() == data
    assert len(data) == 128 + 2 * 299


def test_a_header_is_as_long_for_any_count(tmp_path):
    for count in (0, 1, 10**9, 10**18):
        writer = TokenWriter(tmp_path / "tokens", 300)
        writer.count = count
        with open(tmp_path / "header", "wb") as writer._file:
            writer._write_header()
        assert (tmp_path / "header").stat().st_size == 128


def test_tokens_that_are_read_cannot_be_changed_and_are_not_copied(path):
    written(path, [1, 2, 3, 4])
    read = read_tokens(path)
    assert isinstance(read, np.memmap) and np.shares_memory(read[-2:], read)
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 5


def test_a_text_goes_through_piece_by_piece(tmp_path):
    (tmp_path / "text").write_text("the cat and the hat\n" * 500, encoding="utf-8")
    text = (tmp_path / "text").read_text(encoding="utf-8")
    for tokenizer in (BPE.train(text, 262), Characters.train(text)):
        count, sha256 = write_tokens(
            tmp_path / "new" / "tokens.npy",
            text_pieces(tmp_path / "text", size=64),
            tokenizer.encode,
            vocabulary=tokenizer.vocabulary_size,
        )
        read = read_tokens(tmp_path / "new" / "tokens.npy")
        assert read.tolist() == list(tokenizer.encode(text))
        assert (count, sha256) == (len(read), hashlib.sha256(read).hexdigest())
        assert tokenizer.decode(read) == text


def test_documents_are_kept_apart(path):
    tokenizer = Characters.train("abc", special_tokens=("<|end|>",))
    documents = (text for text in ["ab", "", "c"])
    size = {"vocabulary": 4, "separator": tokenizer.special_ids["<|end|>"]}
    assert write_tokens(path, documents, tokenizer.encode, **size)[0] == 6
    assert read_tokens(path).tolist() == [3, 0, 1, 3, 3, 2]


def test_documents_can_go_to_two_files_as_they_come(tmp_path):
    with TokenWriter(tmp_path / "a", 100) as a, TokenWriter(tmp_path / "b", 100) as b:
        for i in range(100):
            (b if i % 10 == 3 else a).append([i])
    assert (a.count, b.count) == (90, 10)
    assert read_tokens(tmp_path / "b").tolist() == list(range(3, 100, 10))


# A file is whole or not there


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "train.npy"
    for ids in ([1, 2], [3]):
        before = path.read_bytes() if path.exists() else None
        with TokenWriter(path, 300) as writer:
            writer.append(ids)
            assert (path.read_bytes() if path.exists() else None) == before
        assert read_tokens(path).tolist() == ids
        assert os.listdir(tmp_path) == ["train.npy"]


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt, GeneratorExit])
def test_a_writer_that_is_left_by_an_exception_leaves_nothing(tmp_path, error):
    path = tmp_path / "train.npy"

    def texts():
        yield "ab"
        raise error("wrong row")

    for before in (None, b"old"):
        if before:
            path.write_bytes(before)
        with pytest.raises(error, match="wrong row"):
            write_tokens(path, texts(), lambda text: [1] * 100_000, vocabulary=2)
        assert os.listdir(tmp_path) == (["train.npy"] if before else [])
        assert not before or path.read_bytes() == before


def test_what_a_killed_program_left_is_written_over(tmp_path):
    path = tmp_path / "train.npy"
    (tmp_path / "train.npy.tmp").write_bytes(b"x" * 10_000)
    written(path, [1, 2, 3])
    assert read_tokens(path).tolist() == [1, 2, 3] and os.listdir(tmp_path) == ["train.npy"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a disk always full")
@pytest.mark.parametrize("count", [1, 1_000_000], ids=["at the end", "on the way"])
def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path, count):
    path, unfinished = tmp_path / "train.npy", tmp_path / "train.npy.tmp"
    path.write_bytes(b"old")
    unfinished.symlink_to("/dev/full")
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{unfinished}'")):
        written(path, [1] * count)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["train.npy"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_sync_or_rename_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "train.npy"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.EIO, "no such luck")

    monkeypatch.setattr(module.os, call, fail)
    with pytest.raises(OSError, match=re.escape(f"no such luck: '{path}.tmp'")):
        written(path, [1])
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["train.npy"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "train.npy", []

    def sync(descriptor):
        unfinished = (tmp_path / "train.npy.tmp").read_bytes()
        synced.append((os.fstat(descriptor).st_size, unfinished, path.exists()))

    monkeypatch.setattr(module.os, "fsync", sync)
    data = written(path, [1] * 1000)
    assert synced == [(len(data), data, False)]


# Memory

MEASURE = """
import sys
from reference.data.text import text_pieces
from reference.data.tokens import read_tokens, write_tokens
from reference.tokenizers import Characters

def peak():  # of this program alone; getrusage starts from what the one that started it had
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

text, tokens = sys.argv[1:]
before = peak()
tokenizer = Characters.train(text_pieces(text))
size = tokenizer.vocabulary_size
count, _ = write_tokens(tokens, text_pieces(text), tokenizer.encode, vocabulary=size)
assert read_tokens(tokens)[-1] == 0
print(count, peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells the peak memory")
@pytest.mark.parametrize(
    "megabytes", [200, pytest.param(2000, marks=pytest.mark.thorough)], ids=["200 MB", "2 GB"]
)
def test_a_text_larger_than_memory_passes(tmp_path, megabytes):
    line = "Größe 漢字 🙂 and the rest of a line\n"
    part = line * (1_000_000 // len(line.encode()))
    with open(tmp_path / "text", "wb") as file:
        for _ in range(megabytes):
            file.write(part.encode())
    command = [sys.executable, "-c", MEASURE, tmp_path / "text", tmp_path / "tokens.npy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    count, megabytes_more = map(float, done.stdout.split())
    assert count == megabytes * len(part)
    assert megabytes_more < 150
    (tmp_path / "text").unlink()
    (tmp_path / "tokens.npy").unlink()


# Bad input


def test_ids_that_are_no_ids_are_refused(tmp_path):
    for ids, error, message in (
        ([1, 300], InputError, r"ids\[1\] is 300, outside the vocabulary \[0, 300\)"),
        (np.array([-1]), InputError, r"ids\[0\] is -1, outside"),
        ([0.5], DtypeError, "ids is of float64; give an array of integers"),
        ([True], DtypeError, "ids is of bool"),
        ("text", DtypeError, "ids is of <U4|ids has shape"),
        (None, DtypeError, "ids is of object|ids has shape"),
        ([[1, 2]], InputError, r"ids has shape \(1, 2\), and must be one row"),
        (5, InputError, r"ids has shape \(\), and must be one row"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            written(tmp_path / "tokens", ids)
        assert isinstance(raised.value, error) or "shape" in message
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("vocabulary", [0, -1, 2**32 + 1])
def test_a_vocabulary_that_no_dtype_holds_is_refused(tmp_path, vocabulary):
    with pytest.raises(InputError, match=f"vocabulary is {vocabulary}, and must be from 1"):
        TokenWriter(tmp_path / "tokens", vocabulary)


@settings(max_examples=300)
@given(st.data())
def test_a_torn_file_is_never_read(path, whole, data):
    """Turns red if the size is not compared with the header, or a header is taken on trust."""
    kind = data.draw(st.sampled_from(["cut", "longer", "changed"]))
    if kind == "cut":
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    elif kind == "longer":
        path.write_bytes(whole + data.draw(st.binary(min_size=1)))
    else:
        i = data.draw(st.integers(10, 62))
        others = st.integers(0, 255).filter(lambda byte: byte != whole[i])
        path.write_bytes(whole[:i] + bytes([data.draw(others)]) + whole[i + 1 :])
    with pytest.raises(CheckpointError, match=f"{path} has .*; write it again with"):
        read_tokens(path)


FOREIGN = {
    "floats": np.zeros(30),
    "table": np.zeros((3, 10), np.uint16),
    "number": np.zeros((), np.uint8),
    "signed": np.zeros(30, np.int32),
    "64 bits": np.zeros(30, np.uint64),
    "big-endian": np.zeros(30, ">u2"),
    "objects": np.array([{}, "text"]),
    "fields": np.zeros(3, [("a", "u1")]),
}


@pytest.mark.parametrize("array", FOREIGN.values(), ids=FOREIGN)
def test_an_array_of_something_else_is_refused(path, array):
    np.save(path, array)
    with pytest.raises(CheckpointError, match=f"{path} .*one row of uint8, uint16, uint32"):
        read_tokens(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "arrays.npz", np.zeros(3, np.uint16))
    for name in ("arrays.npz", Path(__file__)):
        with pytest.raises(CheckpointError, match="has another header, and must be .npy"):
            read_tokens(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere.npy"):
        read_tokens(tmp_path / "nowhere.npy")


def test_tokens_of_another_vocabulary_are_refused(path):
    written(path, [1, 2], vocabulary=256)
    assert read_tokens(path, vocabulary=65).tolist() == [1, 2]
    with pytest.raises(CheckpointError, match="tokens of uint8, and a vocabulary of 257 is .*16"):
        read_tokens(path, vocabulary=257)
