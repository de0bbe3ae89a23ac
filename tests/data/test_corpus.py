import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import accelerated.__main__
from reference import random
from reference.data import corpus as module
from reference.data.cleaning import FORMS, normalize
from reference.data.corpus import Source, opened, prepare
from reference.data.source import is_table, source_of
from reference.data.split import cut, in_validation
from reference.data.text import python_documentation, text_pieces
from reference.errors import InputError
from reference.tokenizers import BPE, Characters, load_tokenizer

ROOT = Path(__file__).parents[2]
KEY = random.key(3)
DOCUMENTS = [
    f"Document {i} is about {i * i}, or\n\t{'é漢🙂'[i % 3]}, and ends" for i in range(1000)
]
TEXT = "The cat\r\nsat, and sat;   and  sat:\n\n\n it's 10 o'clock é漢🙂.\t\n" * 40
ENCODERS = {
    "accelerated": accelerated.__main__.ENGINE.encoder,
    "reference": lambda tokenizer: tokenizer.encode,
}
each_engine = pytest.mark.parametrize("engine", ENCODERS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "text_pieces", partial(text_pieces, size=61))


def written(name, documents=DOCUMENTS, column="text"):
    """A file with these documents, by the ending of its name -> the name."""
    plain = name.removesuffix(".gz")
    if plain.endswith(".jsonl"):
        content = "".join(json.dumps({"n": 0, column: text}) + "\n" for text in documents)
        Path(plain).write_bytes(content.encode())
    elif is_table(plain):
        with open(plain, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if plain.endswith(".tsv") else ",")
            writer.writerows([[column, "n"], *([text, 0] for text in documents)])
    else:
        Path(plain).write_bytes("".join(documents).encode())
    if name != plain:
        Path(name).write_bytes(gzip.compress(Path(plain).read_bytes()))
        Path(plain).unlink()
    return name


def prepared(*, engine="reference", out="tokens", key=KEY, own=None, **options):
    """The Corpus of a Source with these options; own: a tokenizer that is there already."""
    return prepare(Source(**options), out, key=key, tokenizer=own, encoder=ENCODERS[engine])


def documents_in(tokens, corpus):
    """The texts between separators."""
    starts = np.flatnonzero(np.array(tokens) == corpus.separator).tolist() + [len(tokens)]
    assert starts[0] == 0
    return [corpus.tokenizer.decode(tokens[a + 1 : b]) for a, b in pairwise(starts)]


# From a file to tokens


@pytest.mark.parametrize("tokenizer", ["bpe", "characters"])
def test_documents_are_the_same_in_every_form_of_file(folder, tokenizer):
    found = []
    for name in ("a.csv", "a.tsv", "a.jsonl", "A.CSV", "a.jsonl.gz", "a.tsv.gz"):
        written(name)
        found.append(prepared(data=name, tokenizer=tokenizer, out=f"{name} tokens"))
        assert found[-1].report == []
    for other in found[1:]:
        assert other.tokenizer == found[0].tokenizer and other.separator == found[0].separator
        np.testing.assert_array_equal(other.tokens, found[0].tokens)
        np.testing.assert_array_equal(other.validation, found[0].validation)


@each_engine
def test_each_document_begins_with_the_separator_and_is_itself(folder, engine):
    texts = ["", *DOCUMENTS[:50], "<|endoftext|>"]
    name = written("a.jsonl", texts, column="story")
    corpus = prepared(data=name, text_column="story", validation_share=0, engine=engine)
    assert corpus.separator == corpus.tokenizer.special_ids["<|endoftext|>"]
    assert documents_in(corpus.tokens, corpus) == texts
    assert corpus.validation is None


