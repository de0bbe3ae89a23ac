"""The heads of decoders; those of each model are also in its own tests, and Hugging Face's in
tests/pretrained/test_decoder_heads.py.
"""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.models.decoder_heads as accelerated_heads
import accelerated.training.loop as accelerated
import reference.training.loop as reference
from accelerated import functional
from accelerated.models import twin_of
from reference import random, tree
from reference.data.batches import Arrays
from reference.errors import CheckpointError, DtypeError, InputError
from reference.inference.cache import make_cache
from reference.inference.decoding import generate
from reference.layers.loss import cross_entropy
from reference.models import config_of, described, model_of
from reference.models.decoder_batches import HEADS, check_batch
from reference.models.decoder_heads import last_kept
from reference.models.gpt import GPTConfig, flops_per_token, gpt, gpt_hidden, gpt_logits, gpt_loss
from reference.models.llama import LlamaConfig, llama
from reference.models.llama import flops_per_token as flops_of_llama
from reference.training.config import TrainingConfig
from tests.mirror import assert_gradient, assert_mirror, random_like

GPT = GPTConfig(17, 9, layers=1, heads=3, width=15, dropout=0.2)
LLAMA = LlamaConfig(17, 9, 1, 2, 1, 8, 10)
OTHERS = [head for head in HEADS if head != "language"]
each_model = pytest.mark.parametrize("base", [GPT, LLAMA], ids=["gpt", "llama"])


def with_head(base, head, **changes):
    classes = {"sequence_classification": 5, "token_classification": 3}
    return replace(base, head=head, labels=classes.get(head), **changes)


def params_of(config):
    params = model_of(config).initial_params(config, key=random.key(0), dtype=np.float64)
    return random_like(params, np.random.default_rng(0))


def batch_of(config, seed=1, rows=2, length=7):
    """What a head learns from, with some of it ignored, of texts of 2 tokens at least."""
    rng = np.random.default_rng(seed)
    kept = np.arange(length) < rng.integers(2, length, (rows, 1))
    each = rows if config.head == "sequence_classification" else (rows, length)
    labels = rng.integers(0, config.labels or 17, each)
    labels[0, ...] = -100
    starts, ends = rng.integers(0, length, (2, rows))
    starts[1] = -100
    every = {"labels": labels, "starts": starts, "ends": ends}
    inputs = {"tokens": rng.integers(0, 17, (rows, length)), "kept": kept}
    return inputs | {name: every[name] for name in HEADS[config.head]}


def loss_of(config):
    return lambda params, **batch: model_of(config).loss(params, config=config, **batch)


def test_last_kept_equals_its_twin():
    rng = np.random.default_rng(0)
    x, kept = rng.standard_normal((3, 7, 5)), np.arange(7) < np.array([[4], [7], [0]])
    for given_kept in ({}, {"kept": kept}):
        assert_gradient(last_kept, x, **given_kept, rng=rng)
        assert_mirror(last_kept, accelerated_heads.last_kept, x, **given_kept, rng=rng)
    np.testing.assert_array_equal(last_kept(x, kept=kept)[0], x[[0, 1, 2], [3, 6, 0]])
    np.testing.assert_array_equal(last_kept(x)[0], x[:, -1])


@pytest.mark.parametrize("head", HEADS)
@each_model
def test_the_gradient_of_every_head_is_that_of_its_loss(base, head):
    """With dropout.  Turns red if a head's gradient does not reach what it reads."""
    config = with_head(base, head)
    batch = batch_of(config) | {"key": random.key(5)}
    assert_gradient(loss_of(config), params_of(config), **batch, rng=np.random.default_rng(4))


@given(st.integers(0, 2**32), st.sampled_from(OTHERS))
def test_what_fills_up_is_seen_by_nobody(seed, head):
    """An exact zero.  Turns red if the last token is read in place of the last that is kept."""
    config = with_head(GPT, head)
    batch, params = batch_of(config, seed), params_of(config)
    kept, tokens = batch["kept"], batch["tokens"]
    other = np.where(kept, tokens, 16 - tokens)
    (before, _), (after, _) = (
        gpt_logits(params, config=config, tokens=each, kept=kept) for each in (tokens, other)
    )
    for question, scores in before.items():
        seen = slice(None) if question == "classes" and scores.ndim == 2 else kept
        np.testing.assert_array_equal(scores[seen], after[question][seen])


@given(st.integers(0, 2**32))
def test_a_text_s_class_is_that_of_the_text_alone(seed):
    """However it is filled up.  Turns red if kept moves by one."""
    config = with_head(GPT, "sequence_classification", dropout=0.0)
    batch, params = batch_of(config, seed), params_of(config)
    tokens, kept = batch["tokens"], batch["kept"]
    together, _ = gpt_logits(params, config=config, tokens=tokens, kept=kept)
    for row, length in enumerate(kept.sum(axis=1)):
        alone, _ = gpt_logits(params, config=config, tokens=tokens[row : row + 1, :length])
        np.testing.assert_allclose(alone["classes"][0], together["classes"][row], atol=1e-12)


