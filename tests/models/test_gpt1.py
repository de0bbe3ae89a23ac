import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.inference.decoding as twins
import accelerated.training as accelerated
import reference.training as reference
from accelerated import functional
from accelerated.models.gpt1 import GPT1
from reference import random, tree
from reference.data.batches import Arrays
from reference.errors import DtypeError, InputError
from reference.inference.cache import decode, make_cache
from reference.inference.decoding import generate
from reference.models.gpt1 import (
    PRESETS,
    GPT1Config,
    flops_per_token,
    gpt1,
    gpt1_classification_loss,
    gpt1_loss,
    initial_params,
    parameter_shapes,
)
from reference.training import TrainingConfig
from tests.mirror import MODEL, assert_close, assert_gradient, assert_mirror, random_like

SEPARATE = GPT1Config(vocabulary=17, context=7, layers=2, heads=3, width=15, dropout=0.2)
SHALLOW = replace(SEPARATE, layers=1)
SHARED = replace(SHALLOW, embeddings="shared", classes=3)
each_form = pytest.mark.parametrize("config", [SEPARATE, SHARED], ids=["separate", "shared"])
tokens_of = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).integers(0, 17, (2, 5))
)


def params_of(config, seed=0):
    params = initial_params(config, key=random.key(0), dtype=np.float64)
    return random_like(params, np.random.default_rng(seed))


PARAMS = {config: params_of(config) for config in (SEPARATE, SHARED, SHALLOW)}
APPLY, _ = functional(GPT1.abstract(SHARED))
LOSS = {config: functional(GPT1.abstract(config), GPT1.loss)[0] for config in PARAMS}
CHOOSE, _ = functional(GPT1.abstract(SHARED), GPT1.classification_loss)


def shared(params, **batch):
    return gpt1(params, config=SHARED, **batch)


def shallow_loss(params, **batch):
    return gpt1_loss(params, config=SHALLOW, **batch)


def shared_loss(params, **batch):
    return gpt1_loss(params, config=SHARED, **batch)


def choose(params, **batch):
    return gpt1_classification_loss(params, config=SHARED, **batch)


def choices(seed=5):
    """Two texts each of three examples, of which the last tokens are no text any more."""
    rng = np.random.default_rng(seed)
    tokens, labels = rng.integers(0, 17, (2, 3, 2, 5))
    labels[0, 1, 3:] = labels[2, 0, 2:] = -100
    at = np.array([[4, 2], [3, 3], [1, 4]])
    return {"tokens": tokens, "labels": labels, "at": at, "answers": np.array([0, 5, 2])}


def test_gpt1_equals_its_twin():
    """With one table for tokens and positions, and dropout on it."""
    rng = np.random.default_rng(1)
    batch = {"tokens": rng.integers(0, 17, (2, 5)), "key": random.key(3)}
    assert_gradient(shared, PARAMS[SHARED], **batch, rng=rng)
    options = {"rng": rng, "tolerance": MODEL, "narrow": {}}
    assert_mirror(shared, APPLY, PARAMS[SHARED], **batch, **options)


def test_gpt1_loss_equals_its_twin():
    """With two tables, dropout after the sum, labels to ignore and packed documents."""
    rng = np.random.default_rng(2)
    tokens, labels = rng.integers(0, 17, (2, 3, 5))
    labels[1, 3:] = -100
    ids = np.array([[1, 1, 2, 2, 2], [5, 5, 5, 5, 3], [0, 0, 0, 0, 0]])
    batch = {"tokens": tokens, "labels": labels, "documents": ids, "key": random.key(3)}
    assert_gradient(shallow_loss, PARAMS[SHALLOW], **batch, rng=rng)
    options = {"rng": rng, "tolerance": MODEL, "narrow": {}}
    assert_mirror(shallow_loss, LOSS[SHALLOW], PARAMS[SHALLOW], **batch, **options)


def test_gpt1_classification_loss_equals_its_twin():
    """With dropout, and its weight other than the published one."""
    rng = np.random.default_rng(3)
    batch = choices() | {"key": random.key(4), "weight": 0.3}
    assert_gradient(choose, PARAMS[SHARED], **batch, rng=rng)
    options = {"rng": rng, "tolerance": MODEL, "narrow": {}}
    assert_mirror(choose, CHOOSE, PARAMS[SHARED], **batch, **options)


# One table for tokens and positions


