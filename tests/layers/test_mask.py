import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.attention as twins
from reference.errors import DtypeError, InputError
from reference.layers.attention import attention, multi_head_attention
from reference.layers.mask import (
    both,
    causal,
    documents,
    either,
    every,
    fixed,
    locally_banded,
    padding,
    places,
    prefix,
    sliding_window,
    strided,
)

lengths = st.integers(1, 23)


def shown(mask, queries, keys=None):
    """A mask as an array, pair by pair: (T, S), or (B, 1, T, S)."""
    t, s = np.arange(queries)[:, None], np.arange(queries if keys is None else keys)[None]
    seen = mask(t, s)
    return np.broadcast_to(seen, (*np.shape(seen)[:-2], t.shape[0], s.shape[1]))


def pairs(rule, queries, keys=None):
    """The same by Python's own loop over a rule for two numbers."""
    columns = queries if keys is None else keys
    return np.array([[bool(rule(t, s)) for s in range(columns)] for t in range(queries)])


@given(lengths, lengths)
def test_causal_shows_oneself_and_the_past(queries, keys):
    """Turns red with `<` for `<=`."""
    np.testing.assert_array_equal(shown(causal, queries, keys), np.tri(queries, keys, dtype=bool))


@given(lengths, st.integers(0, 30))
def test_a_prefix_is_seen_by_all_and_the_rest_is_causal(n, length):
    """Turns red with `<=` for `<`, which would show the first token after the prefix."""
    seen = shown(prefix(length), n)
    assert seen[:, :length].all()
    np.testing.assert_array_equal(seen[:, length:], np.tri(n, dtype=bool)[:, length:])
    np.testing.assert_array_equal(shown(prefix(0), n), shown(causal, n))


def test_each_sequence_may_have_its_own_prefix():
    seen = shown(prefix(np.array([0, 2])), 4)
    assert seen.shape == (2, 1, 4, 4)
    for i in range(2):
        np.testing.assert_array_equal(seen[i, 0], shown(prefix((0, 2)[i]), 4))


@given(lengths, st.integers(1, 30))
def test_a_window_shows_so_many_positions_and_no_more(n, size):
    """Turns red with `<=` for `<`, or without the causal half."""
    seen = shown(sliding_window(size), n)
    np.testing.assert_array_equal(seen, pairs(lambda t, s: 0 <= t - s <= size - 1, n))
    assert (seen.sum(axis=1) == np.minimum(np.arange(n) + 1, size)).all()


@given(st.integers(0, 2**32), lengths)
def test_a_window_as_long_as_the_sequence_is_causal_attention(seed, n):
    """Turns red with a window that leaves out its oldest position."""
    q, k, v = np.random.default_rng(seed).standard_normal((3, 2, n, 3))
    y, _ = attention(q, k, v, mask=sliding_window(n))
    np.testing.assert_array_equal(y, attention(q, k, v, mask=causal)[0])


@given(st.integers(1, 4), st.integers(1, 5))
def test_a_stack_of_windows_reaches_as_far_as_it_says(layers, size):
    """L (size - 1) positions back.  Turns red with a window of one more."""
    n = 30
    step = shown(sliding_window(size), n).astype(float)
    reach = np.linalg.matrix_power(step, layers)[-1] > 0
    assert n - 1 - reach.argmax() == layers * (size - 1)


@given(st.integers(0, 11), st.integers(1, 6), st.integers(0, 1))
def test_dense_and_banded_layers_alternate(layer, width, dense):
    """Turns red if neighbours have the same mask."""
    masks = [shown(locally_banded(layer + i, width=width, dense=dense), 9) for i in range(2)]
    of_parity = masks[(layer - dense) % 2]
    np.testing.assert_array_equal(of_parity, shown(causal, 9))
    np.testing.assert_array_equal(masks[1 - (layer - dense) % 2], shown(sliding_window(width), 9))


@given(lengths, st.integers(1, 7))
def test_strided_is_the_row_and_the_column(n, stride):
    """Turns red if strides are counted from the start of the sequence."""
    expected = pairs(lambda t, s: s <= t and (t - s < stride or (t - s) % stride == 0), n)
    np.testing.assert_array_equal(shown(strided(stride), n), expected)
    np.testing.assert_array_equal(
        shown(every(stride), n), pairs(lambda t, s: s <= t and (t - s) % stride == 0, n)
    )


