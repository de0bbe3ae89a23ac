import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from accelerated import functional
from accelerated.models.gpt import GPT
from reference import random, tree
from reference.errors import DtypeError, InputError
from reference.models import parameter_count
from reference.models.gpt import (
    PRESETS,
    GPTConfig,
    flops_per_token,
    gpt,
    gpt_hidden,
    gpt_logits,
    gpt_loss,
    initial_params,
)
from tests.mirror import MODEL, assert_gradient, assert_mirror, random_like

CONFIG = GPTConfig(vocabulary=17, context=7, layers=2, heads=3, width=15, dropout=0.2)


def params_of(config):
    params = initial_params(config, key=random.key(0), dtype=np.float64)
    return random_like(params, np.random.default_rng(0))


PARAMS = params_of(CONFIG)
APPLY, _ = functional(GPT.abstract(CONFIG))
LOSS, _ = functional(GPT.abstract(CONFIG), GPT.loss)
tokens_of = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).integers(0, CONFIG.vocabulary, (2, 5))
)


def ours(params, **batch):
    return gpt(params, config=CONFIG, **batch)


def our_loss(params, **batch):
    return gpt_loss(params, config=CONFIG, **batch)


def test_gpt_equals_its_twin():
    rng = np.random.default_rng(1)
    batch = {"tokens": rng.integers(0, 17, (2, 5)), "key": random.key(3)}
    assert_gradient(ours, PARAMS, **batch, rng=rng)
    assert_mirror(ours, APPLY, PARAMS, **batch, rng=rng, tolerance=MODEL, narrow={})


HEADED = replace(CONFIG, layers=1, head="sequence_classification", labels=5)


def test_gpt_hidden_equals_its_twin():
    """The gradient of the head's parameters, which it does not read, is 0 in both."""
    rng = np.random.default_rng(5)
    apply, _ = functional(GPT.abstract(HEADED), GPT.hidden)
    batch = {"tokens": rng.integers(0, 17, (2, 5)), "key": random.key(3)}
    hidden, params = partial(gpt_hidden, config=HEADED), params_of(HEADED)
    assert_gradient(hidden, params, **batch, rng=rng)
    assert_mirror(hidden, apply, params, **batch, rng=rng, tolerance=MODEL, narrow={})


def test_gpt_logits_equal_their_twin():
    """Of a text's class.  Turns red if the last token is read for the last one that is kept."""
    rng = np.random.default_rng(6)
    apply, _ = functional(GPT.abstract(HEADED), GPT.logits)
    kept = np.arange(5) < np.array([[4], [2]])
    batch = {"tokens": rng.integers(0, 17, (2, 5)), "kept": kept, "key": random.key(3)}
    logits, params = partial(gpt_logits, config=HEADED), params_of(HEADED)
    assert_gradient(logits, params, **batch, rng=rng)
    assert_mirror(logits, apply, params, **batch, rng=rng, tolerance=MODEL, narrow={})


def test_gpt_loss_equals_its_twin():
    """With tied weights, dropout, and labels to ignore."""
    rng = np.random.default_rng(2)
    tokens, labels = rng.integers(0, 17, (2, 3, 5))
    labels[1, 3:] = -100
    batch = {"tokens": tokens, "labels": labels, "key": random.key(3)}
    assert_gradient(our_loss, PARAMS, **batch, rng=rng)
    narrow = {np.float32: 2}
    assert_mirror(our_loss, LOSS, PARAMS, **batch, rng=rng, tolerance=MODEL, narrow=narrow)


def test_gpt_loss_of_packed_documents_equals_its_twin_and_that_of_each_alone():
    """Turns red if positions go on from one document to the next."""
    rng = np.random.default_rng(4)
    tokens, labels = rng.integers(0, 17, (2, 2, 7))
    ids = np.array([[1, 1, 1, 2, 2, 2, 2], [5, 5, 5, 5, 5, 3, 3]])
    batch = {"tokens": tokens, "labels": labels, "documents": ids}
    noise = {"key": random.key(3)}
    assert_gradient(our_loss, PARAMS, **batch, **noise, rng=rng)
    options = {"rng": rng, "tolerance": MODEL, "narrow": {}}
    assert_mirror(our_loss, LOSS, PARAMS, **batch, **noise, **options)
    total = 0.0
    for row, alone in ((0, slice(3)), (0, slice(3, 7)), (1, slice(5)), (1, slice(5, 7))):
        one = {"tokens": tokens[row, None, alone], "labels": labels[row, None, alone]}
        total += our_loss(PARAMS, **one)[0] * one["labels"].size
    np.testing.assert_allclose(our_loss(PARAMS, **batch)[0], total / 14, rtol=1e-12)


