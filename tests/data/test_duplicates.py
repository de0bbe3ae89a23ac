import gzip
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import random
from reference.data.duplicates import (
    BLOCK,
    ORDERS,
    ExactDuplicates,
    NearDuplicates,
    meeting_probability,
    minima,
    rows_for,
    shingles,
    signature,
    similarities,
)
from reference.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
LATIN, GREEK = "abcdefghijklmnopqrstuvwxyz", "αβγδεζηθικλμνξοπρστυφχψω"
SETS = st.sets(st.integers(0, 2**32 - 1), min_size=1, max_size=40)


def array(numbers):
    return np.array(sorted(numbers), np.uint32)


def words(rng, number, alphabet=LATIN):
    return ["".join(rng.choice(list(alphabet), rng.integers(2, 9))) for _ in range(number)]


def jaccard(one, other):
    one, other = set(shingles(one).tolist()), set(shingles(other).tolist())
    return len(one & other) / len(one | other)


def alike(one, other):
    return float(similarities(signature(one), signature(other)))


def found(texts, similarity=0.8):
    """What each text repeats: None, or (the number of a kept one, their similarity)."""
    near = NearDuplicates(similarity)
    return [near.seen(text) for text in texts]


# Exact copies


@given(st.lists(st.text(max_size=3)))
def test_a_text_was_seen_if_it_came_before(texts):
    """Turns red if the digest is of the text's length, or of its first character."""
    exact = ExactDuplicates()
    assert [exact.seen(text) for text in texts] == [t in texts[:i] for i, t in enumerate(texts)]


def test_texts_are_remembered_while_the_table_grows():
    exact = ExactDuplicates()
    for before in (False, True):
        assert [exact.seen(str(number)) for number in range(5000)] == [before] * 5000


def test_exact_copies_take_48_bytes_a_text_at_most():
    tracemalloc.start()
    try:
        exact = ExactDuplicates()
        for number in range(3000):
            exact.seen(str(number))
        assert tracemalloc.get_traced_memory()[0] < 49 * 3000
    finally:
        tracemalloc.stop()


def test_half_of_a_surrogate_pair_is_a_text_too():
    exact = ExactDuplicates()
    assert [exact.seen(text) for text in ("\ud800", "\udc00", "\ud800")] == [False, False, True]
    assert found(["\ud800" * 9, "\udc00" * 9, "\ud800" * 9]) == [None, None, (0, 1.0)]


# Shingles and signatures


def test_shingles_and_minima_are_those_of_arithmetic_without_a_width():
    """Every machine and every version finds the same copies: the key is part of the meaning."""
    keys = random.split(random.key(1997), 4)
    shapes = (9,), (ORDERS,), (ORDERS,)
    c, a, b = (
        random.bits(key, shape, dtype=np.uint64).tolist()
        for key, shape in zip(keys[:3], shapes, strict=True)
    )
    characters = [0] * 8 + [ord(x) for x in "strasse 𝄞"] + [0] * 8
    numbers = [
        sum(x * y for x, y in zip(c, characters[i:], strict=False)) % 2**64 >> 32 for i in range(17)
    ]
    assert shingles("Straße\n\t 𝄞 ").tolist() == numbers
    expected = [min((x * n + y) % 2**64 >> 32 for n in numbers) for x, y in zip(a, b, strict=True)]
    assert signature("STRASSE 𝄞").tolist() == expected
    assert signature("a").dtype == np.uint32 and signature("").shape == (ORDERS,)


@given(st.text(max_size=300))
def test_equal_texts_have_similarity_1_whatever_their_case_and_blanks(text):
    """Turns red if the border is left out: a short text then has no shingle."""
    plain = " ".join(text.casefold().split())
    assert alike(text, text) == alike(text, f"\n {plain}\t\t") == 1
    assert found([text, plain]) == [None, (0, 1.0)]


@given(SETS, SETS)
def test_the_signature_of_a_union_is_the_smaller_of_the_two(one, other):
    """Turns red if the shift by 32 bits is left out of one place, or a mean taken."""
    union = np.minimum(minima(array(one)), minima(array(other)))
    np.testing.assert_array_equal(minima(array(one | other)), union)


