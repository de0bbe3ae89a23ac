import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.inference.decoding as twins
import accelerated.training as accelerated
import reference.training as reference
from accelerated import functional
from accelerated.models.gpt import GPT
from accelerated.training.compilation import with_stacks
from reference import random, tree
from reference.data.batches import Arrays
from reference.errors import CheckpointError, InputError
from reference.inference.cache import decode, make_cache
from reference.models import config_of, described, parameter_count
from reference.models.gpt import (
    GPTConfig,
    flops_per_token,
    gpt,
    gpt_loss,
    initial_params,
)
from reference.models.gpt3 import PUBLISHED, SIZES, training_of
from reference.training import TrainingConfig
from reference.training.config import rate
from tests.mirror import MODEL, assert_close, assert_gradient, assert_mirror, random_like

# Banded, with heads that together are wider than the model, as in "XL"; an odd number of blocks.
CONFIG = GPTConfig(17, 13, layers=3, heads=3, width=10, dropout=0.2, head_width=4, band=3)


def params_of(config, seed=0):
    params = initial_params(config, key=random.key(0), dtype=np.float64)
    return random_like(params, np.random.default_rng(seed))


PARAMS = params_of(CONFIG)
LOOP, _ = functional(GPT.abstract(CONFIG, unroll=1), GPT.loss)
TOKENS = np.random.default_rng(1).integers(0, 17, (2, 9))


def our_loss(params, **batch):
    return gpt_loss(params, config=CONFIG, **batch)


def looped(params, **batch):
    """The twin with its blocks in a compiled loop, of which the third is left over."""
    stacked = {name: part for name, part in params.items() if name != "blocks"}
    stacked["blocks"] = jax.tree.map(lambda *layers: jnp.stack(layers), *params["blocks"])
    return LOOP(stacked, **batch)


def test_a_gpt_with_bands_equals_its_twin_in_a_compiled_loop():
    """With packed documents, and dropout: each block has its own mask, parameters and noise.  (One
    by one they are compared with Hugging Face's, in tests/pretrained/test_gpt_neo.py.)

    Turns red if the loop begins with a band, or leaves out the last block of an odd number.
    """
    rng = np.random.default_rng(2)
    documents = np.array([[1] * 6 + [2] * 3, [4] * 9])
    batch = {"tokens": TOKENS, "labels": TOKENS[:, ::-1].copy(), "documents": documents}
    batch["key"] = random.key(3)
    assert_gradient(our_loss, PARAMS, **batch, rng=rng)
    assert_mirror(our_loss, looped, PARAMS, **batch, rng=rng, tolerance=MODEL, narrow={})


@pytest.mark.parametrize("layers, unroll", [(1, 1), (2, 1), (4, 3)])
def test_a_compiled_loop_turns_for_each_two_blocks(layers, unroll):
    """Whatever is unrolled, and for one block too."""
    config = replace(CONFIG, layers=layers)
    loss, _ = functional(GPT.abstract(config, unroll=unroll), GPT.loss)
    stacked = with_stacks(params_of(config))
    batch = {"tokens": TOKENS, "labels": TOKENS, "key": random.key(3)}
    made = jax.eval_shape(jax.value_and_grad(loss), stacked, **batch)
    assert made[0].shape == ()
    tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), made[1], stacked)


def test_a_compiled_loop_is_as_long_for_any_number_of_blocks():
    """Turns red if blocks are compiled one by one."""
    programs = []
    for layers in (4, 8):
        config = replace(CONFIG, layers=layers)
        loss, _ = functional(GPT.abstract(config, unroll=1), GPT.loss)
        stacked = with_stacks(params_of(config))
        batch = {"tokens": TOKENS, "labels": TOKENS, "key": random.key(3)}
        programs.append(jax.jit(jax.grad(loss)).lower(stacked, **batch).as_text())
    assert len(programs[0].splitlines()) == len(programs[1].splitlines())


def one_mixing(config, layer):
    """Parameters with which only one block's attention carries anything from place to place."""
    params = params_of(replace(config, dropout=0.0), seed=5)
    for i, block in enumerate(params["blocks"]):
        if i != layer:
            tree.map(lambda a: a.fill(0), block["attention"]["sublayer"]["out"])
    return params


