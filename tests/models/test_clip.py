import json
import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.training.loop as accelerated
import reference.training.loop as reference
from accelerated import functional
from accelerated.models.clip import Clip, ClipImage, ClipText
from accelerated.training.compilation import Compilation
from reference import random, tree
from reference.data.batches import Arrays
from reference.errors import DtypeError, InputError
from reference.models import config_of, described
from reference.models.clip import (
    PRESETS,
    ClipConfig,
    ClipImageConfig,
    ClipTextConfig,
    check_batch,
    clamped,
    clip,
    clip_image,
    clip_loss,
    clip_text,
    flops_per_example,
    initial_params,
    parameter_shapes,
    zero_shot,
)
from reference.training.config import TrainingConfig
from tests.mirror import MODEL, assert_gradient, assert_mirror, random_like

TEXT = ClipTextConfig(17, 6, 1, heads=2, width=10, hidden=7)
VISION = ClipImageConfig(6, 3, 1, heads=3, width=12, hidden=8, channels=2)
CONFIG = ClipConfig(TEXT, VISION, 5)
ENDED = replace(CONFIG, text=replace(TEXT, end=3, activation="erf"), largest_scale=2.0)
seeds = st.integers(0, 2**32)


def params_of(config, seed=0, scale=0.5):
    """logit_scale is `scale`, below the log of the largest or above."""
    params = initial_params(config, key=random.key(0), dtype=np.float64)
    return random_like(params, np.random.default_rng(seed)) | {"logit_scale": np.array([scale])}


