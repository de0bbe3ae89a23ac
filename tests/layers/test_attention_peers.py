"""Attention and blocks as published systems have them, against Hugging Face's modules."""

from functools import partial

import numpy as np
import pytest

from reference.layers.attention import multi_head_attention
from reference.layers.block import parallel_block, transformer_block
from reference.layers.feed_forward import swiglu
from reference.layers.mask import (
    both,
    causal,
    documents,
    locally_banded,
    padding,
    sliding_window,
)
from reference.layers.normalization import rms_norm
from reference.layers.residual import pre_norm
from reference.layers.rotary import rotary_frequencies, rotary_halves
from tests.peers import peer

B, T, D, H, G, K, F = 2, 7, 24, 6, 2, 8, 11
SIZES = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_attention_heads": H,
    "num_key_value_heads": G,
    "head_dim": K,
    "num_hidden_layers": 2,
    "vocab_size": 13,
    "pad_token_id": None,
    "attn_implementation": "eager",
}


def noisy(torch, module):
    """A module in float64, all of its parameters random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.normal_(std=0.4)
    return module.eval()


def waves(torch, features=K):
    """cos and sin (1, T, features / 2) of positions 0 … T-1, from the formula."""
    wave = 10000.0 ** (-torch.arange(0, features, 2, dtype=torch.float64) / features)
    angles = torch.arange(T)[:, None] * wave
    return angles.cos()[None], angles.sin()[None]


def doubled(torch, *tables):
    return tuple(torch.cat([table, table], dim=-1) for table in tables)


def linear_of(module):
    """A PyTorch linear layer's weights as ours."""
    kernel = {"kernel": module.weight.detach().numpy().T}
    return kernel | ({} if module.bias is None else {"bias": module.bias.detach().numpy()})


def attention_of(module, out="o_proj"):
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": out}
    params = {ours: linear_of(getattr(module, theirs)) for ours, theirs in names.items()}
    for ours, theirs in (("query", "q_norm"), ("key", "k_norm")):
        if hasattr(module, theirs):
            scale = getattr(module, theirs).weight.detach().numpy()
            params.setdefault("norm", {})[ours] = {"scale": scale}
    return params | ({"sink": module.sinks.detach().numpy()} if hasattr(module, "sinks") else {})


def additive(torch, mask):
    """Our mask as the numbers that theirs adds to the scores."""
    seen = mask(np.arange(T)[:, None], np.arange(T)[None])
    return torch.tensor(np.where(seen, 0.0, -1e9))[None, None]


def assert_equal(torch, theirs, ours, params, grad_of, *, tolerance=1e-11):
    """Value, and the gradients in x and in some weights: their parameters, and ours of dparams."""
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((2, B, T, D))
    there = torch.tensor(x, requires_grad=True)
    expected = theirs(there)
    expected.backward(torch.tensor(dy))
    y, backward = ours(params, x)
    dparams, dx, *_ = backward(dy)
    weights = [(dweight, parameter.grad) for parameter, dweight in grad_of(dparams)]
    for actual, tensor in ((y, expected), (dx, there.grad), *weights):
        found = tensor.detach().numpy()
        np.testing.assert_allclose(actual, found, rtol=0, atol=tolerance * np.abs(found).max())