@given(tokens_of)
def test_in_one_table_the_positions_too_have_a_share_of_the_softmax(tokens):
    """Turns red if a shared table scores tokens alone, or positions before tokens."""
    alone, _ = gpt1(PARAMS[SHARED], tokens=tokens, config=SEPARATE)
    logits, _ = shared(PARAMS[SHARED], tokens=tokens)
    assert logits.shape == (2, 5, 17 + 7)
    assert_close(logits[..., :17], alone, 1e-12)
    loss, _ = shared_loss(PARAMS[SHARED], tokens=tokens, labels=tokens)
    less, _ = gpt1_loss(PARAMS[SHARED], tokens=tokens, labels=tokens, config=SEPARATE)
    shares = np.log(np.exp(logits).sum(axis=-1) / np.exp(alone).sum(axis=-1))
    np.testing.assert_allclose(loss - less, shares.mean(), rtol=1e-9)
    assert loss > less


@given(tokens_of, st.integers(0, 99))
def test_what_dropout_takes_from_the_shared_table_no_use_of_it_sees(tokens, seed):
    """To the last bit, nor is there a gradient.  Turns red if dropout falls on the sum, or not on
    the output.
    """
    key = random.key(seed)
    logits, backward = shared(PARAMS[SHARED], tokens=tokens, key=key)
    dparams = backward(np.cos(np.arange(2 * 5 * 24.0)).reshape(2, 5, 24))
    dtable = np.concatenate([dparams[name]["embedding"] for name in ("token", "position")])
    kept = random.uniform(random.fold_in(key, SHARED.layers), (24, 15)) >= SHARED.dropout
    assert not dtable[~kept].any() and dtable[kept].all()
    changed = {
        name: {"embedding": PARAMS[SHARED][name]["embedding"] + 3 * ~part}
        for name, part in (("token", kept[:17]), ("position", kept[17:]))
    }
    after, _ = shared(PARAMS[SHARED] | changed, tokens=tokens, key=key)
    np.testing.assert_array_equal(after, logits)


def test_a_label_is_a_token_and_never_a_position():
    """Where it is not known yet, NaN.  Turns red if labels up to V + C are taken."""
    tokens, labels = np.random.default_rng(4).integers(0, 17, (2, 2, 5))
    labels[1, 2], labels[0, 0] = 17, -100
    batch = {"tokens": tokens, "labels": labels}
    for engine in (shared_loss, LOSS[SHARED]):
        with pytest.raises(
            InputError, match=r"labels\[1, 2\] is 17, outside the vocabulary \[0, 17"
        ):
            engine(PARAMS[SHARED], **batch)
    compiled = jax.jit(LOSS[SHARED])
    assert np.isnan(compiled(PARAMS[SHARED], **batch))
    labels[1, 2] = 16
    expected, _ = shared_loss(PARAMS[SHARED], **batch)
    np.testing.assert_allclose(compiled(PARAMS[SHARED], **batch), expected, rtol=1e-10)
    tokens[0, 3] = 17  # the first position's row, were it asked for
    assert np.isnan(compiled(PARAMS[SHARED], **batch))


# What a language model does


@given(tokens_of, st.integers(0, 4), st.integers(0, 16))
def test_no_position_sees_the_future(tokens, t, other):
    """An exact zero.  Turns red if the causal mask admits s = t + 1."""
    changed = tokens.copy()
    changed[:, t] = other
    logits, after = (shared(PARAMS[SHARED], tokens=each)[0] for each in (tokens, changed))
    np.testing.assert_array_equal(logits[:, :t], after[:, :t])


@each_form
def test_what_is_said_of_a_document_is_what_is_said_of_it_alone(config):
    """Turns red if positions go on from one document to the next."""
    tokens = np.random.default_rng(6).integers(0, 17, (1, 7))
    ids = np.array([[2, 2, 2, 9, 9, 9, 9]])
    packed, _ = gpt1(PARAMS[config], tokens=tokens, documents=ids, config=config)
    alone, _ = gpt1(PARAMS[config], tokens=tokens[:, 3:], config=config)
    assert_close(packed[:, 3:], alone, 1e-12)


@each_form
def test_recomputation_changes_no_bit(config):
    tokens = np.random.default_rng(3).integers(0, 17, (2, 7))
    batch = {"tokens": tokens, "labels": tokens, "key": random.key(2), "config": config}
    for recompute in (False, True):
        loss, backward = gpt1_loss(PARAMS[config], **batch, recompute=recompute)
        again, backward_again = gpt1_loss(PARAMS[config], **batch, recompute=not recompute)
        assert loss == again
        tree.map(np.testing.assert_array_equal, backward(1.0), backward_again(1.0))


