import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.regression as twins
import reference.layers.regression as reference_losses
from reference.errors import InputError
from reference.layers.regression import huber, squared_error
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer

# The loss of bfloat16 numbers is float32 in the twins; the reference keeps to float32 and 64.
NARROW = {np.float32: 2}


def problem(seed, shape=(3, 5)):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), rng.standard_normal(shape)


def test_squared_error_equals_its_twin():
    rng = np.random.default_rng(0)
    for shape in ((), (7,), (2, 3, 5)):
        assert_gradient(squared_error, *problem(0, shape), rng=rng)
    assert_mirror(squared_error, twins.squared_error, *problem(1), rng=rng, narrow=NARROW)


def test_huber_equals_its_twin():
    rng = np.random.default_rng(1)
    for shape, delta in (((), 1.0), ((7,), 0.3), ((2, 3, 5), 2.5)):
        assert_gradient(huber, *problem(2, shape), delta=delta, rng=rng)
    assert_mirror(huber, twins.huber, *problem(3), delta=0.7, rng=rng, narrow=NARROW)


@pytest.mark.parametrize("delta", [None, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5)])
def test_regression_equals_pytorch_s(shape, delta):
    torch = peer("torch")
    prediction, target = problem(4, shape)
    there = [torch.tensor(a, requires_grad=True) for a in (prediction, target)]
    if delta is None:
        expected = torch.nn.functional.mse_loss(*there)
        loss, backward = squared_error(prediction, target)
    else:
        expected = torch.nn.functional.huber_loss(*there, delta=delta)
        loss, backward = huber(prediction, target, delta=delta)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-13)
    for ours, theirs in zip(backward(1.0), there, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-12, atol=1e-16)


@given(st.integers(0, 2**32), st.floats(0.01, 100))
def test_huber_is_squared_inside_delta_and_linear_outside(seed, delta):
    """Turns red if half of δ is not taken off outside, or the half of the square is left out."""
    error = 10 * np.random.default_rng(seed).standard_normal(13)
    far = np.abs(error) > delta
    expected = np.where(far, delta * (np.abs(error) - delta / 2), error * error / 2)
    loss, backward = huber(error, np.zeros(13), delta=delta)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-12)
    derror, dtarget = backward(13.0)
    np.testing.assert_allclose(derror, np.where(far, delta * np.sign(error), error), rtol=1e-12)
    np.testing.assert_array_equal(dtarget, -derror)


@given(st.integers(0, 2**32), st.floats(0.01, 100), st.floats(1, 1e8))
def test_no_outlier_pulls_harder_than_delta(seed, delta, outlier):
    """Turns red if the error is not clipped in the backward."""
    prediction, target = problem(seed, (7,))
    prediction[3] += outlier
    _, backward = huber(prediction, target, delta=delta)
    assert np.abs(backward(7.0)[0]).max() <= delta * (1 + 1e-15)


@given(st.integers(0, 2**32))
def test_huber_of_a_large_delta_is_half_the_squared_error(seed):
    """Turns red without the half, or if the squared error is a sum."""
    prediction, target = problem(seed)
    whole, whole_backward = squared_error(prediction, target)
    half, half_backward = huber(prediction, target, delta=1e3)
    np.testing.assert_allclose(2 * half, whole, rtol=1e-13)
    np.testing.assert_allclose(half_backward(2.0), whole_backward(1.0), rtol=1e-13)


@given(st.integers(0, 2**32), st.floats(-1e4, 1e4))
def test_what_predicts_many_best_is_their_mean(seed, shift):
    """Turns red if the square's slope is not that of the difference: |x - y| or x y."""
    target = shift + np.random.default_rng(seed).standard_normal(13)
    loss, backward = squared_error(np.full(13, target.mean()), target)
    np.testing.assert_allclose(loss, target.var(), rtol=1e-8)
    np.testing.assert_allclose(backward(1.0)[0].sum(), 0, atol=1e-11)


EACH = pytest.mark.parametrize("name", ["squared_error", "huber"])


@EACH
def test_nothing_is_a_loss_of_0(name):
    """Turns red if the mean is over 0."""
    assert getattr(reference_losses, name)(np.ones((0, 3)), np.ones((0, 3)))[0] == 0
    assert getattr(twins, name)(np.ones((0, 3)), np.ones((0, 3))) == 0


@EACH
def test_the_loss_of_bfloat16_is_float32(name):
    """Turns red if a twin computes in the dtype that it is given."""
    x = jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)
    assert jax.eval_shape(getattr(twins, name), x, x).dtype == np.float32


@pytest.mark.parametrize("module", [reference_losses, twins])
@EACH
def test_two_shapes_are_refused(module, name):
    """Turns red if a column less a row may be a square."""
    message = r"target has shape \(7,\), prediction \(7, 1\); give equal shapes"
    with pytest.raises(InputError, match=message):
        getattr(module, name)(np.ones((7, 1)), np.ones(7))


@pytest.mark.parametrize("module", [reference_losses, twins])
@pytest.mark.parametrize("delta", [0, -1.0, float("nan")])
def test_a_delta_that_is_not_above_0_is_refused(module, delta):
    with pytest.raises(InputError, match=f"delta is {delta}; give a finite number above 0"):
        module.huber(np.ones(3), np.ones(3), delta=delta)
