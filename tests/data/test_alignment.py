import unicodedata
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reference.data.alignment import (
    IGNORED,
    Window,
    align_words,
    offsets,
    text_span,
    token_labels,
    token_span,
    windows,
    word_tags,
)
from reference.errors import DtypeError, InputError
from reference.tokenizers import BPE, CLIP, ByteFallback, Characters, Unigram, WordPiece
from reference.tokenizers.bert_words import RAW_WORD
from reference.tokenizers.byte_fallback_files import BYTE_NAMES
from reference.tokenizers.clip import PATTERN
from reference.tokenizers.merging import learn_pairs
from reference.tokenizers.vocabulary_files import BYTE_IDS
from tests.peers import peer
from tests.tokenizers.texts import BLOCKS, PROSE, SAMPLES, disagreeing, drawn_texts

CORPUS = PROSE[:20_000] + " ".join(SAMPLES.values())
KINDS = [
    "bpe",
    "byte_fallback",
    "byte_fallback_first",
    "characters",
    "clip",
    "unigram",
    "wordpiece",
    "wordpiece_cased",
]
ALL = pytest.mark.parametrize("kind", KINDS)


@cache
def made(kind):
    """A tokenizer that has learnt some pieces."""
    if kind == "bpe":
        return BPE.train(CORPUS, 600)
    if kind == "clip":
        words = Counter(PATTERN.findall(CORPUS.lower())).items()
        rows = [([*word.encode().translate(BYTE_IDS)], count) for word, count in words]
        return CLIP(learn_pairs([([*r[:-1], r[-1] + 256], n) for r, n in rows], 300, 512))
    if kind.startswith("byte_fallback"):
        return with_fallback("first" if kind.endswith("first") else "prepend")
    if kind == "unigram":
        return Unigram.train(PROSE[:20_000], 400)
    return WordPiece.train(CORPUS, 900, lower=kind == "wordpiece")


def knows(kind, text):
    """A tokenizer of this kind; that of characters knows those of the text."""
    return Characters.train(text + "a") if kind == "characters" else made(kind)


def with_fallback(prefix):
    words = Counter("▁" + word for word in PROSE[:20_000].split())
    names = ["<unk>", "<s>", "</s>", *BYTE_NAMES, *sorted(set("".join(words)))]
    ids = {name: i for i, name in enumerate(names)}
    rows = [([ids[letter] for letter in word], count) for word, count in words.items()]
    merges = learn_pairs(rows, 300, len(names))
    for left, right in merges:
        names.append(names[left] + names[right])
    return ByteFallback(names, merges, prefix=prefix)


BLOCK = st.one_of([st.characters(min_codepoint=a, max_codepoint=b) for a, b in BLOCKS])
ANY = st.characters(exclude_categories=["Cs"])
HARD = "eaE\u0301\u0323\u0f73가\u1100\u1161\u11a8İ\u00ad\x00 😀x\u3000,▁\U0001d165\U0001d16e"
PHRASES = [*SAMPLES.values(), "the import statement", "\u2019s", "🇩🇪"]
TEXTS = st.one_of(
    st.text(ANY, max_size=20),
    st.text(BLOCK, max_size=20),
    st.text(st.sampled_from(HARD), max_size=12),
    st.lists(st.sampled_from(PHRASES), max_size=3).map(" ".join),
)


def read(kind, text):
    """Whether the tokenizer makes a token of each character's word: WordPiece drops some words."""
    if not kind.startswith("wordpiece"):
        return [True] * len(text)
    known = [False] * len(text)
    for match in RAW_WORD.finditer(text):
        if made(kind).encode(match.group()):
            known[slice(*match.span())] = [True] * len(match.group())
    return known


@ALL
@given(TEXTS)
def test_ranges_ascend_and_cover_all_that_is_not_blank(kind, text):
    """Turns red if bytes are counted for characters, or stripped accents belong to no token."""
    ranges = offsets(knows(kind, text), text)
    assert len(ranges) == len(knows(kind, text).encode(text))
    covered = set()
    for start, end in ranges:
        assert 0 <= start <= end <= len(text)
        covered |= {*range(start, end)}
    for (start, end), (after, last) in pairwise(ranges):
        assert start <= after and end <= last
        shared = text[after:end]
        assert len(shared) <= 1 or unicodedata.normalize("NFC", shared) != shared
    known = read(kind, text)
    assert all(i in covered or letter.isspace() or not known[i] for i, letter in enumerate(text))


