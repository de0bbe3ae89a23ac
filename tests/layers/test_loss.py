import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.loss as twins
import reference.layers.loss as reference_losses
from reference.errors import DtypeError, InputError
from reference.layers.loss import (
    binary_cross_entropy,
    cross_entropy,
    masked_language_modelling,
    next_sentence,
    smoothed_cross_entropy,
    z_loss,
)
from reference.layers.softmax import log_softmax
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer

# The loss of bfloat16 logits is float32 in the twins; the reference keeps to float32 and 64.
NARROW = {np.float32: 2}
WITH_IGNORE = {
    "cross_entropy": (cross_entropy, twins.cross_entropy),
    "smoothed_cross_entropy": (
        partial(smoothed_cross_entropy, smoothing=0.2),
        partial(twins.smoothed_cross_entropy, smoothing=0.2),
    ),
    "z_loss": (z_loss, twins.z_loss),
}
each_with_ignore = pytest.mark.parametrize("reference, twin", WITH_IGNORE.values(), ids=WITH_IGNORE)


def problem(seed, shape=(3, 5), vocabulary=11):
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((*shape, vocabulary)), rng.integers(0, vocabulary, shape)
    labels[rng.random(shape) < 0.3] = -100
    return logits, labels


def binary_problem(seed, shape):
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal(shape), np.asarray(rng.random(shape))


def masked_problem(seed, shape=(3, 5), vocabulary=11):
    rng = np.random.default_rng(seed)
    logits, tokens = rng.standard_normal((*shape, vocabulary)), rng.integers(0, vocabulary, shape)
    return logits, tokens, rng.random(shape) < 0.4


@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_cross_entropy_equals_its_twin(shape):
    rng = np.random.default_rng(0)
    logits, labels = problem(0, shape)
    assert_gradient(cross_entropy, logits, labels=labels, rng=rng)
    assert_mirror(cross_entropy, twins.cross_entropy, logits, labels=labels, rng=rng, narrow=NARROW)


def test_binary_cross_entropy_equals_its_twin():
    rng = np.random.default_rng(10)
    logits, answers = binary_problem(10, (3, 5))
    for shape in ((), (7,), (2, 3, 5)):
        z, y = binary_problem(11, shape)
        assert_gradient(binary_cross_entropy, z, labels=y, rng=rng)
        assert_gradient(binary_cross_entropy, z, labels=y > 0.5, rng=rng)
    # In float32, so that a float32 call has no wider labels.
    labels = answers.astype(np.float32)
    engines = binary_cross_entropy, twins.binary_cross_entropy
    assert_mirror(*engines, logits, labels=labels, rng=rng, narrow=NARROW)


def test_smoothed_cross_entropy_equals_its_twin():
    rng = np.random.default_rng(11)
    for shape, smoothing in (((7,), 0.3), ((2, 3, 5), 0.05), ((3, 5), 0.1)):
        logits, labels = problem(11, shape)
        kwargs = {"labels": labels, "smoothing": smoothing}
        assert_gradient(smoothed_cross_entropy, logits, **kwargs, rng=rng)
    engines = smoothed_cross_entropy, twins.smoothed_cross_entropy
    assert_mirror(*engines, logits, **kwargs, rng=rng, narrow=NARROW)


def test_z_loss_equals_its_twin():
    rng = np.random.default_rng(12)
    for shape in ((7,), (2, 3, 5), (3, 5)):
        logits, labels = problem(12, shape)
        assert_gradient(z_loss, logits, labels=labels, rng=rng)
    assert_mirror(z_loss, twins.z_loss, logits, labels=labels, rng=rng, narrow=NARROW)


def test_masked_language_modelling_equals_its_twin():
    rng = np.random.default_rng(13)
    logits, tokens, masked = masked_problem(13)
    kwargs = {"tokens": tokens, "masked": masked}
    assert_gradient(masked_language_modelling, logits, **kwargs, rng=rng)
    engines = masked_language_modelling, twins.masked_language_modelling
    assert_mirror(*engines, logits, **kwargs, rng=rng, narrow=NARROW)


