import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.activation as twins
from accelerated import functional
from accelerated.layers.feed_forward import FeedForward, GatedFeedForward, GeGLU, ReGLU, SwiGLU
from reference.layers.activation import gelu, gelu_tanh, relu, sigmoid, silu
from reference.layers.feed_forward import feed_forward, gated_feed_forward, geglu, reglu, swiglu
from reference.layers.linear import linear
from tests.mirror import assert_close, assert_gradient, assert_mirror, random_like
from tests.peers import peer


def made(module, rng):
    """The twin as a function, and random parameters for it."""
    apply, init = functional(module)
    return apply, random_like(jax.tree.map(lambda a: np.asarray(a, np.float64), init), rng)


def gated_params(rng, *, bias=False):
    return made(GatedFeedForward(5, hidden=11, use_bias=bias, rngs=nnx.Rngs(0)), rng)[1]


@pytest.mark.parametrize("activation, bias", [(gelu, True), (gelu_tanh, True), (relu, False)])
def test_feed_forward_equals_its_twin(activation, bias):
    rng = np.random.default_rng(0)
    apply, params = made(FeedForward(5, hidden=11, use_bias=bias, rngs=nnx.Rngs(0)), rng)
    x = rng.standard_normal((2, 3, 5))

    def ours(params, x):
        return feed_forward(params, x, activation=activation)

    def theirs(params, x):
        return apply(params, x, activation=getattr(twins, activation.__name__))

    assert ("bias" in params["up"]) == bias
    assert_gradient(ours, params, x, rng=rng)
    assert_mirror(ours, theirs, params, x, rng=rng)


@pytest.mark.parametrize("activation, bias", [(sigmoid, True), (gelu_tanh, False)])
def test_gated_feed_forward_equals_its_twin(activation, bias):
    rng = np.random.default_rng(2)
    apply, params = made(GatedFeedForward(5, hidden=11, use_bias=bias, rngs=nnx.Rngs(0)), rng)

    def ours(params, x):
        return gated_feed_forward(params, x, activation=activation)

    def theirs(params, x):
        return apply(params, x, activation=getattr(twins, activation.__name__))

    assert all(("bias" in params[name]) == bias for name in ("gate", "up", "down"))
    for leading in ((), (7,), (2, 3, 7)):
        assert_gradient(ours, params, rng.standard_normal((*leading, 5)), rng=rng)
    assert_mirror(ours, theirs, params, rng.standard_normal((2, 3, 5)), rng=rng)


@pytest.mark.parametrize("component, twin", [(reglu, ReGLU), (geglu, GeGLU), (swiglu, SwiGLU)])
def test_the_named_gated_layers_equal_their_twins(component, twin):
    """At these numbers no hidden feature is so near 0 that a finite difference would cross it."""
    rng = np.random.default_rng(3)
    apply, params = made(twin(5, hidden=11, rngs=nnx.Rngs(0)), rng)
    x = rng.standard_normal((2, 3, 5))
    assert np.abs(linear(params["gate"], x)[0]).min() > 1e-3
    assert_gradient(component, params, x, rng=rng)
    assert_mirror(component, apply, params, x, rng=rng)


def test_the_default_activation_is_gpt_2_s():
    rng = np.random.default_rng(1)
    shapes = {"up": (5, 11), "down": (11, 5)}
    params = {k: {"kernel": rng.standard_normal(shape)} for k, shape in shapes.items()}
    x = rng.standard_normal((3, 5))
    by_default, named = feed_forward(params, x)[0], feed_forward(params, x, activation=gelu_tanh)[0]
    np.testing.assert_array_equal(by_default, named)


def llama_s(*, bias):
    transformers = peer("transformers")
    config = transformers.LlamaConfig(mlp_bias=bias)
    config.hidden_size, config.intermediate_size = 5, 11
    return transformers.models.llama.modeling_llama.LlamaMLP(config)


def t5_s(kind, activation):
    transformers = peer("transformers")
    config = transformers.T5Config(d_model=5, d_ff=11)
    config.dense_act_fn = activation
    return getattr(transformers.models.t5.modeling_t5, kind)(config).eval()


def gelu_tanh_gated(params, x):
    return gated_feed_forward(params, x, activation=gelu_tanh)


def relu_feed_forward(params, x):
    return feed_forward(params, x, activation=relu)


LLAMA = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
GATED_T5, T5 = {"gate": "wi_0", "up": "wi_1", "down": "wo"}, {"up": "wi", "down": "wo"}
GATED = "T5DenseGatedActDense"
PEERS = {
    "T5": (relu_feed_forward, T5, lambda: t5_s("T5DenseActDense", "relu")),
    "T5 v1.1": (gelu_tanh_gated, GATED_T5, lambda: t5_s(GATED, "gelu_new")),
    "T5 v1.1 with the erf GELU": (geglu, GATED_T5, lambda: t5_s(GATED, "gelu")),
    "T5 v1.1 with ReLU": (reglu, GATED_T5, lambda: t5_s(GATED, "relu")),
    "Llama": (swiglu, LLAMA, lambda: llama_s(bias=False)),
    "Llama with biases": (swiglu, LLAMA, lambda: llama_s(bias=True)),
}


