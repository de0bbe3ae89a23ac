import gzip
import itertools
import os
import time
from pathlib import Path

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accelerated.tokenizers import BPE as AcceleratedBPE
from reference.data.text import BLANK, python_documentation, read_text, text_pieces
from reference.errors import InputError
from reference.tokenizers import BPE, Characters
from reference.tokenizers.bpe import PATTERN

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16-le", "utf-32-be", "latin-1", "cp1252", "shift_jis"]
# Letters, digits, signs and blanks of all kinds; what looks blank and is not; several bytes each.
ADVERSARIAL = "a's9. \n\r\t\u3000\u2028\x85\xa0\x1c\x1f\u200b\ufeffé漢🙂"
TEXTS = st.one_of(st.text(ADVERSARIAL, min_size=1), st.text(" a'l\n", min_size=1))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("text") / "text"


def pieces_of(path, text, size):
    path.write_bytes(text.encode())
    return list(text_pieces(path, size=size))


# A text as a whole


def test_text_is_read_as_it_stands(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffGrüße\r\n日本\n".encode())
    assert read_text(path) == "Grüße\r\n日本\n"


def test_text_is_read_in_the_encoding_that_is_given(tmp_path):
    path = tmp_path / "text"
    for encoding in ("latin-1", "utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes("Grüße\r\n".encode(encoding))
        assert read_text(path, encoding) == "Grüße\r\n"
        assert "".join(text_pieces(path, size=1, encoding=encoding)) == "Grüße\r\n"


def test_bytes_that_are_no_utf_8_are_shown(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"one\ntwo\nGr\xfc\xdfe\n")
    with pytest.raises(InputError, match="is not UTF-8: byte 10, in line 3, is 0xfc; save"):
        read_text(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        read_text(tmp_path / "nowhere.txt")
    with pytest.raises(FileNotFoundError, match="nowhere.txt.gz"):
        next(text_pieces(tmp_path / "nowhere.txt.gz"))
    with pytest.raises(IsADirectoryError):
        next(text_pieces(tmp_path))


def test_python_carries_enough_documentation_to_train_on():
    text = python_documentation()
    assert len(text) > 300_000 and "lambda" in text


# A text in pieces


@given(TEXTS, st.integers(1, 9))
@example("!\x1c! a", 1)  # \x1c is blank to Python, not to PATTERN
@example("a   b", 2)
def test_the_words_of_the_pieces_are_the_words_of_the_text(path, text, size):
    """Turns red if a cut is before what is blank to Python's `\\s`, or inside a run of blanks."""
    text = "x" + text
    pieces = pieces_of(path, text, size)
    assert "".join(pieces) == text
    words = [PATTERN.findall(piece) for piece in pieces]
    assert list(itertools.chain(*words)) == PATTERN.findall(text)


@given(TEXTS, st.integers(1, 9))
def test_a_piece_ends_where_no_word_goes_on(path, text, size):
    """Turns red if the border of two reads is not looked at: with size 1 it is the only one."""
    text = "x" + text + " y"
    pieces = pieces_of(path, text, size)
    for piece, following in itertools.pairwise(pieces):
        assert regex.search(r"\S$", piece) and regex.match(r"\s", following)
    if size == 1:
        assert len(pieces) == 1 + len(regex.findall(r"\S(?=\s)", text))


def test_blank_is_what_it_is_to_the_tokenizer():
    characters = "".join(map(chr, range(0x110000)))
    assert regex.findall(rf"[{BLANK}]", characters) == regex.findall(r"\s", characters)


@pytest.mark.parametrize("engine", [BPE, AcceleratedBPE], ids=["numpy", "tiktoken"])
def test_tokens_are_the_same_piece_by_piece(engine, path):
    text = python_documentation()[:60_000] + "\n\n\n   \t end<|endoftext|> " * 50
    tokenizer, whole = engine.train(text[:30_000], 400), {"allowed_special": "all"}
    expected = tokenizer.encode(text), tokenizer.encode(text, **whole)
    for size in (97, 5_000, 1 << 22):
        pieces = pieces_of(path, text, size)
        assert len(pieces) >= len(text) / (size + 100)
        assert [i for piece in pieces for i in tokenizer.encode(piece)] == expected[0]
        assert [i for piece in pieces for i in tokenizer.encode(piece, **whole)] == expected[1]


def test_shakespeare_in_pieces_is_shakespeare(tmp_path):
    play = SHARED / "tinyshakespeare" / "input.txt"
    if not play.exists():
        pytest.skip("tinyshakespeare is not beside the checkout")
    pieces = list(text_pieces(play, size=10_000))
    assert "".join(pieces) == read_text(play)
    assert len(pieces) > 110 and max(map(len, pieces)) < 10_100
    assert Characters.train(iter(pieces)).vocabulary_size == 65


def test_a_compressed_file_is_read_as_if_it_were_not(tmp_path):
    text = "Grüße \r\n日本 🙂\n" * 1000
    for name in ("text.gz", "TEXT.GZ"):
        (tmp_path / name).write_bytes(gzip.compress(text[:500].encode()))
        with open(tmp_path / name, "ab") as file:  # several streams in one file are one text
            file.write(gzip.compress(text[500:].encode()))
        assert read_text(tmp_path / name) == text
        pieces = list(text_pieces(tmp_path / name, size=1000))
        assert "".join(pieces) == text and len(pieces) > 20


def test_a_line_without_a_blank_is_one_piece_and_costs_no_more(path):
    """It is searched for a place to cut once, and not whenever it grows: that would take hours."""
    text = "é" * 1_000_000 + " end"
    start = time.perf_counter()
    pieces = pieces_of(path, text, 64)
    assert time.perf_counter() - start < 10
    assert list(map(len, pieces)) == [1_000_000, 4]
    assert list(map(len, pieces_of(path, "x" + " " * 1_000_000 + "y z", 64))) == [1, 1_000_001, 2]


def test_a_file_is_read_as_far_as_it_is_asked_for(tmp_path):
    (tmp_path / "text").write_bytes(b"good text " * 100 + b"\xff")
    pieces = text_pieces(tmp_path / "text", size=100)
    assert next(pieces) == "good text " * 9 + "good text"
    with pytest.raises(InputError, match="byte 1000, in line 1, is 0xff"):
        list(pieces)


# Bad input


@settings(max_examples=300)
@given(st.binary(), st.integers(1, 9), st.sampled_from(ENCODINGS))
@example(b"a\n\xe3\x81", 3, "utf-8")
@example(b"\x82\x82\n\xff", 5, "shift_jis")  # a read ends within the character before the line
def test_a_wrong_byte_is_shown_where_it_is_in_the_file(path, data, size, encoding):
    """Turns red if the bytes of an unfinished character are counted twice, or lines before it."""
    data = b"ab" * 2 + data
    path.write_bytes(data)
    plain = "utf-8" if encoding == "utf-8-sig" else encoding
    try:
        expected = data.decode(plain)
    except UnicodeDecodeError as error:
        line = 1 + data[: error.start].decode(plain).count("\n")
        place = f"byte {error.start}, in line {line}, is 0x{data[error.start]:02x}; save"
        with pytest.raises(InputError, match=f"{path} is not {encoding.upper()}: {place}"):
            list(text_pieces(path, size=size, encoding=encoding))
    else:
        assert "".join(text_pieces(path, size=size, encoding=encoding)) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_place_of_a_wrong_byte_counts_the_mark(path, encoding):
    path.write_bytes(b"\xef\xbb\xbfa\nb\xff")
    for size in (1, 100):
        with pytest.raises(InputError, match="byte 6, in line 2, is 0xff"):
            list(text_pieces(path, size=size, encoding=encoding))


def test_the_usual_cause_of_wrong_bytes_is_named(tmp_path):
    path = tmp_path / "joined.txt"
    path.write_bytes("one\nGrüße\n".encode() + "two\nGrüße\n".encode("latin-1"))
    with pytest.raises(InputError, match="byte 18, in line 4, .* another than the rest.*joined"):
        list(text_pieces(path))


@pytest.mark.parametrize("content", ["", "\ufeff", " \r\n\u3000", "\n" * 100])
def test_a_file_without_text_is_refused_at_once(path, content):
    path.write_bytes(content.encode())
    for size in (1, 1000):
        with pytest.raises(InputError, match=f"{path} has no text: it is empty, or all blank"):
            next(text_pieces(path, size=size))


@pytest.mark.parametrize("encoding", ["utf-9", "hex", "rot13", "", "a\0b"])
def test_an_encoding_that_there_is_not_is_refused(path, encoding):
    path.write_bytes(b"abc")
    for read in (read_text, lambda path, encoding: next(text_pieces(path, encoding=encoding))):
        with pytest.raises(InputError, match="encoding is .*, which Python does not know"):
            read(path, encoding)


@pytest.mark.parametrize("size", [0, -5])
def test_a_size_below_one_is_refused(path, size):
    with pytest.raises(InputError, match=f"size is {size}; give"):
        next(text_pieces(path, size=size))


def test_a_torn_or_foreign_gz_is_refused(tmp_path):
    path, whole = tmp_path / "text.gz", gzip.compress(os.urandom(3000).hex().encode())
    flipped = bytes([*whole[:2000], whole[2000] ^ 255, *whole[2001:]])
    for torn in (whole[: len(whole) // 2], whole[:-3], whole[:5], flipped, b"plain text"):
        path.write_bytes(torn)
        for read in (read_text, lambda path: list(text_pieces(path, size=100))):
            with pytest.raises(InputError, match=f"{path} cannot be unpacked .* torn, or no gzip"):
                read(path)