def test_next_sentence_equals_its_twin():
    rng = np.random.default_rng(14)
    logits, follows = rng.standard_normal((7, 2)), rng.random(7) < 0.5
    assert_gradient(next_sentence, logits, follows=follows, rng=rng)
    engines = next_sentence, twins.next_sentence
    assert_mirror(*engines, logits, follows=follows, rng=rng, narrow=NARROW)


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


@pytest.mark.parametrize("dtype", [float, bool])
def test_binary_cross_entropy_equals_pytorch_s(dtype):
    torch = peer("torch")
    logits, answers = binary_problem(2, (3, 5))
    logits[0] *= 1e3
    labels = answers if dtype is float else answers > 0.5
    there = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        there, torch.tensor(labels.astype(float))
    )
    expected.backward()
    loss, backward = binary_cross_entropy(logits, labels=labels)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-13)
    np.testing.assert_allclose(backward(1.0), there.grad.numpy(), rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_cross_entropy_equals_pytorch_s(smoothing):
    """PyTorch's mean, too, is over the labels that are not ignored."""
    torch = peer("torch")
    logits, labels = problem(3)
    there = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        there.reshape(-1, 11), torch.tensor(labels).ravel(), label_smoothing=smoothing
    )
    expected.backward()
    loss, backward = smoothed_cross_entropy(logits, labels=labels, smoothing=smoothing)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-13)
    np.testing.assert_allclose(backward(1.0), there.grad.numpy(), rtol=1e-11, atol=1e-16)


def test_smoothed_cross_entropy_equals_optax_s():
    logits, labels = problem(4)
    kept = labels != -100

    def theirs(logits):
        target = optax.smooth_labels(jax.nn.one_hot(labels[kept], 11), 0.1)
        return optax.softmax_cross_entropy(logits[kept], target).mean()

    expected, gradient = jax.value_and_grad(theirs)(logits)
    loss, backward = smoothed_cross_entropy(logits, labels=labels, smoothing=0.1)
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(backward(1.0), gradient, rtol=1e-11, atol=1e-16)


