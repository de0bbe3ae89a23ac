import copy
import dataclasses
import json
import os
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers import BPE, Characters, load_tokenizer
from reference.tokenizers.bpe import END_OF_TEXT

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SPECIAL = ("<|b|>", "<|b|><|a|>", END_OF_TEXT)


@pytest.fixture
def saved(tmp_path):
    Characters.train("hello, \n Größe\u2028\r🙂", special_tokens=SPECIAL).save(tmp_path)
    return tmp_path


# Training


def test_ids_follow_the_code_points_from_zero():
    tokenizer = Characters.train("cab\n🙂éa")
    assert tokenizer.characters == "\nabcé🙂"
    assert tokenizer.vocabulary_size == 6 and tokenizer.special_tokens == ()
    assert tokenizer.encode("cab\n🙂é").tolist() == [3, 1, 2, 0, 5, 4]
    assert tokenizer.tokens == (b"\n", b"a", b"b", b"c", "é".encode(), "🙂".encode())


def test_special_tokens_come_last_and_only_if_asked_for():
    tokenizer = Characters.train("ab", special_tokens=["<|b|>", END_OF_TEXT])
    assert tokenizer.special_ids == {"<|b|>": 2, END_OF_TEXT: 3}
    assert tokenizer.vocabulary_size == 4 and tokenizer.special_tokens == ("<|b|>", END_OF_TEXT)


def test_shakespeare_has_65():
    path = SHARED / "tinyshakespeare" / "input.txt"
    if not path.exists():
        pytest.skip("tinyshakespeare is not beside the checkout")
    text = path.read_text(encoding="utf-8")
    tokenizer = Characters.train(text)
    assert tokenizer.vocabulary_size == 65
    assert tokenizer.encode("First Citizen:\n")[:5].tolist() == [18, 47, 56, 57, 58]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.text(), min_size=1))
def test_the_characters_are_those_of_all_pieces(pieces):
    """Turns red if only the last piece is kept, or the ids are in the order of appearance."""
    text = "".join(pieces)
    if not text:
        with pytest.raises(InputError, match="the text is empty"):
            Characters.train(pieces)
        return
    tokenizer = Characters.train(iter(pieces))
    assert tokenizer == Characters.train(text)
    assert list(tokenizer.characters) == sorted(set(text))


# Encoding and decoding


