import gzip
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.data.conll import read_conll
from reference.data.rows import WrongRows
from reference.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=6)
TAGS = st.sampled_from(["O", "B-person", "I-person", "B-creative-work", "I-x"])
SENTENCES = st.lists(st.lists(st.tuples(WORDS, TAGS), min_size=1, max_size=5), min_size=1)


def written(folder, content):
    path = folder / "sentences.conll"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@FOLDER
@given(
    SENTENCES,
    st.sampled_from(["\t", " ", "   "]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\t", "  ", " \t", "\n\n", "\n-DOCSTART- -X- O\n"]),
    st.booleans(),
)
def test_sentences_come_out_as_written(tmp_path, sentences, gap, end, blank, closed):
    """Turns red if a line of blanks alone ends no sentence, or the last needs a blank line."""
    blocks = ["".join(f"{w}{gap}{t}{end}" for w, t in sentence) for sentence in sentences]
    content = (blank.replace("\n", end) + end).join(blocks) + end * closed
    expected = [([w for w, _ in s], [t for _, t in s]) for s in sentences]
    assert list(read_conll(written(tmp_path, content))) == expected


@FOLDER
@given(SENTENCES, st.data())
def test_a_sentence_with_a_wrong_line_is_left_out_whole(tmp_path, sentences, data):
    """Turns red if only the line is left out, be it the last of the file."""
    broken = data.draw(st.sets(st.integers(0, len(sentences) - 1)))
    content, first = b"", None
    for i, sentence in enumerate(sentences):
        rows = [f"{word}\t{tag}\n".encode() for word, tag in sentence]
        if i in broken:
            place = data.draw(st.integers(0, len(rows)))
            bad = data.draw(st.sampled_from([b"\xff\tO\n", b"alone\n", b"word\tX-y\n"]))
            rows.insert(place, bad)
            first = first or content.count(b"\n") + place + 1
        content += b"".join(rows) + b"\n"
    path = written(tmp_path, content.removesuffix(b"\n"))
    wrong = WrongRows(skip=True)
    if len(broken) == len(sentences):
        with pytest.raises(InputError, match="has no row that can be used"):
            list(read_conll(path, wrong=wrong))
    else:
        words = [words for words, _ in read_conll(path, wrong=wrong)]
        right = [s for i, s in enumerate(sentences) if i not in broken]
        assert words == [[word for word, _ in s] for s in right]
    assert wrong.count == len(broken)
    if broken:
        with pytest.raises(InputError, match=f"{path}, line {first}: .*--skip-wrong-rows"):
            list(read_conll(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("word", "'word' has too few columns for a word in column 0 and a tag in -1"),
        ("word ", "too few columns"),
        ("\tO", r"the word is empty: '\\tO'"),
        ("word\t", "the tag is '', and must be O, or B- or I- and a type"),
        ("word\tB-", "the tag is 'B-'"),
        ("word\tE-person", "the tag is 'E-person'"),
        ("word\tperson", "the tag is 'person'"),
        ("word\to", "the tag is 'o'"),
        ("word O extra", "the tag is 'extra'"),
        ("x" * 10**6 + "\tO", "more than 131,072 characters"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = written(tmp_path, f"a\tO\n\nb\tO\n{line}\n\n")
    with pytest.raises(InputError, match=f"{path}, line 4: .*{message}"):
        list(read_conll(path))


def test_columns_can_be_chosen(tmp_path):
    path = written(tmp_path, "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n")
    assert list(read_conll(path)) == [(["EU", "rejects"], ["B-ORG", "O"])]
    assert list(read_conll(path, tag=2)) == [(["EU", "rejects"], ["B-NP", "B-VP"])]
    assert list(read_conll(path, word=-3, tag=-2)) == [(["NNP", "VBZ"], ["B-NP", "B-VP"])]
    for columns in ({"tag": 4}, {"word": -5}, {"word": 3}, {"tag": -4}):
        with pytest.raises(InputError, match="line 3: 'EU NNP B-NP B-ORG' has too few columns"):
            list(read_conll(path, **columns))
    with pytest.raises(InputError, match="word and tag are both column 0"):
        read_conll(path, tag=0)


def test_a_word_may_hold_blanks_between_tabs(tmp_path):
    path = written(tmp_path, "01 23 45\t_\tO \nb\tx\tB-a\n")
    assert list(read_conll(path)) == [(["01 23 45", "b"], ["O", "B-a"])]


def test_an_inside_tag_without_a_beginning_is_kept(tmp_path):
    path = written(tmp_path, "EU\tI-ORG\nparliament\tI-ORG\n")
    assert list(read_conll(path)) == [(["EU", "parliament"], ["I-ORG", "I-ORG"])]


def test_other_encodings_and_packed_files_are_read(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress("für\tO\n".encode("latin-1")))
    assert list(read_conll(path, encoding="latin-1")) == [(["für"], ["O"])]


@pytest.mark.parametrize("content", ["", "\n\t\n  \n", "-DOCSTART- O\n\n"])
def test_a_file_without_sentences_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="sentences.conll has no rows"):
        list(read_conll(written(tmp_path, content)))


def test_a_file_without_blank_lines_is_never_in_memory(tmp_path):
    path = written(tmp_path, "word\tO\n" * 50_000 + "\nlast\tO\n")
    with pytest.raises(InputError, match="line 21846: the sentence has more than 131,072 char"):
        list(read_conll(path))
    tracemalloc.start()
    try:
        found = list(read_conll(path, wrong=WrongRows(skip=True)))
        assert tracemalloc.get_traced_memory()[1] < 4_500_000
    finally:
        tracemalloc.stop()
    assert found == [(["last"], ["O"])]


@pytest.mark.parametrize(
    ("name", "sentences", "words", "persons"),
    [
        ("wnut17train.conll", 3394, 62730, 660),  # a tab alone ends a sentence here
        ("emerging.dev.conll", 1009, 15733, 470),
        ("emerging.test.annotated", 1287, 23394, 429),
    ],
)
def test_the_emerging_entities_are_read(name, sentences, words, persons):
    path = SHARED / "wnut17" / name
    if not path.exists():
        pytest.skip("wnut17 is not beside the checkout")
    found = list(read_conll(path))
    tags = Counter(tag for _, tags in found for tag in tags)
    assert (len(found), sum(tags.values()), tags["B-person"]) == (sentences, words, persons)
    assert all(len(words) == len(tags) for words, tags in found)
