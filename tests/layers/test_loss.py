import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.loss as twins
from reference.errors import DtypeError, InputError
from reference.layers.loss import cross_entropy
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer


def problem(seed, shape=(3, 5), vocabulary=11):
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((*shape, vocabulary)), rng.integers(0, vocabulary, shape)
    labels[rng.random(shape) < 0.3] = -100
    return logits, labels


@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_cross_entropy_equals_its_twin(shape):
    rng = np.random.default_rng(0)
    logits, labels = problem(0, shape)
    assert_gradient(cross_entropy, logits, labels=labels, rng=rng)
    # The loss of bfloat16 logits is float32 in the twin; the reference keeps to float32 and 64.
    narrow = {np.float32: 2}
    assert_mirror(cross_entropy, twins.cross_entropy, logits, labels=labels, rng=rng, narrow=narrow)


def test_cross_entropy_equals_pytorch_s():
    torch = peer("torch")
    logits, labels = problem(1)
    there = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        there.reshape(-1, 11), torch.tensor(labels).ravel()
    )
    expected.backward()
    loss, backward = cross_entropy(logits, labels=labels)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-13)
    np.testing.assert_allclose(backward(1.0), there.grad.numpy(), rtol=1e-12, atol=1e-15)


@given(st.integers(0, 2**32), st.floats(-1e3, 1e3))
def test_what_is_ignored_has_no_influence(seed, noise):
    """Turns red with a mean over all tokens rather than the kept."""
    logits, labels = problem(seed)
    kept = labels != -100
    if not kept.any():
        return
    loss, backward = cross_entropy(logits, labels=labels)
    alone, _ = cross_entropy(logits[kept], labels=labels[kept])
    np.testing.assert_allclose(loss, alone, rtol=1e-13)
    changed = np.where(kept[..., None], logits, logits + noise * np.arange(11))
    np.testing.assert_allclose(cross_entropy(changed, labels=labels)[0], loss, rtol=1e-13)
    assert not backward(1.0)[~kept].any()


@pytest.mark.parametrize("engine", [lambda *a, **k: cross_entropy(*a, **k)[0], twins.cross_entropy])
def test_no_label_kept_is_a_loss_of_0(engine):
    """Turns red if the count of kept labels may be 0."""
    assert engine(np.ones((2, 3, 5)), labels=np.full((2, 3), -100)) == 0


def test_equal_scores_are_a_surprise_of_log_v_and_huge_ones_do_not_overflow():
    loss, _ = cross_entropy(np.full((3, 7), 5.0), labels=np.arange(3))
    np.testing.assert_allclose(loss, math.log(7), rtol=1e-15)
    loss, backward = cross_entropy(1e4 * np.eye(3), labels=np.array([0, 2, 2]))
    np.testing.assert_allclose(loss, 1e4 / 3, rtol=1e-15)
    assert np.isfinite(backward(1.0)).all()


@pytest.mark.parametrize("engine", [cross_entropy, twins.cross_entropy])
@pytest.mark.parametrize(
    "labels, error, message",
    [
        (np.array([0, 11, 1]), InputError, r"labels\[1\] is 11, outside the vocabulary \[0, 11\)"),
        (np.array([0, 1, -1]), InputError, r"labels\[2\] is -1, outside .* not -100"),
        (np.array([0.0, 1, 1]), DtypeError, "labels is of float64; give an array of integers"),
        (np.array([0, 1]), InputError, r"labels has shape \(2,\), logits \(3, 11\)"),
    ],
)
def test_labels_that_are_none_are_named(engine, labels, error, message):
    with pytest.raises(error, match=message):
        engine(np.zeros((3, 11)), labels=labels)