@given(st.text(min_size=1), st.data())
def test_an_id_is_the_place_of_a_character_in_the_vocabulary(vocabulary, data):
    """Turns red if the table has another order, or is read one place off."""
    tokenizer = Characters.train(vocabulary, special_tokens=SPECIAL)
    text = data.draw(st.text(tokenizer.characters))
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.shape == (len(text),)
    assert ids.tolist() == [tokenizer.characters.index(character) for character in text]
    for given_ids in (ids, ids.tolist(), iter(ids.tolist()), ids.astype(np.uint32)):
        assert tokenizer.decode(given_ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


@given(st.text(min_size=1), st.text(), st.characters(exclude_categories=["Cs"]), st.text())
def test_a_character_that_is_not_known_is_shown_with_its_place(known, left, unknown, right):
    """Turns red if a code point between, below or above those in the table gets another's id."""
    vocabulary = "".join(sorted(set(known + left + right) - {unknown}))
    left, right = left.replace(unknown, ""), right.replace(unknown, "")
    if not vocabulary:
        return
    tokenizer = Characters.train(vocabulary)
    place = f"text[{len(left)}] is {unknown!r} (U+{ord(unknown):04X}), in "
    with pytest.raises(InputError, match=re.escape(place)) as raised:
        tokenizer.encode(left + unknown + right)
    assert repr(left[-10:] + unknown + right[:10]) in str(raised.value)
    assert f"none of the {len(vocabulary)} characters" in str(raised.value)


def test_special_tokens_are_ordinary_text_unless_allowed():
    characters = "".join(sorted(set("".join(SPECIAL))))
    tokenizer = Characters(characters, SPECIAL)
    b, ba, end = (tokenizer.special_ids[name] for name in SPECIAL)
    text = "<|b|>ab<|b|><|a|>" + END_OF_TEXT
    assert tokenizer.encode(text).tolist() == [characters.index(c) for c in text]
    ids = tokenizer.encode(text, allowed_special="all")
    assert ids.dtype == np.int32
    assert ids.tolist() == [b, *tokenizer.encode("ab"), ba, end]
    assert tokenizer.decode(ids) == text and tokenizer.decode_bytes(ids) == text.encode()
    some = tokenizer.encode(text, allowed_special=[END_OF_TEXT]).tolist()
    assert some == [*tokenizer.encode(text.removesuffix(END_OF_TEXT)), end]
    assert tokenizer.encode("", allowed_special="all").tolist() == []
    with pytest.raises(InputError, match="allowed_special has '<|pad|>'"):
        tokenizer.encode(text, allowed_special=["<|pad|>"])


def test_encoding_is_vectorised():
    """Over 40 million characters a second, where a loop over them makes about 25 million."""
    text = "To be, or not to be: that is the question.\n" * 5_000
    tokenizer, times = Characters.train(text), []
    for _ in range(5):
        start = time.process_time()
        tokenizer.encode(text)
        times.append(time.process_time() - start)
    assert min(times) < len(text) / 40e6


def test_a_tokenizer_cannot_be_changed_but_copied():
    tokenizer = Characters.train("hello", special_tokens=list(SPECIAL))
    ids = tokenizer.encode("hello")
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokenizer.characters = "abc"
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other == tokenizer and hash(other) == hash(tokenizer)
        assert other.encode("hello").tolist() == ids.tolist()
    assert tokenizer != Characters.train("hello") and tokenizer != Characters("ehl", SPECIAL)
    ids[:] = 0
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


# Files


@settings(max_examples=50)
@given(st.text(min_size=1), st.sampled_from([(), SPECIAL]))
def test_what_is_saved_is_loaded(tmp_path_factory, text, special_tokens):
    """Turns red if a line end is translated, or the special tokens are left out."""
    folder = tmp_path_factory.mktemp("saved") / "new"
    tokenizer = Characters.train(text, special_tokens=special_tokens)
    tokenizer.save(folder)
    assert Characters.load(folder) == load_tokenizer(str(folder)) == tokenizer
    assert os.listdir(folder) == ["characters.json"]


def test_the_form_on_disk(tmp_path):
    """What other programs may rely on, and people read."""
    Characters.train("bé\n", special_tokens=[END_OF_TEXT]).save(tmp_path)
    assert (tmp_path / "characters.json").read_bytes().decode() == (
        '{\n  "format": "twinformer characters",\n  "version": 1,\n  "vocabulary": 4,\n'
        '  "characters": "\\nbé",\n  "special_tokens": [\n    "<|endoftext|>"\n  ]\n}\n'
    )


def test_a_save_that_fails_leaves_the_old_file(saved, monkeypatch):
    before = Characters.load(saved)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        Characters("x").save(saved)
    assert Characters.load(saved) == before


@given(st.data())
def test_a_file_cut_short_is_never_read(tmp_path_factory, data):
    """Turns red if what stands in the file is not parsed as a whole."""
    folder = tmp_path_factory.mktemp("cut")
    Characters.train("héllo", special_tokens=SPECIAL).save(folder)
    path = folder / "characters.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 3))])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        Characters.load(folder)


CHANGES = {
    "version": ({"version": 2}, "of another version"),
    "format": ({"format": "other"}, "of another version"),
    "more": ({"more": 1}, "of another version"),
    "count": ({"vocabulary": 5}, "a vocabulary of"),
    "a character less": ({"characters": "ab"}, "a vocabulary of 5"),
    "order": ({"characters": "ba"}, "in the order of their code points"),
    "twice": ({"characters": "aab"}, "each there once"),
    "list": ({"characters": ["a", "b"]}, "text is of type list"),
    "surrogate": ({"characters": "\ud800"}, "half of a surrogate"),
    "missing": ({"characters": ...}, "KeyError"),
    "null": ({"special_tokens": None}, "TypeError"),
    "number": ({"special_tokens": [5]}, "the special token 5"),
    "ordinary": ({"special_tokens": ["a"]}, "the special token 'a'"),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_refused(saved, change, message):
    path = saved / "characters.json"
    described = json.loads(path.read_text(encoding="utf-8")) | change
    described = {name: value for name, value in described.items() if value is not ...}
    path.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as raised:
        Characters.load(saved)
    assert str(path) in str(raised.value) and "copy it again" in str(raised.value)


@pytest.mark.parametrize("data", [b"", b"[1]", b"null", b'"a"', b"[" * 100_000, b"\xff\xfe{"])
def test_a_file_of_something_else_is_refused(saved, data):
    (saved / "characters.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{saved}/characters.json .*copy it again"):
        Characters.load(saved)


def test_whichever_tokenizer_lies_in_a_folder_is_loaded(tmp_path):
    bpe, characters = BPE.train("the cat the hat", 262), Characters.train("the cat")
    for tokenizer, folder in ((bpe, tmp_path / "bpe"), (characters, tmp_path / "characters")):
        tokenizer.save(folder)
        assert load_tokenizer(folder) == tokenizer
    (tmp_path / "bpe" / "merges.txt").rename(tmp_path / "bpe" / "vocab.bpe")
    assert load_tokenizer(tmp_path / "bpe") == bpe


def test_a_folder_with_no_tokenizer_or_with_two_is_refused(tmp_path, saved):
    for folder in (tmp_path / "none", saved.parent):
        with pytest.raises(CheckpointError, match=f"{folder} has no tokenizer, .*give the folder"):
            load_tokenizer(folder)
    with pytest.raises(CheckpointError, match="characters.json is missing: give the folder"):
        Characters.load(tmp_path / "none")
    BPE.train("the cat the hat", 262).save(saved)
    both = "merges.txt and vocab.json and characters.json: remove"
    with pytest.raises(CheckpointError, match=f"{saved} has files of two tokenizers, {both}"):
        load_tokenizer(saved)
    (saved / "merges.txt").unlink()
    (saved / "characters.json").unlink()
    with pytest.raises(CheckpointError, match="neither merges.txt nor vocab.bpe"):
        load_tokenizer(saved)


# Bad input


def test_bad_input():
    tokenizer = Characters.train("abc", special_tokens=SPECIAL)
    for error, message, call in (
        (DtypeError, "text is of type bytes", lambda: tokenizer.encode(b"a")),
        (DtypeError, "text is of type NoneType", lambda: tokenizer.encode(None)),
        (DtypeError, "text is of type int", lambda: tokenizer.encode(5, allowed_special="all")),
        (DtypeError, "text is of type bytes", lambda: Characters.train(b"a")),
        (DtypeError, "text is of type NoneType", lambda: Characters.train(None)),
        (DtypeError, "text is of type int", lambda: Characters.train(["a", 5])),
        (InputError, r"text\[1\] is U\+D83D", lambda: tokenizer.encode("a\ud83d")),
        (InputError, r"text\[0\] is U\+DC00", lambda: Characters.train("\udc00")),
        (InputError, "the text is empty", lambda: Characters.train("")),
        (InputError, "characters must be in the order", lambda: Characters("ba")),
        (InputError, "characters must be in the order", lambda: Characters("aa")),
        (InputError, r"ids\[1\] is 6, outside .* \[0, 6\)", lambda: tokenizer.decode([3, 6])),
        (InputError, r"ids\[0\] is -1, outside", lambda: tokenizer.decode(np.array([-1]))),
        (DtypeError, r"ids\[0\] is of type float", lambda: tokenizer.decode(np.ones(3))),
        (DtypeError, "ids is of type str", lambda: tokenizer.decode("abc")),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("name", ["pad", "", "a", " ", "<|a b|>", "<|é|>", 5])
def test_a_special_token_cannot_be_an_ordinary_one(name):
    with pytest.raises(InputError, match=re.escape(f"the special token {name!r}")):
        Characters("abc", (name,))
    with pytest.raises(InputError, match="the special token '<a>' is there twice"):
        Characters.train("abc", special_tokens=("<a>", "<a>"))
