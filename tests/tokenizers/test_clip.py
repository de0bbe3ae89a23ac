import copy
import dataclasses
import gzip
import json
import os
import pickle
import time
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers import CLIP, load_tokenizer
from reference.tokenizers.clip import END, PATTERN, SPECIAL, START, clean
from reference.tokenizers.clip_files import NAMES
from reference.tokenizers.vocabulary_files import BYTE_IDS
from tests.peers import peer
from tests.tokenizers.texts import NUMBERS, SAMPLES, TIMES, disagreeing, drawn_texts, shared

IDS = {name: i for i, name in enumerate(NAMES)}
# in</w>, th, the</w>, in (inside a word): tokens 512 to 515
SMALL = CLIP(
    [
        (IDS["i"], IDS["n</w>"]),
        (IDS["t"], IDS["h"]),
        (513, IDS["e</w>"]),
        (IDS["i"], IDS["n"]),
    ]
)


@cache
def published():
    return CLIP.load(shared("clip_bpe"))


@pytest.fixture(scope="module")
def hugging_faces(tmp_path_factory):
    """Transformers' tokenizer, from the files that `save` writes."""
    folder = tmp_path_factory.mktemp("clip")
    published().save(folder)
    return peer("transformers").CLIPTokenizer.from_pretrained(folder)


# Encoding and decoding


def test_a_token_knows_whether_it_ends_a_word():
    assert SMALL.vocabulary_size == 518 and SMALL.special_ids == {START: 516, END: 517}
    assert SMALL.encode("The inn") == [514, 515, IDS["n</w>"]]
    assert SMALL.encode("in") == [512]
    assert SMALL.encode("then") == [513, IDS["e"], IDS["n</w>"]]
    assert SMALL.tokens[512] == b"in " and SMALL.tokens[513] == b"th"
    assert SMALL.decode([514, 515, IDS["n</w>"]]) == "the inn"
    assert SMALL.decode_bytes(np.array([514, 513])) == b"the th"


def test_blanks_and_case_are_cleaned_up():
    for text in ("  The\n\t IN ", "the\u3000\u00a0in", "tHe in"):
        assert SMALL.encode(text) == [514, 512]
    assert SMALL.encode("e\u0301") == SMALL.encode("É") == [IDS["Ã"], IDS["©</w>"]]
    assert SMALL.encode("") == SMALL.encode(" \n") == [] and SMALL.decode([]) == ""


def test_each_digit_is_a_word():
    assert SMALL.encode("12!!") == [IDS["1</w>"], IDS["2</w>"], IDS["!"], IDS["!</w>"]]


@given(st.one_of(st.text(), st.text("the in'sT1!é \n")))
def test_encoding_joins_the_pair_learnt_first(text):
    """Turns red if the end of a word is put elsewhere, or merges go in another order."""
    ids = []
    for word in PATTERN.findall(clean(text)):
        row = [*word.encode().translate(BYTE_IDS)]
        row[-1] += 256
        for n, pair in enumerate(SMALL.merges):
            i = 0
            while i < len(row) - 1:
                if tuple(row[i : i + 2]) == pair:
                    row[i : i + 2] = [512 + n]
                i += 1
        ids += row
    assert SMALL.encode(text) == ids
    assert SMALL.decode(ids) == " ".join(PATTERN.findall(clean(text)))


def test_special_tokens_are_ordinary_text_unless_allowed():
    text = f"in{END}THE{START}"
    assert not {516, 517} & set(SMALL.encode(text))
    assert SMALL.encode(text, allowed_special="all") == [512, 517, 514, 516]
    some = SMALL.encode(text, allowed_special=[END])
    assert some[:3] == [512, 517, 514] and 516 not in some
    with pytest.raises(InputError, match="allowed_special has '<a>'"):
        SMALL.encode(text, allowed_special=["<a>"])


def test_texts_as_a_model_reads_them():
    rows = SMALL.encode_padded(["the in", "", f"in{END}"], 18)
    assert rows.dtype == np.int32 and rows.shape == (3, 18)
    assert rows[0].tolist() == [516, 514, 512, 517] + [0] * 14
    assert rows[1].tolist() == [516, 517] + [0] * 16
    assert (rows[2] == 517).sum() == 1  # the text does not end the caption
    assert SMALL.encode_padded(["in"], 4, padding=517).tolist() == [[516, 512, 517, 517]]
    assert SMALL.encode_padded(["in"]).shape == (1, 77)
    assert SMALL.encode_padded([]).shape == (0, 77)


@given(st.integers(0, 12), st.integers(2, 9))
def test_a_text_that_is_too_long_keeps_its_end_or_is_refused(words, length):
    """Turns red if what is cut off takes the end along, or a text that just fits is refused."""
    text = "in " * words
    row = SMALL.encode_padded([text], length, truncate=True)[0].tolist()
    kept = min(words, length - 2)
    assert row == [516, *[512] * kept, 517, *[0] * (length - 2 - kept)]
    if words + 2 > length:
        message = rf"texts\[0\] has {words + 2} tokens with start and end, .* reads {length}"
        with pytest.raises(InputError, match=message):
            SMALL.encode_padded([text], length)
    else:
        assert SMALL.encode_padded([text], length)[0].tolist() == row


def test_a_tokenizer_cannot_be_changed_but_copied():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.merges = ()
    for other in (copy.deepcopy(SMALL), pickle.loads(pickle.dumps(SMALL))):
        assert other == SMALL and hash(other) == hash(SMALL) and len(repr(other)) < 100
        assert other.encode("the in") == [514, 512]
    assert SMALL != CLIP(SMALL.merges[:3])


