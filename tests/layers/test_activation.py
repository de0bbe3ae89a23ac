import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import accelerated.layers.activation as twins
from reference.errors import InputError
from reference.layers.activation import (
    erf,
    gelu,
    gelu_tanh,
    quick_gelu,
    relu,
    relu_squared,
    sigmoid,
    silu,
    soft_cap,
    softplus,
    tanh,
)
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer

scores = arrays(np.float64, array_shapes(max_dims=3, max_side=7), elements=st.floats(-50, 50))


def of_x_alone():
    return [relu, relu_squared, sigmoid, tanh, softplus, silu, quick_gelu, gelu, gelu_tanh]


def away_from_0(shape, seed=0):
    """Normal numbers with a gap around 0, where relu has no derivative."""
    x = np.random.default_rng(seed).standard_normal(shape)
    return x + np.copysign(0.1, x)


@pytest.mark.parametrize("component", of_x_alone())
def test_activations_equal_their_twins(component):
    rng = np.random.default_rng(1)
    for shape in ((7,), (5, 2, 3, 7)):
        assert_gradient(component, away_from_0(shape), rng=rng)
    assert_mirror(component, getattr(twins, component.__name__), away_from_0((3, 1, 11)), rng=rng)


@pytest.mark.parametrize("cap", [0.7, 50])
def test_soft_cap_equals_its_twin(cap):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 3, 11))
    assert_gradient(soft_cap, x, cap=cap, rng=rng)
    assert_mirror(soft_cap, twins.soft_cap, x, cap=cap, rng=rng)


def pytorch_s():
    functional, torch = peer("torch").nn.functional, peer("torch")
    hugging_face_s = peer("transformers").activations.ACT2FN
    return {
        relu: functional.relu,
        relu_squared: hugging_face_s["relu2"],
        sigmoid: functional.sigmoid,
        tanh: torch.tanh,
        # Beyond its threshold PyTorch's is x itself: 20, where the two are 2e-9 apart.
        softplus: lambda x: functional.softplus(x, threshold=500),
        silu: functional.silu,
        quick_gelu: hugging_face_s["quick_gelu"],
        gelu: functional.gelu,
        gelu_tanh: lambda x: functional.gelu(x, approximate="tanh"),
        soft_cap: lambda x: torch.tanh(x / 0.7) * 0.7,
    }


@pytest.mark.parametrize("component", [*of_x_alone(), soft_cap])
def test_activations_equal_pytorch_s_and_hugging_face_s(component):
    torch, theirs = peer("torch"), pytorch_s()[component]
    x, dy = 7 * away_from_0((3, 101), seed=3), np.random.default_rng(4).standard_normal((3, 101))
    there = torch.tensor(x, requires_grad=True)
    expected = theirs(there)
    expected.backward(torch.tensor(dy))
    y, backward = component(x, **({"cap": 0.7} if component is soft_cap else {}))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=2e-14)
    np.testing.assert_allclose(backward(dy), there.grad.numpy(), rtol=1e-12, atol=2e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "component, low, high, slope",
    [
        (relu, 0, 1e4, 1),
        (relu_squared, 0, 1e8, 2e4),
        (sigmoid, 0, 1, 0),
        (tanh, -1, 1, 0),
        (softplus, 0, 1e4, 1),
        (silu, 0, 1e4, 1),
        (quick_gelu, 0, 1e4, 1),
        (gelu, 0, 1e4, 1),
        (gelu_tanh, 0, 1e4, 1),
    ],
)
def test_far_out_the_limit_is_reached_without_a_warning(component, low, high, slope, dtype):
    """Turns red with exp(-x) in sigmoid, or log(1 + exp x) in softplus: both overflow."""
    x, dy = np.array([-1e4, 1e4], dtype), np.ones(2, dtype)
    y, backward = component(x)
    y_twin, vjp = jax.vjp(getattr(twins, component.__name__), x)
    for value, gradient in ((y, backward(dy)), (y_twin, vjp(dy)[0])):
        np.testing.assert_array_equal(value, [low, high])
        np.testing.assert_array_equal(gradient, [0, slope])
        assert value.dtype == gradient.dtype == dtype


@pytest.mark.parametrize("component", [relu, relu_squared])
def test_at_0_the_slope_of_a_relu_is_0(component):
    """Turns red with [x >= 0] in relu's backward."""
    x = np.array([0.0, -0.0])
    assert not component(x)[1](np.ones(2)).any()
    assert not np.any(jax.vjp(getattr(twins, component.__name__), x)[1](np.ones(2))[0])


def test_small_probabilities_keep_their_digits():
    """Turns red with (1 + tanh(x/2)) / 2 for sigmoid, or log in place of log1p for softplus."""
    x = np.linspace(-80, -1, 80)
    np.testing.assert_allclose(sigmoid(x)[0], np.exp(x) / (1 + np.exp(x)), rtol=1e-14)
    np.testing.assert_allclose(softplus(x)[0], np.logaddexp(x, 0), rtol=1e-14)
    assert (sigmoid(x.astype(np.float32))[0] > 0).all()


@given(scores)
def test_relu_of_x_less_relu_of_minus_x_is_x(x):
    """Turns red if relu has a slope below 0, as max(x, 0.01 x) has."""
    np.testing.assert_array_equal(relu(x)[0] - relu(-x)[0], x)
    assert not (relu(x)[0] * relu(-x)[0]).any()


