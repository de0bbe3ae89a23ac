import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.inference.sampling as twins
from reference import random
from reference.errors import InputError
from reference.inference.sampling import penalize, restrict, sample
from tests.peers import peer

ENGINES = (restrict, twins.restrict)
FLOATS = (np.float32, np.float64)
# Few different numbers, so that many are equal; the two zeros are, too.
tied = st.lists(st.sampled_from([-2.5, -0.0, 0.0, 1.0, 3.0]), min_size=1, max_size=9)


def largest(row, k):
    """The places of the k largest numbers, one by one: the definition, ties included."""
    return set(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k])


@given(tied, st.data(), st.sampled_from([0.3, 1.0, 7]), st.sampled_from(FLOATS))
def test_exactly_the_k_largest_stay_and_ties_go_to_the_lower_index(row, data, temperature, dtype):
    logits = np.array([row, row[::-1]], dtype)
    logits.flags.writeable = False
    k = data.draw(st.integers(1, len(row)))
    restricted = restrict(logits, temperature=temperature, top_k=k)
    assert restricted.dtype == dtype
    for before, after in zip(logits, restricted, strict=True):
        kept = largest(before.tolist(), k)
        assert set(np.flatnonzero(after > -np.inf)) == kept
        for i in kept:
            assert after[i] == before[i] / dtype(temperature)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 4, 10, 11, None])
def test_both_engines_restrict_alike(k, dtype):
    """What is cut off exactly; XLA multiplies by 1 / τ, which rounds once more."""
    rng = np.random.default_rng(0)
    logits = rng.choice([-2.5, -0.0, 0.0, 1, 3], (2, 7, 11)).astype(dtype)
    for options in ({}, {"temperature": 0.7}, {"temperature": np.float64(3)}, {"temperature": 0}):
        ours, theirs = (engine(logits, top_k=k, **options) for engine in ENGINES)
        assert theirs.dtype == ours.dtype == dtype
        np.testing.assert_allclose(theirs, ours, rtol=2 * np.finfo(dtype).eps)


@given(tied, st.sampled_from([0.2, 0.5, 0.9, 1.0]), st.sampled_from([0.4, 1.0, 2.0]))
def test_top_p_keeps_the_fewest_whose_sum_reaches_it(row, top_p, temperature):
    """Turns red if the one that reaches it is cut off, or the next stays."""
    logits = np.array(row)
    kept = np.flatnonzero(restrict(logits, temperature=temperature, top_p=top_p) > -np.inf)
    shares = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    assert set(kept) == largest(row, len(kept))
    assert shares[kept].sum() >= top_p - 1e-12
    assert shares[kept].sum() - shares[kept].min() < top_p + 1e-12


@given(tied, st.sampled_from([0.01, 0.3, 1.0]))
def test_min_p_keeps_those_with_a_share_of_the_likeliest(row, min_p):
    """Turns red if the share is of all, and not of the likeliest."""
    kept = restrict(np.array(row), min_p=min_p) > -np.inf
    shares = np.exp(np.array(row) - max(row))
    np.testing.assert_array_equal(kept[shares > min_p + 1e-9], True)
    np.testing.assert_array_equal(kept[shares < min_p - 1e-9], False)


