import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.training.loop as accelerated
import reference.training.loop as reference
from accelerated import functional
from accelerated.models.bert import Bert
from accelerated.training.compilation import Compilation
from reference import random, tree
from reference.data.batches import Arrays
from reference.errors import DtypeError, InputError
from reference.layers.loss import cross_entropy, next_sentence
from reference.models.bert import (
    PRESETS,
    BertConfig,
    bert,
    bert_logits,
    bert_loss,
    flops_per_token,
    initial_params,
    parameter_shapes,
)
from reference.models.bert_heads import CLASSES, HEADS
from reference.training.config import TrainingConfig
from tests.mirror import MODEL, assert_close, assert_gradient, assert_mirror, random_like

CONFIG = BertConfig(17, 8, layers=1, heads=3, width=15, hidden=11, segments=3, dropout=0.2)
CONFIGS = {
    head: replace(CONFIG, head=head, labels=5 if head in CLASSES else None, activation="tanh")
    for head in HEADS
}
DEEP = replace(CONFIG, layers=2, head="masked", dropout=0.0)


def params_of(config, seed=0):
    params = initial_params(config, key=random.key(0), dtype=np.float64)
    return random_like(params, np.random.default_rng(seed))


def inputs_of(seed, rows=2, length=7):
    """Tokens, segments and what is kept: a text is at least two tokens long."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 17, (rows, length))
    kept = np.arange(length) < rng.integers(2, length, (rows, 1))
    return {"tokens": tokens, "segments": rng.integers(0, 3, tokens.shape), "kept": kept}


def batch_of(config, seed=1, rows=2, length=7):
    """What a head learns from, with some of it ignored."""
    rng = np.random.default_rng(seed)
    inputs = inputs_of(seed, rows, length)
    each = rows if config.head == "sequence_classification" else (rows, length)
    labels = rng.integers(0, config.labels or 17, each)
    labels[0, ...] = -100
    starts, ends = rng.integers(0, length, (2, rows))
    starts[1] = -100
    every = {"labels": labels, "follows": rng.random(rows) < 0.5, "starts": starts, "ends": ends}
    return inputs | {name: every[name] for name in HEADS[config.head]}


def of(function, config):
    return lambda params, **batch: function(params, config=config, **batch)


PARAMS = params_of(CONFIG)


def test_bert_equals_its_twin():
    """The gradient of the head's parameters, which it does not read, is 0 in both."""
    rng = np.random.default_rng(1)
    apply, _ = functional(Bert.abstract(CONFIG))
    batch = inputs_of(2)
    encode = of(bert, CONFIG)
    assert_gradient(encode, PARAMS, **batch, rng=rng)
    assert_mirror(encode, apply, PARAMS, **batch, rng=rng, tolerance=MODEL, narrow={})


def test_bert_logits_equal_their_twin():
    """With nothing given but tokens."""
    rng = np.random.default_rng(2)
    apply, _ = functional(Bert.abstract(CONFIG), Bert.logits)
    batch, logits = {"tokens": inputs_of(3)["tokens"]}, of(bert_logits, CONFIG)
    assert_gradient(logits, PARAMS, **batch, rng=rng)
    assert_mirror(logits, apply, PARAMS, **batch, rng=rng, tolerance=MODEL, narrow={})


def test_bert_loss_equals_its_twin():
    rng = np.random.default_rng(3)
    loss, _ = functional(Bert.abstract(CONFIG), Bert.loss)
    batch = batch_of(CONFIG)
    assert_gradient(of(bert_loss, CONFIG), PARAMS, **batch, rng=rng)
    options = {"rng": rng, "tolerance": MODEL, "narrow": {}}
    assert_mirror(of(bert_loss, CONFIG), loss, PARAMS, **batch, **options)


@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_of_every_head_is_that_of_its_loss(head):
    """With dropout.  Turns red if a head's gradient does not reach the tied table or the pooler."""
    config, rng = CONFIGS[head], np.random.default_rng(4)
    batch = batch_of(config) | {"key": random.key(5)}
    assert_gradient(of(bert_loss, config), params_of(config), **batch, rng=rng)