def test_z_loss_equals_pytorch_s_logsumexp_squared():
    torch = peer("torch")
    logits, labels = problem(5)
    there = torch.tensor(1e4 + logits, requires_grad=True)
    expected = (torch.logsumexp(there, dim=-1)[torch.tensor(labels != -100)] ** 2).mean()
    expected.backward()
    loss, backward = z_loss(1e4 + logits, labels=labels)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-13)
    np.testing.assert_allclose(backward(1.0), there.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_bert_s_loss_is_that_of_both_its_tasks():
    torch, transformers = peer("torch"), peer("transformers")
    _, tokens, masked = masked_problem(6)
    follows = np.array([True, False, True])
    config = transformers.BertConfig(
        vocab_size=11,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=7,
        max_position_embeddings=5,
    )
    theirs = (
        transformers.BertForPreTraining(config)
        .double()
        .eval()(
            input_ids=torch.tensor(tokens),
            labels=torch.tensor(np.where(masked, tokens, -100)),
            next_sentence_label=torch.tensor(1 - follows),
        )
    )
    scores = theirs.prediction_logits, theirs.seq_relationship_logits
    expected = torch.autograd.grad(theirs.loss, scores)
    filled, answered = (a.detach().numpy() for a in scores)
    blanks, blanks_backward = masked_language_modelling(filled, tokens=tokens, masked=masked)
    order, order_backward = next_sentence(answered, follows=follows)
    np.testing.assert_allclose(blanks + order, theirs.loss.item(), rtol=1e-12)
    for ours, gradient in zip((blanks_backward(1.0), order_backward(1.0)), expected, strict=True):
        np.testing.assert_allclose(ours, gradient.numpy(), rtol=1e-11, atol=1e-15)


@each_with_ignore
@given(seed=st.integers(0, 2**32), noise=st.floats(-1e3, 1e3))
def test_what_is_ignored_has_no_influence(reference, twin, seed, noise):
    """Turns red with a mean over all tokens rather than the kept."""
    logits, labels = problem(seed)
    kept = labels != -100
    if not kept.any():
        return
    loss, backward = reference(logits, labels=labels)
    alone, _ = reference(logits[kept], labels=labels[kept])
    np.testing.assert_allclose(loss, alone, rtol=1e-13)
    changed = np.where(kept[..., None], logits, logits + noise * np.arange(11))
    np.testing.assert_allclose(reference(changed, labels=labels)[0], loss, rtol=1e-13)
    assert not backward(1.0)[~kept].any()


@each_with_ignore
def test_no_label_kept_is_a_loss_of_0(reference, twin):
    """Turns red if the count of kept labels may be 0."""
    logits, labels = np.ones((2, 3, 5)), np.full((2, 3), -100)
    loss, backward = reference(logits, labels=labels)
    assert loss == twin(logits, labels=labels) == 0
    assert not backward(1.0).any()


def test_nothing_masked_or_nothing_asked_is_a_loss_of_0():
    """Turns red if the mean is over 0."""
    tokens, masked = np.ones((2, 3), int), np.zeros((2, 3), bool)
    for engine in (
        lambda *a, **k: masked_language_modelling(*a, **k)[0],
        twins.masked_language_modelling,
    ):
        assert engine(np.ones((2, 3, 5)), tokens=tokens, masked=masked) == 0
    for engine in (lambda *a, **k: binary_cross_entropy(*a, **k)[0], twins.binary_cross_entropy):
        assert engine(np.ones((0, 3)), labels=masked[:0]) == 0


def test_equal_scores_are_a_surprise_of_log_v_and_huge_ones_do_not_overflow():
    loss, _ = cross_entropy(np.full((3, 7), 5.0), labels=np.arange(3))
    np.testing.assert_allclose(loss, math.log(7), rtol=1e-15)
    loss, backward = cross_entropy(1e4 * np.eye(3), labels=np.array([0, 2, 2]))
    np.testing.assert_allclose(loss, 1e4 / 3, rtol=1e-15)
    assert np.isfinite(backward(1.0)).all()


@given(st.integers(0, 2**32), st.floats(-1e3, 1e3))
def test_binary_cross_entropy_is_that_of_two_classes_one_of_which_scores_0(seed, factor):
    """Turns red with yes and no the other way around, in the value or in the gradient."""
    logits, answers = binary_problem(seed, (3, 5))
    logits *= factor
    labels = answers > 0.5
    loss, backward = binary_cross_entropy(logits, labels=labels)
    pairs = np.stack([np.zeros_like(logits), logits], axis=-1)
    expected, pairs_backward = cross_entropy(pairs, labels=labels.astype(int))
    np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(backward(1.0), pairs_backward(1.0)[..., 1], atol=1e-15)


@given(st.integers(0, 2**32))
def test_binary_cross_entropy_is_least_at_the_label_s_own_log_odds(seed):
    """Turns red if a probability is taken for a boolean."""
    _, labels = binary_problem(seed, (3, 5))
    loss, backward = binary_cross_entropy(np.log(labels / (1 - labels)), labels=labels)
    entropy = -labels * np.log(labels) - (1 - labels) * np.log(1 - labels)
    np.testing.assert_allclose(loss, entropy.mean(), rtol=1e-12)
    np.testing.assert_allclose(backward(1.0), 0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_stays_exact_where_the_probability_rounds_to_1(dtype):
    """Turns red with the logarithm of a computed σ, and with the gradient σ(z) - y."""
    logits = np.array([1e4, -1e4, 1e4, -1e4, 50], dtype)
    labels = np.array([True, False, False, True, True])
    loss, backward = binary_cross_entropy(logits, labels=labels)
    np.testing.assert_allclose(loss, 2e4 / 5, rtol=1e-6)
    expected = np.array([0, 0, 1, -1, -math.exp(-50)]) / 5
    np.testing.assert_allclose(backward(dtype(1)), expected, rtol=1e-5)
    loss, _ = binary_cross_entropy(logits[4:], labels=labels[4:])
    np.testing.assert_allclose(loss, math.exp(-50), rtol=1e-5)


@given(st.integers(0, 2**32))
def test_no_smoothing_is_cross_entropy(seed):
    """Turns red if the share of all classes is 1/V, whatever ε."""
    logits, labels = problem(seed)
    expected, expected_backward = cross_entropy(logits, labels=labels)
    loss, backward = smoothed_cross_entropy(logits, labels=labels, smoothing=0)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    np.testing.assert_array_equal(backward(1.0), expected_backward(1.0))


@given(st.integers(0, 2**32), st.floats(0, 0.99), st.floats(-1e4, 1e4))
def test_smoothed_cross_entropy_ignores_a_shift(seed, smoothing, shift):
    """Turns red if the shares that the backward takes off do not sum to 1, as V of ε/(V-1)."""
    logits, labels = problem(seed)
    loss, backward = smoothed_cross_entropy(logits, labels=labels, smoothing=smoothing)
    moved, _ = smoothed_cross_entropy(logits + shift, labels=labels, smoothing=smoothing)
    np.testing.assert_allclose(moved, loss, rtol=1e-10)
    np.testing.assert_allclose(backward(1.0).sum(axis=-1), 0, atol=1e-15)


@given(st.integers(0, 2**32), st.floats(0.01, 0.99))
def test_smoothed_cross_entropy_is_least_where_the_target_is_met(seed, smoothing):
    """Turns red if what is at the label gets 1 rather than 1 - ε, in value or in gradient."""
    _, labels = problem(seed)
    target = (1 - smoothing) * np.eye(11)[labels.clip(0)] + smoothing / 11
    loss, backward = smoothed_cross_entropy(np.log(target), labels=labels, smoothing=smoothing)
    kept = labels != -100
    entropy = -(target * np.log(target)).sum(axis=-1)[kept].sum() / max(kept.sum(), 1)
    np.testing.assert_allclose(loss, entropy, rtol=1e-12)
    np.testing.assert_allclose(backward(1.0), 0, atol=1e-15)


@given(st.integers(0, 2**32), st.floats(0, 0.9))
def test_tensor2tensor_s_smoothing_is_ours_with_a_larger_one(seed, theirs):
    """Turns red if ε V / (V - 1), which the docstring says, is another number."""
    logits, labels = problem(seed, (2, 3))
    labels = labels.clip(0)
    target = np.full((2, 3, 11), theirs / 10)
    np.put_along_axis(target, labels[..., None], 1 - theirs, axis=-1)
    expected = -(target * log_softmax(logits)[0]).sum(axis=-1).mean()
    loss, _ = smoothed_cross_entropy(logits, labels=labels, smoothing=theirs * 11 / 10)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


@given(st.integers(0, 2**32), st.floats(-1e4, 1e4))
def test_z_loss_sees_nothing_but_how_far_log_z_is_from_0(seed, distance):
    """Turns red if the largest score is not added back, or without the 2 of the square's slope."""
    logits, labels = problem(seed)
    kept = labels != -100
    normalized = log_softmax(logits)[0]
    loss, backward = z_loss(normalized + distance, labels=labels)
    np.testing.assert_allclose(loss, distance**2 if kept.any() else 0, rtol=1e-9, atol=1e-12)
    along_a_shift = np.where(kept, 2 * distance / max(kept.sum(), 1), 0)
    dlogits = backward(1.0)
    np.testing.assert_allclose(dlogits.sum(axis=-1), along_a_shift, rtol=1e-9, atol=1e-12)
    expected = along_a_shift[..., None] * np.exp(normalized)
    np.testing.assert_allclose(dlogits, expected, rtol=1e-7, atol=1e-12)


@given(st.integers(0, 2**32), st.floats(-1e3, 1e3))
def test_masked_language_modelling_ignores_what_is_not_masked(seed, noise):
    """Turns red with a mean over all tokens, or if tokens are checked where none is masked."""
    logits, tokens, masked = masked_problem(seed)
    loss, backward = masked_language_modelling(logits, tokens=tokens, masked=masked)
    alone, _ = cross_entropy(logits[masked], labels=tokens[masked])
    np.testing.assert_allclose(loss, alone, rtol=1e-13)
    changed = np.where(masked[..., None], logits, logits + noise * np.arange(11))
    others = np.where(masked, tokens, -1)
    again, _ = masked_language_modelling(changed, tokens=others, masked=masked)
    np.testing.assert_allclose(again, loss, rtol=1e-13)
    assert not backward(1.0)[~masked].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64])