@given(tokens_of, st.integers(0, 4), st.integers(0, 16))
def test_no_position_sees_the_future(tokens, t, other):
    """An exact zero.  Turns red if the causal mask admits s = t + 1."""
    changed = tokens.copy()
    changed[:, t] = other
    logits, after = ours(PARAMS, tokens=tokens)[0], ours(PARAMS, tokens=changed)[0]
    np.testing.assert_array_equal(logits[:, :t], after[:, :t])


@given(tokens_of, st.integers(0, 3))
def test_no_gradient_comes_from_the_future(tokens, t):
    """The derivative of what stands up to t by the places after t is exactly zero."""
    logits, backward = ours(PARAMS, tokens=tokens)
    dlogits = np.where(np.arange(5)[:, None] <= t, np.cos(logits), 0)
    dposition = backward(dlogits)["position"]["embedding"]
    assert not dposition[t + 1 :].any() and dposition[: t + 1].all()


def test_the_twin_sees_no_future_either():
    apply = jax.jit(APPLY)
    tokens = np.random.default_rng(3).integers(0, 17, (2, 5))
    logits = apply(PARAMS, tokens=tokens)
    for t in range(5):
        changed = tokens.copy()
        changed[:, t] += np.where(tokens[:, t] < 16, 1, -1)
        after = apply(PARAMS, tokens=changed)
        np.testing.assert_array_equal(logits[:, :t], after[:, :t])
        assert (logits[:, t] != after[:, t]).any()


@given(tokens_of)
def test_sequences_of_a_batch_do_not_meet(tokens):
    """Turns red if an axis is merged with the batch's."""
    logits, _ = ours(PARAMS, tokens=tokens)
    turned, _ = ours(PARAMS, tokens=tokens[::-1])
    np.testing.assert_allclose(turned, logits[::-1], rtol=1e-11, atol=1e-12)


@given(tokens_of)
def test_dropout_of_rate_0_is_none(tokens):
    config = GPTConfig(17, 7, layers=2, heads=3, width=15)
    with_key, _ = gpt(PARAMS, tokens=tokens, config=config, key=random.key(1))
    np.testing.assert_array_equal(with_key, ours(PARAMS, tokens=tokens)[0])


# Sizes and initial weights


def test_the_presets_have_the_published_numbers_of_parameters():
    """Of the released checkpoints, which the paper's table calls 117M, 345M, 762M and 1542M."""
    published = {
        "gpt2": 124_439_808,
        "gpt2_medium": 354_823_168,
        "gpt2_large": 774_030_080,
        "gpt2_xl": 1_557_611_200,
    }
    ours = {"nano": 137_136, "micro": 940_800, "mini": 2_915_328}
    expected = published | ours
    assert {name: parameter_count(config) for name, config in PRESETS.items()} == expected
    assert {name for name, config in PRESETS.items() if config.dropout == 0.1} == set(published)
    assert {(PRESETS[name].vocabulary, PRESETS[name].context) for name in published} == {
        (50257, 1024)
    }


def test_parameters_are_as_many_as_counted_and_named_as_the_twin_s():
    ours = initial_params(CONFIG, key=random.key(0))
    _, theirs = functional(GPT(CONFIG, rngs=nnx.Rngs(0)))
    assert sum(a.size for a in tree.leaves(ours)) == parameter_count(CONFIG)
    tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), ours, theirs)


def test_flops_are_those_that_xla_counts():
    """XLA counts exponentials and sums too, hence a tenth."""
    config = GPTConfig(101, 64, layers=2, heads=4, width=64)
    params = initial_params(config, key=random.key(0))
    loss, _ = functional(GPT.abstract(config), GPT.loss)
    batch = {name: np.zeros((2, 64), np.int32) for name in ("tokens", "labels")}
    compiled = jax.jit(jax.grad(loss)).lower(params, **batch).compile()
    counted = compiled.cost_analysis()["flops"] / (2 * 64)
    assert abs(counted / flops_per_token(config, 64) - 1) < 0.1