OPTIONS = [
    {"temperature": 0.7, "top_k": 7},
    {"top_p": 0.6},
    {"temperature": 3.0, "top_p": 0.3},
    {"min_p": 0.2},
    {"temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_cut_off_is_what_hugging_face_cuts_off(options):
    """In its order: temperature, top-k, top-p, min-p."""
    torch, processors = peer("torch"), peer("transformers").generation.logits_process
    logits = np.random.default_rng(1).standard_normal((50, 17)) * 2
    classes = {
        "temperature": processors.TemperatureLogitsWarper,
        "top_k": processors.TopKLogitsWarper,
        "top_p": processors.TopPLogitsWarper,
        "min_p": processors.MinPLogitsWarper,
    }
    expected = torch.tensor(logits)
    for name, process in classes.items():
        if name in options:
            expected = process(options[name])(None, expected)
    for engine in ENGINES:
        np.testing.assert_allclose(engine(logits, **options), expected.numpy(), rtol=1e-12)


def test_the_penalty_of_repetition_is_hugging_face_s():
    torch, processors = peer("torch"), peer("transformers").generation.logits_process
    logits = np.random.default_rng(2).standard_normal(17)
    text = np.array([3, 3, 9, 0])
    process = processors.RepetitionPenaltyLogitsProcessor(1.4)
    expected = process(torch.tensor(text[None]), torch.tensor(logits[None]))[0].numpy()
    np.testing.assert_allclose(penalize(logits, text, repetition_penalty=1.4), expected, rtol=1e-14)
    seen = np.isin(np.arange(17), text)
    theirs = twins.penalize(logits, seen, repetition_penalty=1.4)
    np.testing.assert_allclose(theirs, expected, rtol=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_top_k_all_stay_and_at_temperature_0_the_first_of_the_largest(engine):
    logits = np.array([1.0, 4.0, 4.0, -3.0])
    np.testing.assert_array_equal(engine(logits, temperature=2), logits / 2)
    expected = [-np.inf, 4, -np.inf, -np.inf]
    np.testing.assert_array_equal(engine(logits, temperature=0, top_k=3), expected)


@pytest.mark.parametrize("engine", [sample, twins.sample])
def test_without_a_key_or_temperature_the_first_of_the_largest_is_chosen(engine):
    logits = np.array([[1.0, 4.0, 4.0], [5.0, 4.0, 5.0]])
    np.testing.assert_array_equal(engine(None, logits, temperature=9), [1, 0])
    np.testing.assert_array_equal(engine(random.key(1), logits, temperature=0), [1, 0])


@pytest.mark.parametrize("dtype, top_k", [(np.float32, 5), (np.float64, None)])
def test_both_engines_draw_the_same_tokens(dtype, top_k):
    """The twin compiled, its temperature not known while it is."""
    logits = np.random.default_rng(0).standard_normal((3, 997, 17)).astype(dtype)
    compiled = jax.jit(twins.sample, static_argnames="top_k")
    for temperature in (0.4, 1.0, 3.0):
        options = {"temperature": temperature, "top_k": top_k}
        drawn = compiled(random.key(3), logits, **options)
        np.testing.assert_array_equal(drawn, sample(random.key(3), logits, **options))


@pytest.mark.parametrize("temperature, k", [(1.0, None), (0.5, None), (2.5, 3)])
def test_tokens_come_as_often_as_the_softmax_says(temperature, k):
    """Each within 5 standard errors, and never one that was cut off."""
    n, logits = 100_000, np.array([0.3, -1.0, 2.0, 0.9, -0.2])
    shares = np.exp(logits / temperature)
    if k is not None:
        shares[[1, 4]] = 0
    shares /= shares.sum()
    rows = np.broadcast_to(logits, (n, 5))
    drawn = sample(random.key(0), rows, temperature=temperature, top_k=k)
    counts = np.bincount(drawn, minlength=5)
    assert (np.abs(counts - n * shares) <= 5 * np.sqrt(n * shares)).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -0.5}, r"temperature is -0.5; give a number in \[1e-9, 1e9\], or 0"),
        ({"temperature": np.nan}, "temperature is nan"),
        ({"temperature": np.inf}, "temperature is inf"),
        ({"temperature": 1e-300}, "temperature is 1e-300"),
        ({"top_k": 0}, "top_k is 0; give an integer from 1 to the vocabulary's 5, or None"),
        ({"top_k": 6}, "top_k is 6"),
        ({"top_k": 2.0}, "top_k is 2.0"),
    ],
)
def test_what_restricts_to_nothing_is_refused(engine, options, message):
    with pytest.raises(InputError, match=message):
        engine(np.zeros((2, 5)), **options)


def test_logits_that_nothing_can_be_drawn_from_are_refused():
    with pytest.raises(InputError, match=r"logits\[1\] has nan"):
        sample(random.key(0), np.array([[0.0, 1.0], [np.nan, 1.0]]))
