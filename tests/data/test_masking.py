import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import random
from reference.data.masking import joined_pairs, mask_tokens, sentence_pairs
from reference.errors import DtypeError, InputError

V, MASK, SPECIAL = 101, 3, (0, 1, 2, 3)
seeds = st.integers(0, 2**32)


def text(seed, rows=7, length=23):
    """Tokens of which some are special, and what is kept of them."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (rows, length)).astype(np.int32)
    return tokens, np.arange(length) < rng.integers(1, length + 1, (rows, 1))


def masked(tokens, kept, seed=0, **changes):
    options = {"mask_id": MASK, "vocabulary": V, "special_ids": SPECIAL} | changes
    return mask_tokens(tokens, kept=kept, key=random.key(seed), **options)


def within(share, expected, n):
    """Within 5 standard errors."""
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


# Hidden tokens


@given(seeds, st.floats(0, 1), st.booleans())
def test_labels_and_other_tokens_are_only_where_one_was_chosen(seed, share, exact):
    """Turns red if a special token or padding can be chosen, or where all tokens are labels."""
    tokens, kept = text(seed)
    before = tokens.copy()
    shown, labels = masked(tokens, kept, seed, share=share, exact=exact)
    chosen = labels != -100
    assert not chosen[~kept].any() and not chosen[np.isin(tokens, SPECIAL)].any()
    np.testing.assert_array_equal(labels[chosen], tokens[chosen])
    np.testing.assert_array_equal(shown[~chosen], tokens[~chosen])
    np.testing.assert_array_equal(tokens, before)
    assert shown.dtype == tokens.dtype and labels.dtype == np.int32
    assert shown.min() >= 0 and shown.max() < V


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_shares_are_those_of_the_paper(share):
    """Each within 5 standard errors.  Turns red with 85 % or 75 % hidden, or one noise for both."""
    tokens, kept = text(1, 997, 101)
    shown, labels = masked(tokens, kept, share=share)
    eligible, chosen = kept & ~np.isin(tokens, SPECIAL), labels != -100
    n = chosen.sum()
    assert within(n / eligible.sum(), share, eligible.sum())
    same, hidden = shown[chosen] == tokens[chosen], shown[chosen] == MASK
    # A random token is the mask, or the same, once in V.
    assert within(hidden.mean(), 0.8 + 0.1 / V, n)
    assert within(same.mean(), 0.1 + 0.1 / V, n)
    other = shown[chosen][~same & ~hidden]
    counts = np.bincount(other, minlength=V)
    assert all(within(c / len(other), 1 / V, len(other)) for i, c in enumerate(counts) if i != MASK)
    assert within(chosen.sum(axis=0)[0] / eligible.sum(axis=0)[0], share, eligible.sum(axis=0)[0])


@given(seeds, st.sampled_from([0.0, 0.15, 0.5, 1.0]))
def test_exactly_as_many_are_chosen_as_the_released_code_chooses(seed, share):
    """Turns red if only eligible tokens count, or none is chosen of few."""
    tokens, kept = text(seed)
    _, labels = masked(tokens, kept, seed, share=share, exact=True)
    eligible = (kept & ~np.isin(tokens, SPECIAL)).sum(axis=1)
    wanted = [max(1, round(share * int(n))) for n in kept.sum(axis=1)]
    assert (labels != -100).sum(axis=1).tolist() == np.minimum(wanted, eligible).tolist()


def test_one_key_is_one_choice_and_another_key_another():
    tokens, kept = text(2)
    first, again, other = (masked(tokens, kept, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    all_kept = masked(tokens, np.ones_like(kept))[1]
    np.testing.assert_array_equal(masked(tokens, None)[1], all_kept)


def test_text_is_masked_at_once_whatever_its_axes():
    tokens, kept = text(3, 6)
    shown, labels = masked(tokens, kept)
    cube = masked(tokens.reshape(2, 3, -1), kept.reshape(2, 3, -1))
    np.testing.assert_array_equal(cube[0], shown.reshape(2, 3, -1))
    np.testing.assert_array_equal(cube[1], labels.reshape(2, 3, -1))


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"tokens": np.full((2, 5), V)}, InputError, r"tokens\[0, 0\] is 101, outside"),
        ({"tokens": np.zeros((2, 5))}, DtypeError, "tokens is of float64"),
        ({"kept": np.ones((2, 5), int)}, DtypeError, "kept is of int64; give an array of bool"),
        ({"kept": np.ones((2, 4), bool)}, InputError, r"kept has shape \(2, 4\), tokens \(2, 5\)"),
        ({"mask_id": V}, InputError, "mask_id is 101, outside"),
        ({"share": 1.5}, InputError, r"share is 1.5; give a number in \[0, 1\]"),
    ],
)
def test_what_cannot_be_masked_is_refused(changes, error, message):
    valid = {"tokens": np.zeros((2, 5), int), "kept": None}
    with pytest.raises(error, match=message):
        masked(**valid | changes)


# Pairs


def numbered(sizes):
    """Documents of sentences of these sizes, in which each token is another number."""
    tokens = iter(range(10**6))
    return [[[next(tokens) for _ in range(n)] for n in sentences] for sentences in sizes]


documents_of = st.lists(
    st.lists(st.integers(1, 6), min_size=1, max_size=8), min_size=2, max_size=5
).map(numbered)


@given(documents_of, seeds, st.integers(5, 20), st.sampled_from([0.0, 0.5, 1.0]))
def test_pairs_are_two_runs_of_text_that_fit(documents, seed, length, short):
    """Turns red if the second part is of the first's document where it does not follow, or if a
    pair is too long.
    """
    home = {t: d for d, sentences in enumerate(documents) for s in sentences for t in s}
    pairs = list(sentence_pairs(documents, length=length, key=random.key(seed), short=short))
    for first, second, follows in pairs:
        for part in (first, second):
            assert part == list(range(part[0], part[0] + len(part)))
        assert len(first) + len(second) <= length - 3
        assert (home[first[0]] == home[second[0]]) == follows
        assert not follows or second[0] > first[-1]


def test_half_of_the_pairs_that_can_follow_do():
    """Within 5 standard errors; of a document's last sentence nothing can.  Turns red with 35 %."""
    documents = numbered([[3] * 1000] * 11)
    last = {sentences[-1][-1] for sentences in documents}
    pairs = list(sentence_pairs(documents, length=63, key=random.key(0), short=0.0))
    can = [follows for first, _, follows in pairs if not last & set(first)]
    assert len(can) > 700 and within(np.mean(can), 0.5, len(can))
    # All documents serve for foreign parts.
    foreign = Counter(second[0] // 3000 for _, second, follows in pairs if not follows)
    assert set(foreign) == set(range(11)) and max(foreign.values()) < 3 * min(foreign.values())


def test_every_sentence_is_read_once_where_it_stands():
    """20 of them fill a pair, so nothing is cut off.  Turns red if displaced sentences are lost."""
    documents = numbered([[3] * 200] * 5)
    pairs = list(sentence_pairs(documents, length=63, key=random.key(1), short=0.0))
    own = [t for first, second, follows in pairs for t in (first + second if follows else first)]
    assert own == list(range(3000))
    full = [len(first) + len(second) == 60 for first, second, _ in pairs]
    assert np.mean(full) > 0.8
    short = list(sentence_pairs(documents, length=63, key=random.key(1), short=1.0))
    assert np.mean([len(first) + len(second) == 60 for first, second, _ in short]) < 0.5


def test_pairs_as_the_model_reads_them():
    """Turns red if the first [SEP] is counted to the second part."""
    pairs = [([5, 6], [7], True), ([8], [9], False)]
    batch = joined_pairs(pairs, length=7, start_id=1, end_id=2)
    assert batch["tokens"].tolist() == [[1, 5, 6, 2, 7, 2, 0], [1, 8, 2, 9, 2, 0, 0]]
    assert batch["segments"].tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0]]
    assert batch["kept"].tolist() == [[True] * 6 + [False], [True] * 5 + [False] * 2]
    assert batch["follows"].tolist() == [True, False] and batch["follows"].dtype == bool
    assert batch["tokens"].dtype == batch["segments"].dtype == np.int32
    with pytest.raises(InputError, match=r"sequences\[0\] has 6 entries, more than the length 5"):
        joined_pairs(pairs, length=5, start_id=1, end_id=2)


@pytest.mark.parametrize(
    "documents, length, message",
    [
        ([[[1]]], 9, "there are 1 documents, .* give two or more"),
        ([[[1]], []], 9, r"documents\[1\] has no sentences"),
        ([[[1]], [[1], []]], 9, r"documents\[1\] has no tokens in one of its sentences"),
        ([[[1]], [[2]]], 4, "length is 4; give 5 or more"),
        ([[[1.5]], [[2]]], 9, "a sentence is of float64; give token ids"),
    ],
)
def test_documents_that_make_no_pairs_are_refused(documents, length, message):
    with pytest.raises(InputError, match=message):
        list(sentence_pairs(documents, length=length, key=random.key(0)))
