import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import accelerated.layers.softmax as twins
from reference.layers.softmax import log_softmax, softmax, softmax_with_sink
from tests.mirror import assert_gradient, assert_mirror

scores = arrays(np.float64, array_shapes(max_dims=3, max_side=7), elements=st.floats(-50, 50))


@pytest.mark.parametrize("shape", [(7,), (3, 1, 11)])
@pytest.mark.parametrize("component", [softmax, log_softmax])
def test_softmaxes_equal_their_twins(component, shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    assert_gradient(component, x, rng=rng)
    assert_mirror(component, getattr(twins, component.__name__), x, rng=rng)


@pytest.mark.parametrize("component", [softmax, log_softmax])
def test_scores_of_10000_are_as_good_as_small_ones(component):
    rng = np.random.default_rng(1)
    x = 1e4 + rng.standard_normal((5, 7))
    assert_mirror(component, getattr(twins, component.__name__), x, rng=rng)


@pytest.mark.parametrize("engine", [softmax, lambda x: (twins.softmax(x), None)])
def test_softmax_where_scores_are_minus_infinity(engine):
    """Turns red if a row's total is not kept from being 0."""
    x = np.array([[1e4, 1e4 - 1, -np.inf], [-np.inf, -np.inf, -np.inf]])
    y, _ = engine(x)
    expected = [[1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0], [0, 0, 0]]
    np.testing.assert_allclose(y, expected, rtol=1e-12)


@pytest.mark.parametrize("component", [softmax, log_softmax, softmax_with_sink])
def test_scores_of_any_span_do_not_overflow(component):
    """Turns red if the smallest score is taken off first, or none."""
    x = np.array([[[-1e4, 0, 1e4]]])
    sink = [np.array([-2e4])] * (component is softmax_with_sink)
    y, backward = component(x, *sink)
    expected = [-2e4, -1e4, 0] if component is log_softmax else [0, 0, 1]
    np.testing.assert_array_equal(y, [[expected]])
    assert np.isfinite(backward(y)[0]).all()


def test_softmax_of_nan_is_nan():
    """Nothing that went wrong is hidden."""
    assert np.isnan(softmax(np.array([0, np.nan]))[0]).all()


@given(scores, st.floats(-1e4, 1e4))
def test_softmax_ignores_a_shift(x, shift):
    """Turns red if the total is taken before the largest score is."""
    np.testing.assert_allclose(softmax(x + shift)[0], softmax(x)[0], rtol=1e-10, atol=1e-15)


@given(scores)
def test_softmax_gives_shares(x):
    y, _ = softmax(x)
    assert (y >= 0).all()
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-13)
    np.testing.assert_allclose(np.exp(log_softmax(x)[0]), y, rtol=1e-12, atol=1e-300)


@given(scores)
def test_a_shift_of_all_scores_has_no_gradient(x):
    """Turns red if softmax's backward loses Σ y ∘ dy."""
    dy = np.cos(np.arange(x.size)).reshape(x.shape)
    for component in (softmax, log_softmax):
        assert np.abs(component(x)[1](dy).sum(axis=-1)).max() <= 1e-13 * x.shape[-1]


@pytest.mark.parametrize("leading", [(), (2,)])
def test_softmax_with_sink_equals_its_twin(leading):
    rng = np.random.default_rng(2)
    x, sink = rng.standard_normal((*leading, 3, 5, 7)), rng.standard_normal(3)
    assert_gradient(softmax_with_sink, x, sink, rng=rng)
    assert_mirror(softmax_with_sink, twins.softmax_with_sink, x, sink, rng=rng)


@given(st.integers(0, 2**32), st.floats(-1e4, 1e4))
def test_a_sink_is_one_more_score_that_nothing_is_read_from(seed, shift):
    """Turns red if the sink is left out of the total, or of what is taken off first."""
    rng = np.random.default_rng(seed)
    x, sink = shift + rng.standard_normal((2, 3, 5, 7)), shift + rng.standard_normal(3)
    column = np.broadcast_to(sink[:, None, None], (2, 3, 5, 1))
    whole, whole_backward = softmax(np.concatenate([x, column], axis=-1))
    y, backward = softmax_with_sink(x, sink)
    np.testing.assert_allclose(y, whole[..., :-1], rtol=1e-10)
    dy = rng.standard_normal(y.shape)
    dwhole = whole_backward(np.concatenate([dy, np.zeros((2, 3, 5, 1))], axis=-1))
    dx, dsink = backward(dy)
    np.testing.assert_allclose(dx, dwhole[..., :-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(dsink, dwhole[..., -1].sum(axis=(0, 2)), rtol=0, atol=1e-11)


def test_a_row_of_minus_infinity_gives_all_to_the_sink():
    x = np.full((1, 2, 3), -np.inf)
    y, backward = softmax_with_sink(x, np.zeros(1))
    assert not y.any() and not backward(np.ones_like(y))[0].any()


@pytest.mark.parametrize("component", ["softmax", "log_softmax"])
def test_the_twins_take_exponentials_in_float32(component):
    """Of bfloat16 scores.  Turns red if they are taken in the precision of x."""
    x = jnp.asarray(np.random.default_rng(5).standard_normal((3, 1001)), jnp.bfloat16)
    y = getattr(twins, component)(x)
    exact, _ = globals()[component](np.asarray(x).astype(np.float64))
    assert y.dtype == jnp.bfloat16
    rounded = exact.astype(jnp.bfloat16).astype(np.float64)
    # Rounded once, but where the exact number is next to the middle of two.
    assert (np.asarray(y).astype(np.float64) == rounded).mean() > 0.99