def test_tokens_may_be_of_any_integers(dtype):
    """Turns red if -100 is written among small or unsigned integers."""
    logits, tokens, masked = masked_problem(7)
    loss, _ = masked_language_modelling(logits, tokens=tokens, masked=masked)
    kwargs = {"tokens": tokens.astype(dtype), "masked": masked}
    assert masked_language_modelling(logits, **kwargs)[0] == loss
    np.testing.assert_allclose(twins.masked_language_modelling(logits, **kwargs), loss, rtol=1e-12)


@pytest.mark.parametrize("engine", [lambda *a, **k: next_sentence(*a, **k)[0], twins.next_sentence])
def test_class_0_means_that_the_sentence_follows(engine):
    """Turns red with 1 for what follows."""
    logits = np.array([[9.0, 2.0], [3.0, 10.0]])
    loss = engine(logits, follows=np.array([True, False]))
    np.testing.assert_allclose(loss, math.log1p(math.exp(-7)), rtol=1e-12)


@each_with_ignore
def test_a_label_that_is_not_known_yet_gives_nan_if_outside(reference, twin):
    """Turns red if one is clipped, or counted from the end."""
    run = jax.jit(lambda z, y: twin(z, labels=y))
    for outside in (11, -1):
        assert np.isnan(run(np.ones((3, 11)), np.array([1, outside, -100])))


