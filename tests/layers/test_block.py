from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

import accelerated.layers.block as twins
from accelerated import functional
from accelerated.layers.attention import CrossAttention, MultiHeadAttention
from accelerated.layers.feed_forward import FeedForward, SwiGLU
from accelerated.layers.normalization import LayerNorm, RMSNorm
from accelerated.layers.residual import PostNorm, PreNorm
from accelerated.layers.rotary import rotary_halves as twin_rotary_halves
from reference import random
from reference.layers.attention import cross_attention, multi_head_attention
from reference.layers.block import decoder_block, parallel_block, transformer_block
from reference.layers.feed_forward import swiglu
from reference.layers.mask import causal, padding
from reference.layers.normalization import rms_norm
from reference.layers.residual import post_norm, pre_norm
from reference.layers.rotary import rotary_frequencies, rotary_halves
from tests.mirror import assert_gradient, assert_mirror, random_like
from tests.peers import peer

WIDTH, HEADS, HIDDEN = 21, 3, 11
ATTEND = partial(multi_head_attention, heads=HEADS, mask=causal)
NOISE = {"rate": 0.3, "key": random.key(1)}


def parts(cross=False):
    """The modules of a block like GPT-2's."""
    rngs = nnx.Rngs(0)
    made = {
        "attention": MultiHeadAttention(WIDTH, heads=HEADS, rngs=rngs),
        "feed_forward": FeedForward(WIDTH, hidden=HIDDEN, rngs=rngs),
    }
    if cross:
        made["cross_attention"] = CrossAttention(WIDTH, heads=HEADS, rngs=rngs)
    return made


def wired(wiring, norm=LayerNorm):
    return partial(wiring, norm=partial(norm, WIDTH))


def layer(module, seed=0):
    """A twin's function, and weights for both engines in float64."""
    apply, init = functional(module)
    rng = np.random.default_rng(seed)
    return apply, random_like(jax.tree.map(lambda a: np.asarray(a, np.float64), init), rng)


@pytest.mark.parametrize("ours, theirs", [(pre_norm, PreNorm), (post_norm, PostNorm)])
def test_transformer_block_equals_its_twin(ours, theirs):
    """GPT-2's and GPT-1's.  Turns red if two of its keys are the same."""
    rng = np.random.default_rng(0)
    apply, params = layer(twins.TransformerBlock(**parts(), wiring=wired(theirs)))
    x = rng.standard_normal((2, 5, WIDTH))
    reference = partial(transformer_block, attention=ATTEND, wiring=ours)
    assert_gradient(reference, params, x, **NOISE, rng=rng)
    assert_mirror(reference, partial(apply, mask=causal), params, x, **NOISE, rng=rng)


def test_llama_s_block_equals_its_twin():
    """RMS norms, rotary, grouped queries, SwiGLU, no biases; and a bias on the scores."""
    rng = np.random.default_rng(1)
    frequencies, options = rotary_frequencies(4), {"groups": 1, "head_width": 4, "use_bias": False}
    module = twins.TransformerBlock(
        attention=MultiHeadAttention(WIDTH, heads=HEADS, **options, rngs=nnx.Rngs(0)),
        feed_forward=SwiGLU(WIDTH, hidden=HIDDEN, rngs=nnx.Rngs(0)),
        wiring=wired(PreNorm, RMSNorm),
    )
    apply, params = layer(module, 1)
    x, bias = rng.standard_normal((2, 5, WIDTH)), rng.standard_normal((HEADS, 5, 5))
    turn = partial(rotary_halves, frequencies=frequencies)
    attention = partial(ATTEND, groups=1, rotary=turn)
    wiring = partial(pre_norm, norm=rms_norm)
    ours = partial(transformer_block, attention=attention, feed_forward=swiglu, wiring=wiring)
    theirs = partial(
        apply, mask=causal, rotary=partial(twin_rotary_halves, frequencies=frequencies)
    )
    assert_gradient(ours, params, x, bias, rng=rng)
    assert_mirror(ours, theirs, params, x, bias, rng=rng)


def test_decoder_block_equals_its_twin():
    rng = np.random.default_rng(2)
    apply, params = layer(twins.DecoderBlock(**parts(cross=True), wiring=wired(PostNorm)), 2)
    x, memory = rng.standard_normal((2, 5, WIDTH)), rng.standard_normal((2, 3, WIDTH))
    seen = padding(np.array([[True, True, False], [True, True, True]]))
    cross = partial(cross_attention, heads=HEADS, mask=seen)
    options = {"attention": ATTEND, "cross_attention": cross, "wiring": post_norm}
    ours = partial(decoder_block, **options)
    theirs = partial(apply, mask=causal, cross_options={"mask": seen})
    assert_gradient(ours, params, x, memory, **NOISE, rng=rng)
    assert_mirror(ours, theirs, params, x, memory, **NOISE, rng=rng)


def test_parallel_block_equals_its_twin():
    rng = np.random.default_rng(3)
    apply, params = layer(twins.ParallelBlock(**parts(), norm=partial(LayerNorm, WIDTH)), 3)
    x = rng.standard_normal((2, 5, WIDTH))
    ours = partial(parallel_block, attention=ATTEND)
    assert_gradient(ours, params, x, **NOISE, rng=rng)
    assert_mirror(ours, partial(apply, mask=causal), params, x, **NOISE, rng=rng)