@pytest.mark.parametrize("model", ["Llama", "Mistral", "Qwen3", "GptOss", "Gemma2"])
def test_grouped_attention_equals_hugging_face_s(model):
    """Rotary and groups in all; a window in Mistral's, normalized queries and keys in Qwen3's,
    sinks and a window in GPT-OSS's, a soft cap and another scale in Gemma 2's.
    """
    torch, transformers = peer("torch"), peer("transformers")
    options = {
        "Mistral": {"sliding_window": 3},
        "GptOss": {"sliding_window": 3, "layer_types": ["sliding_attention"] * 2},
        "Gemma2": {"attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 5},
    }.get(model, {})
    config = getattr(transformers, f"{model}Config")(**SIZES | options)
    file = {"GptOss": "gpt_oss"}.get(model, model.lower())
    modules = peer(f"transformers.models.{file}.modeling_{file}")
    module = noisy(torch, getattr(modules, f"{model}Attention")(config, layer_idx=0))
    mask = sliding_window(3) if "sliding_window" in options else causal
    cos_sin = waves(torch)
    if model != "GptOss":
        cos_sin = doubled(torch, *cos_sin)
    ours = partial(
        multi_head_attention,
        heads=H,
        groups=G,
        mask=mask,
        rotary=partial(rotary_halves, frequencies=rotary_frequencies(K)),
        scale=5**-0.5 if model == "Gemma2" else None,
        soft_cap=options.get("attn_logit_softcapping"),
    )

    def weights(dparams):
        yield module.k_proj.weight, dparams["key"]["kernel"].T
        yield module.q_proj.weight, dparams["query"]["kernel"].T
        if model == "GptOss":
            yield module.sinks, dparams["sink"]
        if model == "Qwen3":
            yield module.k_norm.weight, dparams["norm"]["key"]["scale"]

    # The others take their softmax, and Qwen3 its norms, in float32 whatever they are given.
    assert_equal(
        torch,
        lambda x: module(x, cos_sin, additive(torch, mask))[0],
        ours,
        attention_of(module),
        weights,
        tolerance=1e-11 if model == "GptOss" else 2e-6,
    )


def test_a_pre_norm_block_of_rms_norms_equals_llama_s_layer():
    """In float32's precision, which its norms and its softmax keep to."""
    torch, transformers = peer("torch"), peer("transformers")
    llama = peer("transformers.models.llama.modeling_llama")
    module = noisy(torch, llama.LlamaDecoderLayer(transformers.LlamaConfig(**SIZES), 0))
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    params = {
        "attention": {
            "norm": {"scale": module.input_layernorm.weight.detach().numpy()},
            "sublayer": attention_of(module.self_attn),
        },
        "feed_forward": {
            "norm": {"scale": module.post_attention_layernorm.weight.detach().numpy()},
            "sublayer": {k: linear_of(getattr(module.mlp, name)) for k, name in names.items()},
        },
    }
    turn = partial(rotary_halves, frequencies=rotary_frequencies(K))
    attention = partial(multi_head_attention, heads=H, groups=G, mask=causal, rotary=turn)
    wiring = partial(pre_norm, norm=rms_norm)
    cos_sin = doubled(torch, *waves(torch))
    assert_equal(
        torch,
        lambda x: module(x, attention_mask=additive(torch, causal), position_embeddings=cos_sin),
        partial(transformer_block, attention=attention, feed_forward=swiglu, wiring=wiring),
        params,
        lambda dparams: [
            (
                module.self_attn.v_proj.weight,
                dparams["attention"]["sublayer"]["value"]["kernel"].T,
            )
        ],
        tolerance=2e-6,
    )


def test_a_parallel_block_equals_phi_s_layer():
    """Half of the features turn there.  Turns red if the feed-forward reads the stream itself."""
    torch, transformers = peer("torch"), peer("transformers")
    phi = peer("transformers.models.phi.modeling_phi")
    partly = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    config = transformers.PhiConfig(**SIZES | {"rope_parameters": partly})
    module = noisy(torch, phi.PhiDecoderLayer(config, 0))
    norm = module.input_layernorm
    params = {
        "norm": {"scale": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()},
        "attention": attention_of(module.self_attn, out="dense"),
        "feed_forward": {"up": linear_of(module.mlp.fc1), "down": linear_of(module.mlp.fc2)},
    }
    turn = partial(rotary_halves, frequencies=rotary_frequencies(K // 2))
    attention = partial(multi_head_attention, heads=H, groups=G, mask=causal, rotary=turn)
    cos_sin = doubled(torch, *waves(torch, K // 2))
    assert_equal(
        torch,
        lambda x: module(x, attention_mask=additive(torch, causal), position_embeddings=cos_sin),
        partial(parallel_block, attention=attention),
        params,
        lambda dparams: [(module.mlp.fc1.weight, dparams["feed_forward"]["up"]["kernel"].T)],
        tolerance=2e-6,  # Phi's attention takes its softmax in float32
    )


def test_masks_equal_hugging_face_s():
    """Turns red with a window of one more or less, or documents that see each other."""
    torch = peer("torch")
    theirs = peer("transformers.masking_utils")
    ids = np.array([[0, 0, 1, 1, 1, 2, 2], [3, 3, 3, 3, 4, 4, 4]])
    kept = np.array([[1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]], bool)
    packed = theirs.packed_sequence_mask_function(torch.tensor(ids))
    pairs = {
        causal: theirs.causal_mask_function,
        sliding_window(3): theirs.sliding_window_causal_mask_function(3),
        padding(kept): theirs.padding_mask_function(torch.tensor(kept)),
        both(causal, documents(ids)): theirs.and_masks(theirs.causal_mask_function, packed),
    }
    for ours, other in pairs.items():
        seen = np.broadcast_to(ours(np.arange(T)[:, None], np.arange(T)[None]), (2, 1, T, T))
        for b, t, s in np.ndindex(2, T, T):
            index = torch.tensor(t), torch.tensor(s)
            assert seen[b, 0, t, s] == bool(other(torch.tensor(b), torch.tensor(0), *index))


@pytest.mark.parametrize("layer, kind", [(0, "global"), (1, "local")])
def test_locally_banded_layers_equal_gpt_neo_s(layer, kind):
    """The only published alternation of dense and banded layers with weights to load."""
    torch, transformers = peer("torch"), peer("transformers")
    neo = peer("transformers.models.gpt_neo.modeling_gpt_neo")
    config = transformers.GPTNeoConfig(
        hidden_size=D,
        num_layers=2,
        num_heads=H,
        window_size=3,
        max_position_embeddings=T,
        attention_types=[[["global", "local"], 1]],
    )
    module = noisy(torch, neo.GPTNeoSelfAttention(config, kind, layer))
    mask = locally_banded(layer, width=3)
    seen = np.broadcast_to(mask(np.arange(T)[:, None], np.arange(T)[None]), (T, T))
    np.testing.assert_array_equal(seen, module.bias[0, 0].numpy())
    assert_equal(
        torch,
        lambda x: module(x)[0],
        partial(multi_head_attention, heads=H, mask=mask, scale=1.0),
        attention_of(module, out="out_proj"),
        lambda dparams: [(module.q_proj.weight, dparams["query"]["kernel"].T)],
        tolerance=2e-6,  # its scores are float32
    )