@given(scores)
def test_relu_squared_is_relu_squared_and_grows_by_twice_relu(x):
    """Turns red without the 2 in its backward, or with x² for all x."""
    positive, _ = relu(x)
    y, backward = relu_squared(x)
    np.testing.assert_array_equal(y, positive**2)
    np.testing.assert_array_equal(backward(np.ones_like(x)), 2 * positive)


@given(scores)
def test_a_sigmoid_and_its_reflection_sum_to_1(x):
    """Turns red without min in the numerator, or with |x| in place of -|x|."""
    np.testing.assert_allclose(sigmoid(x)[0] + sigmoid(-x)[0], 1, rtol=1e-15)


@given(scores)
def test_tanh_is_a_sigmoid_that_is_stretched(x):
    """Turns red if sigmoid is half as steep."""
    np.testing.assert_allclose(tanh(x)[0], 2 * sigmoid(2 * x)[0] - 1, rtol=1e-12, atol=1e-15)
    ones = np.ones_like(x)
    slopes = tanh(x)[1](ones), 4 * sigmoid(2 * x)[1](ones)
    np.testing.assert_allclose(*slopes, rtol=1e-12, atol=2e-15)


@given(scores)
def test_softplus_has_sigmoid_as_its_slope_and_x_as_its_odd_part(x):
    """Turns red with -x in place of -|x|, or with tanh for sigmoid in its backward."""
    y, backward = softplus(x)
    np.testing.assert_allclose(y - softplus(-x)[0], x, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(backward(np.ones_like(x)), sigmoid(x)[0], rtol=1e-15)
    np.testing.assert_allclose(np.exp(-softplus(-x)[0]), sigmoid(x)[0], rtol=1e-12)


@given(scores)
def test_silu_is_x_times_its_sigmoid_and_quick_gelu_a_steeper_silu(x):
    """Turns red with 1.7 for 1.702, or if either backward loses what goes through the gate."""
    np.testing.assert_allclose(silu(x)[0], x * sigmoid(x)[0], rtol=1e-15)
    y, backward = quick_gelu(x)
    steeper, steeper_backward = silu(1.702 * x)
    np.testing.assert_allclose(1.702 * y, steeper, rtol=1e-14, atol=1e-300)
    dy = np.cos(np.arange(x.size)).reshape(x.shape)
    np.testing.assert_allclose(backward(dy), steeper_backward(dy), rtol=1e-12, atol=1e-15)


@given(scores)
def test_what_is_x_times_a_gate_of_x_less_that_of_minus_x_is_x(x):
    """Turns red if erf loses its sign: x Φ(x) + x Φ(-x) = x; or with |x| for x in quick_gelu."""
    for component in (silu, quick_gelu, gelu, gelu_tanh):
        np.testing.assert_allclose(component(x)[0] - component(-x)[0], x, rtol=1e-13, atol=1e-300)


def test_the_approximations_of_gelu_are_as_near_as_they_say():
    """Turns red with 1.6 for 1.702, or 0.04 for 0.044715."""
    x = np.linspace(-9, 9, 10_001)
    exact, _ = gelu(x)
    assert np.abs(quick_gelu(x)[0] - exact).max() < 0.0204
    assert np.abs(gelu_tanh(x)[0] - exact).max() < 5e-4


@given(scores, st.floats(0.1, 100))
def test_a_soft_cap_holds_and_keeps_the_order(x, cap):
    """Turns red without the cap before tanh, or without that within."""
    y, backward = soft_cap(x, cap=cap)
    bound = np.minimum(np.abs(x), cap)
    assert (np.abs(y) <= bound * (1 + 1e-15) + 1e-300).all()
    assert (np.diff(y.ravel()[np.argsort(x, axis=None)]) >= -1e-15 * cap).all()
    slope = backward(np.ones_like(x))
    np.testing.assert_allclose(slope, 1 - (y / cap) ** 2, rtol=1e-12, atol=1e-15)


def test_a_high_cap_changes_nothing_and_a_low_one_holds_scores_of_10000():
    """Turns red if the score is not divided by the cap, or not multiplied by it."""
    x = np.array([-3.0, 0.5, 2.0])
    np.testing.assert_allclose(soft_cap(x, cap=1e6)[0], x, rtol=1e-11)
    np.testing.assert_array_equal(soft_cap(1e4 * x, cap=50.0)[0], [-50, 50, 50])


@pytest.mark.parametrize("engine", [soft_cap, twins.soft_cap])
@pytest.mark.parametrize("cap", [0, -1.5, math.nan, math.inf])
def test_a_cap_that_caps_nothing_is_refused(engine, cap):
    with pytest.raises(InputError, match=r"the cap is .*; give a finite number above 0"):
        engine(np.ones(3), cap=cap)


@pytest.mark.parametrize("dtype, error", [(np.float32, 4e-7), (np.float64, 2e-15)])
def test_erf_is_as_accurate_as_it_says(dtype, error):
    x = np.linspace(-9, 9, 40_001).astype(dtype)
    expected = np.array([math.erf(a) for a in x.astype(np.float64).tolist()])
    assert erf(x).dtype == dtype
    assert np.abs(erf(x) - expected).max() <= error
