from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.distillation as twins
from reference.errors import InputError
from reference.layers.distillation import distillation
from reference.layers.loss import cross_entropy
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer


def problem(seed, shape=(3, 5), vocabulary=11):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, *shape, vocabulary))


def test_distillation_equals_its_twin():
    rng = np.random.default_rng(0)
    for shape, temperature in (((), 1.0), ((7,), 0.5), ((2, 3, 5), 3.0)):
        student, teacher = problem(0, shape)
        kwargs = {"teacher_logits": teacher, "temperature": temperature}
        assert_gradient(distillation, student, **kwargs, rng=rng)
    student, teacher = problem(1)
    # In float32, so that a float32 call has no wider teacher; the loss of bfloat16 is float32.
    kwargs = {"teacher_logits": teacher.astype(np.float32), "temperature": 2.0}
    narrow = {np.float32: 2}
    assert_mirror(distillation, twins.distillation, student, **kwargs, rng=rng, narrow=narrow)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_equals_pytorch_s_kl_div(temperature):
    torch = peer("torch")
    student, teacher = problem(2)
    there = torch.tensor(student.reshape(-1, 11), requires_grad=True)
    of_teacher = torch.softmax(torch.tensor(teacher.reshape(-1, 11)) / temperature, dim=-1)
    of_student = torch.log_softmax(there / temperature, dim=-1)
    divergence = torch.nn.functional.kl_div(of_student, of_teacher, reduction="batchmean")
    expected = temperature**2 * divergence
    expected.backward()
    loss, backward = distillation(student, teacher_logits=teacher, temperature=temperature)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    gradient = there.grad.numpy().reshape(student.shape)
    np.testing.assert_allclose(backward(1.0), gradient, rtol=1e-10, atol=1e-16)


@given(st.integers(0, 2**32), st.floats(0.1, 100), st.floats(-1e4, 1e4))
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(seed, temperature, shift):
    """Turns red if the teacher's entropy stays in, or one of the two is not softened.

    Both ignore a shift, so the student may stand elsewhere.
    """
    student, _ = problem(seed)
    kwargs = {"teacher_logits": student + shift, "temperature": temperature}
    loss, backward = distillation(student, **kwargs)
    np.testing.assert_allclose(loss, 0, atol=1e-8)
    np.testing.assert_allclose(backward(1.0), 0, atol=1e-8)
    loss, backward = distillation(student, teacher_logits=student, temperature=temperature)
    assert loss == 0 and not backward(1.0).any()


def test_nothing_is_a_loss_of_0():
    """Turns red if the number of rows, of which there is the mean, may be 0."""
    nothing = np.zeros((0, 5))
    options = {"teacher_logits": nothing, "temperature": 2.0}
    assert distillation(nothing, **options)[0] == 0 == twins.distillation(nothing, **options)


def test_a_class_that_the_teacher_rules_out_costs_nothing_more():
    """Turns red if 0 log 0 is taken for NaN."""
    student, teacher = np.array([[0.3, -1.0, 2.0]]), np.array([[1.0, 0.5, -np.inf]])
    options = {"teacher_logits": teacher, "temperature": 2.0}
    loss, backward = distillation(student, **options)
    p, q = (np.exp(a / 2) / np.exp(a / 2).sum() for a in (teacher, student))
    log = np.log(p / q, where=p > 0, out=np.zeros_like(p))
    np.testing.assert_allclose(loss, 4 * (p * log).sum())
    np.testing.assert_allclose(backward(1.0), 2 * (q - p), atol=1e-15)
    value, gradient = jax.value_and_grad(twins.distillation)(student, **options)
    np.testing.assert_allclose(value, loss, rtol=1e-12)
    np.testing.assert_allclose(gradient, backward(1.0), atol=1e-12)


@given(st.integers(0, 2**32), st.floats(0.1, 100))
def test_anything_else_has(seed, temperature):
    """Turns red if student and teacher change places, in the sign of the logarithm."""
    student, teacher = problem(seed)
    loss, backward = distillation(student, teacher_logits=teacher, temperature=temperature)
    assert loss > 0
    closer, _ = distillation(
        student - 0.1 * backward(1.0), teacher_logits=teacher, temperature=temperature
    )
    assert closer < loss


@given(st.integers(0, 2**32))
def test_a_high_temperature_compares_the_scores_themselves(seed):
    """Turns red without the factor τ², in value or gradient: both would vanish.

    What is left out of the expansion is 1/τ, hence the tolerance.
    """
    student, teacher = problem(seed)
    difference = student - teacher
    difference -= difference.mean(axis=-1, keepdims=True)
    loss, backward = distillation(student, teacher_logits=teacher, temperature=1e4)
    np.testing.assert_allclose(loss, (difference**2).mean() / 2, rtol=1e-3)
    np.testing.assert_allclose(backward(15.0), difference / 11, atol=1e-4)


@given(st.integers(0, 2**32))
def test_a_teacher_that_is_certain_is_a_label(seed):
    """Turns red if the divergence is taken from student to teacher."""
    student, _ = problem(seed)
    labels = np.random.default_rng(seed).integers(0, 11, (3, 5))
    certain = 1e3 * np.eye(11)[labels]
    loss, backward = distillation(student, teacher_logits=certain, temperature=1.0)
    expected, expected_backward = cross_entropy(student, labels=labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(backward(1.0), expected_backward(1.0), rtol=1e-12, atol=1e-16)


def test_the_teacher_is_held_fixed():
    """Turns red if the twin's teacher has a gradient."""
    student, teacher = problem(3)

    def loss(teacher):
        return twins.distillation(student, teacher_logits=teacher, temperature=2.0)

    assert not jax.grad(loss)(teacher).any()


def test_the_loss_of_bfloat16_is_float32():
    """Turns red if a twin computes in the dtype that it is given."""
    x = jnp.ones((3, 2), jnp.bfloat16)
    kwargs = {"teacher_logits": x, "temperature": 2.0}
    assert jax.eval_shape(partial(twins.distillation, **kwargs), x).dtype == np.float32


@pytest.mark.parametrize("engine", [distillation, twins.distillation])
@pytest.mark.parametrize(
    "teacher, temperature, message",
    [
        (
            np.ones((1, 5)),
            1.0,
            r"teacher_logits has shape \(1, 5\), logits \(3, 5\); give equal shapes",
        ),
        (np.ones((3, 5)), 0, "temperature is 0; give a finite number above 0"),
        (np.ones((3, 5)), float("nan"), "temperature is nan; give a finite number above 0"),
    ],
)
def test_what_cannot_teach_is_named(engine, teacher, temperature, message):
    with pytest.raises(InputError, match=message):
        engine(np.ones((3, 5)), teacher_logits=teacher, temperature=temperature)