@pytest.mark.parametrize("component, names, module", PEERS.values(), ids=PEERS)
def test_feed_forwards_equal_hugging_face_s(component, names, module):
    torch, rng = peer("torch"), np.random.default_rng(4)
    theirs = module().double()
    params = {ours: params_of(getattr(theirs, name), lambda a: a) for ours, name in names.items()}
    x, dy = rng.standard_normal((2, 2, 3, 5))
    there = torch.tensor(x, requires_grad=True)
    expected = theirs(there)
    expected.backward(torch.tensor(dy))
    y, backward = component(params, x)
    gradient = {
        ours: params_of(getattr(theirs, name), lambda a: a.grad) for ours, name in names.items()
    }
    assert_close(
        (y, backward(dy)), (expected.detach().numpy(), (gradient, there.grad.numpy())), 1e-12
    )


def params_of(layer, part):
    """A layer of PyTorch's as a `linear`: its parameters, or what `part` makes of them."""
    params = {"kernel": part(layer.weight).detach().numpy().T}
    return params if layer.bias is None else params | {"bias": part(layer.bias).detach().numpy()}


def identity(x):
    return x, lambda dy: dy


@given(st.integers(0, 2**32), st.floats(0.01, 100))
def test_with_no_activation_gate_and_up_are_interchangeable(seed, factor):
    """Turns red if a projection is added rather than multiplied, or feeds itself: the layer is then
    bilinear, and grows with the square of x.
    """
    rng = np.random.default_rng(seed)
    params, x = gated_params(rng), rng.standard_normal((3, 5))
    y, backward = gated_feed_forward(params, x, activation=identity)
    swapped = {"gate": params["up"], "up": params["gate"], "down": params["down"]}
    y_swapped, backward_swapped = gated_feed_forward(swapped, x, activation=identity)
    np.testing.assert_allclose(y_swapped, y, rtol=1e-10, atol=1e-13)
    dy = rng.standard_normal(y.shape)
    (dparams, dx), (dswapped, dx_swapped) = backward(dy), backward_swapped(dy)
    np.testing.assert_allclose(dx_swapped, dx, rtol=1e-10, atol=1e-12)
    dgate, dup = dswapped["up"]["kernel"], dswapped["gate"]["kernel"]
    np.testing.assert_allclose(dgate, dparams["gate"]["kernel"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dup, dparams["up"]["kernel"], rtol=1e-10, atol=1e-12)
    grown, _ = gated_feed_forward(params, factor * x, activation=identity)
    np.testing.assert_allclose(grown, factor**2 * y, rtol=1e-9, atol=1e-12 * factor**2)


def saturated(params, at):
    """A gate that stands at one value, whatever x is."""
    gate = {"kernel": np.zeros((5, 11)), "bias": np.full(11, at)}
    return params | {"gate": gate}


@given(st.integers(0, 2**32), st.floats(800, 1e4))
def test_a_gate_that_saturates_opens_or_shuts_for_good(seed, score):
    """Turns red if the activation is applied to `up`, or the gate's backward leaves it out."""
    rng = np.random.default_rng(seed)
    params, x = gated_params(rng, bias=True), rng.standard_normal((3, 5))
    open_, backward = gated_feed_forward(saturated(params, score), x, activation=sigmoid)
    up, up_backward = linear(params["up"], x)
    ungated, down_backward = linear(params["down"], up)
    np.testing.assert_allclose(open_, ungated, rtol=1e-12, atol=1e-14)
    dy = rng.standard_normal((3, 5))
    dparams, dx = backward(dy)
    np.testing.assert_allclose(dx, up_backward(down_backward(dy)[1])[1], rtol=1e-12, atol=1e-14)
    assert not dparams["gate"]["kernel"].any() and not dparams["gate"]["bias"].any()

    shut, backward = gated_feed_forward(saturated(params, -score), x, activation=sigmoid)
    np.testing.assert_array_equal(shut, np.broadcast_to(params["down"]["bias"], (3, 5)))
    dparams, dx = backward(dy)
    np.testing.assert_array_equal(dparams["down"]["bias"], dy.sum(axis=0))
    assert not dx.any() and not dparams["up"]["kernel"].any()


@given(st.integers(0, 2**32))
def test_the_named_gated_layers_differ_in_their_activation_alone(seed):
    """Turns red if one is given another's activation, or the tanh form of GELU."""
    rng = np.random.default_rng(seed)
    params, x, dy = gated_params(rng), rng.standard_normal((3, 5)), rng.standard_normal((3, 5))
    for component, activation in ((reglu, relu), (geglu, gelu), (swiglu, silu)):
        y, backward = component(params, x)
        named, named_backward = gated_feed_forward(params, x, activation=activation)
        np.testing.assert_array_equal(y, named)
        jax.tree.map(np.testing.assert_array_equal, backward(dy), named_backward(dy))


@given(st.integers(0, 2**32))
def test_the_named_gated_layers_agree_where_every_gate_is_wide_open(seed):
    """Turns red if an activation is not x for a large x."""
    rng = np.random.default_rng(seed)
    params, x = saturated(gated_params(rng), 50.0), rng.standard_normal((3, 5))
    hidden, _ = linear(params["up"], x)
    expected = 50 * hidden @ params["down"]["kernel"]
    for component in (reglu, geglu, swiglu):
        np.testing.assert_allclose(component(params, x)[0], expected, rtol=1e-11, atol=1e-12)