@ALL
@given(TEXTS, st.data())
def test_an_answer_comes_back_from_its_tokens(kind, text, data):
    """Turns red if one of several tokens of one character loses it, or blanks come along."""
    ranges = offsets(knows(kind, text), text)
    known = read(kind, text)
    seen = [i for i, letter in enumerate(text) if known[i] and not letter.isspace()]
    assume(seen)
    start, last = sorted(data.draw(st.tuples(st.sampled_from(seen), st.sampled_from(seen))))
    tokens = token_span(ranges, start, last + 1)
    first, end = text_span(ranges, *tokens)
    assert first <= start and last < end
    assert text_span(ranges, *token_span(ranges, first, end)) == (first, end)
    assert ranges[tokens[0]][1] > start and ranges[tokens[1]][0] <= last  # and no token more


def pieces(kind, text):
    return [text[start:end] for start, end in offsets(knows(kind, text), text)]


def test_ranges_read_by_hand():
    text = "Cafe\u0301 de l’Été, 😀!"
    assert "".join(pieces("characters", text)) == text
    for kind in KINDS:
        ranges = offsets(knows(kind, text), text)
        parts = pieces(kind, text)
        assert all(part == part.strip() or part == " " for part in parts)
        place = text.index("😀")
        emoji = [r for r in ranges if r[0] <= place < r[1]]
        end = place + 2 if kind == "unigram" else place + 1  # "😀!" is unknown as a whole
        assert set(emoji) == {(place, end)}
        assert len(emoji) > 1 or kind[0] != "b"
    found = pieces("wordpiece", "E\u0301E\u0301")
    assert "".join(found) == "E\u0301E\u0301" and found[0].endswith("\u0301")
    assert pieces("wordpiece", "\x00\u0378x \x01") in (["\x00\u0378x"], ["\x00\u0378", "x"])
    assert offsets(made("byte_fallback"), " a")[0] == (0, 0)
    assert offsets(made("unigram"), "\u4e00\u4e00a\u4e00") == [(0, 0), (0, 2), (2, 3), (3, 4)]
    assert pieces("clip", "e\u0301") == ["e\u0301"] * len(made("clip").encode("é"))


def test_what_wordpiece_drops_or_shares_read_by_hand():
    """Turns red if a blank that it drops is kept, or one of a syllable's tokens loses it."""
    assert pieces("wordpiece", "x\x0b x") == ["x", "x"]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u1100", "##\u1161\u1102", "##\u1161"]
    assert offsets(WordPiece(names), "\uac00\ub098") == [(0, 1), (0, 2), (1, 2)]
    assert WordPiece(names).encode("\uac00\ub098") == [5, 6, 7]


def test_ranges_of_bytes_equal_hugging_faces(tmp_path):
    """But for blanks alone, of which Hugging Face's are empty."""
    t = peer("tokenizers")
    made("bpe").save(tmp_path)
    theirs = t.Tokenizer(
        t.models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    )
    theirs.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.post_processor = t.processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    for text in drawn_texts(300, without=frozenset(disagreeing())):
        found, expected = offsets(made("bpe"), text), theirs.encode(text).offsets
        seen = [i for i, (start, end) in enumerate(found) if text[start:end].strip()]
        assert [found[i] for i in seen] == [expected[i] for i in seen]


def test_what_is_no_tokenizer_or_text_is_refused():
    with pytest.raises(DtypeError, match="tokenizer is of type str, .*'BPE'"):
        offsets("bpe", "a")
    for kind in KINDS:
        with pytest.raises(DtypeError, match="text is of type bytes"):
            offsets(knows(kind, ""), b"a")


WORD = st.text(BLOCK.filter(lambda c: not c.isspace() and c not in "\x00▁"), min_size=1, max_size=5)
SENTENCES = st.lists(
    st.tuples(WORD, st.sampled_from(["O", "B-per", "I-per", "B-x"])), min_size=1, max_size=6
)
TAGS = ["O", "B-per", "I-per", "B-x"]
NUMBERS = {tag: i for i, tag in enumerate(TAGS)}