def batch_of(seed=1, pairs=3):
    """Texts that end with a 3, and a 16 after it; images in float32, as those of any test."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, 16, (pairs, 6))
    places = rng.integers(1, 4, pairs)
    tokens[np.arange(pairs), places], tokens[np.arange(pairs), places + 2] = 3, 16
    return {"tokens": tokens, "images": rng.standard_normal((pairs, 6, 6, 2)).astype(np.float32)}


BATCH, PARAMS = batch_of(), params_of(CONFIG)


def with_config(function, config=CONFIG):
    """A function as the twin has it, whose config is its own."""
    return partial(function, config=config)


def everything(params, *, tokens, images):
    """All four, which makes one program of their twins to compile."""
    parts = [
        clip(params, tokens=tokens, images=images, config=ENDED),
        clip_loss(params, tokens=tokens, images=images, config=ENDED),
        clip_text(params["text"], tokens=tokens, config=ENDED),
        clip_image(params["vision"], images=images, config=ENDED),
    ]

    def backward(dy):
        dclip, dloss, dtext, dvision = (part[1](d) for part, d in zip(parts, dy, strict=True))
        both = tree.map(np.add, dclip, dloss)
        more = {"text": dtext, "vision": dvision}
        return both | tree.map(np.add, {name: both[name] for name in more}, more)

    return tuple(y for y, _ in parts), backward


def test_clip_its_loss_and_both_of_its_towers_equal_their_twins():
    """Of the precisions, those of their parts are compared where they are."""
    rng = np.random.default_rng(1)
    apply, loss = (functional(Clip.abstract(ENDED), method)[0] for method in (None, Clip.loss))
    text, image = (functional(kind.abstract(ENDED))[0] for kind in (ClipText, ClipImage))

    def twins(params, *, tokens, images):
        batch = {"tokens": tokens, "images": images}
        towers = text(params["text"], tokens=tokens), image(params["vision"], images=images)
        return apply(params, **batch), loss(params, **batch), *towers

    assert_gradient(everything, PARAMS, **BATCH, rng=rng)
    assert_mirror(everything, twins, PARAMS, **BATCH, rng=rng, tolerance=MODEL, narrow={})


def test_there_may_be_other_numbers_of_images_and_texts():
    """Turns red if scores are turned around."""
    rng = np.random.default_rng(6)
    batch = BATCH | {"images": batch_of(5, pairs=4)["images"]}
    assert_gradient(with_config(clip), PARAMS, **batch, rng=rng)
    twin = functional(Clip.abstract(CONFIG))[0]
    shapes = jax.eval_shape(partial(twin, PARAMS), **batch)
    found, _ = clip(PARAMS, **batch, config=CONFIG)
    assert [a.shape for a in found] == [a.shape for a in shapes] == [(4, 3), (4, 5), (3, 5)]


@pytest.mark.parametrize("scale", [math.log(2.0), 1.5])
def test_the_temperature_is_limited_in_both_engines(scale):
    """At the limit there is a slope, above it none.  Turns red with jnp.minimum, of which half is
    left there.
    """
    params, free = params_of(ENDED, scale=scale), replace(ENDED, largest_scale=None)
    loss, backward = clip_loss(params, **BATCH, config=ENDED)
    at_limit = params | {"logit_scale": np.array([math.log(2.0)])}
    expected, free_backward = clip_loss(at_limit, **BATCH, config=free)
    assert loss == expected
    slope = free_backward(1.0)["logit_scale"] * (scale <= math.log(2.0))
    np.testing.assert_array_equal(backward(1.0)["logit_scale"], slope)
    twin, _ = functional(Clip.abstract(ENDED), Clip.limited_scale)
    value, gradient = jax.value_and_grad(twin)(params)
    assert value == pytest.approx(math.log(2.0))
    assert gradient["logit_scale"][0] == (scale <= math.log(2.0))
    assert clamped(params, free) is params
    np.testing.assert_array_equal(clamped(params, ENDED)["logit_scale"], [math.log(2.0)])
    np.testing.assert_array_equal(clamped(PARAMS, ENDED)["logit_scale"], [0.5])


@given(seeds, st.integers(4, 15))
def test_what_comes_after_its_end_is_not_read(seed, other):
    """Exact zeros.  Turns red without the causal mask."""
    tokens, text = batch_of(seed)["tokens"], PARAMS["text"]
    changed = np.where(np.cumsum(tokens == 16, axis=1) > 0, other, tokens)
    assert (tokens != changed).any()
    for now, config in ((changed, ENDED), (np.where(tokens == 16, 16, changed), CONFIG)):
        features, _ = clip_text(text, tokens=tokens, config=config)
        again, _ = clip_text(text, tokens=now, config=config)
        np.testing.assert_array_equal(features, again)


@given(seeds)
def test_the_end_is_the_largest_token_or_the_first_of_its_own(seed):
    """Turns red if one rule is taken for the other."""
    tokens = batch_of(seed)["tokens"]
    twice = tokens.copy()
    twice[:, -1] = 3
    text, first = PARAMS["text"], replace(ENDED, text=replace(TEXT, end=3))
    by_end, _ = clip_text(text, tokens=tokens, config=first)
    np.testing.assert_array_equal(clip_text(text, tokens=twice, config=first)[0], by_end)
    by_largest, _ = clip_text(text, tokens=tokens, config=CONFIG)
    of_16 = replace(CONFIG, text=replace(TEXT, end=16))
    np.testing.assert_array_equal(clip_text(text, tokens=tokens, config=of_16)[0], by_largest)
    assert (abs(by_end - by_largest) > 1e-9).any(axis=1).all()


@given(seeds)
def test_scores_are_cosines_times_the_scale_and_the_loss_their_cross_entropy(seed):
    """Turns red without the norm, or if images and texts change places."""
    batch = batch_of(seed)
    (scores, images, texts), _ = clip(PARAMS, **batch, config=CONFIG)
    np.testing.assert_allclose(np.linalg.norm([images, texts], axis=-1), 1)
    np.testing.assert_allclose(scores, math.exp(0.5) * images @ texts.T, atol=1e-12)
    features, _ = clip_image(PARAMS["vision"], images=batch["images"], config=CONFIG)
    assert (np.sum(features * images, axis=1) > 0).all()
    both = [np.log(np.exp(z).sum(axis=1)) - np.diag(z) for z in (scores, scores.T)]
    loss, _ = clip_loss(PARAMS, **batch, config=CONFIG)
    np.testing.assert_allclose(loss, np.mean(both))


def test_zero_shot_is_the_nearest_mean_of_the_prompts_in_both_engines():
    """Turns red if a prompt is not brought to length 1 before the mean, or the mean after it."""
    images, prompts = BATCH["images"], batch_of(7, pairs=8)["tokens"].reshape(4, 2, 6)
    found = zero_shot(PARAMS, images=images, prompts=prompts, config=CONFIG)
    means = []
    for name in prompts:
        (_, units, texts), _ = clip(PARAMS, tokens=name, images=images, config=CONFIG)
        mean = texts.mean(axis=0)
        means.append(mean / np.linalg.norm(mean))
    weights = np.exp(math.exp(0.5) * units @ np.array(means).T)
    np.testing.assert_allclose(found, weights / weights.sum(axis=1, keepdims=True), rtol=1e-12)
    twin, _ = functional(Clip.abstract(CONFIG), Clip.zero_shot)
    theirs = jax.jit(twin)(PARAMS, images=images, prompts=prompts)
    np.testing.assert_allclose(theirs, found, rtol=1e-10)
    for engine in (twin, partial(zero_shot, config=CONFIG)):
        with pytest.raises(InputError, match=r"prompts has shape \(8, 6\); give \(V, templates"):
            engine(PARAMS, images=images, prompts=prompts.reshape(8, 6))


def test_ten_steps_of_both_engines_are_equal():
    """In float64, from the published initial weights."""
    batch = batch_of(9, pairs=12)
    training = TrainingConfig(steps=10, batch=4, warmup=2, dtype="float64", learning_rate=0.01)
    losses = []
    for engine in (reference, accelerated):
        run = list(engine.train(ENDED, training, Arrays(batch, batch=4, key=random.key(1))))
        losses.append([np.ravel(figures["loss"])[0] for _, figures in run])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-9)
    assert losses[0][-1] < losses[0][0] - 0.1
    found = accelerated.portable(run[-1][0], ENDED).params
    assert {path: a.shape for path, a in tree.flatten(found).items()} == parameter_shapes(ENDED)


def test_recomputation_and_compiled_loops_change_nothing():
    """In both towers.  Turns red if a loop leaves out a layer."""
    config = replace(CONFIG, text=replace(TEXT, layers=2))
    params = params_of(config)
    loss, gradients = reference.loss_and_gradients(params, BATCH, config=config)
    again = reference.loss_and_gradients(params, BATCH, config=config, recompute=True)
    tree.map(np.testing.assert_array_equal, [loss, gradients], list(again))
    compilation = Compilation(unroll=1)
    packed = accelerated.pack(params, compilation)
    looped = accelerated.loss_function(config, compilation, recompute=True)
    theirs = jax.jit(looped)(packed, **BATCH)
    np.testing.assert_allclose(theirs, loss, rtol=1e-12)
    tree.map(np.testing.assert_array_equal, accelerated.unpack(packed, config), params)


# Sizes and initial weights


def test_the_presets_have_the_published_numbers_of_parameters():
    counts = {
        name: sum(math.prod(shape) for shape in parameter_shapes(config).values())
        for name, config in PRESETS.items()
    }
    assert counts == {
        "clip_b32": 151_277_313,
        "clip_b16": 149_620_737,
        "clip_l14": 427_616_513,
        "clip_l14_336": 427_944_193,
    }


def test_parameters_are_named_as_the_twin_s():
    ours = initial_params(CONFIG, key=random.key(0))
    _, theirs = functional(Clip.abstract(CONFIG))
    tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), ours, theirs)


def test_flops_are_those_that_xla_counts():
    """It leaves out the pixels' gradient, and counts exponentials and sums, hence a tenth."""
    text = ClipTextConfig(101, 48, 1, heads=2, width=64, hidden=256)
    config = ClipConfig(text, ClipImageConfig(24, 3, 1, 2, 64, 256, channels=1), 32)
    params = initial_params(config, key=random.key(0))
    loss, _ = functional(Clip.abstract(config), Clip.loss)
    batch = {"tokens": np.zeros((2, 48), np.int32), "images": np.zeros((2, 24, 24, 1), np.float32)}
    counted = jax.jit(jax.grad(loss)).lower(params, **batch).cost_analysis()["flops"] / 2
    assert abs(counted / flops_per_example(config) - 1) < 0.1


