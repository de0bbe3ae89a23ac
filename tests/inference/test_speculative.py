from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.inference.speculative as twins
from reference import random
from reference.errors import InputError
from reference.inference import generate
from reference.inference.speculative import number_kept, speculate
from reference.models import model_of
from reference.models.gpt import GPTConfig
from reference.models.llama import LlamaConfig
from tests.mirror import random_like, read_only

GPT = GPTConfig(vocabulary=11, context=24, layers=2, heads=3, width=15)
LLAMA = LlamaConfig(11, 24, 1, 2, 1, 8, 10)
KEY = random.key(5)
PROMPT = np.array([3, 1, 4, 1, 5])
ENGINES = (speculate, twins.speculate)


def params_of(config, seed):
    params = model_of(config).initial_params(config, key=random.key(0), dtype=np.float64)
    return read_only(random_like(params, np.random.default_rng(seed)))


LARGE, SMALL = params_of(GPT, 0), params_of(LLAMA, 1)
TASK = {"tokens": PROMPT, "steps": 11, "config": GPT, "draft_config": LLAMA}


@pytest.mark.parametrize("engine, window", [(speculate, 1), (speculate, 5), (twins.speculate, 4)])
def test_without_chance_it_is_the_text_of_the_model_alone(engine, window):
    """Turns red if a cache keeps what was refused."""
    alone = generate(LARGE, tokens=PROMPT, steps=11, config=GPT)
    for options in ({}, {"key": KEY, "temperature": 0}):
        written, rounds = engine(LARGE, SMALL, **TASK, window=window, **options)
        np.testing.assert_array_equal(written, alone)
        assert 11 / (window + 1) <= rounds <= 11


def test_a_model_that_is_its_own_draft_agrees_with_itself():
    for options in ({}, {"key": KEY}):
        task = TASK | {"draft_config": GPT} | options
        _, rounds = speculate(LARGE, LARGE, **task, window=3)
        assert rounds == 3  # of 4 tokens each


@pytest.mark.parametrize(
    "prompt, options",
    [(PROMPT[:1], {"top_p": 0.9}), (PROMPT, {"temperature": 0.6, "top_k": 5, "stop": (2, 7)})],
    ids=str,
)
def test_both_engines_write_the_same(prompt, options):
    task = TASK | {"tokens": prompt, "window": 3} | options
    for key in (KEY, random.key(8)):
        runs = [engine(LARGE, SMALL, **task, key=key) for engine in ENGINES]
        (ours, our_rounds), (theirs, their_rounds) = runs
        np.testing.assert_array_equal(ours, theirs)
        assert our_rounds == their_rounds


def test_what_is_written_has_the_model_s_distribution_exactly():
    """Over all texts of two tokens, each within 5 standard errors of its probability.

    Turns red if the draft's choice is always kept, or what is drawn anew comes from p.
    """
    tiny = GPTConfig(vocabulary=3, context=8, layers=1, heads=1, width=4)
    draft = replace(tiny, width=2)
    large, small = params_of(tiny, 2), params_of(draft, 3)
    prompt, number = np.array([1]), 1200
    counts = np.zeros((3, 3))
    for i in range(number):
        written, _ = speculate(
            large,
            small,
            tokens=prompt,
            steps=2,
            config=tiny,
            draft_config=draft,
            window=2,
            key=random.fold_in(KEY, i),
        )
        counts[tuple(written)] += 1
    loss = model_of(tiny).loss
    expected = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            batch = {"tokens": np.array([[1, a]]), "labels": np.array([[a, b]])}
            expected[a, b] = np.exp(-2 * loss(large, **batch, config=tiny)[0])
    deviation = np.sqrt(number * expected * (1 - expected))
    assert (np.abs(counts - number * expected) < 5 * deviation).all()


@given(st.integers(0, 2**32))
def test_the_first_guesses_are_kept_until_one_is_not(seed):
    """Turns red if a guess after one that was refused is kept."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(4), 6), rng.dirichlet(np.ones(4), 5)
    guesses, key = rng.integers(0, 4, 5), random.key(seed % 2**32)
    u = random.uniform(key, (5,))
    each = np.arange(5)
    kept = u < p[each, guesses] / q[each, guesses]
    assert number_kept(guesses, p, q, key) == (5 if kept.all() else int(np.argmin(kept)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "change, message",
    [
        ({"window": 0}, "window is 0; give the number of guesses"),
        ({"draft_config": replace(LLAMA, vocabulary=12)}, "the draft's vocabulary has 12 tokens"),
        ({"steps": 16}, "5 tokens and 20 new ones are 25, the model's context is 24"),
        ({"steps": 0}, "steps is 0"),
        ({"top_k": 12}, "top_k is 12"),
    ],
)
def test_what_cannot_be_speculated_on_is_refused(engine, change, message):
    with pytest.raises(InputError, match=message):
        engine(LARGE, SMALL, **TASK | change)
