from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

import accelerated.layers.residual as twins
from accelerated import functional
from accelerated.layers.dropout import stochastic_depth as twin_stochastic_depth
from accelerated.layers.feed_forward import FeedForward
from accelerated.layers.normalization import LayerNorm, RMSNorm
from reference import random
from reference.errors import InputError
from reference.layers.dropout import stochastic_depth
from reference.layers.feed_forward import feed_forward
from reference.layers.normalization import layer_norm, rms_norm
from reference.layers.residual import (
    deep_norm,
    deep_norm_scales,
    layer_scale,
    post_norm,
    pre_norm,
    rezero,
    sandwich_norm,
)
from tests.mirror import assert_gradient, assert_mirror, random_like
from tests.peers import peer

WIDTH = 7
WIRINGS = ("post_norm", "pre_norm", "sandwich_norm", "deep_norm", "layer_scale", "rezero")
each_wiring = pytest.mark.parametrize("name", WIRINGS)


def problem(name, seed=0):
    """A wiring, its twin's function around a feed-forward, weights and a stream."""
    rng = np.random.default_rng(seed)
    norm = {"norm": partial(LayerNorm, WIDTH)}
    wiring, make = {
        "post_norm": (post_norm, partial(twins.PostNorm, **norm)),
        "pre_norm": (pre_norm, partial(twins.PreNorm, **norm)),
        "sandwich_norm": (sandwich_norm, partial(twins.SandwichNorm, **norm)),
        "deep_norm": (partial(deep_norm, alpha=1.7), partial(twins.DeepNorm, **norm, alpha=1.7)),
        "layer_scale": (layer_scale, partial(twins.LayerScale, **norm, width=WIDTH)),
        "rezero": (rezero, twins.ReZero),
    }[name]
    apply, init = functional(make(FeedForward(WIDTH, hidden=11, rngs=nnx.Rngs(0))))
    params = random_like(jax.tree.map(lambda a: np.asarray(a, np.float64), init), rng)
    return wiring, apply, params, rng.standard_normal((2, 5, WIDTH))


@each_wiring
def test_wirings_equal_their_twins(name):
    wiring, apply, params, x = problem(name)
    rng = np.random.default_rng(1)
    noise = {"rate": 0.3, "key": random.key(1)}
    ours = partial(wiring, sublayer=feed_forward)
    assert_gradient(ours, params, x, **noise, rng=rng)
    assert_mirror(ours, apply, params, x, **noise, rng=rng)


def test_another_norm_and_another_noise_equal_their_twins():
    rng = np.random.default_rng(2)
    inner = FeedForward(WIDTH, hidden=11, rngs=nnx.Rngs(0))
    apply, init = functional(twins.PreNorm(inner, norm=partial(RMSNorm, WIDTH)))
    params = random_like(jax.tree.map(lambda a: np.asarray(a, np.float64), init), rng)
    x, noise = rng.standard_normal((5, 3, WIDTH)), {"rate": 0.4, "key": random.key(2)}
    ours = partial(pre_norm, sublayer=feed_forward, norm=rms_norm, drop=stochastic_depth)
    theirs = partial(apply, drop=twin_stochastic_depth)
    assert_gradient(ours, params, x, **noise, rng=rng)
    assert_mirror(ours, theirs, params, x, **noise, rng=rng)


def product(params, x, other):
    """A sub-layer that reads something beside the stream."""
    y = params["kernel"] * x * other

    def backward(dy):
        return {"kernel": dy * x * other}, dy * params["kernel"] * other, dy * params["kernel"] * x

    return y, backward


@each_wiring
def test_what_a_sub_layer_reads_beside_the_stream_gets_its_gradient(name):
    """Turns red if a wiring loses it."""
    wiring, _, params, x = problem(name)
    rng = np.random.default_rng(3)
    params |= {"sublayer": {"kernel": rng.standard_normal(x.shape)}}
    other = rng.standard_normal(x.shape)
    assert_gradient(partial(wiring, sublayer=product), params, x, other, rng=rng)