@ALL
@settings(max_examples=60)
@given(SENTENCES, st.booleans())
def test_tags_survive_the_tokens(kind, sentence, every):
    """Turns red if the last of a word's tokens stands for it, or a word is cut at its blank."""
    words, tags = map(list, zip(*sentence, strict=True))
    text = " ".join(words)
    ids, places = align_words(knows(kind, text), words)
    assert ids == list(knows(kind, text).encode(text))
    labels = token_labels(places, tags, NUMBERS, every=every)
    seen = [place for place in places if place is not None]
    assert seen == sorted(seen) and len(labels) == len(ids)
    kept = [label for label in labels if label != IGNORED]
    assert len(kept) == (len(seen) if every else len(set(seen)))
    shown = [0 if label == IGNORED else label for label in labels]
    known = [tag if i in seen else "O" for i, tag in enumerate(tags)]
    assert word_tags(places, shown, TAGS, len(words)) == known
    if not kind.startswith("wordpiece"):
        assert set(seen) == {*range(len(words))}


def test_a_blank_has_no_word():
    """Turns red if a token of the blank between two words counts as the first one's."""
    ids, places = align_words(Characters.train("ab "), ["ab", "b"])
    assert (ids, places) == ([1, 2, 0, 2], [0, 0, None, 1])
    assert align_words(made("unigram"), ["\u4e00", "\u4e00"])[1] == [None, 0, None, 1]


def test_labels_read_by_hand():
    places, tags = [None, 0, 0, 1, 1, None, 2], ["B-per", "B-x", "I-per"]
    assert token_labels(places, tags, NUMBERS) == [-100, 1, -100, 3, -100, -100, 2]
    assert token_labels(places, tags, NUMBERS, every=True) == [-100, 1, 2, 3, 3, -100, 2]
    assert word_tags(places, np.array([3, 1, 0, 2, 0, 0, 3]), TAGS, 4) == [
        "B-per",
        "I-per",
        "B-x",
        "O",
    ]


def test_bad_words_and_tags_are_refused():
    for words in ([], ["a", ""]):
        with pytest.raises(InputError, match="words is empty, or has an empty word"):
            align_words(made("bpe"), words)
    with pytest.raises(InputError, match="the tag 'B-z' is none of"):
        token_labels([0], ["B-z"], NUMBERS)
    with pytest.raises(InputError, match="there are 1 tags, and a token of word 1"):
        token_labels([0, 1], ["O"], NUMBERS)
    with pytest.raises(InputError, match="2 tokens and 1 labels"):
        word_tags([0, 1], [0], TAGS, 2)
    for label, number in ((4, 1), (-100, 1), (0, 0)):
        with pytest.raises(InputError, match=rf"label {label} of word 0"):
            word_tags([0], [label], TAGS, number)


@given(st.integers(0, 40), st.integers(1, 12), st.data())
def test_windows_cover_a_paragraph(length, size, data):
    """Turns red if an answer half outside is taken, or the last window has nothing new."""
    overlap = data.draw(st.integers(0, size - 1))
    answer = None
    if length:
        answer = tuple(sorted(data.draw(st.tuples(*[st.integers(0, length - 1)] * 2))))
    found = windows(length, size, overlap=overlap, answer=answer)
    assert {i for w in found for i in range(w.start, w.stop)} == {*range(length)}
    assert all(w.stop - w.start <= size for w in found)
    for one, after in pairwise(found):
        assert one.stop - one.start == size and one.stop - after.start == overlap
        assert after.stop > one.stop
    for w in found:
        if w.answer:
            assert (w.start + w.answer[0], w.start + w.answer[1]) == answer
            assert w.answer[1] < w.stop - w.start
        elif answer:
            assert answer[0] < w.start or answer[1] >= w.stop
    if answer and answer[1] - answer[0] <= overlap:
        assert any(w.answer for w in found)


def test_windows_read_by_hand():
    assert windows(7, 4, overlap=1, answer=(2, 3)) == [Window(0, 4, (2, 3)), Window(3, 7, None)]
    assert windows(0, 4, overlap=1) == [Window(0, 0, None)]


def test_bad_spans_and_windows_are_refused():
    assert token_span([(0, 1), (2, 3)], 1, 2) is None
    for start, end in ((-1, 1), (1, 1), (2, 1)):
        with pytest.raises(InputError, match=r"the span is \["):
            token_span([(0, 1)], start, end)
    for first, last in ((-1, 0), (1, 0), (0, 1)):
        with pytest.raises(InputError, match="the tokens are"):
            text_span([(0, 1)], first, last)
    for size, overlap in ((0, 0), (-3, 0), (3, 3), (3, -1)):
        with pytest.raises(InputError, match=f"size is {size} and overlap {overlap}"):
            windows(9, size, overlap=overlap)
    for answer in ((-1, 0), (1, 0), (0, 9)):
        with pytest.raises(InputError, match="answer is"):
            windows(9, 3, overlap=0, answer=answer)
