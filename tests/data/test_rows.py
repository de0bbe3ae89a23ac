import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.data.rows import (
    LONGEST_LINE,
    WrongRows,
    at_least_one,
    every_line,
    lines,
    strict_json,
)
from reference.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"))


def written(folder, content, name="text"):
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


# Lines


@FOLDER
@given(st.lists(TEXTS), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_lines_are_those_that_were_written(tmp_path, texts, end, mark, packed):
    """Turns red if lines end at U+2028 or U+0085 too, or with the mark left in."""
    content = ("\ufeff" * mark + "".join(text + end for text in texts)).encode()
    path = written(tmp_path, content, "text.gz" if packed else "text")
    if texts and texts[0].startswith("\ufeff") and not mark:
        texts = [texts[0][1:], *texts[1:]]
    assert list(lines(path)) == list(enumerate(texts, 1))


def test_a_line_ends_with_a_line_feed_and_nothing_else(tmp_path):
    inside = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj"
    path = written(tmp_path, f"{inside}\r\n\nlast".encode())
    assert list(lines(path)) == [(1, inside), (2, ""), (3, "last")]


def test_a_file_s_name_may_be_a_string_and_packed_in_capitals(tmp_path):
    path = written(tmp_path, b"a\n")
    assert list(lines(str(path))) == [(1, "a")]
    (tmp_path / "B.GZ").write_bytes(gzip.compress(b"b\n"))
    assert list(lines(tmp_path / "B.GZ")) == [(1, "b")]


def test_other_encodings_are_read(tmp_path):
    assert list(lines(written(tmp_path, b"Gr\xfc\xdfe\n"), encoding="latin-1")) == [(1, "Grüße")]
    japanese = "日本\n語\n".encode("shift-jis")
    found = lines(written(tmp_path, japanese), encoding="shift-jis")
    assert list(found) == [(1, "日本"), (2, "語")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp037", "klingon", "hex"])
def test_encodings_whose_lines_cannot_be_told_apart_are_refused(tmp_path, encoding):
    with pytest.raises(InputError, match=f"encoding is '{encoding}', and must be one .*as UTF-8"):
        lines(written(tmp_path, b"a\n"), encoding=encoding)


def test_a_file_of_two_encodings_is_refused_with_its_line(tmp_path):
    path = written(tmp_path, "Grüße\r\n".encode() + b"Gr\xfc\xdfe\r\n")
    with pytest.raises(InputError) as raised:
        list(lines(path))
    assert str(raised.value) == (
        f"{path}, line 2: byte 3 of the line is 0xfc, which does not fit utf-8; save all of the "
        "file as UTF-8, give --encoding latin-1 or what else it is in, or give --skip-wrong-rows"
    )
    with pytest.raises(InputError, match="line 1: byte 3 .* 0xc3, .* fit ascii; .*coding utf-8 or"):
        list(lines(path, encoding="ascii"))


def test_wrong_lines_are_skipped_and_counted_where_asked(tmp_path):
    long = b"x" * (LONGEST_LINE + 1)
    path = written(tmp_path, b"one\n\xff\nthree\n" + long + b"\nfive\n" + 9 * long + b"\n\xfe")
    wrong = WrongRows(skip=True)
    assert list(lines(path, wrong=wrong)) == [(1, "one"), (3, "three"), (5, "five")]
    assert wrong.count == 4
    every = list(every_line(path, wrong=WrongRows(skip=True)))
    assert every == [
        (1, "one"),
        (2, None),
        (3, "three"),
        (4, None),
        (5, "five"),
        (6, None),
        (7, None),
    ]


@pytest.mark.parametrize("character", ["x", "ü", "日", "😀"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_longest_line_is_counted_in_characters(tmp_path, character, mark, end):
    longest = character * LONGEST_LINE
    path = written(tmp_path, (mark + longest + end).encode())
    assert list(lines(path)) == [(1, longest)]
    path = written(tmp_path, (mark + longest + "x" + end).encode())
    with pytest.raises(InputError, match="line 1: it has more than 131,072 characters; correct it"):
        list(lines(path))


def test_a_line_of_a_million_characters_is_refused(tmp_path):
    path = written(tmp_path, b"short\n" + b"x" * 1_000_000 + b"\n")
    with pytest.raises(InputError, match=f"{path}, line 2: it has more than"):
        list(lines(path))


@pytest.mark.parametrize("name", ["endless", "endless.gz"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_line_without_end_is_never_in_memory(tmp_path, name, skip):
    """Turns red if a line is read in one go."""
    path, size = tmp_path / name, 2**26
    if name.endswith(".gz"):
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(64):
                file.write(bytes(size // 64))
    else:
        path.touch()
        os.truncate(path, size)
    tracemalloc.start()
    try:
        if skip:
            assert list(lines(path, wrong=WrongRows(skip=True))) == []
        else:
            with pytest.raises(InputError, match="more than 131,072"):
                list(lines(path))
        assert tracemalloc.get_traced_memory()[1] < size // 8
    finally:
        tracemalloc.stop()


def test_a_long_file_is_never_in_memory(tmp_path):
    path = written(tmp_path, b"a line of usual length\n" * 90_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in lines(path)) == 90_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_torn_gzip_file_is_refused_even_where_rows_are_skipped(tmp_path):
    whole = gzip.compress(json.dumps(list(range(5000))).encode())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (whole[:-9], whole[:50], bytes(flipped), b"no gzip file"):
        path = tmp_path / "text.gz"
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path} cannot be unpacked .*copy it again"):
            list(lines(path, wrong=WrongRows(skip=True)))


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("nowhere", "nowhere.gz"):
        with pytest.raises(FileNotFoundError, match=name):
            list(lines(tmp_path / name))


def test_an_empty_file_has_no_lines(tmp_path):
    assert list(lines(written(tmp_path, b""))) == []


def test_the_polarity_sentences_are_latin_1_and_their_first_wrong_byte_is_found():
    path = SHARED / "rt_polarity" / "rt-polarity.pos"
    if not path.exists():
        pytest.skip("rt_polarity is not beside the checkout")
    assert sum(1 for _ in lines(path, encoding="latin-1")) == 5331
    with pytest.raises(InputError, match="line 44: byte 48 of the line is 0xf3.*latin-1"):
        list(lines(path))
    wrong = WrongRows(skip=True)
    kept = [text for _, text in lines(path, wrong=wrong)]
    assert len(kept) + wrong.count == 5331 and all("\ufffd" not in text for text in kept)


# What becomes of wrong rows


def test_the_first_wrong_row_stops():
    wrong = WrongRows()
    with pytest.raises(InputError) as raised:
        wrong("a.csv", 3, "it is odd")
    assert str(raised.value) == "a.csv, line 3: it is odd; correct it, or give --skip-wrong-rows"
    with pytest.raises(InputError, match="^a.json: it is odd; do, or give --skip-wrong-rows$"):
        wrong("a.json", None, "it is odd", remedy="do")
    assert wrong.count == 0


def test_the_report_counts_all_and_shows_the_first():
    wrong = WrongRows(skip=True)
    assert str(wrong) == "no wrong rows"
    wrong("a.csv", 3, "it is odd")
    assert str(wrong) == "1 wrong row skipped\n  a.csv, line 3: it is odd"
    for line in range(4, 1237):
        wrong("b.csv", line, "so is this")
    assert str(wrong).splitlines() == [
        "1,234 wrong rows skipped",
        "  a.csv, line 3: it is odd",
        *(f"  b.csv, line {line}: so is this" for line in (4, 5, 6, 7)),
        "  and 1,229 more",
    ]
    assert len(wrong.first) == 5  # a file of nothing else must not fill the memory


def test_no_rows_at_all_are_an_error():
    assert list(at_least_one(iter([0, None, 2]), "a", WrongRows())) == [0, None, 2]
    with pytest.raises(InputError, match="^a has no rows: give"):
        list(at_least_one(iter([]), "a", WrongRows()))


def test_nothing_but_wrong_rows_is_an_error_that_shows_them():
    wrong = WrongRows(skip=True)
    wrong("another", 1, "it is odd")

    def rows():
        wrong("a", 7, "it is odd")
        yield from ()

    with pytest.raises(InputError, match="^a has no row that can be used(.|\n)*a, line 7: it is"):
        list(at_least_one(rows(), "a", wrong))
    with pytest.raises(InputError, match="^b has no rows"):
        list(at_least_one(iter([]), "b", wrong))


# JSON


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=9,
    ),
    st.booleans(),
)
def test_json_is_read_as_python_reads_it(value, escaped):
    """Turns red if pairs of surrogates are taken for halves."""
    text = json.dumps(value, ensure_ascii=escaped)
    assert strict_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "it has the key 'c' twice"),
        ('{"a": NaN}', "it has NaN, which JSON does not have"),
        ("[-Infinity]", "it has -Infinity"),
        (r'["\ud83d"]', r"it has \\ud83d, half of a surrogate pair"),
        (r'{"\uDE00\ud83d": 1}', r"it has \\ude00, half"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "5000 digits"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
)
def test_json_that_leaves_room_for_chance_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        strict_json(text)
