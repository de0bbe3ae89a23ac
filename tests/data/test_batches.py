import gzip
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import random
from reference.data import mapped
from reference.data import order as orders
from reference.data.batches import Arrays, Windows
from reference.data.buckets import Rows
from reference.data.order import random_order, scattered
from reference.data.packing import pack
from reference.errors import DtypeError, InputError
from reference.layers.attention import multi_head_attention
from reference.layers.loss import cross_entropy
from reference.layers.mask import both, causal, documents, padding

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
KEY = random.key(0)
IGNORE = -100


def epoch_of(data, epoch=0):
    """The batches of an epoch."""
    return [data.batch(epoch * data.each_epoch + i) for i in range(data.each_epoch)]


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name].dtype == other[name].dtype


def a_data_set(kind, key=KEY):
    """Of 23 rows or windows, in threes."""
    rng = np.random.default_rng(0)
    if kind is Windows:
        return Windows(np.arange(24 * 5), length=5, batch=3, key=key)
    if kind is Arrays:
        return Arrays({"rows": np.arange(23), "label": np.arange(23)}, batch=3, key=key)
    rows = [{"tokens": np.full(n, i), "label": i} for i, n in enumerate(rng.integers(1, 40, 23))]
    return Rows(rows, batch=3, key=key)


KINDS = pytest.mark.parametrize("kind", [Windows, Rows, Arrays])


# What holds for all of them


@KINDS
def test_a_step_s_batch_follows_from_its_number(kind):
    """Turns red if what was asked for before matters, or an epoch's order is that of another."""
    data, fresh = a_data_set(kind), a_data_set(kind)
    whole = [data.batch(step) for step in range(3 * data.each_epoch)]
    shuffled = np.random.default_rng(1).permutation(len(whole))
    for step in (*reversed(range(len(whole))), *shuffled):
        equal(fresh.batch(step), whole[step])


@KINDS
def test_a_step_s_position_is_its_epoch_and_its_batch(kind):
    data = a_data_set(kind)
    assert data.position(0) == (0, 0)
    assert data.position(data.each_epoch - 1) == (0, data.each_epoch - 1)
    assert data.position(3 * data.each_epoch + 2) == (3, 2)
    with pytest.raises(InputError, match="step is -1; give 0 or more"):
        data.batch(-1)


@KINDS
def test_epochs_and_keys_have_orders_of_their_own(kind):
    """Turns red if the epoch or the key is left out."""
    data, other = a_data_set(kind), a_data_set(kind, random.key(1))
    field = "label" if kind is not Windows else "tokens"
    seen = [
        tuple(np.concatenate([batch[field].ravel() for batch in epoch_of(each, epoch)]))
        for each in (data, other)
        for epoch in range(5)
    ]
    assert len(set(seen)) == 10


@KINDS
def test_the_order_for_evaluation_is_fixed(kind):
    """Turns red if a key orders it."""
    one, other = (list(a_data_set(kind, random.key(seed)).in_order()) for seed in (0, 1))
    for left, right in zip(one, other, strict=True):
        equal(left, right)


@KINDS
def test_a_step_s_batch_is_the_caller_s(kind):
    """Turns red if a batch is kept, and given out again after it was written to."""
    data = a_data_set(kind)
    before = {name: array.copy() for name, array in data.batch(0).items()}
    for array in data.batch(0).values():
        array[...] = 1
    equal(data.batch(0), before)


# One long text


def test_labels_are_the_tokens_that_follow():
    """Tokens are their own places here."""
    data = Windows(np.arange(100), length=7, batch=3, key=KEY)
    for batch in map(data.batch, range(9)):
        tokens, labels = batch["tokens"], batch["labels"]
        assert tokens.shape == labels.shape == (3, 7)
        assert tokens.dtype == labels.dtype == np.int32
        np.testing.assert_array_equal(labels, tokens + 1)
        np.testing.assert_array_equal(np.diff(tokens, axis=1), 1)