def test_a_long_text_is_hashed_in_pieces_that_join():
    text = "".join(np.random.default_rng(0).choice(list(LATIN), 2 * BLOCK + 5))
    for length in (BLOCK - 9, BLOCK - 8, BLOCK - 7, len(text)):
        np.testing.assert_array_equal(signature(text[:length]), minima(shingles(text[:length])))


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(30, 300), st.floats(0.1, 0.9))
def test_the_estimate_is_within_five_standard_errors(seed, size, share):
    """Turns red if all orders have the same factor."""
    numbers = np.random.default_rng(seed).choice(2**32, 2 * size, replace=False).astype(np.uint32)
    common = math.ceil(share * size)
    true = common / (2 * size - common)
    one, other = numbers[:size], numbers[size - common : 2 * size - common]
    error = similarities(minima(one), minima(other)) - true
    assert abs(error) <= 5 * math.sqrt(true * (1 - true) / ORDERS)


def test_errors_are_as_large_on_texts_as_the_formula_says():
    """Turns red if every two orders are the same one: the errors are then √2 times as large."""
    rng, errors = np.random.default_rng(1), []
    for _ in range(400):
        one = words(rng, rng.integers(20, 100))
        other = [word if rng.random() < 0.9 else word[::-1] for word in one]
        one, other = " ".join(one), " ".join(other)
        true = jaccard(one, other)
        if true < 1:
            error = math.sqrt(true * (1 - true) / ORDERS)
            errors.append((alike(one, other) - true) / error)
    assert abs(np.mean(errors)) < 0.2 and 0.9 < np.std(errors) < 1.1


# Bands


@pytest.mark.parametrize("similarity", [0.5, 0.62, 0.75, 0.8, 0.9, 0.97, 1])
def test_texts_of_the_similarity_asked_for_meet_and_a_larger_band_would_part_them(similarity):
    rows = rows_for(similarity)
    assert meeting_probability(similarity, rows) >= 0.99
    larger = range(rows + 1, ORDERS + 1)
    assert not any(meeting_probability(similarity, r) >= 0.99 for r in larger)


def test_the_curve_is_the_one_stated():
    assert (rows_for(0.8), rows_for(1)) == (6, ORDERS)
    assert meeting_probability(0.3, 6) == pytest.approx(0.0152, abs=1e-4)
    assert meeting_probability(0.5, 1) == 1 - 0.5**ORDERS


def test_texts_meet_as_often_as_the_curve_says():
    """Signatures of which each place agrees with probability s, as orders make them."""
    rng = np.random.default_rng(0)
    for s in (0.4, 0.55, 0.7):
        near, met = NearDuplicates(0.8), 0
        for _ in range(400):
            one = rng.integers(0, 2**32, ORDERS, dtype=np.uint32)
            other = np.where(rng.random(ORDERS) < s, one, one ^ 1)
            met += (near._buckets(one) == near._buckets(other)).any()
        expected = meeting_probability(s, 6)
        assert abs(met / 400 - expected) < 4 * math.sqrt(expected * (1 - expected) / 400) + 0.02


@pytest.mark.parametrize("similarity", [0, 0.49, 1.01, math.nan, "0.8", None])
def test_a_similarity_that_cannot_be_is_refused(similarity):
    with pytest.raises(InputError, match=r"similarity is .*; give a number in \[0.5, 1\]"):
        NearDuplicates(similarity)


