import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import random
from reference.data.split import cut, group_number, in_validation, split
from reference.errors import DtypeError, InputError

KEY = random.key(0)
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True)
SEEDS = st.integers(0, 2**63 - 1)


# Rows that can be counted


@given(st.integers(2, 300), SHARES, SEEDS)
def test_each_row_is_on_one_side_and_the_sizes_are_exact(number, share, seed):
    """Turns red if the share is rounded down, or a side left empty."""
    training, validation = split(number, share, key=random.key(seed))
    assert sorted([*training, *validation]) == list(range(number))
    assert len(validation) == min(max(round(number * share), 1), number - 1)
    for side in (training, validation):
        assert side.dtype == np.int64 and (np.diff(side) > 0).all()


@given(st.lists(st.sampled_from("aabbbbc"), min_size=2, max_size=200), SHARES, SEEDS)
def test_each_label_keeps_its_share(labels, share, seed):
    """Turns red if the rows are not grouped by label."""
    training, validation = split(len(labels), share, key=random.key(seed), labels=labels)
    assert sorted([*training, *validation]) == list(range(len(labels)))
    assert len(validation) == min(max(round(len(labels) * share), 1), len(labels) - 1)
    taken = Counter(labels[i] for i in validation)
    for label, number in Counter(labels).items():
        expected = number * len(validation) / len(labels)
        assert math.floor(expected) <= taken[label] <= math.ceil(expected)


@pytest.mark.parametrize("labels", [None, [0, 1, 1, 2, 2, 2, 2]])
def test_every_row_is_equally_likely_to_be_taken(labels):
    """By 4 standard errors, label of one row or not."""
    runs, counts = 1500, np.zeros(7)
    for seed in range(runs):
        counts[split(7, 0.3, key=random.key(seed), labels=labels)[1]] += 1
    share = 2 / 7
    error = math.sqrt(share * (1 - share) / runs)
    np.testing.assert_allclose(counts / runs, share, atol=4 * error)


def test_rows_of_one_label_are_not_taken_in_fixed_pairs():
    """Turns red if the rows of a label stay in their order."""
    labels = np.repeat([0, 1], 4)
    sides = {tuple(split(8, 0.5, key=random.key(s), labels=labels)[1]) for s in range(300)}
    assert len(sides) == 6 * 6


