import copy
import dataclasses
import json
import math
import os
import pickle
import time
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers import Unigram, load_tokenizer
from reference.tokenizers.unigram import WORD, with_blanks
from reference.tokenizers.unigram_training import (
    best_way,
    expected_counts,
    losses,
    maximize,
    tree_of,
)
from tests.peers import peer
from tests.tokenizers.texts import NUMBERS, PROSE, SAMPLES, TIMES, drawn_texts

PIECES = {"▁": -2.0, "a": -3.0, "b": -3.5, "ab": -4.0, "▁a": -4.5, "ba": -9.0, "▁ab": -6.5}
SMALL = Unigram(("<unk>", "<s>", *PIECES), (0.0, 0.0, *PIECES.values()), ("<unk>", "<s>"))
IDS = {name: i for i, name in enumerate(SMALL.vocabulary)}
WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=6), st.integers(1, 5), min_size=1)


@cache
def trained():
    return Unigram.train(PROSE[:50_000], 700)


@cache
def hugging_faces():
    tokenizers = peer("tokenizers")
    pairs = list(zip(trained().vocabulary, trained().scores, strict=True))
    theirs = tokenizers.Tokenizer(tokenizers.models.Unigram(pairs, 0, False))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    theirs.decoder = tokenizers.decoders.Metaspace()
    theirs.add_special_tokens([tokenizers.AddedToken("<unk>", normalized=False)])
    return theirs


def all_ways(word, pieces):
    """Every way to cut a word into these pieces."""
    if not word:
        yield []
    for end in range(1, len(word) + 1):
        if word[:end] in pieces:
            yield from ([word[:end], *rest] for rest in all_ways(word[end:], pieces))


def some_scores(words, rng):
    """Random scores for all characters of the words, and for some of their longer pieces."""
    pieces = {w[a:b] for w in words for a in range(len(w)) for b in range(a + 1, len(w) + 1)}
    kept = [x for x in sorted(pieces) if len(x) == 1 or rng.random() < 0.5]
    return dict(zip(kept, np.log(rng.dirichlet(np.ones(len(kept)))).tolist(), strict=True))


# Encoding and decoding


def test_the_most_probable_way_is_taken():
    """▁ab: ▁ + ab is -6, ▁ab -6.5, ▁a + b -8, ▁ + a + b -8.5."""
    assert SMALL.encode("ab") == [IDS["▁"], IDS["ab"]]
    assert SMALL.encode("a") == [IDS["▁a"]]
    assert SMALL.encode("ba") == [IDS["▁"], IDS["b"], IDS["a"]]
    assert SMALL.encode("  a") == [IDS["▁"], IDS["▁a"]]
    assert SMALL.encode("") == [] and SMALL.decode([]) == ""
    assert SMALL.decode(SMALL.encode("ab  ba")) == "ab  ba"


def test_unknown_characters_in_a_row_are_one_token():
    assert SMALL.encode("axyb") == [IDS["▁a"], 0, IDS["b"]]
    assert SMALL.encode("x y") == [IDS["▁"], 0, IDS["▁"], 0]
    assert SMALL.decode(SMALL.encode("axyb")) == "a<unk>b"


def test_of_equal_ways_the_one_whose_last_piece_is_longest_is_taken():
    pieces = {"▁": -1.0, "a": -1.0, "b": -1.0, "c": -1.0, "ab": -1.5, "bc": -1.5}
    tokenizer = Unigram(("<unk>", *pieces), (0.0, *pieces.values()))
    assert [tokenizer.vocabulary[i] for i in tokenizer.encode("abc")] == ["▁", "a", "bc"]


@settings(max_examples=50)
@given(WORDS, st.integers(0, 10**6))
def test_no_way_is_better(words, seed):
    """Turns red if a longer or a later piece is not tried."""
    words = {with_blanks(word): count for word, count in words.items()}
    scores = some_scores(words, np.random.default_rng(seed))
    tokenizer = Unigram(("<unk>", *scores), (0.0, *scores.values()))
    for word in words:
        best = max(sum(scores[x] for x in way) for way in all_ways(word, scores))
        ids = tokenizer.encode(word.removeprefix("▁"))
        assert math.isclose(sum(tokenizer.scores[i] for i in ids), best)
        assert "".join(tokenizer.vocabulary[i] for i in ids) == word


def test_special_tokens_are_ordinary_text_unless_allowed():
    assert SMALL.special_ids == {"<unk>": 0, "<s>": 1}
    assert SMALL.encode("a<s>a") == [IDS["▁a"], 0, IDS["a"]]
    assert SMALL.encode("a<s>a", allowed_special="all") == [IDS["▁a"], 1, IDS["▁a"]]
    with pytest.raises(InputError, match="allowed_special has '<a>'"):
        SMALL.encode("a", allowed_special=["<a>"])