@pytest.mark.parametrize("initialization", ["paper", "released", "scaled"])
def test_initial_weights_have_the_published_deviations(initialization):
    """Each within 5 standard errors.  Turns red if the towers change widths or depths, or without
    the factor (2 L)^-½.
    """
    text, vision = replace(TEXT, width=32, hidden=96, layers=3), replace(VISION, width=48)
    config = ClipConfig(text, replace(vision, hidden=80, layers=2), 24)
    params = initial_params(config, key=random.key(3), initialization=initialization)
    assert params["logit_scale"] == pytest.approx(math.log(1 / 0.07))
    for path, a in tree.flatten(params).items():
        if a.size < 30:  # logit_scale is one of these
            continue
        tower, part, leaf = getattr(config, path.split(".")[0]), *path.split(".")[-2:]
        released = initialization == "released" and ".blocks." in path
        std = expected_deviation(tower, part, leaf, a.shape, released=released)
        flatness = 3.0
        if std is None:
            assert (a == (leaf == "scale")).all(), path
            continue
        if part == "patch" or released and (tower is config.vision or leaf == "bias"):
            flatness = 1.8
            assert abs(a).max() <= std * math.sqrt(3) * (1 + 1e-6), path
        assert abs(a.std() / std - 1) < 5 * math.sqrt((flatness - 1) / (4 * a.size)), path
    with pytest.raises(InputError, match="initialization is 'none'; give one of paper"):
        initial_params(config, key=random.key(0), initialization="none")