@pytest.mark.parametrize("initialization", ["paper", "released", "scaled"])
def test_initial_weights_have_the_published_deviations(initialization):
    """Each within 5 standard errors.  Turns red without the factor 1/√(2 L), or with that of the
    width in a table.
    """
    config = GPTConfig(1009, 64, layers=3, heads=4, width=64)
    key = random.key(0)
    params = initial_params(config, key=key, initialization=initialization)
    for path, a in tree.flatten(params).items():
        name = path.split(".")[-2:]
        if name[1] in ("bias", "scale"):
            assert (a == (name[1] == "scale")).all()
            continue
        std = 0.01 if name[0] == "position" else 0.02
        if name[0] in ("out", "down") and initialization != "released":
            std /= math.sqrt(2 * 3)
        if name[1] == "kernel" and initialization == "scaled":
            std *= math.sqrt(768 / 64)
        assert abs(a.std() / std - 1) < 5 / math.sqrt(2 * a.size), path
        assert abs(a.mean()) < 5 * std / math.sqrt(a.size), path


def test_initial_weights_are_one_drawing_in_every_precision():
    draw = [initial_params(CONFIG, key=random.key(1), dtype=d) for d in (np.float32, np.float64)]
    tree.map(np.testing.assert_array_equal, *draw)
    blocks = [block["attention"]["sublayer"]["query"]["kernel"] for block in draw[0]["blocks"]]
    assert (blocks[0] != blocks[1]).all()
    with pytest.raises(InputError, match="initialization is 'xavier'; give one of paper, released"):
        initial_params(CONFIG, key=random.key(1), initialization="xavier")


# Bad input


@pytest.mark.parametrize("engine", [ours, APPLY])
@pytest.mark.parametrize(
    "tokens, error, message",
    [
        (
            np.array([[0, 17]]),
            InputError,
            r"tokens\[0, 1\] is 17, outside the vocabulary \[0, 17\)",
        ),
        (np.array([[0], [-1]]), InputError, r"tokens\[1, 0\] is -1, outside"),
        (np.array([[2**33 + 5]]), InputError, r"tokens\[0, 0\] is 8589934597"),
        (np.array([[1.0, 2.0]]), DtypeError, "tokens is of float64; give an array of integers"),
        (np.zeros((0, 5), int), InputError, r"tokens has shape \(0, 5\); give \(B, T\)"),
        (np.zeros((2, 0), int), InputError, r"tokens has shape \(2, 0\)"),
        (np.zeros(5, int), InputError, r"tokens has shape \(5,\)"),
        (
            np.zeros((2, 8), int),
            InputError,
            "the sequence has 8 tokens, the model's context only 7",
        ),
    ],
)
def test_tokens_that_cannot_be_read_are_named(engine, tokens, error, message):
    with pytest.raises(error, match=message):
        engine(PARAMS, tokens=tokens)


def test_what_is_wrong_while_compiling_is_said_then():
    with pytest.raises(InputError, match="the sequence has 8 tokens"):
        jax.jit(APPLY)(PARAMS, tokens=np.zeros((2, 8), int))
    with pytest.raises(DtypeError, match="tokens is of float32"):
        jax.jit(APPLY)(PARAMS, tokens=np.zeros((2, 5), np.float32))
    with pytest.raises(InputError, match="labels has shape"):
        jax.jit(LOSS)(PARAMS, tokens=np.zeros((2, 5), int), labels=np.zeros((2, 4), int))


@pytest.mark.parametrize("outside", [-1, 17, 100])
def test_a_token_that_is_not_known_while_compiling_gives_nan_never_another_row(outside):
    """Turns red if a gather clamps or wraps."""
    tokens = np.array([[1, 2, 3, 4, 5], [1, 2, outside, 4, 5]])
    logits = jax.jit(APPLY)(PARAMS, tokens=tokens)
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).all()
    assert np.isnan(jax.jit(LOSS)(PARAMS, tokens=tokens[:1], labels=tokens[1:]))


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"heads": 4}, "4 heads do not divide the width 15"),
        ({"layers": 0}, "layers is 0; give a positive integer"),
        ({"width": 15.0}, "width is 15.0; give a positive integer"),
        ({"dropout": 1.0}, "the dropout rate is 1.0"),
    ],
)
def test_sizes_that_make_no_model_are_refused(sizes, message):
    valid = {"vocabulary": 17, "context": 7, "layers": 2, "heads": 3, "width": 15}
    with pytest.raises(InputError, match=message):
        GPTConfig(**valid | sizes)