@given(st.integers(0, 8), st.integers(0, 2), st.integers(1, 9))
def test_odd_blocks_see_a_band_and_even_ones_all_of_the_past(changed_at, layer, band):
    """Exact zeros.  Turns red if the odd ones are dense, or if the band leaves out one's own place
    or takes in one more.
    """
    config = replace(CONFIG, band=band)
    params, changed = one_mixing(config, layer), TOKENS.copy()
    changed[:, changed_at] = (changed[:, changed_at] + 1) % 17
    logits, after = (gpt(params, tokens=each, config=config)[0] for each in (TOKENS, changed))
    touched = (logits != after).any(axis=(0, 2))
    seen = np.arange(9) - changed_at
    expected = (seen >= 0) & (seen < (band if layer == 1 else 9))
    np.testing.assert_array_equal(touched, expected)


def test_the_twin_sees_no_more_through_its_band():
    """In a sequence that it cuts into tiles: exact zeros again."""
    config = GPTConfig(17, 200, layers=2, heads=2, width=6, band=70)
    apply, params = jax.jit(functional(GPT.abstract(config))[0]), one_mixing(config, 1)
    tokens = np.random.default_rng(6).integers(0, 17, (1, 200))
    changed = tokens.copy()
    changed[:, 60] = (changed[:, 60] + 1) % 17
    touched = (apply(params, tokens=tokens) != apply(params, tokens=changed)).any(axis=(0, 2))
    np.testing.assert_array_equal(np.flatnonzero(touched), np.arange(60, 60 + 70))


@given(st.integers(0, 10), st.booleans())
def test_a_band_as_long_as_the_text_changes_nothing(longer, packed):
    documents = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 2]] * 2) if packed else None
    options = {"tokens": TOKENS, "documents": documents}
    wide, _ = gpt(PARAMS, **options, config=replace(CONFIG, band=9 + longer))
    dense, _ = gpt(PARAMS, **options, config=replace(CONFIG, band=None))
    np.testing.assert_array_equal(wide, dense)


def test_ten_steps_of_both_engines_are_equal():
    """In float64, with dropout, the twin's blocks in a compiled loop."""
    config = replace(CONFIG, layers=2)
    data = Arrays({"tokens": TOKENS, "labels": TOKENS[::-1].copy()}, batch=2, key=random.key(1))
    training = TrainingConfig(steps=10, batch=2, warmup=2, dtype="float64", learning_rate=0.01)
    runs = [list(reference.train(config, training, data))]
    looped = accelerated.Compilation(unroll=1)
    runs.append(list(accelerated.train(config, training, data, compilation=looped)))
    losses = [[np.ravel(figures["loss"])[0] for _, figures in run] for run in runs]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-9)
    assert losses[0][-1] < losses[0][0] - 0.1


# Decoding


@given(st.integers(1, 9), st.integers(1, 9))
def test_a_text_read_in_two_pieces_has_the_logits_of_the_whole(end, cut):
    """Turns red if a mask of the cache counts from the piece's own start."""
    cut, cache = min(cut, end), make_cache(CONFIG, batch=2, length=11, dtype=np.float64)
    assert cache.shape == (3, 2, 2, 3, 11, 4)
    pieces = [(0, cut), (cut, end)] if cut < end else [(0, end)]
    logits = [
        decode(PARAMS, cache, tokens=TOKENS[:, a:b], start=a, config=CONFIG) for a, b in pieces
    ]
    whole, _ = gpt(PARAMS, tokens=TOKENS[:, :end], config=CONFIG)
    assert_close(np.concatenate(logits, axis=1), whole, MODEL)


def test_both_engines_score_and_remember_alike():
    twin = jax.jit(functional(GPT.abstract(CONFIG), twins.decode)[0], donate_argnums=1)
    ours, theirs = (
        make(CONFIG, batch=2, length=11, dtype=np.float64)
        for make in (make_cache, twins.make_cache)
    )
    for start, stop in [(0, 4), (4, 8), (8, 9)]:
        tokens = TOKENS[:, start:stop]
        expected = decode(PARAMS, ours, tokens=tokens, start=start, config=CONFIG)
        logits, theirs = twin(PARAMS, theirs, tokens=tokens, start=start)
        assert_close((logits, theirs), (expected, ours), MODEL)


# The published sizes


def test_the_published_table_does_not_fit_together_in_two_rows():
    """24 heads of 128 are not 2048, and 40 of 128 not 5140."""
    wide = {name: row.heads * row.head_width for name, row in PUBLISHED.items()}
    misfits = {name for name, row in PUBLISHED.items() if wide[name] != row.width}
    assert misfits == {"xl", "13b"}
    assert (wide["xl"], PUBLISHED["xl"].width) == (3072, 2048)
    assert (wide["13b"], PUBLISHED["13b"].width) == (5120, 5140)
    for name, config in SIZES.items():
        row = PUBLISHED[name]
        assert (config.layers, config.width, config.heads) == (row.layers, row.width, row.heads)
        assert config.head_width == row.head_width and config.attention_width == wide[name]
        assert (config.vocabulary, config.context, config.dropout) == (50257, 2048, 0.0)