@TIMES
def test_a_megabyte_of_one_character_takes_seconds(times):
    for character in "a7":
        start = time.process_time()
        assert published().decode(published().encode(character * times)).startswith(character)
        assert time.process_time() - start < times / 10**5


# Against transformers


def test_the_published_vocabulary(hugging_faces):
    assert published().vocabulary_size == len(hugging_faces) == 49_408
    assert published().special_ids == {START: 49_406, END: 49_407}
    ids = hugging_faces.get_vocab()
    assert sorted(ids, key=ids.get) == published().names


@NUMBERS
def test_ids_and_texts_equal_transformers(number, hugging_faces):
    texts = [*SAMPLES.values(), *drawn_texts(number, disagreeing())]
    expected = hugging_faces(texts, add_special_tokens=False)["input_ids"]
    for text, theirs in zip(texts, expected, strict=True):
        ids = published().encode(text, allowed_special="all")
        assert ids == theirs, text
        if number <= 1_000:
            assert published().decode(ids).strip() == hugging_faces.decode(theirs), text


def test_padded_rows_equal_transformers(hugging_faces):
    texts = ["A photo of a dog.", "", "Größe 12", "a" * 500]
    expected = hugging_faces(texts, padding="max_length", truncation=True, max_length=77)
    end = published().special_ids[END]
    rows = published().encode_padded(texts, truncate=True, padding=end)
    assert rows.tolist() == expected["input_ids"]


# Files


def test_what_is_saved_is_loaded(tmp_path):
    tokenizer = CLIP(SMALL.merges, (*SPECIAL, "<|more|>"))
    tokenizer.save(tmp_path / "new")
    assert CLIP.load(tmp_path / "new") == load_tokenizer(tmp_path / "new") == tokenizer
    assert sorted(os.listdir(tmp_path / "new")) == ["merges.txt", "vocab.json"]
    lines = (tmp_path / "new" / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["#version: 0.2", "i n</w>", "t h", "th e</w>", "i n"]


def test_openais_file_is_read_gzipped_or_not(tmp_path):
    data = shared("clip_bpe/bpe_simple_vocab_16e6.txt.gz").read_bytes()
    text = gzip.decompress(data)
    path = tmp_path / "bpe_simple_vocab_16e6.txt"
    path.write_bytes(text)
    assert CLIP.load(tmp_path) == load_tokenizer(tmp_path) == published()
    path.write_bytes(b"\n".join(text.split(b"\n")[:1000]))
    with pytest.raises(CheckpointError, match="txt has 999 merges, and must have 48894"):
        CLIP.load(tmp_path)
    path.unlink()
    for torn in (data[:1000], data[:-5], b"", text):
        (tmp_path / f"{path.name}.gz").write_bytes(torn)
        with pytest.raises(CheckpointError, match="txt.gz .*copy it again"):
            load_tokenizer(tmp_path)


def test_tokenizer_json_of_hugging_face_is_read(tmp_path, hugging_faces):
    hugging_faces.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path) == published()
    SMALL.save(tmp_path / "small")
    small = peer("transformers").CLIPTokenizer.from_pretrained(tmp_path / "small")
    small.save_pretrained(tmp_path)
    assert CLIP.load(tmp_path) == SMALL
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    for change, message in (
        ({"normalizer": None}, "normalizer is null, which this reader does not follow"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, 'pre_tokenizer is {"type": "ByteLevel"}'),
        ({"model": found["model"] | {"dropout": 0.1}}, "model.dropout is 0.1"),
        ({"model": found["model"] | {"merges": found["model"]["merges"][1:]}}, "numbered as CLIP"),
    ):
        path.write_text(json.dumps(found | change), encoding="utf-8")
        with pytest.raises(CheckpointError, match=message) as error:
            load_tokenizer(tmp_path)
        assert str(path) in str(error.value)


@given(st.data())
def test_a_file_cut_short_is_never_read(tmp_path_factory, data):
    """Turns red if a file that is no JSON any more ends in an error of Python's own."""
    folder = tmp_path_factory.mktemp("cut")
    SMALL.save(folder)
    path = folder / data.draw(st.sampled_from(["merges.txt", "vocab.json"]))
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 2))])
    with pytest.raises(CheckpointError, match=str(folder)):
        CLIP.load(folder)


# Bad input


def test_bad_input():
    n = SMALL.vocabulary_size
    for error, message, call in (
        (DtypeError, "text is of type bytes", lambda: SMALL.encode(b"a")),
        (InputError, r"text\[1\] is U\+D83D", lambda: SMALL.encode("a\ud83d")),
        (DtypeError, "texts must be a list of str", lambda: SMALL.encode_padded("a")),
        (DtypeError, "texts must be a list of str", lambda: SMALL.encode_padded(["a", 5])),
        (InputError, rf"ids\[1\] is {n}, outside", lambda: SMALL.decode([3, n])),
        (DtypeError, r"ids\[0\] is of type float", lambda: SMALL.decode(np.ones(3))),
        (InputError, r"merges\[0\] is \(3, 512\)", lambda: CLIP([(3, 512)])),
        (InputError, r"merges\[0\] is \(-1, 5\)", lambda: CLIP([(-1, 5)])),
        (InputError, r"merges\[0\] is \(256, 5\)", lambda: CLIP([(256, 5)])),
        (InputError, "two merges make one token", lambda: CLIP([(3, 4), (3, 4)])),
        (InputError, r"'<\|endoftext\|>' is missing", lambda: CLIP([], (START,))),
        (InputError, "the special token 'pad'", lambda: CLIP([], (*SPECIAL, "pad"))),
        (InputError, r"'<\|endoftext\|>' is .* twice", lambda: CLIP([], (*SPECIAL, END))),
    ):
        with pytest.raises(error, match=message):
            call()