def test_the_seed_decides():
    one, same, other = (split(1000, 0.1, key=random.key(seed))[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert len(np.intersect1d(one, other)) < 30


def test_labels_may_be_strings_numbers_or_an_array():
    labels = [0, 1, 0, 0, 1, 0, 1, 0, 0]
    validation = split(9, 0.4, key=KEY, labels=labels)[1].tolist()
    for same in (
        np.array(labels),
        [("no", "yes")[n] for n in labels],
        (None if n else 7.5 for n in labels),
    ):
        assert split(9, 0.4, key=KEY, labels=same)[1].tolist() == validation


def test_reviews_keep_their_mixture():
    path = SHARED / "rt_polarity"
    if not path.exists():
        pytest.skip("rt_polarity is not beside the checkout")
    sizes = [
        len((path / f"rt-polarity.{kind}").read_bytes().splitlines()) for kind in ("neg", "pos")
    ]
    labels = np.repeat(["neg", "pos"], sizes)
    for side, share in zip(
        split(len(labels), 0.1, key=KEY, labels=labels), (0.9, 0.1), strict=True
    ):
        for kind, size in zip(("neg", "pos"), sizes, strict=True):
            assert abs((labels[side] == kind).sum() - share * size) < 1


@pytest.mark.parametrize("number", [1, 0, -3, 2**31, 2.0, "10", None])
def test_a_number_of_rows_that_cannot_be_split_is_refused(number):
    with pytest.raises(InputError, match=r"number is .*; give an integer in \[2, 2147483648\)"):
        split(number, 0.5, key=KEY)


@pytest.mark.parametrize("share", [0, 1, -0.1, 10, math.nan, "0.1", None, True])
def test_a_share_that_leaves_nothing_is_refused(share):
    for function in (split, in_validation):
        with pytest.raises(InputError, match="share is .*; give a number between 0 and 1, such as"):
            function(10, share, key=KEY)
    with pytest.raises(InputError, match="share is"):
        cut(10, share)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="labels has 2 for 3 rows; give one for each"):
        split(3, 0.5, key=KEY, labels=["a", "b"])
    for labels in ([[1], [2], [3]], np.eye(3), 5):
        with pytest.raises(DtypeError, match="labels are no labels .*; give strings or integers"):
            split(3, 0.5, key=KEY, labels=labels)
    with pytest.raises(InputError, match="key is"):
        split(3, 0.5, key=7)


# Rows that are not counted yet


@given(st.lists(st.integers(0, 2**63 - 1), max_size=20), SHARES, SEEDS)
def test_a_row_s_side_depends_on_nothing_else(rows, share, seed):
    """Turns red if the place among the rows is encrypted instead, or the upper half dropped."""
    key = random.key(seed)
    together = in_validation(rows, share, key=key)
    assert together.shape == (len(rows),) and together.dtype == bool
    assert [bool(in_validation(row, share, key=key)) for row in rows] == together.tolist()
    np.testing.assert_array_equal(in_validation(rows[::-1], share, key=key), together[::-1])


@given(st.integers(1, 300), st.integers(1, 50), SHARES, SEEDS)
def test_pieces_of_any_size_make_the_whole(number, piece, share, seed):
    """Turns red if each piece counts from 0."""
    key = random.key(seed)
    rows = np.arange(number, dtype=np.int32)
    pieces = [in_validation(rows[i : i + piece], share, key=key) for i in range(0, number, piece)]
    words = random.bits(random.fold_in(key, 0), (number,))
    np.testing.assert_array_equal(np.concatenate(pieces), words < share * 2**32)


def test_the_share_is_met_as_by_tossing_a_coin():
    for seed, share in enumerate((0.001, 0.1, 0.5, 0.95)):
        taken = in_validation(np.arange(200_000).reshape(2, -1), share, key=random.key(seed))
        assert taken.shape == (2, 100_000)
        assert abs(taken.mean() - share) < 4 * math.sqrt(share * (1 - share) / taken.size)


def test_a_row_beyond_32_bits_is_not_taken_for_another():
    rows = np.arange(1000)
    sides = [in_validation(rows + high, 0.5, key=KEY) for high in (0, 2**32, 2**33)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert 400 < (sides[one] == sides[other]).sum() < 600


@pytest.mark.parametrize(
    "rows, error, message",
    [
        ([1.0], DtypeError, "rows are float64; give integers"),
        ([True], DtypeError, "rows are bool; give integers"),
        ("a text", DtypeError, "rows are <U6; give integers"),
        ([2**70], DtypeError, "rows are object; give integers"),
        ([3, -1], InputError, "rows has -1; give numbers of rows from 0 on"),
    ],
)
def test_rows_that_are_no_numbers_are_refused(rows, error, message):
    with pytest.raises(error, match=message):
        in_validation(rows, 0.5, key=KEY)


# Groups


@given(st.lists(st.sampled_from(["Ann", "Bob", "李", "", "\ud800"]), max_size=20), SEEDS)
def test_copies_of_a_text_end_on_the_same_side(names, seed):
    """Turns red if Python's own hash is taken: it differs from run to run."""
    sides = in_validation([group_number(name) for name in names], 0.5, key=random.key(seed))
    assert len({*zip(names, sides.tolist(), strict=True)}) == len(set(names))
    assert group_number("Ann") == int.from_bytes(bytes.fromhex("def35119f486965e"), "little") >> 1


def test_a_group_s_number_is_of_a_text():
    assert all(0 <= group_number(str(n)) < 2**63 for n in range(1000))
    with pytest.raises(DtypeError, match="name is of type int, and must be str"):
        group_number(5)


# One long text


@given(st.integers(2, 10**15), SHARES)
def test_a_text_is_cut_near_its_end_and_both_parts_have_something(length, share):
    """Turns red if the first share is for validation."""
    first = cut(length, share)
    assert 1 <= first <= length - 1
    assert abs(length - first - share * length) <= 1 + length * 2e-16


def test_tiny_shakespeare_is_cut_where_nanogpt_cuts_it():
    assert cut(1_115_394, 0.1) == 1_003_854


@pytest.mark.parametrize("length", [1, -5, 10.0, None])
def test_a_text_too_short_to_cut_is_refused(length):
    with pytest.raises(InputError, match=r"length is .*; give an integer in \[2, "):
        cut(length, 0.1)
