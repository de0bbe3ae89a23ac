import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from accelerated import functional
from accelerated.models.transformer import Transformer
from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.models.transformer import (
    PRESETS,
    TransformerConfig,
    initial_params,
    transformer,
    transformer_loss,
)
from reference.pretrained import load, save
from tests.mirror import PLAIN, assert_close
from tests.peers import peer

OPUS = TransformerConfig(
    *(23, 31, 2, 3, 12, 20),
    **{"positions": "marian", "activation": "silu", "attention_bias": True, "output_bias": True},
    **{"epsilon": 1e-5, "smoothing": 0.0, "pad": 22, "end": 0, "dropout": 0.2},
)
CONFIGS = {
    "silu": OPUS,
    "relu": replace(OPUS, layers=1, heads=2, activation="relu", pad=3, end=2),
    "gelu": replace(OPUS, layers=1, activation="gelu", attention_dropout=0.1, width=18),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
one_config = pytest.mark.parametrize("config", [OPUS])
RNG = np.random.default_rng(0)
BATCH = {"source": RNG.integers(4, 22, (3, 7)), "tokens": RNG.integers(4, 22, (3, 5))}
BATCH["source_kept"] = np.arange(7) < np.array([7, 4, 5])[:, None]
LABELS = RNG.integers(0, 23, (3, 5))
LABELS[1, 3:] = -100


def params_of(config):
    """Of which each one matters."""
    new, rng = initial_params(config, key=random.key(1)), np.random.default_rng(1)
    noise = tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), new)
    return tree.map(lambda a, n: a + np.float32(0.1) * n, new, noise)


@pytest.fixture
def saved(tmp_path, config):
    save(tmp_path / "model", config, params_of(config))
    return tmp_path / "model"


def opened(folder):
    options = {"attn_implementation": "eager"}
    return peer("transformers").AutoModelForSeq2SeqLM.from_pretrained(folder, **options).eval()


def asked(model):
    """Their logits."""
    torch = peer("torch")
    return model(
        input_ids=torch.tensor(BATCH["source"]),
        attention_mask=torch.tensor(BATCH["source_kept"]).long(),
        decoder_input_ids=torch.tensor(BATCH["tokens"]),
    ).logits


@each_config
def test_hugging_face_computes_what_we_do(config, saved):
    """Logits within 1e-5 of the largest, the loss's gradient within 1e-4; for one config in both
    engines.
    """
    torch, theirs = peer("torch"), opened(saved)
    found, params = load(saved)
    assert found == config
    expected = asked(theirs)
    flat = expected.reshape(-1, 23), torch.tensor(LABELS).reshape(-1)
    torch.nn.functional.cross_entropy(*flat).backward()
    logits, _ = transformer(params, config=config, **BATCH)
    assert_close(logits, expected.detach().numpy(), 1e-5)
    batch = BATCH | {"labels": LABELS}
    _, backward = transformer_loss(params, config=config, **batch)
    engines = [backward(np.float32(1))]
    if config.layers == 1 and config.activation == "relu":
        twin, _ = functional(Transformer.abstract(config), Transformer.loss)
        engines.append(jax.jit(jax.grad(twin), compiler_options=PLAIN)(params, **batch))
    found = {path: parameter.grad.numpy() for path, parameter in modules(theirs)}
    found = {path: a.T if path.endswith("kernel") else a for path, a in found.items()}
    for gradients in map(tree.flatten, engines):
        del gradients["output.bias"]  # which they do not learn
        assert_close(tree.map(np.asarray, gradients), found, 1e-4)


def modules(model):
    """Pairs of our path and their parameter, by attribute access: not by the names of any file."""

    def leaves(path, module, kind):
        yield f"{path}.{kind}", module.weight
        yield f"{path}.bias", module.bias

    yield "token.embedding", model.model.shared.weight
    for side in ("encoder", "decoder"):
        for i, layer in enumerate(getattr(model.model, side).layers):
            at = f"{side}.blocks.{i}"
            attentions = {"attention": (layer.self_attn, layer.self_attn_layer_norm)}
            if side == "decoder":
                attentions["cross_attention"] = layer.encoder_attn, layer.encoder_attn_layer_norm
            for name, (attention, norm) in attentions.items():
                yield from leaves(f"{at}.{name}.norm", norm, "scale")
                for ours in ("query", "key", "value", "out"):
                    module = getattr(attention, "out_proj" if ours == "out" else f"{ours[0]}_proj")
                    yield from leaves(f"{at}.{name}.sublayer.{ours}", module, "kernel")
            yield from leaves(f"{at}.feed_forward.norm", layer.final_layer_norm, "scale")
            yield from leaves(f"{at}.feed_forward.sublayer.up", layer.fc1, "kernel")
            yield from leaves(f"{at}.feed_forward.sublayer.down", layer.fc2, "kernel")