def test_a_loss_is_the_surprise_at_the_answers():
    """Of both ends of an answer half.  Turns red if they are summed, or one is left out."""
    for head in ("sequence_classification", "token_classification"):
        config = with_head(GPT, head)
        params, batch = params_of(config), batch_of(config)
        inputs = {name: batch[name] for name in ("tokens", "kept")}
        logits, _ = gpt_logits(params, config=config, **inputs)
        expected, _ = cross_entropy(logits["classes"], labels=batch["labels"])
        assert gpt_loss(params, config=config, **batch)[0] == expected
    config = with_head(GPT, "question_answering")
    params, batch = params_of(config), batch_of(config)
    inputs = {name: batch[name] for name in ("tokens", "kept")}
    logits, _ = gpt_logits(params, config=config, **inputs)
    ends = [cross_entropy(logits[name], labels=batch[name])[0] for name in ("starts", "ends")]
    assert gpt_loss(params, config=config, **batch)[0] == np.mean(ends)
    params["spans"] = tree.map(np.zeros_like, params["spans"])  # each place is as likely
    np.testing.assert_allclose(gpt_loss(params, config=config, **batch)[0], math.log(7))


def test_kept_changes_nothing_of_a_language_model():
    batch, params = batch_of(GPT), params_of(GPT)
    without = {name: batch[name] for name in ("tokens", "labels")}
    assert gpt_loss(params, config=GPT, **batch)[0] == gpt_loss(params, config=GPT, **without)[0]
    x, _ = gpt_hidden(params, config=GPT, tokens=batch["tokens"])
    logits, _ = gpt_logits(params, config=GPT, tokens=batch["tokens"])
    np.testing.assert_array_equal(logits["tokens"], x @ params["token"]["embedding"].T)


def test_ten_steps_of_training_are_the_same_in_both_engines():
    """In float64: a text's class, with dropout, in two parts."""
    config = with_head(GPT, "sequence_classification")
    data = Arrays(batch_of(config, rows=11), batch=6, key=random.key(1))
    training = TrainingConfig(steps=10, batch=6, warmup=2, dtype="float64", accumulation=2)
    runs = [engine.train(config, training, data) for engine in (reference, accelerated)]
    losses = np.array([[float(figures["loss"]) for _, figures in run] for run in runs])
    assert losses.shape == (2, 10) and np.ptp(losses[0]) > 0.01
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-9)


# Sizes, initial weights and cost


@each_model
def test_parameters_are_named_as_the_twin_s_and_drawn_as_hugging_face_does(base):
    """Turns red if a head's kernel is drawn with another's key, or scaled with the width."""
    for head in OTHERS:
        config = with_head(base, head, width=80, heads=4)
        _, theirs = functional(twin_of(config).abstract(config))
        params = {
            each: model_of(config).initial_params(config, key=random.key(3), initialization=each)
            for each in ("paper", "scaled")
        }
        tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params["paper"], theirs)
        name = "spans" if head == "question_answering" else "classifier"
        for part in (each[name] for each in params.values()):
            assert not part.get("bias", np.zeros(1)).any()
            assert ("bias" in part) == (head != "sequence_classification")
            kernel = part["kernel"]
            assert abs(kernel.std() / 0.02 - 1) < 5 / math.sqrt(2 * kernel.size)
        for table in ("token", "position"):
            if table in params["scaled"]:
                other = params["scaled"][table]["embedding"].flat[: kernel.size]
                assert abs(np.corrcoef(kernel.flat, other)[0, 1]) < 0.4
        assert "output" not in params["paper"]


@pytest.mark.parametrize("of, flops", [(GPT, flops_per_token), (LLAMA, flops_of_llama)])
def test_flops_are_those_of_the_language_model_with_another_head(of, flops):
    """Turns red if a text's class counts at each token, or a table that is not multiplied."""
    width, table = of.width, 17 * of.width
    for head, weights in (
        ("sequence_classification", 5 * width / 7),
        ("token_classification", 3 * width + 3),
        ("question_answering", 2 * width + 2),
    ):
        less = flops(of, 7) - flops(with_head(of, head), 7)
        assert less == pytest.approx(6 * (table - weights))


@each_model
def test_a_description_from_before_there_were_heads_is_that_of_a_language_model(base):
    description = described(base)
    assert not {"head", "labels", "classifier_dropout"} & set(description)
    assert config_of(description, source="x") == base
    config = with_head(base, "token_classification", classifier_dropout=0.0)
    assert config_of(described(config), source="x") == config
    with pytest.raises(CheckpointError, match="x: head is 'masked'; give one of language"):
        config_of(described(base) | {"head": "masked"}, source="x")


