from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accelerated.training.loop as accelerated
import reference.training.loop as reference
from reference import random, tree
from reference.errors import DtypeError, InputError
from reference.models.gpt import GPTConfig, initial_params
from reference.training.loop import TrainingConfig
from tests.mirror import assert_close

CONFIG = GPTConfig(vocabulary=17, context=7, layers=2, heads=3, width=15, dropout=0.1)
TRAINING = TrainingConfig(
    steps=200, batch=6, length=5, accumulation=3, warmup=20, dtype="float64", clip=0.5
)
ENGINES = [reference, accelerated]


def text(seed=0):
    """Tokens with something to learn: each is the last one plus 0, 1 or 2."""
    steps = np.random.default_rng(seed).integers(0, 3, 2000)
    return (steps.cumsum() % CONFIG.vocabulary).astype(np.int32)


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_200_steps_of_both_engines_in_float64_have_the_same_losses(seed):
    """With AdamW, clipping, dropout and accumulation."""
    training = replace(TRAINING, seed=seed)
    runs = (engine.train(CONFIG, training, text()) for engine in ENGINES)
    losses = np.array([[float(loss) for _, loss in both] for both in zip(*runs, strict=True)])
    assert losses.shape == (200, 2)
    assert np.abs(losses[:, 0] - losses[:, 1]).max() <= 1e-9
    assert losses[-1].max() < losses[0].min() - 0.5  # something was learnt


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(engine):
    training = replace(TRAINING, steps=12, warmup=2)
    whole = [float(loss) for _, loss in engine.train(CONFIG, training, text())]
    run = engine.train(CONFIG, training, text())
    for _ in range(5):
        state, _ = next(run)
    stopped = reference.State(state.step, *(tree.map(np.array, t) for t in state[1:]))
    kept = tree.map(np.copy, stopped.params)
    rest = engine.train(CONFIG, training, text(), state=stopped)
    assert [float(loss) for _, loss in rest] == whole[5:]
    tree.map(np.testing.assert_array_equal, stopped.params, kept)  # nothing of it was overwritten
    other = ENGINES[1 - ENGINES.index(engine)]
    losses = [float(loss) for _, loss in other.train(CONFIG, training, text(), state=stopped)]
    np.testing.assert_allclose(losses, whole[5:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_seed_is_one_run(engine):
    def losses(training):
        return [float(loss) for _, loss in engine.train(CONFIG, training, text())]

    short = replace(TRAINING, steps=3, warmup=1)
    assert losses(short) == losses(short)
    assert losses(short) != losses(replace(short, seed=1))


def problem(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    tokens, labels = rng.integers(0, CONFIG.vocabulary, (2, 6, 5))
    labels[rng.random((6, 5)) < 0.4] = -100
    labels[:2] = -100  # a part that keeps nothing
    params = initial_params(CONFIG, key=random.key(seed % 2**32), dtype=dtype)
    return params, {"tokens": tokens, "labels": labels, "config": replace(CONFIG, dropout=0.0)}


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([2, 3, 6]))
def test_accumulation_equals_the_big_batch(seed, parts):
    """Turns red with the mean of the parts' means: they keep different numbers of tokens."""
    params, batch = problem(seed)
    whole = reference.loss_and_gradients(params, **batch)
    assert_close(reference.loss_and_gradients(params, **batch, accumulation=parts), whole, 1e-12)


def test_accumulation_of_the_twin_equals_the_big_batch():
    params, batch = problem(0)
    whole = reference.loss_and_gradients(params, **batch)
    for parts in (1, 3):
        assert_close(
            accelerated.loss_and_gradients(params, **batch, accumulation=parts), whole, 1e-12
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_float32_stays_float32(engine):
    training = replace(TRAINING, steps=2, warmup=1, dtype="float32")
    for state, loss in engine.train(CONFIG, training, text()):
        assert loss.dtype == np.float32
        assert {a.dtype for t in state[1:] for a in tree.leaves(t)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "tokens, changes, error, message",
    [
        (np.arange(30), {}, InputError, r"tokens\[17\] is 17, outside the vocabulary"),
        (np.zeros(30), {}, DtypeError, "tokens is of float64"),
        (np.zeros(30, int), {}, InputError, "30 tokens, too few for a batch of 6 .* give 35"),
        (np.zeros(999, int), {"length": 8}, InputError, "sequence has 8 tokens, .* only 7"),
    ],
)
def test_a_text_that_cannot_be_trained_on_is_refused(engine, tokens, changes, error, message):
    with pytest.raises(error, match=message):
        next(engine.train(CONFIG, replace(TRAINING, **changes), tokens))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps is 0; give a positive integer"),
        ({"batch": 2.5}, "batch is 2.5"),
        ({"accumulation": 4}, "accumulation is 4, which does not divide the batch of 6"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; give a positive number"),
        ({"dtype": "float16"}, "dtype is 'float16'; give float32 or float64"),
        ({"warmup": 200}, "warmup is 200 of 200 steps"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(TRAINING, **changes)
