from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import random
from reference.data.batches import batches
from reference.errors import InputError

KEY = random.key(0)


def test_labels_are_the_tokens_that_follow():
    """Tokens are their own places here."""
    for inputs, labels in islice(batches(np.arange(100), length=7, batch=3, key=KEY), 9):
        assert inputs.shape == labels.shape == (3, 7)
        np.testing.assert_array_equal(labels, inputs + 1)
        np.testing.assert_array_equal(np.diff(inputs, axis=1), 1)


@given(st.integers(2, 9), st.integers(1, 4), st.integers(30, 200))
def test_an_epoch_takes_each_window_once(length, batch, tokens):
    """Turns red if the order is drawn for each batch anew."""
    windows = tokens // length - 1
    steps = windows // batch
    if not steps:
        return
    source = batches(np.arange(tokens), length=length, batch=batch, key=KEY)
    starts = [inputs[:, 0] for inputs, _ in islice(source, 2 * steps)]
    for epoch in (starts[:steps], starts[steps:]):
        flat = np.concatenate(epoch)
        assert len(set(flat)) == steps * batch
        assert len(set(flat % length)) == 1  # one cut for all
    assert max(map(np.max, starts)) + length < tokens


@given(st.integers(0, 40))
def test_a_step_s_batch_follows_from_its_number(start):
    """Turns red if the position is carried along instead."""
    options = {"length": 5, "batch": 2, "key": KEY}
    whole = islice(batches(np.arange(60), **options), start, start + 3)
    rest = islice(batches(np.arange(60), **options, start=start), 3)
    for one, other in zip(whole, rest, strict=True):
        np.testing.assert_array_equal(one, other)


def test_epochs_differ_in_order_and_cut():
    source = batches(np.arange(1000), length=10, batch=99, key=KEY)
    epochs = [inputs[:, 0] for inputs, _ in islice(source, 20)]
    assert len({tuple(e // 10) for e in epochs}) == 20
    assert len({e[0] % 10 for e in epochs}) > 4


def test_a_text_too_short_for_a_batch_says_how_long_it_should_be():
    with pytest.raises(InputError, match="39 tokens, too few for a batch of 3 .* of 10; give 40"):
        next(batches(np.arange(39), length=10, batch=3, key=KEY))
    next(batches(np.arange(40), length=10, batch=3, key=KEY))
