import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from accelerated import functional
from accelerated.layers.loss import cross_entropy
from accelerated.models.vit import ViT
from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.models.vit import (
    ViTConfig,
    at_resolution,
    initial_params,
    vit,
    vit_features,
    vit_loss,
)
from reference.pretrained import load, save
from tests.mirror import PLAIN, assert_close
from tests.peers import peer

GOOGLE = ViTConfig((6, 9), 3, 1, heads=3, width=15, hidden=17, labels=5, channels=2, dropout=0.1)
HUGGING_FACE = replace(
    GOOGLE, image=12, activation="erf", epsilon=1e-12, qkv_bias=False, labels=7, layers=2
)
HEADLESS = replace(GOOGLE, labels=0, representation=15)
CONFIGS = {"google": GOOGLE, "hugging_face": HUGGING_FACE, "headless": HEADLESS}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
classifiers = pytest.mark.parametrize("config", [GOOGLE, HUGGING_FACE])
LABELS = np.array([4, -100, 2])


def params_of(config):
    """Of which each matters: also what begins at 0."""
    rng = np.random.default_rng(3)
    params = initial_params(config, key=random.key(1))
    return tree.map(lambda a: a + rng.normal(0, 0.3, a.shape).astype(np.float32), params)


def images_of(config):
    shape = (3, *config.pixels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture
def saved(tmp_path, config):
    save(tmp_path / "model", config, params_of(config))
    return tmp_path / "model"


@pytest.fixture
def theirs(saved, config):
    transformers = peer("transformers")
    kind = transformers.ViTForImageClassification if config.labels else transformers.ViTModel
    return kind.from_pretrained(saved, attn_implementation="eager").eval()


def pixels(images):
    """As PyTorch has them: (B, C, rows, columns)."""
    return peer("torch").tensor(images.transpose(0, 3, 1, 2))


def features_of(config):
    """The reference and the twin, as functions of params and images."""
    apply, _ = functional(ViT.abstract(config), ViT.features)

    def reference(params, **batch):
        return vit_features(params, **batch, config=config)[0]

    return [reference, jax.jit(apply)]


@classifiers
def test_hugging_face_computes_what_both_engines_do(config, saved, theirs):
    """Logits within 1e-5 of the largest, the loss's gradient within 1e-4."""
    torch, images = peer("torch"), images_of(config)
    expected = theirs(pixels(images)).logits
    torch.nn.functional.cross_entropy(expected, torch.tensor(LABELS)).backward()
    _, params = load(saved)
    batch = {"images": images, "labels": LABELS}
    _, backward = vit_loss(params, **batch, config=config)
    found = [(vit(params, images=images, config=config)[0], backward(np.float32(1)))]
    if config is GOOGLE:  # for each config the twin takes seconds to compile
        apply, _ = functional(ViT.abstract(config))

        def of_twin(params):
            logits = apply(params, images=images)
            return cross_entropy(logits, labels=LABELS), logits

        gradients, logits = jax.jit(jax.grad(of_twin, has_aux=True), compiler_options=PLAIN)(params)
        found.append((logits, gradients))
    for logits, gradients in found:
        assert_close(logits, expected.detach().numpy(), 1e-5)
        assert_gradients_close(tree.flatten(gradients), by_our_names(theirs))


def assert_gradients_close(actual, expected):
    """All but those of the keys' biases, which softmax ignores: theirs are nothing but rounding."""
    assert set(actual) == set(expected)
    some = [path for path in expected if not path.endswith("key.bias")]
    assert_close({p: actual[p] for p in some}, {p: expected[p] for p in some}, 1e-4)


def by_our_names(model):
    """The gradients by our paths, by attribute access: not by the names of any file."""
    body = model.vit
    patch = body.embeddings.patch_embeddings.projection
    found = {
        "patch.kernel": patch.weight.grad.permute(2, 3, 1, 0),
        "patch.bias": patch.bias.grad,
        "class_token.embedding": body.embeddings.cls_token.grad[0, 0],
        "position.embedding": body.embeddings.position_embeddings.grad[0],
        "norm.scale": body.layernorm.weight.grad,
        "norm.bias": body.layernorm.bias.grad,
        "head.kernel": model.classifier.weight.grad.T,
        "head.bias": model.classifier.bias.grad,
    }
    for i, layer in enumerate(body.layers):
        attention, hidden = layer.attention, layer.mlp
        norms = {"attention": layer.layernorm_before, "feed_forward": layer.layernorm_after}
        parts = {
            "attention.sublayer.query": attention.q_proj,
            "attention.sublayer.key": attention.k_proj,
            "attention.sublayer.value": attention.v_proj,
            "attention.sublayer.out": attention.o_proj,
            "feed_forward.sublayer.up": hidden.fc1,
            "feed_forward.sublayer.down": hidden.fc2,
        }
        for name, module in norms.items():
            found[f"blocks.{i}.{name}.norm.scale"] = module.weight.grad
            found[f"blocks.{i}.{name}.norm.bias"] = module.bias.grad
        for name, module in parts.items():
            found[f"blocks.{i}.{name}.kernel"] = module.weight.grad.T
            if module.bias is not None:
                found[f"blocks.{i}.{name}.bias"] = module.bias.grad
    return {path: a.numpy() for path, a in found.items()}


@pytest.mark.parametrize("config", [HEADLESS])
def test_features_are_hugging_face_s_pooled_output(config, saved, theirs):
    """And without a class token, those of its own layers put together so."""
    torch, images = peer("torch"), images_of(config)
    with torch.no_grad():
        expected = theirs(pixels(images)).pooler_output.numpy()
        embeddings = theirs.embeddings
        x = embeddings.patch_embeddings(pixels(images)) + embeddings.position_embeddings[:, 1:]
        for layer in theirs.layers:
            x = layer(x)
        mean = theirs.layernorm(x).mean(dim=1).numpy()
    _, params = load(saved)
    for engine in features_of(config):
        assert_close(np.asarray(engine(params, images=images)), expected, 1e-5)
    pooled = replace(config, pooling="mean", representation=None)
    kept = {name: params[name] for name in ("patch", "blocks", "norm")}
    kept["position"] = {"embedding": params["position"]["embedding"][1:]}
    for engine in features_of(pooled):
        assert_close(np.asarray(engine(kept, images=images)), mean, 1e-5)


@pytest.mark.parametrize("config", [HUGGING_FACE])
def test_another_resolution_is_hugging_face_s_interpolation(config, saved, theirs):
    """From 4 x 4 patches to 6 x 3, bicubic.  Turns red with the other interpolation."""
    torch = peer("torch")
    params, new = at_resolution(load(saved)[1], config, (18, 9), interpolation="bicubic")
    images = images_of(new)
    with torch.no_grad():
        expected = theirs(pixels(images), interpolate_pos_encoding=True).logits.numpy()
    assert_close(vit(params, images=images, config=new)[0], expected, 1e-5)


@each_config
def test_what_hugging_face_saves_is_loaded(config, saved, theirs, tmp_path):
    """Turns red if a name is not written, or read into another's place."""
    theirs.save_pretrained(tmp_path / "again")
    found, params = load(tmp_path / "again")
    assert found == config
    tree.map(np.testing.assert_array_equal, params, params_of(config))
    assert sum(a.size for a in tree.leaves(params)) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("config", [GOOGLE])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu', and must be one of gelu, gelu_pytorch"),
        ({"attention_probs_dropout_prob": 0.1}, "attention_probs_dropout_prob is 0.1"),
        ({"patch_size": [3, 4]}, "patch is [3, 4]; give a positive integer"),
        ({"image_size": 7}, "image is (7, 7), patch 3; give a divisor of both"),
        ({"num_hidden_layers": None}, "layers is None"),
        ({"num_hidden_layers": 3}, "missing: vit.encoder.layer.1."),
        ({"id2label": {"0": "cat"}}, "of another shape: classifier.weight (5, 15), not (1, 15)"),
        ({"qkv_bias": False}, "left over: vit.encoder.layer.0.attention.attention."),
        ({"architectures": ["ViTModel"]}, "missing: vit.pooler.dense.weight"),
    ],
)
def test_settings_that_our_model_lacks_are_refused_by_name(saved, change, message):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as raised:
        load(saved)
    assert message in str(raised.value) and str(saved) in str(raised.value)


@pytest.mark.parametrize("config", [HUGGING_FACE])
def test_settings_that_are_left_out_have_their_default(saved, config):
    path = saved / "config.json"
    settings = json.loads(path.read_text())
    for name in ("layer_norm_eps", "hidden_act", "hidden_dropout_prob", "architectures"):
        del settings[name]
    path.write_text(json.dumps(settings | {"hidden_act": "gelu"}))
    assert load(saved)[0] == replace(config, dropout=0.0)
    del settings["hidden_size"]
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="has no hidden_size: copy it again"):
        load(saved)


@pytest.mark.parametrize(
    "changes", [{"pooling": "mean"}, {"representation": 4}, {"labels": 0}], ids=str
)
def test_what_hugging_face_has_no_form_for_is_not_saved(changes, tmp_path):
    config = replace(GOOGLE, **changes)
    with pytest.raises(InputError, match="Hugging Face's ViT has a class token"):
        save(tmp_path / "model", config, initial_params(config, key=random.key(0)))
    assert not (tmp_path / "model").exists()