def test_all_dropout_is_its_twin_s():
    """Turns red if the key of the classifier, of a block or of the embeddings is another.  The
    other heads of both engines meet at Hugging Face's.
    """
    config = CONFIGS["sequence_classification"]
    params, batch = params_of(config), batch_of(config) | {"key": random.key(5)}
    loss, backward = bert_loss(params, config=config, **batch)
    twin, _ = functional(Bert.abstract(config), Bert.loss)
    quick = {"xla_backend_optimization_level": 0}
    theirs = jax.jit(jax.value_and_grad(twin), compiler_options=quick)(params, **batch)
    assert_close(theirs, (loss, backward(1.0)), MODEL)


@given(st.integers(0, 2**32))
def test_what_fills_up_is_seen_by_nobody(seed):
    """Exact zeros.  Turns red if the mask hides those who look in place of what is looked at."""
    inputs, config = inputs_of(seed), DEEP
    params = params_of(config)
    other = {name: np.where(inputs["kept"], inputs[name], 1) for name in ("tokens", "segments")}
    hidden, _ = bert(params, config=config, **inputs)
    after, backward = bert(params, config=config, **inputs | other)
    np.testing.assert_array_equal(hidden[inputs["kept"]], after[inputs["kept"]])
    dhidden = np.where(inputs["kept"][..., None], np.cos(after), 0)
    dposition = backward(dhidden)["position"]["embedding"]
    read = inputs["kept"].any(axis=0).sum()
    assert not dposition[read:].any() and dposition[:read].any(axis=1).all()


@given(st.integers(0, 2**32), st.integers(0, 6))
def test_every_position_is_read_from_both_sides(seed, t):
    """Turns red with a causal mask."""
    tokens, params = inputs_of(seed)["tokens"], params_of(DEEP)
    changed = tokens.copy()
    changed[:, t] += np.where(tokens[:, t] < 16, 1, -1)
    hidden, after = (bert(params, config=DEEP, tokens=each)[0] for each in (tokens, changed))
    assert (hidden != after).any(axis=-1).all()


@given(st.integers(0, 2**32))
def test_without_segments_all_is_of_the_first(seed):
    tokens, params = inputs_of(seed)["tokens"], params_of(DEEP)
    first = np.zeros_like(tokens)
    default, _ = bert(params, config=DEEP, tokens=tokens)
    np.testing.assert_array_equal(
        default, bert(params, config=DEEP, tokens=tokens, segments=first)[0]
    )
    assert (default != bert(params, config=DEEP, tokens=tokens, segments=first + 2)[0]).all()


def test_the_loss_of_pretraining_is_the_sum_of_two():
    """Turns red if it is their mean, or that of an answer the sum of both ends."""
    batch = batch_of(CONFIG)
    inputs = {name: batch[name] for name in ("tokens", "segments", "kept")}
    logits, _ = bert_logits(PARAMS, config=CONFIG, **inputs)
    masked, _ = cross_entropy(logits["masked"], labels=batch["labels"])
    pairs, _ = next_sentence(logits["next_sentence"], follows=batch["follows"])
    total, _ = bert_loss(PARAMS, config=CONFIG, **batch)
    np.testing.assert_allclose(total, masked + pairs, rtol=1e-12)
    config = CONFIGS["question_answering"]
    params = params_of(config)
    params["spans"] = tree.map(np.zeros_like, params["spans"])  # each place is as likely
    loss, _ = bert_loss(params, config=config, **batch_of(config))
    np.testing.assert_allclose(loss, math.log(7), rtol=1e-12)


def test_recomputation_changes_no_bit():
    params, batch = params_of(DEEP), batch_of(DEEP)
    options = {"config": replace(DEEP, dropout=0.3), "key": random.key(7)}
    (loss, kept), (same, again) = (
        bert_loss(params, **batch, **options, recompute=each) for each in (False, True)
    )
    assert loss == same
    tree.map(np.testing.assert_array_equal, kept(1.0), again(1.0))