def test_sub_layers_that_write_nothing_leave_the_stream_as_it_was():
    """Turns red if a residual connection starts from the normalized copy."""
    rng = np.random.default_rng(4)
    _, params = layer(twins.TransformerBlock(**parts(), wiring=wired(PreNorm)), 4)
    _, side_by_side = layer(twins.ParallelBlock(**parts(), norm=partial(LayerNorm, WIDTH)), 4)
    inner = [params["attention"]["sublayer"], params["feed_forward"]["sublayer"]]
    for part in (*inner, side_by_side["attention"], side_by_side["feed_forward"]):
        last = "out" if "out" in part else "down"
        part[last] = jax.tree.map(np.zeros_like, part[last])
    x = rng.standard_normal((2, 5, WIDTH))
    for block, weights in ((transformer_block, params), (parallel_block, side_by_side)):
        y, backward = block(weights, x, attention=ATTEND)
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(backward(x)[1], x)


def test_no_position_of_a_block_sees_the_future_and_no_sequence_another():
    """As exact zeros of the gradient.  Turns red with `<=` for `<` in a mask."""
    rng = np.random.default_rng(5)
    _, params = layer(twins.TransformerBlock(**parts(), wiring=wired(PreNorm)), 5)
    x = rng.standard_normal((2, 5, WIDTH))
    y, backward = transformer_block(params, x, attention=ATTEND)
    dy = np.zeros_like(y)
    dy[1, 2] = rng.standard_normal(WIDTH)
    _, dx, _ = backward(dy)
    assert not dx[0].any() and not dx[1, 3:].any() and dx[1, :3].all()


def test_a_decoder_that_reads_nothing_is_a_block_without_cross_attention():
    """Turns red if the memory reaches the output by another way."""
    rng = np.random.default_rng(6)
    _, params = layer(twins.DecoderBlock(**parts(cross=True), wiring=wired(PreNorm)), 6)
    out = params["cross_attention"]["sublayer"]["out"]
    params["cross_attention"]["sublayer"]["out"] = jax.tree.map(np.zeros_like, out)
    x, memory = rng.standard_normal((2, 5, WIDTH)), rng.standard_normal((2, 3, WIDTH))
    cross = partial(cross_attention, heads=HEADS)
    y, backward = decoder_block(params, x, memory, attention=ATTEND, cross_attention=cross)
    np.testing.assert_array_equal(y, transformer_block(params, x, attention=ATTEND)[0])
    assert not backward(y)[2].any()


def fill(torch, layer, params, names):
    """Our weights in PyTorch's layer: query, key and value are one matrix there."""

    def put(module, weights):
        weight = weights["scale"] if "scale" in weights else weights["kernel"].T
        module.weight.copy_(torch.tensor(weight))
        module.bias.copy_(torch.tensor(weights["bias"]))

    with torch.no_grad():
        for norm, (name, attention) in enumerate(names.items(), 1):
            put(getattr(layer, f"norm{norm}"), params[name]["norm"])
            if attention is None:
                put(layer.linear1, params[name]["sublayer"]["up"])
                put(layer.linear2, params[name]["sublayer"]["down"])
                continue
            module, inner = getattr(layer, attention), params[name]["sublayer"]
            three = [inner[part] for part in ("query", "key", "value")]
            kernel = np.concatenate([part["kernel"].T for part in three])
            module.in_proj_weight.copy_(torch.tensor(kernel))
            module.in_proj_bias.copy_(
                torch.tensor(np.concatenate([part["bias"] for part in three]))
            )
            put(module.out_proj, inner["out"])


@pytest.mark.parametrize("norm_first", [False, True])
def test_blocks_equal_pytorch_s_encoder_and_decoder_layers(norm_first):
    """Value and gradients.  Turns red if a norm or a residual connection is in another place."""
    torch = peer("torch")
    rng = np.random.default_rng(7)
    twin_wiring, wiring = (PreNorm, pre_norm) if norm_first else (PostNorm, post_norm)
    _, params = layer(twins.DecoderBlock(**parts(cross=True), wiring=wired(twin_wiring)), 7)
    x, memory = rng.standard_normal((2, 5, WIDTH)), rng.standard_normal((2, 3, WIDTH))
    there, memory_there = (torch.tensor(a, requires_grad=True) for a in (x, memory))
    options = {"batch_first": True, "norm_first": norm_first, "dtype": torch.float64}
    activation = partial(torch.nn.functional.gelu, approximate="tanh")
    made = torch.nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, 0.0, activation, **options)
    names = {"attention": "self_attn", "cross_attention": "multihead_attn", "feed_forward": None}
    fill(torch, made, params, names)
    future = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    expected = made(there, memory_there, tgt_mask=future)
    dy = rng.standard_normal(x.shape)
    expected.backward(torch.tensor(dy))
    cross = partial(cross_attention, heads=HEADS)
    ours = partial(decoder_block, attention=ATTEND, cross_attention=cross, wiring=wiring)
    y, backward = ours(params, x, memory)
    dparams, dx, dmemory, _ = backward(dy)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, there.grad.numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(dmemory, memory_there.grad.numpy(), rtol=0, atol=1e-10)
    dkernel = dparams["cross_attention"]["sublayer"]["out"]["kernel"]
    expected_dkernel = made.multihead_attn.out_proj.weight.grad.numpy().T
    np.testing.assert_allclose(dkernel, expected_dkernel, rtol=0, atol=1e-10)

    encoder = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, activation, **options)
    fill(torch, encoder, params, {"attention": "self_attn", "feed_forward": None})
    alone = {name: params[name] for name in ("attention", "feed_forward")}
    y, _ = transformer_block(alone, x, attention=ATTEND, wiring=wiring)
    expected = encoder(torch.tensor(x), src_mask=future)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-11)