def silent(params, x):
    """A sub-layer that writes nothing."""
    return np.zeros_like(x), lambda dy: ({}, np.zeros_like(x))


@pytest.mark.parametrize("name", ["pre_norm", "layer_scale", "rezero", "sandwich_norm"])
def test_a_sub_layer_that_writes_nothing_leaves_the_stream_as_it_was(name):
    """Turns red if the sum starts from the normalized copy."""
    wiring, _, params, x = problem(name)
    if name == "sandwich_norm":
        params["norm_after"]["bias"] = np.zeros(WIDTH)
    y, backward = wiring(params, x, sublayer=silent)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(backward(x)[1], x)


def test_a_wiring_whose_scale_is_0_is_the_identity():
    """So LayerScale and ReZero begin.  Turns red if the stream is scaled too."""
    for name in ("layer_scale", "rezero"):
        wiring, _, params, x = problem(name)
        params["scale"] = np.zeros_like(params["scale"])
        np.testing.assert_array_equal(wiring(params, x, sublayer=feed_forward)[0], x)


def test_deep_norm_of_1_is_post_norm():
    """Turns red if α scales the change instead: seen with α = 2."""
    _, _, params, x = problem("post_norm")
    y, _ = post_norm(params, x, sublayer=feed_forward)
    np.testing.assert_array_equal(deep_norm(params, x, sublayer=feed_forward, alpha=1.0)[0], y)
    change, _ = feed_forward(params["sublayer"], x)
    expected, _ = layer_norm(params["norm"], 2 * x + change)
    np.testing.assert_array_equal(
        deep_norm(params, x, sublayer=feed_forward, alpha=2.0)[0], expected
    )


def test_post_norm_leaves_a_normalized_stream_and_pre_norm_does_not():
    """Turns red if `post_norm` normalizes only the change."""
    _, _, params, x = problem("post_norm")
    params["norm"] = {"scale": np.ones(WIDTH), "bias": np.zeros(WIDTH)}
    after, _ = post_norm(params, 100 * x, sublayer=feed_forward)
    np.testing.assert_allclose(after.var(axis=-1), 1, rtol=1e-3)
    before, _ = pre_norm(params, 100 * x, sublayer=feed_forward)
    assert before.var(axis=-1).min() > 100


def test_the_scales_of_deep_norm_are_those_published():
    """For the 18 layers of a base model: α = 36^¼, β = 144^-¼."""
    np.testing.assert_allclose(deep_norm_scales(18), (6**0.5, 12**-0.5), rtol=1e-12)
    with pytest.raises(InputError, match="layers is 0; give 1 or more"):
        deep_norm_scales(0)


@pytest.mark.parametrize("norm_first", [False, True])
def test_post_and_pre_norm_equal_pytorch_s(norm_first):
    """The feed-forward half of torch.nn.TransformerEncoderLayer; its attention reads nothing."""
    torch = peer("torch")
    wiring, _, params, x = problem("pre_norm" if norm_first else "post_norm")
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, 1, 11, 0.0, "gelu", batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    up, down = params["sublayer"]["up"], params["sublayer"]["down"]
    with torch.no_grad():
        for module, weights in ((layer.linear1, up), (layer.linear2, down)):
            module.weight.copy_(torch.tensor(weights["kernel"].T))
            module.bias.copy_(torch.tensor(weights["bias"]))
        layer.norm2.weight.copy_(torch.tensor(params["norm"]["scale"]))
        layer.norm2.bias.copy_(torch.tensor(params["norm"]["bias"]))
    layer.activation = partial(torch.nn.functional.gelu, approximate="tanh")
    layer.eval()
    there = torch.tensor(x, requires_grad=True)
    if norm_first:
        expected = there + layer._ff_block(layer.norm2(there))
    else:
        expected = layer.norm2(there + layer._ff_block(there))
    dy = np.random.default_rng(4).standard_normal(x.shape)
    expected.backward(torch.tensor(dy))
    y, backward = wiring(params, x, sublayer=feed_forward)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(dy)[1], there.grad.numpy(), rtol=0, atol=1e-11)