def test_ten_steps_of_training_are_the_same_in_both_engines():
    """In float64, each layer computed twice, those of one engine in a compiled loop."""
    config = replace(CONFIG, layers=2, dropout=0.0)
    data = Arrays(batch_of(config, rows=11), batch=5, key=random.key(1))
    training = TrainingConfig(steps=10, batch=5, warmup=2, dtype="float64", recompute=True)
    runs = [
        reference.train(config, training, data),
        accelerated.train(config, training, data, compilation=Compilation(unroll=1)),
    ]
    losses = np.array([[float(figures["loss"]) for _, figures in run] for run in runs])
    assert losses.shape == (2, 10) and np.ptp(losses[0]) > 0.1
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-9)


# Sizes and initial weights


def test_the_published_sizes_have_the_published_numbers_of_weights():
    """Without the heads of pretraining: of the released checkpoints, which the papers call 110M and
    340M, and for the smaller ones 4.4M, 11.2M, 28.8M and 41.4M.
    """
    expected = {
        "bert_base_uncased": 109_482_240,
        "bert_base_cased": 108_310_272,
        "bert_large_uncased": 335_141_888,
        "bert_large_cased": 333_579_264,
        "bert_tiny": 4_385_920,
        "bert_mini": 11_170_560,
        "bert_small": 28_763_648,
        "bert_medium": 41_373_184,
    }
    of_heads = ("masked", "next_sentence")
    found = {
        name: sum(
            math.prod(shape)
            for path, shape in parameter_shapes(config).items()
            if path.split(".")[0] not in of_heads
        )
        for name, config in PRESETS.items()
    }
    assert found == expected
    assert sum(map(math.prod, parameter_shapes(PRESETS["bert_base_uncased"]).values())) == (
        110_106_428
    )


def test_initial_weights_are_normal_numbers_of_which_the_far_ones_are_missing():
    """Within 5 standard errors.  Turns red if nothing is cut off, or what is left is scaled up."""
    config = replace(CONFIG, vocabulary=503, width=60, hidden=101, layers=2)
    params = initial_params(config, key=random.key(3))
    density = math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    std = 0.02 * math.sqrt(1 - 4 * density)
    for path, a in tree.flatten(params).items():
        assert a.dtype == np.float32
        if path.endswith(("kernel", "embedding")):
            assert abs(a.std() / std - 1) < 5 / math.sqrt(2 * a.size), path
            assert abs(a.mean()) < 5 * std / math.sqrt(a.size) and np.abs(a).max() <= 0.04, path
        else:
            assert (a == path.endswith("scale")).all(), path
    wide = initial_params(config, key=random.key(3), dtype=np.float64)
    tree.map(np.testing.assert_array_equal, params, wide)
    queries = [block["attention"]["sublayer"]["query"]["kernel"] for block in params["blocks"]]
    assert (queries[0] != queries[1]).all()
    with pytest.raises(InputError, match="initialization is 'none'; give one of paper"):
        initial_params(CONFIG, key=random.key(0), initialization="none")


def test_parameters_are_named_as_the_twin_s():
    for config in CONFIGS.values():
        _, theirs = functional(Bert.abstract(config))
        ours = initial_params(config, key=random.key(0))
        tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), ours, theirs)


def test_flops_are_those_that_xla_counts():
    """XLA counts exponentials and sums too, hence a tenth.  It need not compile for it."""
    config = BertConfig(101, 64, layers=2, heads=4, width=64, hidden=256, dropout=0.0)
    params = initial_params(config, key=random.key(0))
    loss, _ = functional(Bert.abstract(config), Bert.loss)
    batch = {name: np.zeros((2, 64), np.int32) for name in ("tokens", "labels")}
    batch["follows"] = np.zeros(2, bool)
    lowered = jax.jit(jax.grad(loss)).lower(params, **batch)
    counted = lowered.cost_analysis()["flops"] / (2 * 64)
    assert abs(counted / flops_per_token(config, 64) - 1) < 0.1
    classes = replace(config, head="sequence_classification", labels=3)
    less = 6 * (101 * 64 + 64 * 64 + 3 * 64 + 101 + (2 * 64 + 2 - 3 * 64 - 3) / 64)
    assert flops_per_token(config, 64) - flops_per_token(classes, 64) == pytest.approx(less)