def test_the_sizes_have_the_published_numbers_of_parameters_but_for_xl():
    """As printed beside the names, of two or three digits; "xl" as printed has 17 % too many."""
    counts = {name: parameter_count(config) for name, config in SIZES.items()}
    off = {name: round(n / PUBLISHED[name].parameters - 1, 3) for name, n in counts.items()}
    assert off == {
        "small": 0.002,
        "medium": 0.017,
        "large": 0.0,
        "xl": 0.167,
        "2.7b": -0.018,
        "6.7b": -0.006,
        "13b": -0.005,
        "175b": -0.002,
    }
    fitting = {"xl": replace(SIZES["xl"], heads=16), "13b": replace(SIZES["13b"], width=5120)}
    counts |= {name: parameter_count(config) for name, config in fitting.items()}
    of_table_d1 = {"small": 125, "medium": 356, "large": 760, "xl": 1320, "2.7b": 2650}
    of_table_d1 |= {"6.7b": 6660, "13b": 12850, "175b": 174600}
    assert all(abs(counts[name] / 1e6 / n - 1) < 0.004 for name, n in of_table_d1.items())


def test_a_size_is_trained_as_published():
    """The peak after 375 million tokens, a tenth of it after 260 billion."""
    for name, row in PUBLISHED.items():
        training = training_of(name)
        tokens = training.batch * training.length
        assert abs(tokens / row.batch - 1) < 0.002
        assert abs(training.steps * tokens / 260e9 - 1) < 1e-5
        assert abs(training.warmup * tokens / 375e6 - 1) < 0.003
        rates = [rate(training)(step) for step in (training.warmup, training.steps)]
        np.testing.assert_allclose(rates, [row.learning_rate, row.learning_rate / 10])
        assert (training.beta1, training.beta2, training.epsilon) == (0.9, 0.95, 1e-8)
        assert (training.weight_decay, training.clip) == (0.1, 1.0)
    with pytest.raises(InputError, match="the size is 'tiny'; give one of small, medium"):
        training_of("tiny")


def test_a_banded_block_costs_what_its_band_shows():
    """Of blocks 0, 1 and 2 the second.  Without a band it is the sum that it was."""
    dense = replace(CONFIG, band=None)
    weights = parameter_count(CONFIG) - 13 * 10
    assert flops_per_token(dense, 9) == 6 * weights + 12 * 12 * (9 + 9 + 9)
    assert flops_per_token(CONFIG, 9) == 6 * weights + 12 * 12 * (9 + 3 + 9)
    assert flops_per_token(CONFIG, 2) == flops_per_token(dense, 2)


def test_initial_weights_of_wide_heads_have_the_published_deviation():
    config = replace(CONFIG, width=40, heads=4, head_width=16)
    for path, a in tree.flatten(initial_params(config, key=random.key(0))).items():
        if path.endswith("kernel"):
            last = path.split(".")[-2] in ("out", "down")
            std = 0.02 / math.sqrt(2 * 3) if last else 0.02
            assert abs(a.std() / std - 1) < 5 / math.sqrt(2 * a.size), path


# Configs


def test_a_description_of_before_bands_is_read_as_what_it_was():
    """Of a checkpoint; and without bands it is written so still.  All other fields have to be
    there, and no others.
    """
    old = GPTConfig(17, 13, layers=3, heads=3, width=12, dropout=0.2)
    sizes = {"vocabulary": 17, "context": 13, "layers": 3, "heads": 3, "width": 12, "dropout": 0.2}
    description = {"name": "gpt"} | sizes
    assert described(old) == description
    assert config_of(description, source="here") == old
    for config in (CONFIG, replace(CONFIG, band=None), replace(old, band=2)):
        assert config_of(described(config), source="here") == config
    for name in sizes:
        changed = {n: value for n, value in description.items() if n != name}
        with pytest.raises(CheckpointError, match="here has .* where it must have"):
            config_of(changed, source="here")
    with pytest.raises(CheckpointError, match="here has .* where it must have"):
        config_of(description | {"bands": 3}, source="here")


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"band": 0}, "band is 0; give a positive integer"),
        ({"band": 2.5}, "band is 2.5; give a positive integer"),
        ({"head_width": 0}, "head_width is 0; give a positive integer"),
        ({"head_width": None}, "3 heads do not divide the width 10"),
    ],
)
def test_sizes_that_make_no_model_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **sizes)
