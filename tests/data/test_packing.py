import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.data.packing import pack, pad, placed, unpack
from reference.errors import DtypeError, InputError
from reference.layers.attention import multi_head_attention
from reference.layers.loss import cross_entropy
from reference.layers.mask import both, causal, documents

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
IGNORE = -100
NAMES = ("query", "key", "value", "out")


@st.composite
def texts_and_length(draw, longest=None):
    """Texts, some longer than T unless `longest` is 1."""
    length = draw(st.integers(1, 12))
    text = st.lists(st.integers(0, 99), max_size=length * (longest or 3))
    return draw(st.lists(text, max_size=14)), length


def sizes_of(texts):
    return [len(text) for text in texts]


def pieces_of(texts, length):
    return [
        (text[start : start + length], text[start + 1 : start + 1 + length])
        for text in texts
        for start in range(0, len(text), length)
    ]


# Packing


@given(texts_and_length())
def test_what_was_packed_comes_back(case):
    """Turns red if the last place of a row is not used, or pieces are put together as they lie."""
    texts, length = case
    tokens = pack(texts, length=length)["tokens"]
    assert [text.tolist() for text in unpack(tokens, sizes=sizes_of(texts))] == texts


@given(texts_and_length())
def test_every_token_is_in_one_place(case):
    """Turns red if two texts overlap, or if a text is numbered 0."""
    texts, length = case
    packed = pack(texts, length=length)
    there = packed["documents"] > 0
    assert there.sum() == sum(sizes_of(texts))
    assert sorted(packed["tokens"][there]) == sorted(sum(texts, []))
    assert (packed["tokens"][~there] == 0).all()
    assert all(a.shape[1] == length and a.dtype == np.int32 for a in packed.values())


@given(texts_and_length())
def test_a_label_is_the_next_token_of_the_same_text(case):
    """Read off the arrays alone.  Turns red if labels are the row moved by one."""
    texts, length = case
    packed = pack(texts, length=length)
    found = []
    for tokens, labels, numbers, positions in zip(*packed.values(), strict=True):
        assert (labels[numbers == 0] == IGNORE).all()
        for number in range(1, numbers.max() + 1):
            (at,) = np.nonzero(numbers == number)
            assert at.tolist() == list(range(at[0], at[0] + len(at)))  # one after another
            assert positions[at].tolist() == list(range(len(at)))
            kept = labels[at][labels[at] != IGNORE].tolist()
            assert labels[at].tolist()[: len(kept)] == kept  # only an end is left out
            found.append((tokens[at].tolist(), kept))
    assert sorted(found) == sorted(pieces_of(texts, length))


