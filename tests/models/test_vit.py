import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.training.loop as accelerated
import reference.training.loop as reference
from accelerated import functional
from accelerated.models.vit import ViT
from accelerated.training.compilation import Compilation
from reference import random, tree
from reference.data.batches import Arrays
from reference.errors import DtypeError, InputError
from reference.models import config_of, described, tower
from reference.models.vit import (
    PRESETS,
    ViTConfig,
    at_resolution,
    check_batch,
    flops_per_example,
    for_labels,
    initial_params,
    parameter_shapes,
    vit,
    vit_features,
    vit_loss,
)
from reference.training.config import TrainingConfig
from tests.mirror import MODEL, assert_gradient, assert_mirror, random_like
from tests.peers import peer

CONFIG = ViTConfig(
    (6, 9), 3, 1, heads=2, width=10, hidden=7, labels=5, channels=2, qkv_bias=False, dropout=0.2
)
MEAN = replace(CONFIG, pooling="mean", representation=4, activation="erf", qkv_bias=True)


def params_of(config, seed=0):
    params = initial_params(config, key=random.key(0), dtype=np.float64)
    return random_like(params, np.random.default_rng(seed))


def images_of(seed=1, config=CONFIG, batch=3):
    """float32, so that those of a test in float32 are the same."""
    shape = (batch, *config.pixels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


PARAMS = params_of(CONFIG)
BATCH = {"images": images_of(), "labels": np.array([4, -100, 2])}
seeds = st.integers(0, 2**32)


def ours(params, config=CONFIG, **batch):
    return vit(params, config=config, **batch)


def our_features(params, **batch):
    return vit_features(params, config=MEAN, **batch)


def logits_and_loss(params, *, labels, **batch):
    """Both, which makes one program of their twins to compile."""
    logits, vit_backward = vit(params, **batch, config=CONFIG)
    loss, loss_backward = vit_loss(params, labels=labels, **batch, config=CONFIG)

    def backward(dy):
        return tree.map(np.add, vit_backward(dy[0]), loss_backward(dy[1]))

    return (logits, loss), backward


def test_vit_and_its_loss_equal_their_twins():
    """With dropout, and an image to ignore.  Of the precisions, those of their parts are compared
    where they are.
    """
    rng = np.random.default_rng(1)
    apply, loss = (functional(ViT.abstract(CONFIG), method)[0] for method in (None, ViT.loss))

    def twins(params, *, labels, **batch):
        return apply(params, **batch), loss(params, labels=labels, **batch)

    batch = BATCH | {"key": random.key(3)}
    assert_gradient(logits_and_loss, PARAMS, **batch, rng=rng)
    assert_mirror(logits_and_loss, twins, PARAMS, **batch, rng=rng, tolerance=MODEL, narrow={})


def test_vit_features_equal_their_twin():
    """The mean of the patches, without a class token, and a representation."""
    rng = np.random.default_rng(2)
    features, _ = functional(ViT.abstract(MEAN), ViT.features)
    params = params_of(MEAN)
    assert_gradient(our_features, params, images=BATCH["images"], rng=rng)
    options = {"rng": rng, "tolerance": MODEL, "narrow": {}}
    assert_mirror(our_features, features, params, images=BATCH["images"], **options)


@given(seeds)
def test_images_of_a_batch_do_not_meet(seed):
    """Turns red if the class token's axis is merged with the batch's."""
    images = images_of(seed)
    turned, _ = ours(PARAMS, images=images[::-1])
    np.testing.assert_allclose(turned[::-1], ours(PARAMS, images=images)[0], atol=1e-12)


@given(seeds, st.permutations(range(6)))
def test_where_patches_lie_is_told_by_their_places_alone(seed, order):
    """Patches that change places with their rows of the table make the same features.

    Turns red if the rows do not start behind the class token's, or patches lie in another order.
    """
    images, config = images_of(seed), CONFIG
    tiles = images.reshape(3, 2, 3, 3, 3, 2).swapaxes(2, 3).reshape(3, 6, 3, 3, 2)[:, order]
    moved = tiles.reshape(3, 2, 3, 3, 3, 2).swapaxes(2, 3).reshape(images.shape)
    table = PARAMS["position"]["embedding"][[0, *(1 + i for i in order)]]
    params = PARAMS | {"position": {"embedding": table}}
    features, _ = vit_features(PARAMS, images=images, config=config)
    again, _ = vit_features(params, images=moved, config=config)
    np.testing.assert_allclose(again, features, atol=1e-12)


def test_recomputation_and_a_compiled_loop_change_nothing():
    """Turns red if a block's key is another in either."""
    config = replace(CONFIG, layers=2)
    params, options = params_of(config), {"config": config, "key": random.key(5)}
    loss, backward = vit_loss(params, **BATCH, **options)
    again, again_backward = vit_loss(params, **BATCH, **options, recompute=True)
    tree.map(np.testing.assert_array_equal, [loss, backward(1.0)], [again, again_backward(1.0)])
    compilation = Compilation(unroll=1)
    packed = accelerated.pack(params, compilation)
    looped = accelerated.loss_function(config, compilation, recompute=True)
    theirs = jax.jit(looped)(packed, **BATCH, key=options["key"])
    np.testing.assert_allclose(theirs, loss, rtol=1e-12)
    tree.map(np.testing.assert_array_equal, accelerated.unpack(packed, config), params)


def test_dropout_is_where_the_paper_has_it():
    """Where all values are 1, attention writes the same everywhere, so that only what it wrote can
    be dropped;  of the feed-forward's hidden features each can be.

    Turns red with dropout of attention's weights, or without any of hidden features.
    """
    x, block = np.zeros((8, 5, 10)), PARAMS["blocks"][0]
    options = {"heads": 2, "activation": "erf", "epsilon": 1e-6, "rate": 0.5}
    for part, path in (("attention", "value"), ("feed_forward", "up")):
        silent = {"attention": "out", "feed_forward": "down"}
        del silent[part]
        ((other, last),) = silent.items()
        flat = tree.flatten(block)
        for name in (f"{other}.sublayer.{last}", f"{part}.sublayer.{path}"):
            flat[f"{name}.kernel"] = np.zeros_like(flat[f"{name}.kernel"])
        flat[f"{other}.sublayer.{last}.bias"] = np.zeros(10)
        flat[f"{part}.sublayer.{path}.bias"] = np.ones(10 if part == "attention" else 7)
        params = tree.unflatten(flat)
        plain, _ = tower.block(params, x, **options)
        noisy, _ = tower.block(params, x, **options, key=random.key(0))
        kept = np.isclose(noisy, 2 * plain)
        whole = kept | (noisy == 0)
        assert (noisy == 0).any()
        assert whole.all() if part == "attention" else not whole.all()


def test_ten_steps_of_both_engines_are_equal():
    """In float64, with accumulation, from the published initial weights."""
    config = replace(CONFIG, dropout=0.0)
    arrays = {"images": images_of(7, batch=13), "labels": np.arange(13) % 5}
    sizes = {"steps": 10, "batch": 4, "accumulation": 2, "warmup": 2, "dtype": "float64"}
    training = TrainingConfig(**sizes, learning_rate=0.01)
    losses = []
    for engine in (reference, accelerated):
        data = Arrays(arrays, batch=4, key=random.key(1))
        run = list(engine.train(config, training, data))
        losses.append([np.ravel(figures["loss"])[0] for _, figures in run])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-9)
    assert losses[0][0] == pytest.approx(math.log(5)) and losses[0][-1] < losses[0][0] - 0.1
    found = accelerated.portable(run[-1][0], config).params
    assert {path: a.shape for path, a in tree.flatten(found).items()} == parameter_shapes(config)