def expected_deviation(tower, part, leaf, shape, *, released):
    """Of a uniform number in ±a it is a / √3."""
    width, layers = tower.width, tower.layers
    text = isinstance(tower, ClipTextConfig)
    if leaf == "bias" and released and part in ("up", "down"):
        return {"up": width, "down": tower.hidden}[part] ** -0.5 / math.sqrt(3)
    if leaf in ("scale", "bias"):
        return None
    if part == "patch":
        return math.prod(shape[:-1]) ** -0.5 / math.sqrt(3)
    if text and part in ("token", "position"):
        return {"token": 0.02, "position": 0.01}[part]
    if released and not text:
        fan_in = shape[0]
        if part in ("query", "key", "value"):
            return math.sqrt(2 / (width + 3 * width))
        return fan_in**-0.5 / math.sqrt(3)
    if part in ("out", "down"):
        return width**-0.5 / math.sqrt(2 * layers)
    return (2 * width if part == "up" else width) ** -0.5


def test_a_config_comes_back_from_json():
    for config in (CONFIG, ENDED):
        plain = json.loads(json.dumps(described(config)))
        assert plain == described(config)  # else no checkpoint keeps it
        assert config_of(plain, source="here") == config and hash(config)
    assert CONFIG.vocabulary == 17


# Bad input


def twin_of_text(config):
    return functional(ClipText.abstract(config))[0]


@pytest.mark.parametrize("engine", [with_config(clip_text, ENDED), twin_of_text(ENDED)])
@pytest.mark.parametrize(
    "tokens, error, message",
    [
        (np.array([[3, 1], [2, 5]]), InputError, r"tokens\[1\] has no 3, which ends a text; give"),
        (
            np.array([[3, 17]]),
            InputError,
            r"tokens\[0, 1\] is 17, outside the vocabulary \[0, 17\)",
        ),
        (np.array([[3.0]]), DtypeError, "tokens is of float64"),
        (np.full((2, 7), 3), InputError, "the sequence has 7 tokens"),
    ],
)
def test_tokens_that_cannot_be_read_are_named(engine, tokens, error, message):
    with pytest.raises(error, match=message):
        engine(PARAMS["text"], tokens=tokens)


def test_a_text_without_an_end_that_is_not_known_while_compiling_gives_nan():
    """Turns red if the first token is read in its place."""
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    features = jax.jit(twin_of_text(ENDED))(PARAMS["text"], tokens=tokens)
    assert np.isfinite(features[0]).all() and np.isnan(features[1]).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": np.zeros((2, 6, 6, 2))}, r"tokens has shape \(3, 6\), images \(2, 6, 6, 2\)"),
        ({"images": np.zeros((3, 6, 6, 1))}, r"give \(B, 6, 6, 2\), rows, columns and channels"),
        ({"images": np.zeros((3, 6, 6, 2), np.uint8)}, "images is of uint8; give floats"),
        ({"tokens": np.ones((3, 6), int)}, r"tokens\[0\] has no 3"),
    ],
)
def test_a_batch_that_cannot_be_trained_on_is_refused(change, message):
    check_batch(ENDED, **BATCH)
    with pytest.raises(InputError, match=message):
        check_batch(ENDED, **BATCH | change)


def test_pairs_that_are_none_are_refused_by_both_engines():
    loss, _ = functional(Clip.abstract(CONFIG), Clip.loss)
    for engine in (with_config(clip_loss), partial(jax.eval_shape, loss)):
        with pytest.raises(InputError, match=r"texts has shape \(3, 5\), images \(2, 5\)"):
            engine(PARAMS, tokens=BATCH["tokens"], images=BATCH["images"][:2])


@pytest.mark.parametrize(
    "tower, changes, message",
    [
        (TEXT, {"heads": 3}, "3 heads do not divide the width 10"),
        (TEXT, {"context": 0}, "context is 0; give a positive integer"),
        (TEXT, {"end": 17}, "end is 17, outside"),
        (VISION, {"patch": 4}, "image is 6, patch 4; give a divisor of it"),
        (VISION, {"activation": "relu"}, "activation is 'relu'"),
        (VISION, {"epsilon": 2.0}, "epsilon is 2.0"),
        (CONFIG, {"projection": 0}, "projection is 0"),
        (CONFIG, {"largest_scale": 0.0}, "largest_scale is 0.0; give a positive number, or None"),
    ],
)
def test_sizes_that_make_no_model_are_refused(tower, changes, message):
    with pytest.raises(InputError, match=message):
        replace(tower, **changes)