def test_what_is_not_known_yet_gives_nan_if_outside():
    """Turns red if a masked token of -100 counts as ignored, or a label above 1 as any other."""
    run = jax.jit(lambda z, t, m: twins.masked_language_modelling(z, tokens=t, masked=m))
    masked = np.array([True, True, False])
    for outside in (11, -1, -100):
        assert np.isnan(run(np.ones((3, 11)), np.array([1, outside, 2]), masked))
        assert np.isfinite(run(np.ones((3, 11)), np.array([1, 2, outside]), masked))
    run = jax.jit(lambda z, y: twins.binary_cross_entropy(z, labels=y))
    for outside in (1.5, -0.1, np.nan):
        assert np.isnan(run(np.ones(2), np.array([0.5, outside])))


@each_with_ignore
@pytest.mark.parametrize(
    "labels, error, message",
    [
        (np.array([0, 11, 1]), InputError, r"labels\[1\] is 11, outside the vocabulary \[0, 11\)"),
        (np.array([0, 1, -1]), InputError, r"labels\[2\] is -1, outside .* not -100"),
        (np.array([0.0, 1, 1]), DtypeError, "labels is of float64; give an array of integers"),
        (np.array([0, 1]), InputError, r"labels has shape \(2,\), logits \(3, 11\)"),
    ],
)
def test_labels_that_are_none_are_named(reference, twin, labels, error, message):
    for engine in (reference, twin):
        with pytest.raises(error, match=message):
            engine(np.zeros((3, 11)), labels=labels)


def test_the_loss_of_bfloat16_is_float32():
    """Turns red if a twin computes in the dtype that it is given."""
    z = jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)
    integers, booleans = np.zeros(3, int), np.zeros(3, bool)
    for twin, kwargs in (
        (twins.binary_cross_entropy, {"labels": np.zeros((3, 2), bool)}),
        (twins.cross_entropy, {"labels": integers}),
        (twins.smoothed_cross_entropy, {"labels": integers, "smoothing": 0.1}),
        (twins.z_loss, {"labels": integers}),
        (twins.masked_language_modelling, {"tokens": integers, "masked": booleans}),
        (twins.next_sentence, {"follows": booleans}),
    ):
        assert jax.eval_shape(partial(twin, **kwargs), z).dtype == np.float32