# Another resolution, other labels


@given(st.integers(1, 4), st.integers(1, 4))
def test_a_model_for_its_own_resolution_is_itself_and_a_flat_table_stays_flat(rows, columns):
    """Turns red if the class token's row is interpolated along."""
    same, config = at_resolution(PARAMS, CONFIG, CONFIG.image)
    assert config == CONFIG
    np.testing.assert_allclose(same["position"]["embedding"], PARAMS["position"]["embedding"])
    table = np.ones((7, 10))
    table[0] = 2
    flat = PARAMS | {"position": {"embedding": table}}
    moved, config = at_resolution(flat, CONFIG, (3 * rows, 3 * columns))
    assert config == replace(CONFIG, image=(3 * rows, 3 * columns))
    expected = np.array([2] + [1] * rows * columns)[:, None]
    np.testing.assert_allclose(moved["position"]["embedding"], expected + np.zeros(10))
    logits, _ = ours(moved, config, images=images_of(1, config))
    assert logits.shape == (3, 5)


def test_another_resolution_is_that_of_google_s_code():
    """scipy's zoom of order 1, as their checkpoint.py has it; in NumPy and from JAX's arrays."""
    zoom = peer("scipy.ndimage").zoom
    config = ViTConfig(12, 3, 1, 2, 10, 7, labels=5)
    params = params_of(config)
    table = params["position"]["embedding"]
    expected = zoom(table[1:].reshape(4, 4, 10), (7 / 4, 7 / 4, 1), order=1).reshape(49, 10)
    for given_params in (params, jax.tree.map(jnp.asarray, params)):
        moved, new = at_resolution(given_params, config, 21)
        np.testing.assert_allclose(moved["position"]["embedding"][1:], expected, atol=1e-12)
        np.testing.assert_array_equal(moved["position"]["embedding"][0], table[0])
        assert new == replace(config, image=21) and tuple(new.image) == (21, 21)