# Bad input


@pytest.mark.parametrize("engine", ["reference", "accelerated"])
@pytest.mark.parametrize(
    "head, changes, error, message",
    [
        ("masked", {"tokens": np.full((2, 7), 17)}, InputError, r"tokens\[0, 0\] is 17, outside"),
        ("masked", {"segments": np.full((2, 7), 3)}, InputError, r"segments\[0, 0\] is 3, outside"),
        ("masked", {"segments": np.zeros((2, 7))}, DtypeError, "segments is of float64"),
        ("masked", {"segments": np.zeros((2, 6), int)}, InputError, r"segments has shape \(2, 6\)"),
        ("masked", {"kept": np.ones((2, 7), int)}, DtypeError, "kept is no array of booleans"),
        ("masked", {"kept": np.ones((1, 7), bool)}, InputError, r"kept has shape \(1, 7\), tokens"),
        (
            "masked",
            {"labels": np.full((2, 7), 17)},
            InputError,
            r"labels\[0, 0\] is 17; give .*17\)",
        ),
        ("masked", {"labels": np.zeros(2, int)}, InputError, r"labels has shape \(2,\), .* token"),
        ("masked", {"labels": None}, InputError, "has no answers, .* masked learns from labels"),
        ("masked", {"follows": np.ones(2, bool)}, InputError, "the batch has labels, follows, and"),
        ("next_sentence", {"follows": np.ones(2)}, DtypeError, "follows is of float64"),
        ("next_sentence", {"follows": np.ones(3, bool)}, InputError, r"follows has shape \(3,\)"),
        ("sequence_classification", {"labels": np.array([0, 5])}, InputError, r"labels\[1\] is 5"),
        ("sequence_classification", {"labels": np.ones(2)}, DtypeError, "labels is of float64"),
        ("token_classification", {"labels": np.full((2, 7), -1)}, InputError, r"\[0, 0\] is -1"),
        (
            "question_answering",
            {"starts": np.array([0, 7])},
            InputError,
            r"starts\[1\] is 7; .*7\)",
        ),
        ("question_answering", {"ends": None}, InputError, "learns from starts and ends: give"),
    ],
)
def test_a_batch_that_cannot_be_learnt_from_is_refused(engine, head, changes, error, message):
    config = CONFIGS[head]
    batch = batch_of(config) | changes
    loss = of(bert_loss, config)
    if engine == "accelerated":
        loss, _ = functional(Bert.abstract(config), Bert.loss)
    with pytest.raises(error, match=message):
        loss(params_of(config), **batch)


def test_what_is_wrong_while_compiling_is_said_then():
    loss, _ = functional(Bert.abstract(CONFIG), Bert.loss)
    for changes, message in (
        ({"labels": np.zeros((2, 6), int)}, r"labels has shape \(2, 6\)"),
        ({"kept": np.zeros((2, 6), bool)}, r"kept has shape \(2, 6\)"),
        (
            {"tokens": np.zeros((2, 9), int)},
            "the sequence has 9 tokens, the model's context only 8",
        ),
    ):
        with pytest.raises(InputError, match=message):
            jax.jit(loss)(PARAMS, **batch_of(CONFIG) | changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 4}, "4 heads do not divide the width 15"),
        ({"segments": 0}, "segments is 0; give a positive integer"),
        ({"dropout": 1.0}, "the dropout rate is 1.0"),
        ({"activation": "relu"}, "activation is 'relu'; give one of erf, tanh"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"head": "qa"}, "head is 'qa'; give one of pretraining, masked"),
        ({"labels": 3}, "labels is 3, for which the head pretraining has no use"),
        ({"head": "token_classification"}, "labels is None; give the number of classes"),
    ],
)
def test_sizes_that_make_no_model_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)
