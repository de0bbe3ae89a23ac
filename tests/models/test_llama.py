import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.training as accelerated_training
import reference.training as reference_training
from accelerated import functional
from accelerated.models.llama import Llama
from reference import random, tree
from reference.data.batches import Arrays
from reference.errors import InputError
from reference.models.llama import (
    PRESETS,
    LlamaConfig,
    Scaling,
    flops_per_token,
    initial_params,
    llama,
    llama_hidden,
    llama_logits,
    llama_loss,
    parameter_shapes,
)
from reference.training import TrainingConfig
from tests.mirror import MODEL, assert_gradient, assert_mirror, random_like

SCALING = Scaling(8.0, 1.0, 4.0, 16)
# Grouped, with heads wider than the width's share, a stretched rotation and a window.
CONFIG = LlamaConfig(
    *(17, 12, 2, 6, 3, 24, 10), head_width=6, base=500.0, scaling=SCALING, window=4
)
TIED = LlamaConfig(17, 12, 2, 2, 1, 8, 10, tied=True, epsilon=1e-6)


def params_of(config, seed=0):
    params = initial_params(config, key=random.key(0), dtype=np.float64)
    return random_like(params, np.random.default_rng(seed))


PARAMS = params_of(CONFIG)
batches = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).integers(0, 17, (2, 7))
)


def ours(params, config=CONFIG, **batch):
    return llama(params, config=config, **batch)


def our_loss(params, config=CONFIG, **batch):
    return llama_loss(params, config=config, **batch)


def test_llama_equals_its_twin():
    rng = np.random.default_rng(1)
    apply, _ = functional(Llama.abstract(CONFIG))
    tokens = rng.integers(0, 17, (2, 7))
    assert_gradient(ours, PARAMS, tokens=tokens, rng=rng)
    options = {"rng": rng, "tolerance": MODEL, "narrow": {}}
    assert_mirror(ours, apply, PARAMS, tokens=tokens, **options)


def test_ten_steps_of_both_engines_are_equal():
    """In float64, from the published initial weights, with padding."""
    tokens, labels = np.random.default_rng(8).integers(0, 17, (2, 13, 6))
    labels[3, 2:] = -100
    training = TrainingConfig(steps=10, batch=4, warmup=2, dtype="float64", learning_rate=0.01)
    losses = []
    for engine in (reference_training, accelerated_training):
        data = Arrays({"tokens": tokens, "labels": labels}, batch=4, key=random.key(1))
        run = engine.train(CONFIG, training, data)
        losses.append([np.ravel(figures["loss"])[0] for _, figures in run])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-9)
    assert losses[0][0] == pytest.approx(math.log(17), abs=0.1) and len(losses[0]) == 10


HEADED = replace(TIED, layers=1, head="token_classification", labels=5)


def test_llama_hidden_equals_its_twin():
    """The gradient of the head's parameters, which it does not read, is 0 in both."""
    rng = np.random.default_rng(5)
    apply, _ = functional(Llama.abstract(HEADED), Llama.hidden)
    hidden, params = partial(llama_hidden, config=HEADED), params_of(HEADED)
    batch = {"tokens": rng.integers(0, 17, (2, 7))}
    assert_gradient(hidden, params, **batch, rng=rng)
    assert_mirror(hidden, apply, params, **batch, rng=rng, tolerance=MODEL, narrow={})


def test_llama_logits_equal_their_twin():
    """Of each token's class, with the classifier's dropout.  Turns red with another key of it."""
    rng = np.random.default_rng(6)
    apply, _ = functional(Llama.abstract(HEADED), Llama.logits)
    logits, params = partial(llama_logits, config=HEADED), params_of(HEADED)
    batch = {"tokens": rng.integers(0, 17, (2, 7)), "key": random.key(3)}
    assert_gradient(logits, params, **batch, rng=rng)
    assert_mirror(logits, apply, params, **batch, rng=rng, tolerance=MODEL, narrow={})


def test_llama_loss_equals_its_twin():
    """Tied, with labels to ignore and packed documents."""
    rng = np.random.default_rng(2)
    params = params_of(TIED)
    loss, _ = functional(Llama.abstract(TIED), Llama.loss)
    tokens, labels = rng.integers(0, 17, (2, 2, 7))
    labels[1, 3:] = -100
    documents = np.array([[1, 1, 1, 2, 2, 2, 2], [4, 4, 4, 4, 4, 4, 0]])
    batch = {"tokens": tokens, "labels": labels, "documents": documents}

    def tied(params, **batch):
        return our_loss(params, config=TIED, **batch)

    assert_gradient(tied, params, **batch, rng=rng)
    options = {"rng": rng, "tolerance": MODEL, "narrow": {}}
    assert_mirror(tied, loss, params, **batch, **options)