def test_a_new_head_begins_at_zero_and_takes_the_representation_s_place():
    params, config = for_labels(params_of(MEAN), MEAN, 9)
    assert config == replace(MEAN, labels=9, representation=None)
    shapes = {path: a.shape for path, a in tree.flatten(params).items()}
    assert shapes == parameter_shapes(config)
    logits, _ = ours(params, config, images=BATCH["images"])
    np.testing.assert_array_equal(logits, np.zeros((3, 9)))


# Sizes and initial weights


def test_the_presets_have_the_published_numbers_of_parameters():
    """Of the models for ImageNet's 1000 classes."""
    counts = {
        name: sum(math.prod(shape) for shape in parameter_shapes(config).values())
        for name, config in PRESETS.items()
    }
    assert counts == {
        "vit_b16": 86_567_656,
        "vit_b32": 88_224_232,
        "vit_l16": 304_326_632,
        "vit_l32": 306_535_400,
        "vit_h14": 632_045_800,
        "vit_s16": 22_050_664,
        "vit_ti16": 5_717_416,
    }


def test_parameters_are_named_as_the_twin_s():
    for config in (CONFIG, MEAN, replace(MEAN, labels=0)):
        ours = initial_params(config, key=random.key(0))
        _, theirs = functional(ViT.abstract(config))
        tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), ours, theirs)


def test_flops_are_those_that_xla_counts():
    """It leaves out the pixels' gradient, and counts exponentials and sums, hence a tenth."""
    config = ViTConfig(32, 4, 2, 4, 64, 256, labels=10, channels=1)
    params = initial_params(config, key=random.key(0))
    loss, _ = functional(ViT.abstract(config), ViT.loss)
    batch = {"images": np.zeros((2, 32, 32, 1), np.float32), "labels": np.zeros(2, np.int32)}
    counted = jax.jit(jax.grad(loss)).lower(params, **batch).cost_analysis()["flops"] / 2
    assert abs(counted / flops_per_example(config) - 1) < 0.1