@each_engine
@pytest.mark.parametrize("tokenizer", ["bpe", "characters"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_long_text_is_cut_once_and_its_tokens_are_those_of_the_whole(
    folder, small_pieces, engine, tokenizer, name
):
    """Turns red if a piece is encoded with a separator, or each piece is cut for itself."""
    corpus = prepared(data=written(name, [TEXT]), tokenizer=tokenizer, engine=engine)
    whole = list(corpus.tokenizer.encode(TEXT))
    assert [*corpus.tokens.tolist(), *corpus.validation.tolist()] == whole
    assert len(corpus.tokens) == cut(len(whole), 0.1) and corpus.separator is None


@pytest.mark.parametrize("tokenizer", ["bpe", "characters"])
def test_both_engines_make_the_same_tokens(folder, tokenizer):
    for data in (written("a.csv"), written("a.txt", [python_documentation()[:100_000]])):
        made = [prepared(data=data, tokenizer=tokenizer, engine=e, out=e) for e in ENCODERS]
        assert made[0].tokenizer == made[1].tokenizer
        for name in ("train.npy", "validation.npy"):
            assert len({Path(engine, name).read_bytes() for engine in ENCODERS}) == 1


def test_without_a_file_it_is_the_documentation_of_python(folder):
    corpus = prepared(vocabulary=300)
    whole = [*corpus.tokens.tolist(), *corpus.validation.tolist()]
    assert corpus.tokenizer.decode(whole) == python_documentation()


@given(
    st.text("ae\u0301\u0308\u1100\u1161ﬁ２¨\x01\x1c\x85\u2028\u3000\xa0 \r\n\t"),
    st.sampled_from(FORMS),
    st.integers(1, 9),
)
@example("e\x01 \u0301 e\r\n\u0301", "NFC", 1)
@example("a\x01\n\n b", "NFC", 1)
def test_normalization_piece_by_piece_is_that_of_the_whole(tmp_path_factory, text, form, size):
    """Turns red if text is cut between a letter and its accent, or "\\r" and "\\n"."""
    path = tmp_path_factory.getbasetemp() / "normalized.txt"
    path.write_bytes(f"x{text} y".encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "text_pieces", partial(text_pieces, size=size))
        pieces = [text for _, text in module.pieces(path, Source(normalization=form))]
    assert "".join(pieces) == normalize(f"x{text} y", form)


# For training or for validation


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(20, 300), st.floats(0.01, 0.99))
def test_documents_are_chosen_by_the_key_however_many_are_drawn_at_once(seed, drawn, share):
    """Turns red if each block is drawn with the numbers of the first."""
    key, source = random.key(seed), Source("a.csv", validation_share=share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DRAWN", drawn)
        chosen = [c for _, c in zip(range(500), module.validated(source, key), strict=False)]
    assert chosen == in_validation(np.arange(500), share, key=key).tolist()


def test_documents_are_split_by_seed_alike_in_both_engines_and_in_every_run(folder):
    """Turns red if a document goes to both files, to none, or another key splits alike."""
    name, parts = written("a.jsonl"), []
    for engine in ("accelerated", "reference", "reference"):
        corpus = prepared(data=name, engine=engine, validation_share=0.2)
        parts.append([documents_in(t, corpus) for t in (corpus.tokens, corpus.validation)])
    assert parts[0] == parts[1] == parts[2]
    train, validation = parts[0]
    assert sorted(train + validation) == sorted(DOCUMENTS)
    assert abs(len(validation) - 200) < 4 * (1000 * 0.2 * 0.8) ** 0.5
    assert train == [text for text in DOCUMENTS if text in set(train)]  # their order stays
    other = prepared(data=name, key=random.key(4), validation_share=0.2)
    assert documents_in(other.validation, other) != validation


def test_another_file_to_validate_on_leaves_all_of_the_data_for_training(folder):
    written("a.csv", DOCUMENTS[:90])
    written("b.tsv", ["Only here: ß", *DOCUMENTS[90:99]])
    for tokenizer in ("bpe", "characters"):
        corpus = prepared(data="a.csv", validation="b.tsv", tokenizer=tokenizer)
        assert documents_in(corpus.tokens, corpus) == DOCUMENTS[:90]
        assert documents_in(corpus.validation, corpus) == ["Only here: ß", *DOCUMENTS[90:99]]
    written("a.txt", [TEXT])
    written("b.txt", ["Only here: ß"])
    corpus = prepared(data="a.txt", validation="b.txt", tokenizer="characters")
    assert corpus.tokenizer.decode(corpus.tokens) == TEXT
    assert corpus.tokenizer.decode(corpus.validation) == "Only here: ß"


def test_what_is_validated_on_repeats_nothing_that_is_trained_on(folder):
    """Turns red if each file is cleaned for itself."""
    written("a.csv", DOCUMENTS[:90])
    written("b.csv", [*DOCUMENTS[80:90], "something else"])
    corpus = prepared(data="a.csv", validation="b.csv", duplicates="exact")
    assert documents_in(corpus.validation, corpus) == ["something else"]
    assert corpus.report[0].startswith("101 texts: 91 kept, 10 dropped")


@pytest.mark.parametrize(
    "options",
    [
        {"data": "a.txt"},
        {"data": "a.txt", "validation_share": 0},
        {"data": "a.txt", "validation": "b.txt", "tokenizer": "characters"},
        {"data": "a.csv"},
        {"data": "a.csv", "validation": "b.csv", "duplicates": "near"},
    ],
)
def test_what_is_prepared_is_opened_again(folder, options):
    for name in ("a.txt", "a.csv"):
        written(name)
        written(name.replace("a", "b"), ["It is another text, short as it is"])
    made = prepared(**options)
    settings = json.loads(json.dumps(vars(Source(**options)) | {"steps": 3}))
    again = opened(source_of(settings), "tokens", made.tokenizer)
    np.testing.assert_array_equal(made.tokens, again.tokens)
    if options.get("validation_share") == 0:
        assert made.validation is None and again.validation is None
    else:
        np.testing.assert_array_equal(made.validation, again.validation)
    assert (made.separator, made.tokenizer) == (again.separator, again.tokenizer)
    assert isinstance(again.tokens, np.memmap) and again.report == []


# Tokenizers


def test_a_bpe_is_learnt_from_the_beginning(folder, small_pieces, monkeypatch):
    monkeypatch.setattr(module, "LEARNT_FROM", 1000)
    corpus = prepared(data=written("a.txt", [TEXT, "the end " * 500]))
    assert corpus.tokenizer == BPE.train(TEXT[:1000])


def test_a_bpe_does_not_learn_the_last_word_of_one_document_and_the_first_of_the_next(folder):
    corpus = prepared(data=written("a.jsonl", ["north", "east"] * 50), vocabulary=260)
    assert not any(b"he" in token for token in corpus.tokenizer.tokens[:-1])


def test_a_saved_tokenizer_is_taken_as_it_is(folder):
    for tokenizer in (BPE.train(TEXT, 270), Characters.train(TEXT)):
        tokenizer.save("saved")
        corpus = prepared(data=written("a.txt", [TEXT]), tokenizer="saved")
        assert corpus.tokenizer == tokenizer == load_tokenizer("saved")
        shutil.rmtree("saved")


# What is left out is told


def test_the_report_says_what_was_left_out_and_why(folder):
    lines = [json.dumps({"text": text}) for text in [*DOCUMENTS[:9], "  ", DOCUMENTS[0], "a\r\nb"]]
    lines[3:3] = ["no JSON", '{"txt": 1}']
    Path("a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    cleaning = {"normalization": "NFC", "shortest": 3, "duplicates": "exact"}
    corpus = prepared(
        data="a.jsonl", skip_wrong_rows=True, tokenizer="characters", validation_share=0, **cleaning
    )
    assert corpus.report == [
        "2 wrong rows skipped\n"
        "  a.jsonl, line 4: it is not JSON (Expecting value at character 1)\n"
        "  a.jsonl, line 5: it has no 'text'; it has 'txt'",
        "12 texts: 10 kept, 2 dropped, 1 changed by normalization\n"
        "  too short: 1\n"
        "    a.jsonl, line 12 (2 characters)\n"
        "  exact duplicate: 1\n"
        "    a.jsonl, line 13",
    ]
    assert documents_in(corpus.tokens, corpus) == [*DOCUMENTS[:9], "a\nb"]


def test_near_copies_are_named_with_what_they_are_like(folder):
    long = " ".join(DOCUMENTS[:20])
    written("a.csv", [long, DOCUMENTS[0], long + "!"])
    corpus = prepared(data="a.csv", duplicates="near", validation_share=0)
    said = r"near duplicate: 1\n    a.csv, line 25 is like a.csv, line 2 \((0.9\d|1.00)\)"
    assert re.search(said, corpus.report[0])
    assert documents_in(corpus.tokens, corpus) == [long, DOCUMENTS[0]]


# Bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data": "nowhere.txt", "validation_share": 1}, "validation_share is 1; give at least 0"),
        ({"data": "a.txt", "longest": 9}, "a text is but one; give them in a file of .csv"),
        (
            {"data": "a.txt", "tokenizer": "characters", "vocabulary": 9},
            "has its own; leave it out",
        ),
        ({"data": "a.csv", "validation": "a.txt"}, "a.txt is one text, and what is trained on is"),
        ({"data": "a.txt", "validation": "a.csv"}, "a.csv is documents, and what is trained on is"),
        ({"data": "a.csv", "duplicates": "alike"}, "duplicates is 'alike'; give 'exact', 'near'"),
        ({"data": "tokens"}, "tokens is a folder; give a file with text or documents"),
        ({"data": "a.csv", "validation": "tokens/b.csv"}, "b.csv is a folder; give a file"),
        ({"data": "/dev/null"}, "/dev/null is no file that can be read twice; save what it gives"),
        ({"data": "a.csv", "shortest": 10**6}, r"a.csv has no document .*: 1,000 texts: 0 kept"),
        ({"data": "a.csv", "validation": "b.csv", "duplicates": "exact"}, "b.csv has no document"),
        ({"data": "b.csv", "validation_share": 0.9999}, "b.csv has too little text: 0 tokens to t"),
        ({"data": "one.txt"}, "one.txt has too little text: 1 tokens to train on and 0 to valid"),
        ({"data": "two.txt"}, "two.txt has too little text: 1 tokens to train on and 1 to valid"),
        ({"data": "control.txt", "normalization": "NFC"}, "too little text: 0 tokens"),
        ({"data": "a.csv", "tokenizer": "small"}, "has documents, and the tokenizer no <.endoft"),
        (
            {"data": "two.txt", "tokenizer": "small"},
            r"^two.txt: text\[1\] is 'b' .U.0062., in 'ab'",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_tokens(folder, options, message):
    for name, texts in {"a.csv": DOCUMENTS, "b.csv": DOCUMENTS[:5], "a.txt": [TEXT]}.items():
        written(name, texts)
    for name, text in {"one.txt": "a", "two.txt": "ab", "control.txt": "\x01" * 99}.items():
        Path(name).write_text(text, encoding="utf-8")
    Path("tokens/b.csv").mkdir(parents=True)
    Characters.train("a").save("small")
    if "vocabulary" not in options and options["data"] in ("one.txt", "two.txt", "control.txt"):
        options = {"tokenizer": "characters"} | options
    if "control" in options["data"]:
        options |= {"tokenizer": "bpe"}
    with pytest.raises(InputError, match=message):
        prepared(**options)


def test_the_piece_of_an_unknown_character_is_named(folder, small_pieces):
    name = written("a.txt", [TEXT + "ß"])
    with pytest.raises(InputError, match=r"^a.txt, from character 2,[0-9]+ on: text\[.*'ß'"):
        prepared(data=name, own=Characters.train(TEXT))
    name = written("a.csv", ["a", "b", "c"])
    known = Characters.train("ab", special_tokens=("<|endoftext|>",))
    with pytest.raises(InputError, match=r"^a.csv, line 4: text\[0\] is 'c'"):
        prepared(data=name, own=known)


def test_tokens_of_before_stay_where_new_ones_cannot_be_made(folder):
    prepared(data=written("a.csv"))
    before = {path: path.read_bytes() for path in Path("tokens").iterdir()}
    with open("a.csv", "ab") as file:
        file.write(b"a row,0,of more\n")
    for tokenizer in (None, Characters.train(DOCUMENTS, special_tokens=("<|endoftext|>",))):
        with pytest.raises(InputError, match="a.csv, line 2002: it has 3 fields"):
            prepared(data="a.csv", own=tokenizer)
    assert {path: path.read_bytes() for path in Path("tokens").iterdir()} == before


def test_settings_that_name_no_text_are_those_of_another_program():
    with pytest.raises(InputError, match="it has no data.: it was begun by `fit`, and not by"):
        source_of({"steps": 3, "batch": 4})


# Memory


class Text(str):
    """A text whose end can be watched."""


@pytest.mark.parametrize("tokenizer", ["bpe", "characters"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_one_text_is_held_at_a_time(folder, monkeypatch, name, tokenizer):
    """And the next one, while it is read.  Turns red if texts are listed before they are encoded.

    What a BPE is learnt from, the first few, is held at once.
    """
    alive, most = [], 0

    def watched(*_, **__):
        nonlocal most
        for i in range(200):
            text = Text(f"text {i} is watched\n")
            alive[:] = [reference for reference in alive if reference() is not None]
            alive.append(weakref.ref(text))
            most = max(most, len(alive))
            yield (i, {"text": text}) if name == "a.csv" else text
            del text

    monkeypatch.setattr(module, "LEARNT_FROM", 20)
    monkeypatch.setattr(module, "read_rows", watched)
    monkeypatch.setattr(module, "text_pieces", watched)
    corpus = prepared(data=name, tokenizer=tokenizer)
    assert len(corpus.tokens) > 1000 and most <= 3


GROWTH = """
import re, shutil, sys
from reference.commands import main
from {engine}.__main__ import ENGINE

def most():
    "The most memory there was so far, in MB.  The system's `maxrss` may be the parent's."
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

sizes = "--steps 3 --batch 4 --length 16 --evaluation-batches 3 --tokenizer characters --quiet"
for name in ("small.txt", "large.txt"):
    assert main(ENGINE, ["train", "--data", name, "--out", name + " run", *sizes.split()]) == 0
    print("most memory:", most())
"""


def growth(engine, small, large):
    """How much more memory, in MB, a run takes on a text of so many bytes than on a small one."""
    numbers = range(300)
    text = "".join(f"{a} and {b} are {a + b}, or {a * b}.\n" for a in numbers for b in numbers)
    for name, size in (("small.txt", small), ("large.txt", large)):
        with open(name, "wb") as file:
            while file.tell() < size:
                file.write(text.encode()[: size - file.tell()])
    command = [sys.executable, "-c", GROWTH.format(engine=engine)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{large * 9 // 10:,} tokens to train on" in done.stdout
    least, most = map(int, re.findall("most memory: (.*)", done.stdout))
    print(f"{engine}: {least} MB of memory for {small:,} bytes, {most} MB for {large:,}")
    return most - least


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it")


@needs_proc
def test_a_text_takes_no_memory_of_its_size(folder):
    """Turns red if the pieces of a text are joined, or its tokens are read into an array."""
    assert growth("reference", 20_000_000, 80_000_000) < 60  # MB, which are heaps of freed pieces


@needs_proc
@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["reference", "accelerated"])
def test_a_text_of_2_gb_is_trained_on_with_less_than_1_gb(folder, engine):
    if shutil.disk_usage(folder).free < 8e9:
        pytest.skip("less than 8 GB of disk are free")
    assert growth(engine, 1_000_000, 2_000_000_000) < 1000
    for name in ("large.txt", "large.txt run"):
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