@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from([SEPARATE, SHARED]))
def test_a_text_read_in_two_pieces_has_the_logits_of_the_whole(end, cut, config):
    """Of the tokens.  Turns red if a cached block normalizes before it adds."""
    tokens = np.random.default_rng(7).integers(0, 17, (2, end))
    cut, cache = min(cut, end), make_cache(config, batch=2, length=7, dtype=np.float64)
    pieces = [(0, cut), (cut, end)] if cut < end else [(0, end)]
    logits = [
        decode(PARAMS[config], cache, tokens=tokens[:, a:b], start=a, config=config)
        for a, b in pieces
    ]
    whole, _ = gpt1(PARAMS[config], tokens=tokens, config=config)
    assert_close(np.concatenate(logits, axis=1), whole[..., :17], MODEL)


def test_both_engines_write_tokens_alone_though_positions_score_highest():
    """The text is that of the whole model's likeliest tokens."""
    table = {"embedding": 9 * PARAMS[SHARED]["position"]["embedding"]}
    params, text = PARAMS[SHARED] | {"position": table}, [3, 11]
    highest = []
    for _ in range(5):
        logits = shared(params, tokens=np.array([text]))[0][0, -1]
        highest.append(logits.argmax())
        text.append(int(logits[:17].argmax()))
    assert max(highest) >= 17
    for engine in (generate, twins.generate):
        written = engine(params, tokens=np.array([3, 11]), steps=5, config=SHARED)
        np.testing.assert_array_equal(written, text[2:])


# Training


def test_ten_steps_of_both_engines_are_equal():
    """In float64, with dropout, from the published initial weights."""
    config = replace(SHARED, classes=None)
    tokens, labels = np.random.default_rng(8).integers(0, 17, (2, 13, 6))
    labels[3, 2:] = -100
    training = TrainingConfig(steps=10, batch=4, warmup=2, dtype="float64", learning_rate=0.01)
    losses = []
    for engine in (reference, accelerated):
        data = Arrays({"tokens": tokens, "labels": labels}, batch=4, key=random.key(1))
        run = list(engine.train(config, training, data))
        losses.append([np.ravel(figures["loss"])[0] for _, figures in run])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-9)
    assert losses[0][0] == pytest.approx(math.log(24), abs=0.1)
    found = accelerated.portable(run[-1][0], config).params
    assert {path: a.shape for path, a in tree.flatten(found).items()} == parameter_shapes(config)


def test_the_classifier_reads_where_it_is_told_and_learns_with_the_language_model():
    """λ times the loss of all texts.  Turns red if the first or the last position is read."""
    batch, config = choices(), replace(SHARED, dropout=0.0)
    whole, _ = gpt1_classification_loss(PARAMS[SHARED], **batch, config=config)
    alone, _ = gpt1_classification_loss(PARAMS[SHARED], **batch, config=config, weight=0.0)
    flat = {name: batch[name].reshape(6, 5) for name in ("tokens", "labels")}
    language, _ = gpt1_loss(PARAMS[SHARED], **flat, config=config)
    np.testing.assert_allclose(whole, alone + 0.5 * language, rtol=1e-12)
    for first, same in ((1, True), (0, False)):
        changed = batch["tokens"].copy()
        for (b, n), place in np.ndenumerate(batch["at"]):
            changed[b, n, place + first :] = 0
        there = batch | {"tokens": changed}
        found, _ = gpt1_classification_loss(PARAMS[SHARED], **there, config=config, weight=0.0)
        assert np.isclose(found, alone, rtol=1e-12) == same


@given(st.integers(0, 99))
def test_the_texts_of_an_example_share_the_classifiers_dropout(seed):
    """Equal texts have equal scores: the loss is log N.  Turns red with a mask for each text."""
    config = replace(SEPARATE, classes=1)
    params = params_of(config)
    batch = choices() | {"answers": np.array([0, 1, 1])}
    for name in ("tokens", "labels", "at"):
        batch[name] = np.repeat(batch[name][:, :1], 2, axis=1)
    noise = {"key": random.key(seed), "weight": 0.0}
    quiet = tree.map(np.zeros_like, params["blocks"])  # so that no other dropout tells them apart
    params |= {"blocks": quiet, "classifier": params["classifier"]}
    for part in quiet:
        part["feed_forward"]["norm"]["bias"] += np.arange(15.0)
    loss, _ = gpt1_classification_loss(params, **batch, **noise, config=config)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-12)


# Sizes and initial weights


def test_the_preset_has_the_published_number_of_parameters():
    """Of the released file, as Hugging Face counts it; the paper has no number."""
    counts = sum(math.prod(shape) for shape in parameter_shapes(PRESETS["gpt1"]).values())
    assert counts == 116_534_784
    assert PRESETS["gpt1"].vocabulary == 40_000 + 478 and PRESETS["gpt1"].dropout == 0.1