def test_initial_weights_have_the_published_deviations():
    """Each within 5 standard errors.  Turns red with the limit of one side, or the head drawn."""
    config = ViTConfig(24, 4, 2, 4, 32, 96, labels=11, representation=48)
    params = tree.flatten(initial_params(config, key=random.key(3)))
    for path, a in params.items():
        part, leaf = path.split(".")[-2:]
        std, flatness = 0.0, 3.0  # fourth moment over the squared second: 9/5 if uniform
        if leaf == "kernel" and part in ("patch", "representation"):
            std, flatness = math.prod(a.shape[:-1]) ** -0.5, 2.37  # of a normal cut at 2
            assert abs(a).max() < 2 * std / 0.87 and abs(a).max() > 2 * std
        elif leaf == "kernel" and part != "head":
            std, flatness = math.sqrt(2 / sum(a.shape)), 1.8
            assert abs(a).max() <= math.sqrt(6 / sum(a.shape)) * (1 + 1e-6)
        elif part == "position" or leaf == "bias" and part in ("up", "down"):
            std = 0.02 if part == "position" else 1e-6
        else:
            assert (a == (leaf == "scale")).all(), path
            continue
        error = math.sqrt((flatness - 1) / (4 * a.size))
        assert abs(a.std() / std - 1) < 5 * error, path
        assert abs(a.mean()) < 5 * std / math.sqrt(a.size), path
    wide = initial_params(config, key=random.key(3), dtype=np.float64)
    tree.map(np.testing.assert_array_equal, tree.flatten(wide), params)
    with pytest.raises(InputError, match="initialization is 'none'; give one of paper"):
        initial_params(config, key=random.key(0), initialization="none")


def test_a_config_comes_back_from_json():
    for config in (CONFIG, MEAN):
        plain = json.loads(json.dumps(described(config)))
        assert plain == described(config)  # else no checkpoint keeps it
        assert config_of(plain, source="here") == config and hash(config)


# Bad input


@pytest.mark.parametrize("engine", [ours, functional(ViT.abstract(CONFIG))[0]])
@pytest.mark.parametrize(
    "images, error, message",
    [
        (np.zeros((2, 6, 9, 2), np.uint8), DtypeError, r"images is of uint8; give floats, such as"),
        ([[0.0]], DtypeError, "images is a list; give floats"),
        (np.zeros((2, 9, 6, 2)), InputError, r"shape \(2, 9, 6, 2\); give \(B, 6, 9, 2\), rows"),
        (np.zeros((2, 2, 6, 9)), InputError, r"shape \(2, 2, 6, 9\)"),
        (np.zeros((6, 9, 2)), InputError, r"shape \(6, 9, 2\)"),
        (np.zeros((0, 6, 9, 2)), InputError, r"shape \(0, 6, 9, 2\)"),
    ],
)
def test_images_that_cannot_be_read_are_refused(engine, images, error, message):
    with pytest.raises(error, match=message):
        engine(PARAMS, images=images)


def test_a_config_without_a_head_scores_nothing():
    config = replace(MEAN, labels=0)
    params = params_of(config)
    for engine in (vit, functional(ViT.abstract(config))[0]):
        options = {"config": config} if engine is vit else {}
        with pytest.raises(InputError, match="the config has no labels, so no head"):
            engine(params, images=BATCH["images"], **options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": np.array([0, 5, 0])}, r"labels\[1\] is 5"),
        ({"labels": np.zeros(2, int)}, r"labels has shape \(2,\), images \(3, 6, 9, 2\)"),
        ({"labels": np.zeros(3)}, "labels is of float64"),
        ({"images": np.zeros((3, 6, 6, 2))}, "images has shape"),
    ],
)
def test_a_batch_that_cannot_be_trained_on_is_refused(change, message):
    check_batch(CONFIG, **BATCH)
    with pytest.raises(InputError, match=message):
        check_batch(CONFIG, **BATCH | change)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image": 7}, r"image is \(7, 7\), patch 3; give a divisor of both"),
        ({"image": "6"}, "image is '6'"),
        ({"heads": 3}, "3 heads do not divide the width 10"),
        ({"hidden": 0}, "hidden is 0; give a positive integer"),
        ({"labels": -1}, "labels is -1"),
        ({"representation": 0}, "representation is 0"),
        ({"pooling": "max"}, "pooling is 'max'; give one of token, mean"),
        ({"activation": "relu"}, "activation is 'relu'; give one of tanh, erf"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"dropout": 1.0}, "the dropout rate is 1.0"),
    ],
)
def test_sizes_that_make_no_model_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)