@given(st.integers(2, 9), st.integers(1, 4), st.integers(30, 200))
def test_an_epoch_takes_each_window_once(length, batch, tokens):
    """Turns red if the order is drawn for each batch anew."""
    steps = (tokens // length - 1) // batch
    if not steps:
        return
    data = Windows(np.arange(tokens), length=length, batch=batch, key=KEY)
    assert data.each_epoch == steps
    for epoch in range(2):
        starts = np.concatenate([each["tokens"][:, 0] for each in epoch_of(data, epoch)])
        assert len(set(starts)) == steps * batch
        assert len(set(starts % length)) == 1  # one cut for all
        assert starts.max() + length < tokens


def test_the_batches_of_a_key_stay_what_they_are():
    """Numbers of the first version: a run that is gone on with must find the same ones."""
    data = Windows(np.arange(60), length=5, batch=2, key=KEY)
    starts = [data.batch(step)["tokens"][:, 0].tolist() for step in (0, 1, 7, 500)]
    assert starts == [[3, 53], [43, 23], [32, 7], [21, 6]]


def test_epochs_differ_in_order_and_cut():
    data = Windows(np.arange(1000), length=10, batch=99, key=KEY)
    epochs = [data.batch(step)["tokens"][:, 0] for step in range(20)]
    assert len({tuple(e // 10) for e in epochs}) == 20
    assert len({e[0] % 10 for e in epochs}) > 4


def test_a_text_too_short_for_a_batch_says_how_long_it_should_be():
    """It can be evaluated on."""
    short = Windows(np.arange(39), length=10, batch=3, key=KEY)
    for place in (short.position, short.batch):
        with pytest.raises(InputError, match="39 tokens, too few .* batch of 3 .* 10; give 40"):
            place(0)
    assert [(b["labels"] >= 0).sum() for b in short.in_order()] == [30, 8]
    Windows(np.arange(40), length=10, batch=3, key=KEY).batch(0)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(45, 130))
def test_in_order_each_token_but_the_first_is_a_label_once(length, batch, tokens):
    """Turns red if the text's rest is dropped, or its last window is taken from before."""
    found, separator = [], 7
    text = 1000 + np.arange(tokens)
    text[20::11] = separator
    data = Windows(text, length=length, batch=batch, key=KEY, separator=separator)
    for each in data.in_order():
        assert {a.shape for a in each.values()} == {(batch, length)}
        there = each["documents"] >= 0
        assert (each["tokens"][~there] == 0).all() and (each["labels"][~there] == IGNORE).all()
        found.append(each["labels"][each["labels"] != IGNORE])
    np.testing.assert_array_equal(np.concatenate(found), text[1:])
    assert len(found) == math.ceil(math.ceil((tokens - 1) / length) / batch)


def test_documents_are_counted_from_each_separator():
    """The separator is of the document that it begins."""
    text = np.array([5, 6, 0, 7, 8, 0, 0, 9, 5, 6, 7, 0])
    data = Windows(text, length=5, batch=1, key=KEY, separator=0)
    numbers = [batch["documents"][0].tolist() for batch in data.in_order()]
    assert numbers == [[0, 0, 1, 1, 1], [1, 2, 2, 2, 2], [0, 1, -1, -1, -1]]
    assert "documents" not in Windows(text, length=5, batch=1, key=KEY).batch(0)


def test_documents_keep_texts_apart():
    """A token's output changes with its own document alone."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, 9, 60)
    text[::7] = 0
    batch = Windows(text, length=12, batch=2, key=KEY, separator=0).batch(0)
    mask = both(causal, documents(batch["documents"]))
    params = {name: {"kernel": np.eye(4)} for name in ("query", "key", "value", "out")}
    x = rng.standard_normal((2, 12, 4))
    changed = x + (batch["documents"] == 0)[..., None]
    outputs = [multi_head_attention(params, each, heads=2, mask=mask)[0] for each in (x, changed)]
    differs = (outputs[0] != outputs[1]).any(axis=-1)
    np.testing.assert_array_equal(differs, batch["documents"] == 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.int64])
def test_a_file_s_tokens_are_read_as_they_stand(tmp_path, dtype):
    """More windows a batch than are read at a time.  Turns red if some are left out."""
    text = np.random.default_rng(0).integers(0, 256, 1000).astype(dtype)
    text.tofile(tmp_path / "tokens")
    mapped = np.memmap(tmp_path / "tokens", dtype, "r")
    options = {"length": 9, "batch": 70, "key": KEY}
    equal(Windows(mapped, **options).batch(1), Windows(text, **options).batch(1))
    ends = (list(Windows(a[100:], **options).in_order()) for a in (mapped, text))
    for one, other in zip(*ends, strict=True):
        equal(one, other)


def resident():
    """Bytes of memory that this process holds, mapped files among them."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc to ask how much memory is held")
    return int(statm.read_text().split()[1]) * 4096


def test_a_file_larger_than_memory_does_not_fill_it(monkeypatch, tmp_path):
    """A file of 100 MB is read all over, by each way there is.  Turns red if nothing is let go."""
    monkeypatch.setattr(mapped, "READ", 8)
    monkeypatch.setattr(mapped, "PIECE", 2**22)
    path = tmp_path / "tokens"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    tokens = np.memmap(path, np.uint8, "r")[5:]
    rows = np.memmap(path, np.uint8, "r").reshape(-1, 2**16)
    windows = Windows(tokens, length=64, batch=12, key=KEY)
    arrays = Arrays({"rows": rows}, batch=40, key=KEY)
    before, most = resident(), 0
    for data in (windows, arrays):
        for step in range(min(data.each_epoch, 500)):
            data.batch(step)
            most = max(most, resident() - before)
        assert len(data.fingerprint) == 64
        most = max(most, resident() - before)
    assert most < 50 * 2**20


def test_what_was_written_to_a_private_copy_of_a_file_stays(tmp_path):
    """Turns red if pages of the mode "c" are let go."""
    np.arange(100, dtype=np.uint8).tofile(tmp_path / "tokens")
    tokens = np.memmap(tmp_path / "tokens", np.uint8, "c")
    tokens[:] = 200
    data = Windows(tokens[3:], length=9, batch=2, key=KEY)
    for _ in range(2):
        assert (data.batch(0)["tokens"] == 200).all()


# A random order


@pytest.mark.parametrize("n", [1, 2, 3, 10, 99, 100, 101, 5000])
def test_a_scattered_order_has_each_once(n):
    """Turns red if a number that is too large is cut down instead of sent through again."""
    order = scattered(random.split(KEY, 6), n, np.arange(n))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@given(st.integers(1, 2**40), st.data())
def test_a_scattered_order_is_made_place_by_place(n, data):
    """Turns red if a place's number depends on the places beside it."""
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
    keys = random.split(KEY, 6)
    numbers = scattered(keys, n, places)
    assert (0 <= numbers).all() and (numbers < n).all()
    for place, number in zip(places, numbers, strict=True):
        assert scattered(keys, n, np.array([place])) == number


@pytest.mark.parametrize("most_sorted", [2**22, 0], ids=["sorted", "scattered"])
def test_no_place_has_a_bias(monkeypatch, most_sorted):
    """Over 300 epochs of 150 things: which tenth of the places has which tenth of the things, and
    by how much two neighbours differ.  Turns red with four rounds of `scattered` for six."""
    monkeypatch.setattr(orders, "MOST_SORTED", most_sorted)
    n, epochs = 150, 300
    places = np.arange(n)
    counts, differences = np.zeros((10, 10)), Counter()
    for epoch in range(epochs):
        order = random_order(random.fold_in(KEY, epoch), n)(places)
        np.add.at(counts, (places // 15, order // 15), 1)
        differences.update((np.diff(order) % n).tolist())
    expected = n * epochs / 100
    assert ((counts - expected) ** 2 / expected).sum() < 81 + 5 * (2 * 81) ** 0.5
    share = (n - 1) * epochs / (n - 1)
    spread = sum((differences[d] - share) ** 2 / share for d in range(1, n))
    assert spread < 148 + 5 * (2 * 148) ** 0.5


def test_many_windows_take_no_memory_for_their_order(monkeypatch):
    """Turns red if the order of all is made, or if a batch over two stretches has one's numbers."""
    monkeypatch.setattr(orders, "MOST_SORTED", 10)
    monkeypatch.setattr(orders, "STRETCH", 7)
    monkeypatch.setattr(random, "permutation", None)
    data = Windows(np.arange(400), length=7, batch=4, key=KEY)
    for epoch in range(2):
        starts = np.concatenate([batch["tokens"][:, 0] for batch in epoch_of(data, epoch)])
        assert len(set(starts)) == 56 and len(set(starts % 7)) == 1


# Rows of unequal length


def table(lengths, rng=None):
    """Rows whose first token is their number, whose others are random."""
    rng = rng or np.random.default_rng(0)
    rows = []
    for i, n in enumerate(lengths):
        tokens = np.concatenate([[i], rng.integers(1, 1000, n - 1)])
        rows.append({"tokens": tokens, "labels": tokens % 7, "label": i % 3, "weight": 0.5})
    return rows


def rows_in(batches):
    """What stands in batches, unpadded: {number: (tokens, labels, label)}, none twice."""
    found = {}
    for batch in batches:
        for i in np.flatnonzero(batch["kept"].any(axis=1)):
            kept = batch["kept"][i]
            number = int(batch["tokens"][i, 0])
            assert number not in found
            found[number] = (
                batch["tokens"][i][kept].tolist(),
                batch["labels"][i][kept].tolist(),
                int(batch["label"][i]),
            )
    return found


lengths = st.lists(st.integers(1, 70), min_size=1, max_size=30)


@given(lengths, st.integers(1, 5), st.one_of(st.none(), st.just((5, 30, 70))))
def test_each_row_comes_once_an_epoch(lengths, batch, boundaries):
    """Turns red if the rows that do not fill a batch are dropped."""
    rows = table(lengths)
    data = Rows(rows, batch=batch, key=KEY, boundaries=boundaries)
    expected = {
        i: (row["tokens"].tolist(), row["labels"].tolist(), row["label"])
        for i, row in enumerate(rows)
    }
    for batches_of in (epoch_of(data), epoch_of(data, 3), data.in_order()):
        assert rows_in(batches_of) == expected


@given(lengths, st.integers(1, 5))
def test_shapes_are_few_and_padding_is_little(lengths, batch):
    """Turns red if a batch takes rows of two buckets, or a row one that is too long for it."""
    data = Rows(table(lengths), batch=batch, key=KEY)
    shapes = set()
    for each in epoch_of(data):
        _, length = each["kept"].shape
        assert each["tokens"].shape == each["labels"].shape == (batch, length)
        assert each["label"].shape == each["weight"].shape == (batch,)
        kept = each["kept"].sum(axis=1)
        assert (
            kept[kept > 0] > (length // 2 if length > 8 else 0) * (length != max(lengths))
        ).all()
        shapes.add(length)
    assert shapes <= {8, 16, 32, 64, max(lengths)} and max(shapes) == max(lengths)


def test_what_is_not_there_counts_nothing():
    rows = [
        {
            "tokens": [3, 4],
            "labels": [1, 2],
            "label": True,
            "mark": [True, True],
            "scores": [1.5, 2],
        },
        {"tokens": [5], "labels": [0], "label": False, "mark": [True], "scores": [0.5]},
    ]
    (batch,) = Rows(rows, batch=3, key=KEY, pad=9, boundaries=3).in_order()
    by_hand = {
        "tokens": [[3, 4, 9], [5, 9, 9], [9, 9, 9]],
        "labels": [[1, 2, IGNORE], [0, IGNORE, IGNORE], [IGNORE] * 3],
        "label": [1, 0, IGNORE],
        "mark": [[True, True, False], [True, False, False], [False] * 3],
        "scores": [[1.5, 2, 0], [0.5, 0, 0], [0] * 3],
        "kept": [[True, True, False], [True, False, False], [False] * 3],
    }
    assert {name: array.tolist() for name, array in batch.items()} == by_hand
    assert [batch[name].dtype for name in ("tokens", "label", "mark")] == [np.int32, np.int32, bool]


def test_fields_named_as_labels_are_ignored_where_nothing_is():
    rows = [{"tokens": [1, 2], "start": 1, "score": 0.5}]
    (batch,) = Rows(rows, batch=2, key=KEY, labels=("start", "score"), ignore=-1).in_order()
    assert batch["start"].tolist() == [1, -1]
    assert batch["score"][0] == 0.5 and np.isnan(batch["score"][1])


@given(lengths, st.integers(2, 5), st.integers(0, 2**32))
def test_padding_and_filling_up_change_no_loss(lengths, batch, seed):
    """A model's loss over an epoch is that of each row alone.

    Turns red if labels are padded with a class, or a row that fills up is kept.
    """
    rng = np.random.default_rng(seed)
    rows = table(lengths[:6], rng)
    names = ("query", "key", "value", "out")
    params = {name: {"kernel": rng.standard_normal((6, 6)) / 6**0.5} for name in names}
    embedding, unembedding = rng.standard_normal((1000, 6)), rng.standard_normal((6, 7))

    def losses(data):
        total = 0
        for each in epoch_of(data):
            x = embedding[each["tokens"]]
            y, _ = multi_head_attention(params, x, heads=2, mask=padding(each["kept"]))
            loss, _ = cross_entropy(y @ unembedding, labels=each["labels"])
            pooled, _ = cross_entropy((y @ unembedding)[:, 0], labels=each["label"])
            total += loss * (each["labels"] != IGNORE).sum()
            total += pooled * (each["label"] != IGNORE).sum()
        return total

    alone = sum(losses(Rows([row], batch=1, key=KEY)) for row in rows)
    together = losses(Rows(rows, batch=batch, key=KEY, boundaries=(40, 80)))
    np.testing.assert_allclose(together, alone, rtol=1e-11)


def test_longer_rows_are_refused_or_cut_off_and_counted():
    rows = table([3, 20, 5, 9])
    with pytest.raises(InputError, match=r"rows\[1\] has 20 entries, more than .* 8; give a large"):
        Rows(rows, batch=2, key=KEY, boundaries=(4, 8))
    data = Rows(rows, batch=2, key=KEY, boundaries=(4, 8), truncate=True)
    assert data.truncated == 2 and Rows(rows, batch=2, key=KEY).truncated == 0
    found = rows_in(data.in_order())
    assert {number: len(row[0]) for number, row in found.items()} == {0: 3, 1: 8, 2: 5, 3: 8}
    assert found[1][0] == rows[1]["tokens"][:8].tolist()


def test_the_order_of_rows_and_of_batches_are_drawn():
    """Turns red if an epoch goes from short to long, or a bucket's rows stay together."""
    data = Rows(table([5] * 30 + [20] * 30), batch=3, key=KEY)
    epochs = [epoch_of(data, epoch) for epoch in range(4)]
    for batches_of in epochs:
        widths = [each["kept"].shape[1] for each in batches_of]
        assert widths != sorted(widths) and Counter(widths) == {8: 10, 20: 10}
    together = {frozenset(each["tokens"][:, 0].tolist()) for each in sum(epochs, [])}
    assert len(together) > 70


# Arrays


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 3))
def test_each_example_comes_once_an_epoch(n, batch, epoch):
    """Turns red if the last batch is dropped, or filled up with rows that count."""
    images = np.random.default_rng(0).integers(0, 256, (n, 2, 3, 1)).astype(np.uint8)
    labels = np.arange(n, dtype=np.uint8)
    data = Arrays({"images": images, "labels": labels}, batch=batch, key=KEY)
    for batches_of in (epoch_of(data, epoch), list(data.in_order())):
        assert len(batches_of) == data.each_epoch == -(-n // batch)
        assert {each["images"].shape for each in batches_of} == {(batch, 2, 3, 1)}
        assert {each["images"].dtype for each in batches_of} == {np.dtype(np.uint8)}
        found = np.concatenate([each["labels"] for each in batches_of])
        assert found.dtype == np.int32
        assert sorted(found[found != IGNORE]) == list(range(n))
        for each in batches_of:
            kept = each["labels"] != IGNORE
            np.testing.assert_array_equal(each["images"][kept], images[each["labels"][kept]])
            assert (each["images"][~kept] == 0).all()


def test_mapped_arrays_are_those_in_memory(tmp_path):
    array = np.random.default_rng(0).standard_normal((50, 3, 2))
    np.save(tmp_path / "array.npy", array)
    mapped = np.load(tmp_path / "array.npy", mmap_mode="r")
    in_memory, in_file = (Arrays({"x": a}, batch=40, key=KEY) for a in (array, mapped))
    for step in range(4):
        equal(in_file.batch(step), in_memory.batch(step))
    assert in_file.fingerprint == in_memory.fingerprint


def test_packed_texts_are_arrays():
    packed = pack([[1, 2, 3], [4, 5], [6]], length=3)
    batches_of = list(Arrays(packed, batch=3, key=KEY).in_order())
    assert batches_of[0]["documents"].tolist() == [[1, 1, 1], [1, 1, 2], [0, 0, 0]]
    assert batches_of[0]["labels"][2].tolist() == [IGNORE] * 3


# The fingerprint


def test_a_fingerprint_is_of_the_content_alone():
    """Turns red if a size or the key is part of it, or if it is of the beginning only."""
    text = np.arange(1000, dtype=np.uint16)
    one = Windows(text, length=5, batch=2, key=KEY).fingerprint
    assert one == Windows(text.copy(), length=7, batch=3, key=random.key(1)).fingerprint
    changed = text.copy()
    changed[-1] += 1
    for other in (changed, text[:-1], text.view(np.int16)):
        assert Windows(other, length=5, batch=2, key=KEY).fingerprint != one


def test_a_fingerprint_is_the_same_however_it_is_read(monkeypatch):
    """Turns red if a piece is left out, or read twice."""
    arrays = {"x": np.arange(60).reshape(20, 3), "y": np.ones(20)}
    whole = Arrays(arrays, batch=2, key=KEY).fingerprint
    assert Arrays(dict(reversed(arrays.items())), batch=2, key=KEY).fingerprint == whole
    monkeypatch.setattr(mapped, "PIECE", 50)
    assert Arrays(arrays, batch=2, key=KEY).fingerprint == whole
    assert Arrays({"z": arrays["x"], "y": arrays["y"]}, batch=2, key=KEY).fingerprint != whole


def test_rows_that_are_cut_elsewhere_have_another_fingerprint():
    """Turns red if shapes and names are no part of it."""
    cuts = ([[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]])
    tables = [[{"tokens": tokens} for tokens in cut] for cut in cuts]
    assert len({Rows(rows, batch=1, key=KEY).fingerprint for rows in tables}) == 3


# Bad input


def rows_of(*rows, **options):
    return lambda: Rows(rows, **{"batch": 1, "key": KEY} | options)


def arrays_of(**arrays):
    return lambda: Arrays(arrays, batch=1, key=KEY)


def windows_of(tokens, **options):
    return lambda: Windows(tokens, **{"length": 2, "batch": 1, "key": KEY} | options).batch(0)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (windows_of([1, 2, 3, 4, 5]), DtypeError, "tokens is a list; give an array of integers"),
        (windows_of(np.ones(9)), DtypeError, "tokens is of float64"),
        (windows_of(np.ones((9, 2), int)), InputError, r"tokens has shape \(9, 2\); give one long"),
        (windows_of(np.ones(9, int), length=0), InputError, "length is 0; give 1 or more"),
        (windows_of(np.ones(9, int), batch=1.5), InputError, "batch is 1.5; give 1 or more, an i"),
        (windows_of(np.ones(9, int), separator="a"), InputError, "separator is a; give 0 or more"),
        (windows_of(np.full(9, 2**31, np.uint32)), InputError, "tokens has 2147483648; give"),
        (windows_of(np.ones(9, int), key=3), InputError, "key is int64 of shape"),
        (rows_of(), InputError, "there are no rows; give one at least"),
        (
            rows_of({"tokens": [1]}, {"token": [1]}),
            InputError,
            r"rows\[1\] has \['token'\], rows\[",
        ),
        (
            rows_of({"tokens": [1]}, {"tokens": []}),
            InputError,
            r"rows\[1\]\['tokens'\] has shape \(",
        ),
        (
            rows_of({"tokens": [1]}, {"tokens": [0.5]}),
            InputError,
            "is float64 .*; give all of a ki",
        ),
        (rows_of({"tokens": [1]}, {"tokens": 1}), InputError, r"is int32 \(\), rows\[0\]'s int32"),
        (rows_of({"tokens": ["a"]}), DtypeError, r"rows\[0\]\['tokens'\] is of <U1; give numbers"),
        (rows_of({"tokens": [[1], [2, 3]]}), InputError, r"rows\[0\]\['tokens'\] is no number and"),
        (rows_of({"tokens": [[1], [2]]}), InputError, r"rows\[0\]\['tokens'\] has shape \(2, 1\)"),
        (rows_of({"tokens": [1], "labels": [1, 2]}), InputError, r"has 1 tokens, but 2 labels; gi"),
        (rows_of({"label": 1}), InputError, r"fields \['label'\]; give one that is a sequence"),
        (rows_of({"kept": [1]}), InputError, "none named kept"),
        (rows_of({"tokens": [1]}, boundaries=(8, 4)), InputError, r"are \[8, 4\]; give rising"),
        (rows_of({"tokens": [1]}, boundaries=()), InputError, r"boundaries is \(\); give 1 or mor"),
        (rows_of({"tokens": [1]}, boundaries=(0, 4)), InputError, "boundaries is .*; give 1 or m"),
        (rows_of({"tokens": [1]}, batch=0), InputError, "batch is 0; give 1 or more"),
        (rows_of({"tokens": [1]}, pad=-1), InputError, "pad is -1; give 0 or more"),
        (arrays_of(), InputError, "arrays have the shapes {}; give one at least"),
        (arrays_of(x=np.ones(3), y=np.ones(4)), InputError, r"'x': \(3,\), 'y': \(4,\)}; give one"),
        (arrays_of(x=np.ones((0, 3))), InputError, "1 or more"),
        (arrays_of(x=np.ones(())), InputError, "1 or more"),
        (
            arrays_of(x=np.array(["a"])),
            DtypeError,
            r"arrays\['x'\] is of <U1; give an array of num",
        ),
        (arrays_of(x=[1, 2]), DtypeError, r"arrays\['x'\] is of object"),
    ],
)
def test_data_that_make_no_sense_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Real data


def test_sentences_have_little_padding():
    """Film reviews, one token a byte, in batches of five shapes or so."""
    path = SHARED / "rt_polarity" / "rt-polarity.pos"
    if not path.exists():
        pytest.skip("rt_polarity is not beside the checkout")
    lines = [line for line in path.read_bytes().splitlines() if line]
    rows = [{"tokens": np.frombuffer(line, np.uint8), "label": 1} for line in lines]
    data = Rows(rows, batch=32, key=KEY)
    batches_of = epoch_of(data)
    assert len({each["kept"].shape for each in batches_of}) <= 7
    assert sum(each["kept"].sum() for each in batches_of) == sum(map(len, lines))
    assert sum(each["kept"].sum() for each in batches_of) > 0.68 * sum(
        each["kept"].size for each in batches_of
    )


def test_digits_and_their_labels_stay_together():
    path = SHARED / "mnist"
    if not path.exists():
        pytest.skip("mnist is not beside the checkout")
    images, labels = (
        np.frombuffer(gzip.decompress((path / f"t10k-{name}-ubyte.gz").read_bytes()), np.uint8)
        for name in ("images-idx3", "labels-idx1")
    )
    images, labels = images[16:].reshape(-1, 28, 28, 1), labels[8:]
    data = Arrays({"images": images, "labels": labels}, batch=64, key=KEY)
    sums = {(int(i.sum()), int(n)) for i, n in zip(images, labels, strict=True)}
    for each in epoch_of(data):
        for image, label in zip(each["images"], each["labels"], strict=True):
            assert label == IGNORE or (int(image.sum()), int(label)) in sums
    assert (data.batch(data.each_epoch - 1)["labels"] == IGNORE).sum() == 157 * 64 - 10_000


def test_rows_without_labels_that_are_too_few_for_a_batch_are_left_out():
    """No row can be made that counts nothing.  Turns red if the last batch is filled up."""
    data = Arrays({"images": np.arange(11.0)}, batch=4, key=KEY)
    assert data.each_epoch == 2
    for batches in ([data.batch(0), data.batch(1)], list(data.in_order())):
        values = np.concatenate([batch["images"] for batch in batches])
        assert len(set(values)) == len(values) == 8