@given(batches, st.integers(0, 6), st.integers(0, 16))
def test_no_position_sees_the_future_nor_what_the_windows_have_left_behind(tokens, t, other):
    """Exact zeros: two layers of a window of 4 reach 6 back.  Turns red with a window of 5."""
    changed = tokens.copy()
    changed[:, t] = other
    logits, after = (ours(PARAMS, tokens=each)[0] for each in (tokens, changed))
    reached = slice(t, t + 2 * (CONFIG.window - 1) + 1)
    apart = np.ones(7, bool)
    apart[reached] = False
    np.testing.assert_array_equal(logits[:, apart], after[:, apart])


@given(batches)
def test_what_is_said_does_not_depend_on_where_a_text_begins(tokens):
    """Only distances count: a document in a sequence is what it is alone.  Turns red if a rotation
    has the query's position for the key's.
    """
    documents = np.array([[3, 3, 8, 8, 8, 8, 8]] * 2)
    logits, _ = ours(PARAMS, tokens=tokens, documents=documents)
    alone, _ = ours(PARAMS, tokens=tokens[:, 2:])
    np.testing.assert_allclose(logits[:, 2:], alone, rtol=0, atol=1e-10)


def test_recomputation_changes_no_bit():
    tokens = np.random.default_rng(3).integers(0, 17, (2, 7))
    batch = {"tokens": tokens, "labels": tokens}
    for (_, kept), (_, again) in [[our_loss(PARAMS, **batch, recompute=r) for r in (False, True)]]:
        tree.map(np.testing.assert_array_equal, kept(1.0), again(1.0))


def test_the_published_sizes_have_the_published_numbers_of_weights():
    """In billions, of the papers' tables and the released files; one size is ours."""
    counts = {
        name: sum(math.prod(shape) for shape in parameter_shapes(config).values()) / 1e9
        for name, config in PRESETS.items()
        if name != "llama_micro"
    }
    expected = {"llama_7b": 6.74, "llama_13b": 13.02, "llama_33b": 32.53, "llama_65b": 65.29}
    expected |= {"llama2_7b": 6.74, "llama2_13b": 13.02, "llama2_70b": 68.98}
    expected |= {"llama3_8b": 8.03, "llama3_70b": 70.55, "llama3.1_8b": 8.03}
    expected |= {"llama3.1_70b": 70.55, "llama3.1_405b": 405.85, "llama3.2_1b": 1.24}
    expected |= {"llama3.2_3b": 3.21, "mistral_7b": 7.24}
    assert {name: round(count, 2) for name, count in counts.items()} == expected


def test_initial_weights_have_the_deviation_of_the_released_settings():
    params = tree.flatten(initial_params(replace(TIED, width=64, heads=4), key=random.key(3)))
    for path, a in params.items():
        if path.endswith("scale"):
            assert (a == 1).all()
        else:
            assert abs(a.std() / 0.02 - 1) < 5 / math.sqrt(2 * a.size), path
        assert a.dtype == np.float32
    with pytest.raises(InputError, match="initialization is 'none'; give one of paper"):
        initial_params(TIED, key=random.key(0), initialization="none")


def test_flops_are_those_that_xla_counts():
    config = LlamaConfig(101, 64, 2, 4, 2, 64, 160)
    params = initial_params(config, key=random.key(0))
    loss, _ = functional(Llama.abstract(config), Llama.loss)
    batch = {name: np.zeros((2, 64), np.int32) for name in ("tokens", "labels")}
    compiled = jax.jit(jax.grad(loss)).lower(params, **batch).compile()
    counted = compiled.cost_analysis()["flops"] / (2 * 64)
    assert abs(counted / flops_per_token(config, 64) - 1) < 0.1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"groups": 4}, "groups"),
        ({"heads": 5, "head_width": None}, "5 heads do not divide the width 24"),
        ({"hidden": 0}, "hidden is 0; give a positive integer"),
        ({"head_width": 5}, "5"),
        ({"window": 0}, "size is 0"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"base": 0.5}, "base is 0.5"),
    ],
)
def test_sizes_that_make_no_model_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)
