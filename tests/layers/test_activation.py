import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import accelerated.layers.activation as twins
from reference.layers.activation import erf, gelu, gelu_tanh
from tests.mirror import assert_gradient, assert_mirror

scores = arrays(np.float64, array_shapes(max_dims=3, max_side=7), elements=st.floats(-50, 50))


@pytest.mark.parametrize("shape", [(7,), (3, 1, 11)])
@pytest.mark.parametrize("component", [gelu, gelu_tanh])
def test_activations_equal_their_twins(component, shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    assert_gradient(component, x, rng=rng)
    assert_mirror(component, getattr(twins, component.__name__), x, rng=rng)


@given(scores)
def test_gelu_of_x_less_gelu_of_minus_x_is_x(x):
    """Turns red if erf loses its sign: x Φ(x) + x Φ(-x) = x."""
    for component in (gelu, gelu_tanh):
        np.testing.assert_allclose(component(x)[0] - component(-x)[0], x, rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("dtype, error", [(np.float32, 4e-7), (np.float64, 2e-15)])
def test_erf_is_as_accurate_as_it_says(dtype, error):
    x = np.linspace(-9, 9, 40_001).astype(dtype)
    expected = np.array([math.erf(a) for a in x.astype(np.float64).tolist()])
    assert erf(x).dtype == dtype
    assert np.abs(erf(x) - expected).max() <= error