def test_a_tokenizer_cannot_be_changed_but_copied():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.scores = ()
    for other in (copy.deepcopy(SMALL), pickle.loads(pickle.dumps(SMALL))):
        assert other == SMALL and hash(other) == hash(SMALL) and len(repr(other)) < 100
        assert other.encode("ab") == SMALL.encode("ab")
    assert SMALL.tokens[IDS["▁ab"]] == b" ab" and SMALL.vocabulary_size == 9
    assert SMALL.decode_bytes(np.array([IDS["▁ab"]])) == b" ab"


@TIMES
def test_a_megabyte_of_one_character_takes_seconds(times):
    trained()
    for character in "e 漢-":
        start = time.process_time()
        assert trained().encode(character * times)
        assert time.process_time() - start < times / 10**5


@NUMBERS
def test_ids_and_texts_equal_hugging_faces(number):
    texts = [*SAMPLES.values(), *drawn_texts(number)]
    for text, encoding in zip(texts, hugging_faces().encode_batch(texts), strict=True):
        ids = trained().encode(text, allowed_special="all")
        assert ids == encoding.ids, text
        assert trained().decode(ids) == hugging_faces().decode(ids, skip_special_tokens=False)


# Training


@settings(max_examples=50)
@given(WORDS, st.integers(0, 10**6))
def test_a_piece_is_counted_in_every_way_as_much_as_it_is_probable(words, seed):
    """Turns red if a way is left out, or the sums from either side meet one place off."""
    scores = some_scores(words, np.random.default_rng(seed))
    counts, likelihood = Counter(), 0.0
    for word, count in words.items():
        ways = [(way, math.exp(sum(scores[x] for x in way))) for way in all_ways(word, scores)]
        total = sum(p for _, p in ways)
        likelihood += count * math.log(total)
        for way, p in ways:
            for piece in way:
                counts[piece] += count * p / total
    found, value = expected_counts(words, scores)
    assert found.keys() == scores.keys() and math.isclose(value, likelihood, abs_tol=1e-9)
    for piece in scores:
        assert math.isclose(found[piece], counts[piece], abs_tol=1e-9)


@settings(max_examples=50)
@given(WORDS, st.integers(0, 10**6))
def test_the_text_never_becomes_less_probable(words, seed):
    """Turns red if the probabilities are not the counts' shares."""
    scores, values = some_scores(words, np.random.default_rng(seed)), []
    for _ in range(6):
        counts, value = expected_counts(words, scores)
        scores = maximize(counts, scores)
        values.append(value)
        assert math.isclose(sum(map(math.exp, scores.values())), 1, abs_tol=1e-6)
    assert all(after >= before - 1e-6 for before, after in pairwise(values))


def test_rare_pieces_go_but_not_characters():
    scores = maximize({"a": 0.1, "b": 3.0, "ab": 0.4, "abb": 1.0}, {"a", "b"})
    assert list(scores) == ["a", "b", "abb"]
    assert math.isclose(scores["b"], math.log(3 / 4.1))


@settings(max_examples=50)
@given(WORDS, st.integers(0, 10**6))
def test_the_loss_is_what_the_text_loses(words, seed):
    """Every count, before and after each removal, made anew from the words' best ways.

    Turns red if the number of pieces is not corrected, or a piece may stand for itself.
    """
    scores = some_scores(words, np.random.default_rng(seed))
    tree = tree_of({x: x for x in scores})
    cut = [(best_way(word, tree, scores), count) for word, count in words.items()]
    table = losses(words, scores)
    assert table.keys() == scores.keys()

    def counted(ways):
        counts = Counter()
        for way, count in ways:
            for piece in way:
                counts[piece] += count
        return counts, sum(counts.values())

    counts, total = counted(cut)
    for piece, loss in table.items():
        others = [way for way in all_ways(piece, scores) if way != [piece]]
        if not others:
            assert loss == math.inf
        elif not counts[piece]:
            assert loss == 0
        else:
            other = max(others, key=lambda way: sum(scores[x] for x in way))
            then = total + counts[piece] * (len(other) - 1)
            after = sum(math.log((counts[x] + counts[piece]) / then) for x in other)
            share = counts[piece] / total
            assert math.isclose(loss, share * (math.log(share) - after), abs_tol=1e-9)


def test_what_was_trained_encodes_all_that_it_was_trained_on():
    assert trained().vocabulary_size == 700 and trained().special_tokens == ("<unk>",)
    assert 0 not in trained().encode(PROSE[:50_000])
    assert trained().decode(trained().encode(PROSE[:50_000])) == PROSE[:50_000]
    assert math.isclose(sum(map(math.exp, trained().scores[1:])), 1, abs_tol=1e-6)
    assert set(with_blanks(PROSE[:50_000])) <= set(trained().vocabulary)