@given(lengths, st.integers(1, 7), st.data())
def test_fixed_is_the_block_and_the_summaries_of_those_before(n, stride, data):
    """Turns red if the summary is at the beginning of a block."""
    summary = data.draw(st.integers(1, stride))

    def rule(t, s):
        return s <= t and (t // stride == s // stride or s % stride in range(stride)[-summary:])

    np.testing.assert_array_equal(shown(fixed(stride, summary=summary), n), pairs(rule, n))


@given(lengths, st.integers(1, 7))
def test_two_steps_of_a_sparse_mask_reach_all_of_the_past(n, stride):
    """What both were made for.  Turns red if either half of a mask is left out."""
    for mask in (strided(stride), fixed(stride, summary=1)):
        step = shown(mask, n).astype(int)
        np.testing.assert_array_equal(step @ step > 0, shown(causal, n))


@given(st.integers(0, 2**32))
def test_packed_documents_equal_separate_ones(seed):
    """Value and gradient.  Turns red if a document sees its neighbour."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, 3)
    ids = np.repeat([7, 2, 9], sizes)[None]
    params = {
        name: {"kernel": rng.standard_normal((6, 6)) / 6**0.5}
        for name in ("query", "key", "value", "out")
    }
    x, dy = rng.standard_normal((2, 1, sizes.sum(), 6))
    mask = both(causal, documents(ids))
    y, backward = multi_head_attention(params, x, heads=2, mask=mask)
    dparams, dx, _ = backward(dy)
    kernels = []
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        alone = slice(end - size, end)
        y_alone, backward_alone = multi_head_attention(params, x[:, alone], heads=2, mask=causal)
        dalone, dx_alone, _ = backward_alone(dy[:, alone])
        np.testing.assert_allclose(y[:, alone], y_alone, rtol=0, atol=1e-12)
        np.testing.assert_allclose(dx[:, alone], dx_alone, rtol=0, atol=1e-12)
        kernels.append(dalone["query"]["kernel"])
    np.testing.assert_allclose(dparams["query"]["kernel"], sum(kernels), rtol=0, atol=1e-12)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(-3, 3))
def test_places_begin_again_with_each_document(sizes, first):
    """Turns red if they go on through, or begin again only where the number grows."""
    numbers = first + np.arange(len(sizes)) * (-1) ** np.arange(len(sizes))
    ids = np.stack([np.repeat(numbers, sizes), np.zeros(sum(sizes), int)])
    expected = [np.concatenate([np.arange(n) for n in sizes]), np.arange(sum(sizes))]
    for xp in (np, jnp):
        np.testing.assert_array_equal(places(xp.asarray(ids)), expected)
        assert places(xp.asarray(ids)).dtype == np.int32
    with pytest.raises(DtypeError, match="ids is of float64"):
        places(ids / 2)
    with pytest.raises(InputError, match=r"ids has shape \(2,\)"):
        places(ids[:, 0])


@given(st.integers(0, 2**32))
def test_padding_has_no_influence(seed):
    """Turns red if the kept and the rest are taken for each other."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 5, 6))
    kept = rng.random((2, 5)) < 0.6
    kept[:, 2] = True
    params = {name: {"kernel": rng.standard_normal((6, 6))} for name in ("query", "key")}
    params |= {name: {"kernel": np.eye(6)} for name in ("value", "out")}
    y, _ = multi_head_attention(params, x, heads=3, mask=padding(kept))
    changed = np.where(kept[..., None], x, 1e3 * rng.standard_normal(x.shape))
    y_changed, _ = multi_head_attention(params, changed, heads=3, mask=padding(kept))
    np.testing.assert_array_equal(y_changed[kept], y[kept])
    for row in range(2):
        alone, _ = multi_head_attention(params, x[row : row + 1, kept[row]], heads=3)
        np.testing.assert_allclose(y[row, kept[row]], alone[0], rtol=0, atol=1e-12)


@given(lengths, st.integers(1, 5), st.integers(1, 5))
def test_masks_make_masks(n, size, stride):
    """Turns red if `both` and `either` are taken for each other, or a third mask is left out."""
    a, b, c = sliding_window(size), every(stride), prefix(2)
    seen = [shown(mask, n) for mask in (a, b, c)]
    np.testing.assert_array_equal(shown(both(a, b, c), n), np.all(seen, axis=0))
    np.testing.assert_array_equal(shown(either(a, b, c), n), np.any(seen, axis=0))


@pytest.mark.parametrize(
    "mask", [sliding_window(5), strided(4), fixed(4, summary=1), prefix(3), both(causal, every(3))]
)
def test_a_twin_s_tiles_show_what_the_mask_shows(mask):
    """Turns red if a tile asks for the positions of another."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 130, 3))
    np.testing.assert_allclose(
        twins.attention(q, k, v, mask=mask), attention(q, k, v, mask=mask)[0], atol=1e-12
    )


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: sliding_window(0), InputError, "size is 0; give 1 or more"),
        (lambda: strided(-1), InputError, "is -1; give 1 or more"),
        (lambda: every(0), InputError, "stride is 0; give 1 or more"),
        (lambda: fixed(3, summary=0), InputError, "summary is 0; give 1 or more"),
        (lambda: fixed(3, summary=4), InputError, "summary is 4, more than the stride 3"),
        (lambda: prefix(-1), InputError, "length is -1; give 0 or more"),
        (lambda: locally_banded(0, width=0), InputError, "size is 0; give 1 or more"),
        (lambda: sliding_window(float("nan")), InputError, "size is nan; give 1 or more, an int"),
        (lambda: sliding_window(2.5), InputError, "size is 2.5; give 1 or more, an integer"),
        (lambda: prefix(1.5), InputError, "length is 1.5"),
        (lambda: prefix(np.array([1, -3])), InputError, "give 0 or more"),
        (lambda: padding(np.ones(3, bool)), InputError, r"kept has shape \(3,\); give one row"),
        (lambda: documents(np.ones(3, int)), InputError, r"ids has shape \(3,\)"),
        (lambda: padding(np.ones((2, 3))), DtypeError, "kept is no array of booleans"),
        (lambda: documents(np.ones((2, 3))), DtypeError, "ids is of float64"),
        (lambda: shown(padding(np.ones((2, 3), bool)), 4), InputError, "asked for position 3"),
    ],
)
def test_masks_that_make_no_sense_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
