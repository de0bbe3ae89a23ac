import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.dropout as twins
from reference import random
from reference.errors import InputError
from reference.layers.dropout import dropout, stochastic_depth
from tests.mirror import EVERY, assert_gradient, assert_mirror

KEY = random.key(7)


@pytest.mark.parametrize("shape", [(101,), (5, 3, 7)])
def test_dropout_equals_its_twin(shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    assert_gradient(dropout, x, rate=0.3, key=KEY, rng=rng)
    assert_mirror(dropout, twins.dropout, x, rate=0.3, key=KEY, rng=rng, noise_in=EVERY)


@pytest.mark.parametrize("shape", [(101,), (13, 3, 7)])
def test_stochastic_depth_equals_its_twin(shape):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape)
    kept = stochastic_depth(x, rate=0.4, key=KEY)[0].reshape(len(x), -1).any(axis=-1)
    assert 0 < kept.sum() < len(x)
    assert_gradient(stochastic_depth, x, rate=0.4, key=KEY, rng=rng)
    assert_mirror(
        stochastic_depth, twins.stochastic_depth, x, rate=0.4, key=KEY, rng=rng, noise_in=EVERY
    )


@pytest.mark.parametrize("rate, key", [(0.5, None), (0.0, KEY)])
@pytest.mark.parametrize("component", [dropout, stochastic_depth])
def test_without_a_key_or_a_rate_nothing_is_dropped(component, rate, key):
    x, dy = np.arange(15.0).reshape(5, 3), np.ones((5, 3))
    y, backward = component(x, rate=rate, key=key)
    for result in (y, getattr(twins, component.__name__)(x, rate=rate, key=key)):
        np.testing.assert_array_equal(result, x)
    np.testing.assert_array_equal(backward(dy), dy)


def test_a_rate_of_0_draws_nothing_and_an_element_at_the_rate_is_kept():
    """Turns red with `>` for `>=`: then a uniform of 0 would be dropped at any rate."""
    x = np.arange(5.0)
    assert dropout(x, rate=0.0, key=KEY)[0] is x
    uniforms = random.uniform(KEY, (5,))
    y, _ = dropout(np.ones(5), rate=float(uniforms[2]), key=KEY)
    np.testing.assert_array_equal(y != 0, uniforms >= uniforms[2])


def test_a_share_of_rate_is_dropped_and_the_mean_stays():
    """Turns red if what is kept is not scaled by 1 / (1 - rate)."""
    n, rate = 1_000_000, 0.3
    y, _ = dropout(np.ones(n), rate=rate, key=KEY)
    assert set(np.unique(y)) == {0, 1 / 0.7}
    assert abs((y == 0).mean() - rate) < 5 * (rate * (1 - rate) / n) ** 0.5


def test_every_precision_drops_the_same_elements():
    """Turns red if the uniforms are drawn in the precision of x."""
    for engine in (lambda x: dropout(x, rate=0.4, key=KEY)[0], twin):
        kept = [np.asarray(engine(np.ones(999, dtype))) != 0 for dtype in ("f4", "f8")]
        np.testing.assert_array_equal(*kept)


def twin(x):
    return twins.dropout(x, rate=0.4, key=KEY)


@given(st.integers(0, 2**32), st.floats(0, 0.95), st.integers(1, 4))
def test_a_sample_passes_a_layer_by_or_takes_it_whole(seed, rate, rank):
    """Turns red with a draw for each element, or one for each place of another axis."""
    shape = (7, 2, 3, 5)[:rank]
    x, key = np.random.default_rng(seed).standard_normal(shape), random.key(seed)
    y, backward = stochastic_depth(x, rate=rate, key=key)
    for sample, before in zip(y, x, strict=True):
        dropped = not sample.any()
        np.testing.assert_array_equal(sample, 0 * before if dropped else before * (1 / (1 - rate)))
    np.testing.assert_array_equal(backward(x), y)
    # One number of dropout for each sample, the same from the same key.
    scale, _ = dropout(np.ones(7), rate=rate, key=key)
    np.testing.assert_array_equal(y.swapaxes(0, -1), x.swapaxes(0, -1) * scale)


def test_a_share_of_rate_of_the_samples_passes_by_and_the_mean_stays():
    """Turns red if what is kept is not scaled by 1 / (1 - rate)."""
    n, rate = 100_000, 0.3
    y, _ = stochastic_depth(np.ones((n, 3)), rate=rate, key=KEY)
    assert set(np.unique(y)) == {0, 1 / 0.7}
    deviation = (rate / (1 - rate) / n) ** 0.5
    assert abs(y.mean() - 1) < 5 * deviation


@pytest.mark.parametrize(
    "engine", [dropout, stochastic_depth, twins.dropout, twins.stochastic_depth]
)
@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_rate_that_is_no_share_is_refused(engine, rate):
    with pytest.raises(InputError, match=r"the dropout rate is .*; give a number in \[0, 1\)"):
        engine(np.ones(3), rate=rate, key=KEY)