# Bad input


@pytest.mark.parametrize("engine", ["reference", "accelerated"])
@pytest.mark.parametrize(
    "head, changes, error, message",
    [
        ("sequence_classification", {"labels": np.array([0, 5])}, InputError, r"labels\[1\] is 5"),
        ("sequence_classification", {"labels": np.ones(2)}, DtypeError, "labels is of float64"),
        (
            "sequence_classification",
            {"labels": np.ones((2, 7), int)},
            InputError,
            r"labels has shape \(2, 7\), tokens \(2, 7\); give one for each text, \(2,\)",
        ),
        ("sequence_classification", {"labels": None}, InputError, "the batch has no answers, and"),
        ("token_classification", {"labels": np.full((2, 7), -1)}, InputError, r"\[0, 0\] is -1"),
        ("token_classification", {"kept": np.ones((2, 7))}, DtypeError, "kept is no array of bool"),
        ("question_answering", {"ends": np.array([0, 7])}, InputError, r"ends\[1\] is 7; .*7\)"),
        ("question_answering", {"starts": None}, InputError, "learns from starts and ends: give"),
        ("question_answering", {"kept": np.ones((2, 6), bool)}, InputError, r"shape \(2, 6\), tok"),
        (
            "sequence_classification",
            {"kept": np.arange(7) > np.array([[-1], [2]])},
            InputError,
            r"kept\[1, 2\] is False before a token that is kept; fill a text up at its end",
        ),
        (
            "sequence_classification",
            {"documents": np.ones((2, 7), int)},
            InputError,
            "the rows have documents, and the head sequence_classification asks once for each row",
        ),
        ("token_classification", {"documents": np.ones((2, 6), int)}, InputError, "documents has"),
        ("token_classification", {"ignore": 0}, InputError, "ignore is 0, which is for the head l"),
        ("token_classification", {"tokens": np.full((2, 7), 17)}, InputError, r"\[0, 0\] is 17"),
        ("language", {"labels": None}, InputError, "has no answers, and the head language learns"),
        ("language", {"ends": np.ones(2, int)}, InputError, "the batch has labels, ends, and"),
        ("language", {"kept": np.arange(7) > np.ones((2, 1))}, InputError, r"kept\[0, 1\] is F"),
    ],
)
def test_a_batch_that_cannot_be_learnt_from_is_refused(engine, head, changes, error, message):
    config = with_head(GPT, head)
    batch, loss = batch_of(config) | changes, loss_of(config)
    if engine == "accelerated":
        twin = twin_of(config)
        loss, _ = functional(twin.abstract(config), twin.loss)
    with pytest.raises(error, match=message):
        loss(params_of(config), **batch)
    if "ignore" not in changes:
        with pytest.raises(error, match=message):
            check_batch(config, **batch)


def test_what_is_wrong_while_compiling_is_said_then_and_what_is_not_known_is_nan():
    config = with_head(GPT, "sequence_classification")
    twin, params, batch = twin_of(config), params_of(config), batch_of(config)
    loss = jax.jit(functional(twin.abstract(config), twin.loss)[0])
    with pytest.raises(InputError, match=r"labels has shape \(3,\)"):
        loss(params, **batch | {"labels": np.zeros(3, int)})
    with pytest.raises(InputError, match=r"kept has shape \(2, 6\)"):
        loss(params, **batch | {"kept": np.zeros((2, 6), bool)})
    assert np.isnan(loss(params, **batch | {"labels": np.array([5, 0])}))


@each_model
def test_a_model_with_another_head_does_not_write(base):
    """In both engines; nor does it score the next token."""
    config = with_head(base, "token_classification")
    params, tokens = params_of(config), np.ones(3, int)
    message = "the model's head is token_classification, which does not score the next token"
    apply, _ = functional(twin_of(config).abstract(config))
    score = gpt if base is GPT else llama
    for refused in (
        lambda: generate(params, tokens=tokens, steps=2, config=config),
        lambda: make_cache(config, batch=1, length=5, dtype=np.float32),
        lambda: score(params, tokens=tokens[None], config=config),
        lambda: apply(params, tokens=tokens[None]),
    ):
        with pytest.raises(InputError, match=message):
            refused()


@each_model
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"head": "masked"}, "head is 'masked'; give one of language, sequence_classification"),
        ({"labels": 3}, "labels is 3, for which the head language has no use"),
        ({"head": "token_classification"}, "labels is None; give the number of classes, 2 or"),
        ({"head": "sequence_classification", "labels": 1}, "labels is 1; give the number of cl"),
        ({"classifier_dropout": 1.0}, "the dropout rate is 1.0"),
    ],
)
def test_heads_that_make_no_model_are_refused(base, changes, message):
    with pytest.raises(InputError, match=message):
        replace(base, **changes)