def best_fit_decreasing(sizes, length):
    """As it is told, row by row: the free room of each row in the end."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= size
        else:
            rooms.append(length - size)
    return rooms


@given(texts_and_length())
def test_rows_are_those_of_best_fit_decreasing(case):
    """Turns red with first fit, with worst fit, or without the sorting."""
    texts, length = case
    sizes = [len(tokens) for tokens, _ in pieces_of(texts, length)]
    room = (pack(texts, length=length)["documents"] == 0).sum(axis=1)
    assert room.tolist() == best_fit_decreasing(sizes, length)


@given(texts_and_length())
def test_no_row_more_than_has_to_be(case):
    """What begins a row fits into none before it, so all rows but one are more than half full.

    Turns red with next fit, which looks at the last row only.
    """
    texts, length = case
    packed = pack(texts, length=length)
    filled = (packed["documents"] > 0).sum(axis=1)
    first = (packed["documents"] == 1).sum(axis=1)
    for row in range(len(filled)):
        assert (filled[:row] + first[row] > length).all()
    total = sum(sizes_of(texts))
    assert -(-total // length) <= len(filled) <= 2 * total / length + 1


def test_ties_go_by_order():
    """Two rows with as much room, four texts of a length."""
    packed = pack([[1], [2], [3, 3, 3], [4, 4, 4], [5], [6]], length=5)
    assert packed["tokens"].tolist() == [[3, 3, 3, 1, 2], [4, 4, 4, 5, 6]]
    assert packed["documents"].tolist() == [[1, 1, 1, 2, 3]] * 2


def test_packing_by_hand():
    packed = pack([[5, 6], [1, 2, 3, 4, 5, 6, 7, 8, 9], [8]], length=4)
    by_hand = {
        "tokens": [[1, 2, 3, 4], [5, 6, 7, 8], [5, 6, 9, 8]],
        "labels": [[2, 3, 4, 5], [6, 7, 8, 9], [6, IGNORE, IGNORE, IGNORE]],
        "documents": [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 2, 3]],
        "positions": [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 0, 0]],
    }
    assert {name: a.tolist() for name, a in packed.items()} == by_hand
    assert pack([[5, 6]], length=4, ignore=-1)["labels"].tolist() == [[6, -1, -1, -1]]


def test_nothing_packs_into_nothing():
    assert {a.shape for a in pack([], length=3).values()} == {(0, 3)}
    assert {a.shape for a in pack([[]], length=3).values()} == {(0, 3)}
    assert [a.size for a in unpack(np.zeros((0, 3)), sizes=[0, 0])] == [0, 0]


@given(st.integers(0, 2**32))
def test_packed_texts_are_to_a_model_what_each_is_alone(seed):
    """Attention's output and gradient, and the loss.

    Turns red if positions go on through a row, if two texts of a row have one number, or if a
    text's last label is its neighbour's first token.
    """
    rng = np.random.default_rng(seed)
    length, width, vocabulary = 9, 6, 11
    texts = [rng.integers(0, vocabulary, rng.integers(1, length + 1)) for _ in range(5)]
    params = {name: {"kernel": rng.standard_normal((width, width)) / width**0.5} for name in NAMES}
    embedding = rng.standard_normal((vocabulary, width))
    position = rng.standard_normal((length, width))
    unembedding = rng.standard_normal((width, vocabulary))

    def outcome(packed):
        x = embedding[packed["tokens"]] + position[packed["positions"]]
        mask = both(causal, documents(packed["documents"]))
        y, backward = multi_head_attention(params, x, heads=2, mask=mask)
        loss, loss_backward = cross_entropy(y @ unembedding, labels=packed["labels"])
        kept = (packed["labels"] != IGNORE).sum()
        _, dx, _ = backward(loss_backward(kept) @ unembedding.T)
        return y, dx, loss * kept

    sizes = sizes_of(texts)
    packed = pack(texts, length=length)
    y, dx, loss = outcome(packed)
    alone = [outcome(one_text(text)) for text in texts]
    for together in (0, 1):
        apart = unpack((y, dx)[together], sizes=sizes)
        for i, size in enumerate(sizes):
            np.testing.assert_allclose(apart[i], alone[i][together][0, :size], rtol=0, atol=1e-12)
    np.testing.assert_allclose(loss, sum(each[2] for each in alone), rtol=0, atol=1e-11)


def one_text(text):
    """What a model is given of a text that is not packed."""
    return {
        "tokens": text[None],
        "labels": np.append(text[1:], IGNORE)[None],
        "documents": np.ones((1, len(text)), int),
        "positions": np.arange(len(text))[None],
    }


def test_results_of_any_shape_are_read_back():
    texts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    tokens = pack(texts, length=4)["tokens"]
    vectors = np.stack([tokens, tokens * 10.0], axis=-1)
    for text, apart in zip(texts, unpack(vectors, sizes=[3, 1, 6]), strict=True):
        np.testing.assert_array_equal(apart, np.array(text)[:, None] * [1, 10.0])


def test_time_grows_with_the_number_of_texts_not_with_its_square():
    """100,000 texts, of which no two fit into a row.  Turns red if every row is looked at."""
    sizes = np.random.default_rng(0).integers(300, 512, 100_000).tolist()
    start = time.process_time()
    _, places = placed(sizes, 512)
    assert time.process_time() - start < 8
    assert sorted(row for row, _, _ in places) == list(range(100_000))


# Padding


@given(texts_and_length(longest=1), st.integers(-5, 5))
def test_padding_leaves_a_sequence_as_it_is(case, value):
    """Turns red if what is kept and what is not are taken for each other."""
    sequences, length = case
    padded, kept = pad(sequences, length=length, value=value)
    assert padded.shape == kept.shape == (len(sequences), length)
    assert padded.dtype == np.int32 and kept.dtype == bool
    assert kept.sum(axis=1).tolist() == sizes_of(sequences)
    assert [row[row_kept].tolist() for row, row_kept in zip(padded, kept, strict=True)] == sequences
    assert (padded[~kept] == value).all()
    assert (np.diff(kept.astype(int), axis=1) <= 0).all()  # on the right


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool])
def test_other_numbers_keep_their_dtype(dtype):
    padded, _ = pad([np.ones(2, dtype), np.ones(0, dtype)], length=3)
    assert padded.dtype == dtype
    assert padded.tolist() == [[1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: pad([[1], [1, 2, 3]], length=2), InputError, r"sequences\[1\] has 3 .* length 2;"),
        (lambda: pad([[1]], length=0), InputError, "length is 0; give 1 or more"),
        (lambda: pad([[1], ["a"]], length=2), DtypeError, r"sequences\[1\] is of <U1; give num"),
        (lambda: pack([[1]], length=2.5), InputError, "length is 2.5; give 1 or more, an integer"),
        (lambda: pack([[1], 2], length=2), InputError, r"sequences\[1\] has shape \(\); give a s"),
        (lambda: pack([[1], [0.5]], length=2), DtypeError, r"sequences\[1\] is of float64; give t"),
        (lambda: pack(["text"], length=2), DtypeError, r"sequences\[0\] is of <U4"),
        (lambda: pack([[[1], [2, 3]]], length=2), InputError, r"sequences\[0\] is no number and n"),
        (lambda: pack([[1, 2**31]], length=2), InputError, r"\[0\] has 2147483648; .* below 2\*\*"),
        (lambda: unpack(np.zeros((2, 4)), sizes=[3]), InputError, "2 rows of 4, .* fill 1; give"),
    ],
)
def test_what_cannot_be_packed_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Real data


def test_real_sentences_leave_hardly_any_room():
    """Film reviews, one token a byte."""
    path = SHARED / "rt_polarity"
    if not path.exists():
        pytest.skip("rt_polarity is not beside the checkout")
    lines = next(path.glob("*neg*")).read_bytes().splitlines()[:2000]
    texts = [np.frombuffer(line, np.uint8) for line in lines if line]
    packed = pack(texts, length=512)
    assert (packed["documents"] > 0).mean() > 0.99
    for text, back in zip(texts, unpack(packed["tokens"], sizes=sizes_of(texts)), strict=True):
        np.testing.assert_array_equal(text, back)
