import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from accelerated import functional
from accelerated.layers.loss import cross_entropy
from accelerated.models.clip import Clip
from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.models.clip import (
    ClipConfig,
    ClipImageConfig,
    ClipTextConfig,
    clip,
    clip_image,
    clip_loss,
    clip_text,
    initial_params,
)
from reference.pretrained import load, save
from tests.mirror import PLAIN, assert_close
from tests.peers import peer

TEXT = ClipTextConfig(19, 9, 2, heads=2, width=14, hidden=11)
VISION = ClipImageConfig(6, 3, 1, heads=3, width=15, hidden=17, channels=2)
OPENAI = ClipConfig(TEXT, VISION, 6)
LAION = ClipConfig(
    replace(TEXT, layers=1, end=3, activation="erf", epsilon=1e-6),
    replace(VISION, layers=2, activation="erf"),
    8,
)
CONFIGS = {"openai": OPENAI, "laion": LAION}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
openai = pytest.mark.parametrize("config", [OPENAI])


def params_of(config):
    """Of which each matters: also what begins at 0."""
    rng = np.random.default_rng(3)
    params = initial_params(config, key=random.key(1))
    return tree.map(lambda a: a + rng.normal(0, 0.3, a.shape).astype(np.float32), params)


def batch_of():
    """Texts that end with a 3, and an 18 after it, with which some are filled up."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 18, (3, 7))
    tokens[[0, 1, 2], [2, 4, 1]], tokens[[0, 1, 2], [4, 5, 3]] = 3, 18
    tokens[1, 6], tokens[2, 4:] = 3, 18
    return {"tokens": tokens, "images": rng.standard_normal((3, 6, 6, 2)).astype(np.float32)}


BATCH = batch_of()


@pytest.fixture
def saved(tmp_path, config):
    save(tmp_path / "model", config, params_of(config))
    return tmp_path / "model"


def theirs_of(saved, kind="CLIPModel"):
    transformers = peer("transformers")
    return getattr(transformers, kind).from_pretrained(saved, attn_implementation="eager").eval()


def tensors():
    torch = peer("torch")
    tokens, images = torch.tensor(BATCH["tokens"]), BATCH["images"].transpose(0, 3, 1, 2)
    return {"input_ids": tokens, "pixel_values": torch.tensor(images)}


@each_config
def test_hugging_face_computes_what_both_engines_do(config, saved):
    """Scores and features within 1e-5 of the largest, the loss's gradient within 1e-4."""
    theirs = theirs_of(saved)
    output = theirs(**tensors(), return_loss=True)
    output.loss.backward()
    expected = output.logits_per_image, output.image_embeds, output.text_embeds
    _, params = load(saved)
    _, backward = clip_loss(params, **BATCH, config=config)
    found = [(clip(params, **BATCH, config=config)[0], backward(np.float32(1)))]
    if config is OPENAI:  # for each config the twin takes seconds to compile
        apply, _ = functional(Clip.abstract(config))

        def of_twin(params):
            y = apply(params, **BATCH)
            losses = [cross_entropy(z, labels=np.arange(3)) for z in (y[0], y[0].T)]
            return sum(losses) / 2, y

        gradients, scores = jax.jit(jax.grad(of_twin, has_aux=True), compiler_options=PLAIN)(params)
        found.append((scores, gradients))
    for scores, gradients in found:
        assert_close(scores, tuple(a.detach().numpy() for a in expected), 1e-5)
        assert_gradients_close(tree.flatten(gradients), by_our_names(theirs))


def assert_gradients_close(actual, expected):
    """All but those of the keys' biases, which softmax ignores: theirs are nothing but rounding."""
    assert set(actual) == set(expected)
    some = [path for path in expected if not path.endswith("key.bias")]
    assert_close({p: actual[p] for p in some}, {p: expected[p] for p in some}, 1e-4)


def by_our_names(model):
    """The gradients by our paths, by attribute access: not by the names of any file."""
    text, vision = model.text_model, model.vision_model
    modules = {
        "text.token": text.embeddings.token_embedding,
        "text.position": text.embeddings.position_embedding,
        "text.norm": text.final_layer_norm,
        "text.projection": model.text_projection,
        "vision.patch": vision.embeddings.patch_embedding,
        "vision.position": vision.embeddings.position_embedding,
        "vision.norm_before": vision.pre_layrnorm,
        "vision.norm": vision.post_layernorm,
        "vision.projection": model.visual_projection,
    }
    for tower, body in (("text", text), ("vision", vision)):
        for i, layer in enumerate(body.encoder.layers):
            attention, h = layer.self_attn, f"{tower}.blocks.{i}"
            modules |= {
                f"{h}.attention.norm": layer.layer_norm1,
                f"{h}.attention.sublayer.query": attention.q_proj,
                f"{h}.attention.sublayer.key": attention.k_proj,
                f"{h}.attention.sublayer.value": attention.v_proj,
                f"{h}.attention.sublayer.out": attention.out_proj,
                f"{h}.feed_forward.norm": layer.layer_norm2,
                f"{h}.feed_forward.sublayer.up": layer.mlp.fc1,
                f"{h}.feed_forward.sublayer.down": layer.mlp.fc2,
            }
    found = {"vision.class_token.embedding": vision.embeddings.class_embedding.grad}
    found["logit_scale"] = model.logit_scale.grad.reshape(1)
    for path, module in modules.items():
        kind = type(module).__name__
        leaf = {"Embedding": "embedding", "LayerNorm": "scale"}.get(kind, "kernel")
        axes = {"Linear": (1, 0), "Conv2d": (2, 3, 1, 0)}.get(kind, range(module.weight.ndim))
        found[f"{path}.{leaf}"] = module.weight.grad.permute(*axes)
        if getattr(module, "bias", None) is not None:
            found[f"{path}.bias"] = module.bias.grad
    return {path: a.numpy() for path, a in found.items()}