@each_form
def test_parameters_are_those_of_the_twin(config):
    shapes = {path: a.shape for path, a in tree.flatten(PARAMS[config]).items()}
    _, theirs = functional(GPT1.abstract(config))
    assert {path: a.shape for path, a in tree.flatten(theirs).items()} == shapes


def test_flops_are_those_that_xla_counts():
    """XLA counts exponentials and sums too, hence a tenth."""
    config = GPT1Config(101, 64, layers=1, heads=4, width=64, embeddings="shared")
    params = initial_params(config, key=random.key(0))
    loss, _ = functional(GPT1.abstract(config), GPT1.loss)
    batch = {name: np.zeros((2, 64), np.int32) for name in ("tokens", "labels")}
    compiled = jax.jit(jax.grad(loss)).lower(params, **batch).compile()
    counted = compiled.cost_analysis()["flops"] / (2 * 64)
    assert abs(counted / flops_per_token(config, 64) - 1) < 0.1
    more = flops_per_token(config, 64) - flops_per_token(replace(config, embeddings="separate"), 64)
    assert more == 6 * 64 * 64


def test_initial_weights_have_the_published_deviation():
    """Each within 5 standard errors, in float64 the same drawing."""
    config = replace(SHARED, vocabulary=211, width=30)
    params = tree.flatten(initial_params(config, key=random.key(3)))
    wide = tree.flatten(initial_params(config, key=random.key(3), dtype=np.float64))
    for path, a in params.items():
        if path.endswith(("scale", "bias")):
            assert (a == path.endswith("scale")).all()
        else:
            assert abs(a.std() / 0.02 - 1) < 5 / math.sqrt(2 * a.size), path
            assert abs(a.mean()) < 5 * 0.02 / math.sqrt(a.size), path
        assert a.dtype == np.float32 and (wide[path] == a).all()
    with pytest.raises(InputError, match="initialization is 'none'; give one of paper"):
        initial_params(config, key=random.key(0), initialization="none")


# Bad input


@pytest.mark.parametrize("engine", [shared, APPLY])
@pytest.mark.parametrize(
    "tokens, error, message",
    [
        (np.array([[0, 17]]), InputError, r"tokens\[0, 1\] is 17, outside the vocabulary \[0, 17"),
        (np.array([[1.0, 2.0]]), DtypeError, "tokens is of float64; give an array of integers"),
        (
            np.zeros((2, 8), int),
            InputError,
            "the sequence has 8 tokens, the model's context only 7",
        ),
        (np.zeros(5, int), InputError, r"tokens has shape \(5,\)"),
    ],
)
def test_tokens_that_cannot_be_read_are_named(engine, tokens, error, message):
    with pytest.raises(error, match=message):
        engine(PARAMS[SHARED], tokens=tokens)


@pytest.mark.parametrize("engine", [choose, CHOOSE])
@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"tokens": np.zeros((3, 5), int)},
            InputError,
            r"tokens has shape \(3, 5\); give \(B, N, T",
        ),
        ({"at": np.zeros(3, int)}, InputError, r"at has shape \(3,\), tokens .*; give \(3, 2\)"),
        ({"at": np.full((3, 2), 5)}, InputError, r"at\[0, 0\] is 5, outside"),
        ({"answers": np.array([0, 1, 6])}, InputError, r"answers\[2\] is 6, outside .*\[0, 6\)"),
        ({"answers": np.zeros(3)}, DtypeError, "answers is of float64"),
        ({"labels": np.full((3, 2, 5), 17)}, InputError, "labels.* is 17, outside the vocabulary"),
    ],
)
def test_choices_that_cannot_be_learnt_from_are_named(engine, change, error, message):
    with pytest.raises(error, match=message):
        engine(PARAMS[SHARED], **choices() | change)


def test_a_model_without_classes_has_no_classifier():
    with pytest.raises(InputError, match="the config has no classes"):
        gpt1_classification_loss(PARAMS[SEPARATE], **choices(), config=SEPARATE)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"heads": 4}, "4 heads do not divide the width 15"),
        ({"layers": 0}, "layers is 0; give a positive integer"),
        ({"classes": 0}, "classes is 0; give a positive integer"),
        ({"dropout": 1.0}, "the dropout rate is 1.0"),
        ({"embeddings": "tied"}, "embeddings is 'tied'; give one of separate, shared"),
    ],
)
def test_sizes_that_make_no_model_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        replace(SEPARATE, **sizes)