def test_training_finds_what_a_text_is_made_of():
    """Each word is one of forty stems and one of twenty endings, too many words for each."""
    rng = np.random.default_rng(0)
    stems, endings = (
        ["".join(rng.choice(list(letters), 4)) for _ in range(number)]
        for letters, number in (("abcdefghijkl", 40), ("mnopqrstuvwx", 20))
    )
    text = " ".join(rng.choice(stems) + rng.choice(endings) for _ in range(4_000))
    learnt = set(Unigram.train(text, 1 + 25 + 60).vocabulary)
    assert len(learnt & {"▁" + stem for stem in stems}) > 30
    assert len(learnt & set(endings)) > 15


def test_training_depends_on_the_text_alone():
    """The words in another order give the same pieces and the same scores."""
    text = PROSE[:5_000]
    turned = "".join(sorted(WORD.findall(with_blanks(text)))).replace("▁", " ")
    one, other = Unigram.train(text, 200), Unigram.train(turned, 200)
    assert one == other


def test_training_on_a_long_word_is_not_quadratic():
    dna = "".join(np.random.default_rng(0).choice(list("acgt"), 5_000))
    start = time.process_time()
    assert Unigram.train(dna, 60).vocabulary_size == 60
    assert time.process_time() - start < 10


def test_a_text_that_is_too_short_says_how_much_it_can_fill():
    with pytest.raises(InputError, match="this text of 5 characters can only fill"):
        Unigram.train("abcab", 500)
    with pytest.raises(InputError, match="vocabulary is 4, and must be at least 5"):
        Unigram.train("abcab", 4)
    assert Unigram.train("abcab", 5).vocabulary_size == 5
    assert Unigram.train("").vocabulary == ("<unk>",)


# Files


def test_what_is_saved_is_loaded(tmp_path):
    for tokenizer in (SMALL, trained()):
        tokenizer.save(tmp_path / "new")
        assert Unigram.load(tmp_path / "new") == load_tokenizer(tmp_path / "new") == tokenizer
        assert os.listdir(tmp_path / "new") == ["tokenizer.json"]


def test_hugging_face_reads_what_is_saved_and_the_other_way(tmp_path):
    trained().save(tmp_path)
    again = peer("tokenizers").Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*SAMPLES.values(), PROSE[:20_000]]:
        assert again.encode(text).ids == trained().encode(text, allowed_special="all")
    hugging_faces().save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path) == trained()


CHANGES = {
    "unknown": (("model", "unk_id"), None, "model.unk_id one of its ids"),
    "outside": (("model", "unk_id"), 99, "model.unk_id one of its ids"),
    "vocabulary": (("model", "vocab"), {"a": 1}, "must be a list of pieces with their scores"),
    "no pair": (("model", "vocab", 3), ["a"], "must be a list of pieces with their scores"),
    "no score": (("model", "vocab", 3, 1), "x", r"scores\[3\] is 'x'"),
    "no name": (("model", "vocab", 3, 0), 5, r"vocabulary\[3\] is 5"),
    "twice": (("model", "vocab", 3, 0), "▁", "two tokens are '▁'"),
    "bytes": (("model", "byte_fallback"), True, "model.byte_fallback is True"),
    "normalizer": (("normalizer",), {"type": "Precompiled"}, "normalizer is .*Precompiled"),
    "cut": (("pre_tokenizer", "prepend_scheme"), "never", "pre_tokenizer is "),
    "added": (("added_tokens", 1, "id"), 3, "the added token '<s>' is not the vocabulary's 3"),
}


@pytest.mark.parametrize(("keys", "value", "message"), CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_refused(keys, value, message, tmp_path):
    SMALL.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    place = found
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(path) in str(error.value)


# Bad input


def test_bad_input():
    n = SMALL.vocabulary_size
    for error, message, call in (
        (DtypeError, "text is of type bytes", lambda: SMALL.encode(b"a")),
        (DtypeError, "text is of type list", lambda: Unigram.train(["a"])),
        (DtypeError, "vocabulary is 300.0", lambda: Unigram.train("a", 300.0)),
        (InputError, r"text\[1\] is U\+D83D", lambda: SMALL.encode("a\ud83d")),
        (InputError, rf"ids\[1\] is {n}, outside", lambda: SMALL.decode([3, n])),
        (DtypeError, r"ids\[0\] is of type float", lambda: SMALL.decode(np.ones(3))),
        (InputError, "there are 1 scores and 2 tokens", lambda: Unigram(("<unk>", "a"), (0.0,))),
        (InputError, r"scores\[0\] is nan", lambda: Unigram(("<unk>",), (math.nan,))),
        (InputError, r"vocabulary\[1\] is ''", lambda: Unigram(("<unk>", ""), (0.0, 0.0))),
        (InputError, "two tokens are 'a'", lambda: Unigram(("a", "a"), (0.0, 0.0), ("a",))),
        (InputError, "must be of the vocabulary", lambda: Unigram(("a",), (0.0,))),
        (InputError, "must be of the vocabulary", lambda: Unigram(("a",), (0.0,), ())),
    ):
        with pytest.raises(error, match=message):
            call()