# Near copies


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 99))
def test_a_text_with_one_word_of_a_hundred_changed_is_found(seed, place):
    """Turns red if a band's bucket is looked up in the next band."""
    rng = np.random.default_rng(seed)
    others = [" ".join(words(rng, 100)) for _ in range(5)]
    text = words(rng, 100)
    changed = [*text[:place], "changed", *text[place + 1 :]]
    *none, (number, similarity) = found([*others, " ".join(text), " ".join(changed)])
    assert none == [None] * 6 and number == 5 and similarity > 0.8


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 300))
def test_texts_with_nothing_in_common_are_never_copies(seed, one, other):
    """Turns red if a shingle's number has 8 bits."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list(LATIN), one)), "".join(rng.choice(list(GREEK), other))]
    assert found(texts, 0.5) == [None, None] and alike(*texts) < 0.05


def test_short_texts_are_told_apart():
    texts = ["", "a", "b", "ab", "ba", "yes", "no", "猫", "犬", "I have 1 cat", "I have 2 cats"]
    assert found(texts) == [None] * len(texts)
    assert found(["I have 1 cat", "I  HAVE 1 cat "]) == [None, (0, 1.0)]


def test_a_language_without_blanks_needs_none():
    rng = np.random.default_rng(3)
    one = "".join(chr(c) for c in rng.integers(0x4E00, 0x9FA5, 300))
    other = "".join(chr(c) for c in rng.integers(0x4E00, 0x9FA5, 300))
    _, none, (number, similarity) = found([one, other, f"{one[:150]}新{one[151:]}"])
    assert none is None and number == 0 and similarity == pytest.approx(0.94, abs=0.1)


def test_the_most_like_is_named_and_of_equals_the_first():
    rng = np.random.default_rng(4)
    text = words(rng, 200)
    far, close = text.copy(), text.copy()
    far[::20], close[7] = words(rng, 10, GREEK), "δ"
    near = NearDuplicates(0.5)
    near.similarity = 0.95
    kept = [" ".join(t) for t in (words(rng, 200), far, text)]
    assert [near.seen(t) for t in kept] == [None] * 3
    near.similarity = 0.5
    assert near.seen(" ".join(close))[0] == 2
    near.similarity = 1.1  # keeps whatever comes
    near.seen(kept[2])
    near.similarity = 0.5
    assert near.seen(kept[2]) == (2, 1.0)


def test_all_kept_texts_are_found_after_the_tables_have_grown():
    rng = np.random.default_rng(5)
    texts = [" ".join(words(rng, 5)) for _ in range(2100)]
    near = NearDuplicates(0.8)
    assert [near.seen(text) for text in texts] == [None] * 2100
    assert [near.seen(text) for text in texts] == [(number, 1.0) for number in range(2100)]


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.permutations(range(12)))
def test_another_order_of_texts_changes_only_which_copy_is_kept(seed, order):
    """Turns red if a text that repeats one is kept as well."""
    rng = np.random.default_rng(seed)
    families = [words(rng, 150) for _ in range(4)]
    texts = [" ".join([*family, str(n)]) for family in families for n in range(3)]
    for arranged in (range(12), order):
        matches = found([texts[i] for i in arranged])
        kept = [i // 3 for i, match in zip(arranged, matches, strict=True) if match is None]
        assert sorted(kept) == [0, 1, 2, 3]
        named = [(i // 3, kept[m[0]]) for i, m in zip(arranged, matches, strict=True) if m]
        assert all(one == other for one, other in named)


def test_captions_that_were_changed_a_little_are_found_among_all_pairs():
    """The oracle is the Jaccard similarity itself, of every pair."""
    path = SHARED / "multi30k" / "val.en.gz"
    if not path.exists():
        pytest.skip("multi30k is not beside the checkout")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        captions = [line.strip() for line in file][:300]
    copies = [caption[:-1] + "," for caption in captions] + [f"{c} too" for c in captions]
    texts = captions + copies
    near, kept, unlike, errors = NearDuplicates(0.7), [], 0, 5 * math.sqrt(0.7 * 0.3 / ORDERS)
    for text in texts:
        match, pieces = near.seen(text), set(shingles(text).tolist())
        true = [len(pieces & other) / len(pieces | other) for other in kept]
        unlike += max(true, default=0) < 0.7
        if match is None:
            assert max(true, default=0) < 0.7 + errors
            kept.append(pieces)
        else:
            assert true[match[0]] > 0.7 - errors and max(true) - true[match[0]] < errors
    assert 0 < len(texts) - unlike and abs(unlike - len(kept)) < 40