def test_a_model_of_hugging_face_s_own_is_loaded_and_saved_again(tmp_path):
    """With a bias of the scores, which it does not learn but published files have.  Turns red if a
    name is read into another's place, or the bias is left out.
    """
    torch, transformers = peer("torch"), peer("transformers")
    settings = transformers.MarianConfig(
        **{"vocab_size": 23, "max_position_embeddings": 31, "d_model": 12, "dropout": 0.2},
        **{"encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 20},
        **{"decoder_layers": 2, "decoder_attention_heads": 3, "decoder_ffn_dim": 20},
        **{"activation_function": "swish", "scale_embedding": True, "attn_implementation": "eager"},
        **{"pad_token_id": 22, "eos_token_id": 0, "decoder_start_token_id": 22},
    )
    model = transformers.MarianMTModel(settings).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # all but the waves
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.final_logits_bias.normal_()
    model.save_pretrained(tmp_path / "theirs")
    config, params = load(tmp_path / "theirs")
    assert config == OPUS
    with torch.no_grad():
        expected = asked(model).numpy()
        assert_close(transformer(params, config=config, **BATCH)[0], expected, 1e-5)
        save(tmp_path / "ours", config, params)
        np.testing.assert_array_equal(asked(opened(tmp_path / "ours")).numpy(), expected)
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(a.size for a in tree.leaves(params)) == learnt + 23


@one_config
def test_old_files_have_positions_and_three_copies_of_the_table(saved):
    arrays = load_file(saved / "model.safetensors")
    table = arrays["model.shared.weight"]
    names = ("lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens")
    copies = {f"{name}.weight": table for name in names}
    waves = {f"model.{s}.embed_positions.weight": np.ones((31, 12)) for s in ("encoder", "decoder")}
    save_file(arrays | copies | waves, saved / "model.safetensors")
    tree.map(np.testing.assert_array_equal, load(saved)[1], params_of(OPUS))
    save_file(arrays | {"lm_head.weight": table + 1}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="lm_head.weight is not equal"):
        load(saved)


@one_config
@pytest.mark.parametrize(
    "change, message",
    [
        ({"scale_embedding": False}, "scale_embedding is False, and must be True"),
        ({"scale_embedding": None}, "scale_embedding is False, and must be True"),
        (
            {"activation_function": "tanh"},
            "activation_function is 'tanh', and must be one of swish",
        ),
        ({"activation_dropout": 0.1}, "activation_dropout is 0.1"),
        ({"encoder_layerdrop": 0.1}, "encoder_layerdrop is 0.1"),
        ({"decoder_layers": 3}, "decoder_layers is 3, and must be 2"),
        ({"decoder_ffn_dim": 21}, "decoder_ffn_dim is 21, and must be 20"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads is 2, and must be 3"),
        ({"decoder_vocab_size": 24}, "decoder_vocab_size is 24, and must be 23"),
        ({"decoder_start_token_id": 0}, "decoder_start_token_id is 0, and must be 22"),
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"normalize_before": True}, "normalize_before is True"),
        ({"encoder_attention_heads": 5, "decoder_attention_heads": 5}, "5 heads do not divide"),
        ({"d_model": None}, "width is None"),
        ({"eos_token_id": [0, 1]}, "end is [0, 1]; give a token of the vocabulary"),
        ({"d_model": 9}, "the width is 9"),
        ({"encoder_layers": 3, "decoder_layers": 3}, "missing: model.encoder.layers.2."),
    ],
)
def test_settings_that_our_model_lacks_are_refused_by_name(saved, change, message):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as raised:
        load(saved)
    assert message in str(raised.value) and str(saved) in str(raised.value)


@one_config
def test_a_size_that_is_missing_is_refused(saved):
    path = saved / "config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token_id"], settings["encoder_ffn_dim"]
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="has no encoder_ffn_dim, pad_token_id"):
        load(saved)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"positions": "interleaved"}, "positions is 'interleaved', and .* has 'marian'"),
        ({"wiring": "pre"}, "wiring is 'pre', and .* 'post' alone"),
        ({"attention_bias": False}, "attention_bias is False"),
        ({"output_bias": False}, "output_bias is False"),
        ({"epsilon": 1e-6}, "epsilon is 1e-06"),
    ],
)
def test_what_its_form_cannot_hold_is_not_saved(tmp_path, change, message):
    """Such as the paper's own sizes, which have other positions."""
    config = replace(OPUS, **change)
    with pytest.raises(InputError, match=message):
        save(tmp_path / "new", config, initial_params(config, key=random.key(0)))
    assert not (tmp_path / "new").exists() and PRESETS["base"].positions == "interleaved"