TOKENS, MASKED = np.array([1, 7, 4]), np.array([False, True, True])


@pytest.mark.parametrize("module", [reference_losses, twins])
@pytest.mark.parametrize(
    "name, shape, kwargs, error, message",
    [
        (
            "binary_cross_entropy",
            (2,),
            {"labels": np.array([0, 1.5])},
            InputError,
            r"labels\[1\] is 1.5, outside \[0, 1\]; give booleans or probabilities",
        ),
        ("binary_cross_entropy", (2,), {"labels": np.array([-1, 0])}, InputError, "is -1, outside"),
        ("binary_cross_entropy", (1,), {"labels": np.array([np.nan])}, InputError, "is nan, out"),
        (
            "binary_cross_entropy",
            (3, 1),
            {"labels": MASKED},
            InputError,
            r"labels has shape \(3,\), logits \(3, 1\); give equal shapes",
        ),
        (
            "masked_language_modelling",
            (3, 5),
            {"tokens": TOKENS, "masked": MASKED},
            InputError,
            r"tokens\[1\] is 7, outside the vocabulary \[0, 5\)",
        ),
        (
            "masked_language_modelling",
            (3, 5),
            {"tokens": TOKENS / 2, "masked": MASKED},
            DtypeError,
            "tokens is of float64; give an array of integers",
        ),
        (
            "masked_language_modelling",
            (3, 11),
            {"tokens": TOKENS, "masked": TOKENS},
            DtypeError,
            "masked is of int64; give an array of booleans",
        ),
        (
            "masked_language_modelling",
            (3, 11),
            {"tokens": TOKENS, "masked": MASKED[:1]},
            InputError,
            r"masked has shape \(1,\), tokens \(3,\); give equal shapes",
        ),
        (
            "masked_language_modelling",
            (2, 11),
            {"tokens": TOKENS, "masked": MASKED},
            InputError,
            r"tokens has shape \(3,\), logits \(2, 11\)",
        ),
        (
            "next_sentence",
            (3, 2),
            {"follows": np.array([0, 1, 1])},
            DtypeError,
            "follows is of int64; give an array of booleans",
        ),
        ("next_sentence", (3, 3), {"follows": MASKED}, InputError, r"\(3, 3\); give two scores"),
        ("next_sentence", (2, 2), {"follows": MASKED}, InputError, r"follows has shape \(3,\)"),
        *(
            (
                "smoothed_cross_entropy",
                (3, 11),
                {"labels": TOKENS, "smoothing": smoothing},
                InputError,
                rf"smoothing is {smoothing}, outside \[0, 1\); give the share",
            )
            for smoothing in (-0.1, 1, math.nan)
        ),
    ],
)
def test_what_cannot_be_a_target_is_named(module, name, shape, kwargs, error, message):
    with pytest.raises(error, match=message):
        getattr(module, name)(np.zeros(shape), **kwargs)


def test_labels_of_8_bits_are_compared_as_wider_ones():
    """Turns red if 156, in 8 bits -100, is ignored, or V = 256 wraps to 0."""
    logits = np.random.default_rng(0).standard_normal((3, 256))
    for labels in (np.array([156, 1, 255], np.uint8), np.array([1, 2, -100], np.int8)):
        expected, _ = cross_entropy(logits, labels=labels.astype(np.int32))
        compiled = jax.jit(twins.cross_entropy)(logits, labels=labels)
        np.testing.assert_allclose(compiled, expected, rtol=1e-6)


@pytest.mark.parametrize("engine", [cross_entropy, twins.cross_entropy])
def test_a_list_of_labels_is_refused(engine):
    with pytest.raises(DtypeError, match="labels is a list; give an array of integers"):
        engine(np.zeros((3, 11)), labels=[1, 2, 3])