@each_config
def test_each_tower_is_hugging_face_s_with_its_projection(config, saved):
    torch = peer("torch")
    text = theirs_of(saved, "CLIPTextModelWithProjection")
    vision = theirs_of(saved, "CLIPVisionModelWithProjection")
    params, batch = params_of(config), tensors()
    with torch.no_grad():
        texts = text(batch["input_ids"]).text_embeds.numpy()
        images = vision(batch["pixel_values"]).image_embeds.numpy()
    ours, _ = clip_text(params["text"], tokens=BATCH["tokens"], config=config)
    assert_close(ours, texts, 1e-5)
    ours, _ = clip_image(params["vision"], images=BATCH["images"], config=config)
    assert_close(ours, images, 1e-5)


@each_config
def test_what_hugging_face_saves_is_loaded(config, saved, tmp_path):
    """Turns red if a name is not written, or read into another's place."""
    theirs = theirs_of(saved)
    theirs.save_pretrained(tmp_path / "again")
    found, params = load(tmp_path / "again")
    assert found == config
    tree.map(np.testing.assert_array_equal, params, params_of(config))
    assert sum(a.size for a in tree.leaves(params)) == sum(p.numel() for p in theirs.parameters())


@openai
def test_old_buffers_and_a_limit_are_read(config, saved):
    arrays = load_file(saved / "model.safetensors")
    for tower in ("text", "vision"):
        arrays[f"{tower}_model.embeddings.position_ids"] = np.arange(9)[None]
    save_file(arrays, saved / "model.safetensors")
    assert load(saved)[0] == config
    change(saved, {"largest_scale": 100.0})
    assert load(saved)[0] == replace(config, largest_scale=100.0)


@openai
def test_what_is_left_out_has_hugging_face_s_default_and_an_earlier_entry_comes_first(
    config, saved
):
    """Seen by their own reading of the same settings."""
    text = json.loads((saved / "config.json").read_text())["text_config"]
    for name in ("layer_norm_eps", "hidden_act"):
        del text[name]
    change(saved, {"text_config_dict": text, "text_config": {"hidden_size": 1}})
    assert load(saved)[0] == config
    for name in ("text_config", "text_config_dict", "vision_config"):
        change(saved, {name: {} if name != "text_config_dict" else None})
    with pytest.raises(CheckpointError) as raised:
        load(saved)
    theirs = peer("transformers").CLIPConfig.from_pretrained(saved)
    assert f"text_model.embeddings.token_embedding.weight (19, 14), not {(49408, 512)}" in str(
        raised.value
    )
    assert (theirs.text_config.vocab_size, theirs.text_config.hidden_size) == (49408, 512)


def change(saved, settings, tower=None):
    path = saved / "config.json"
    found = json.loads(path.read_text())
    (found if tower is None else found[tower]).update(settings)
    path.write_text(json.dumps(found))


@openai
@pytest.mark.parametrize(
    "tower, settings, message",
    [
        ("text_config", {"hidden_act": "relu"}, "text_config: hidden_act is 'relu', and must be"),
        ("vision_config", {"attention_dropout": 0.1}, "vision_config: attention_dropout is 0.1"),
        ("vision_config", {"image_size": [6, 6]}, "image is [6, 6]; give a positive integer"),
        ("vision_config", {"num_hidden_layers": 2}, "missing: vision_model.encoder.layers.1."),
        ("text_config", {"num_attention_heads": 3}, "3 heads do not divide the width 14"),
        ("text_config", {"eos_token_id": 19}, "end is 19, outside the vocabulary [0, 19)"),
        (None, {"vision_config": None}, "has no vision_config: copy it again"),
        (None, {"projection_dim": 7}, "of another shape: text_projection.weight (6, 14), not (7,"),
    ],
)
def test_settings_that_our_model_lacks_are_refused_by_name(saved, tower, settings, message):
    change(saved, settings, tower)
    with pytest.raises(CheckpointError) as raised:
        load(saved)
    assert message in str(raised.value) and str(saved) in str(raised.value)


def test_an_end_that_hugging_face_would_take_for_another_rule_is_not_saved(tmp_path):
    config = replace(OPENAI, text=replace(TEXT, end=2))
    with pytest.raises(InputError, match="the text's end is the token 2, by which"):
        save(tmp_path / "model", config, initial_params(config, key=random.key(0)))
    assert not (tmp_path / "model").exists()
