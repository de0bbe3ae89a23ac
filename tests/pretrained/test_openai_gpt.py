import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from accelerated import functional
from accelerated.inference.decoding import generate as write
from accelerated.models.gpt1 import GPT1
from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.inference.decoding import generate
from reference.models.gpt1 import (
    GPT1Config,
    gpt1,
    gpt1_classification_loss,
    gpt1_loss,
    initial_params,
)
from reference.pretrained import load, save
from tests.mirror import assert_close
from tests.peers import peer

CONFIG = GPT1Config(vocabulary=17, context=11, layers=2, heads=3, width=15, dropout=0.2)
NARROW = GPT1Config(vocabulary=23, context=8, layers=1, heads=1, width=6, dropout=0.1)
each_config = pytest.mark.parametrize("config", [CONFIG, NARROW], ids=["wide", "narrow"])
TOKENS, LABELS = np.random.default_rng(0).integers(0, 17, (2, 2, 7))
LABELS[0, 3:5] = -100


def params_of(config, seed=1):
    """Large enough for each of them to matter."""
    params = initial_params(config, key=random.key(seed))
    rng = np.random.default_rng(seed)
    return tree.map(lambda a: (a + 0.2 * rng.standard_normal(a.shape)).astype(np.float32), params)


@pytest.fixture
def saved(tmp_path, config):
    save(tmp_path / "model", config, params_of(config))
    return tmp_path / "model"


@pytest.fixture
def theirs(saved):
    return peer("transformers").OpenAIGPTLMHeadModel.from_pretrained(saved).eval()


def of_reference(params, config, batch):
    logits, _ = gpt1(params, tokens=batch["tokens"], config=config)
    loss, backward = gpt1_loss(params, **batch, config=config)
    return logits, loss, backward(np.float32(1))


def of_accelerated(params, config, batch):
    apply, _ = functional(GPT1.abstract(config))
    loss_of, _ = functional(GPT1.abstract(config), GPT1.loss)

    @jax.jit
    def run(params, batch):
        logits = apply(params, tokens=batch["tokens"])
        return logits, *jax.value_and_grad(loss_of)(params, **batch)

    return run(params, batch)


@each_config
def test_hugging_face_computes_what_both_engines_do(config, saved, theirs):
    """Logits within 1e-5 of the largest, the loss's gradient within 1e-4."""
    torch = peer("torch")
    expected = theirs(torch.tensor(TOKENS)).logits
    flat = expected.reshape(-1, config.vocabulary), torch.tensor(LABELS).reshape(-1)
    loss = torch.nn.functional.cross_entropy(*flat)
    loss.backward()
    found, params = load(saved)
    assert found == config
    for engine in (of_reference, of_accelerated)[: 2 if config is CONFIG else 1]:
        logits, ours, gradients = engine(params, config, {"tokens": TOKENS, "labels": LABELS})
        assert_close(logits, expected.detach().numpy(), 1e-5)
        np.testing.assert_allclose(ours, loss.item(), rtol=1e-6)
        assert_close(gradients, by_our_names(theirs.transformer, config.width), 1e-4)


def by_our_names(body, width):
    """The gradients, sorted into our tree by attribute access: not by the names of any file."""

    def linear(module, part=None):
        both = {"kernel": module.weight.grad.numpy(), "bias": module.bias.grad.numpy()}
        if part is None:
            return both
        return {name: a[..., width * part : width * (part + 1)] for name, a in both.items()}

    def norm(module):
        return {"scale": module.weight.grad.numpy(), "bias": module.bias.grad.numpy()}

    return {
        "token": {"embedding": body.tokens_embed.weight.grad.numpy()},
        "position": {"embedding": body.positions_embed.weight.grad.numpy()},
        "blocks": [
            {
                "attention": {
                    "sublayer": {
                        "query": linear(block.attn.c_attn, 0),
                        "key": linear(block.attn.c_attn, 1),
                        "value": linear(block.attn.c_attn, 2),
                        "out": linear(block.attn.c_proj),
                    },
                    "norm": norm(block.ln_1),
                },
                "feed_forward": {
                    "sublayer": {"up": linear(block.mlp.c_fc), "down": linear(block.mlp.c_proj)},
                    "norm": norm(block.ln_2),
                },
            }
            for block in body.h
        ],
    }


@each_config
def test_what_hugging_face_saves_is_loaded(config, saved, theirs, tmp_path):
    """Turns red if a name is not written, or read into another's place."""
    theirs.save_pretrained(tmp_path / "again")
    found, params = load(tmp_path / "again")
    assert found == config
    tree.map(np.testing.assert_array_equal, params, params_of(config))
    assert sum(a.size for a in tree.leaves(params)) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("config", [CONFIG])
def test_greedy_texts_are_those_of_hugging_face(saved, theirs):
    config, params = load(saved)
    task = {"tokens": list(TOKENS[:, :3]), "steps": 8, "config": config}
    found = [engine(params, **task) for engine in (generate, write)]
    torch = peer("torch")
    prompts = torch.tensor(TOKENS[:, :3])
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = theirs.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    for texts in found:
        np.testing.assert_array_equal(texts, expected[:, 3:].numpy())


def test_the_classifier_is_that_of_hugging_face_s_double_heads():
    """A choice between two endings: its loss, and with the language model's, all gradients."""
    torch, transformers = peer("torch"), peer("transformers")
    settings = transformers.OpenAIGPTConfig(
        **{"vocab_size": 17, "n_positions": 11, "n_layer": 2, "n_head": 3, "n_embd": 15}
    )
    config = replace(CONFIG, classes=1)
    params = params_of(config, seed=2)
    model = transformers.OpenAIGPTDoubleHeadsModel(settings).eval()
    summary, classifier = model.multiple_choice_head.summary, params["classifier"]
    fill(model.transformer, params)
    with torch.no_grad():
        summary.weight.copy_(torch.tensor(classifier["kernel"].T))
        summary.bias.copy_(torch.tensor(classifier["bias"]))
    rng = np.random.default_rng(3)
    tokens, at = rng.integers(0, 17, (3, 2, 7)), rng.integers(0, 7, (3, 2))
    answers = np.array([1, 0, 1])
    labels = np.full_like(tokens, -100)
    labels[..., :-1] = tokens[..., 1:]
    theirs = model(
        torch.tensor(tokens),
        mc_token_ids=torch.tensor(at),
        mc_labels=torch.tensor(answers),
        labels=torch.tensor(tokens),
    )
    (theirs.mc_loss + 0.5 * theirs.loss).backward()
    batch = {"tokens": tokens, "labels": labels, "at": at, "answers": answers}
    loss, backward = gpt1_classification_loss(params, **batch, config=config)
    np.testing.assert_allclose(loss, (theirs.mc_loss + 0.5 * theirs.loss).item(), rtol=1e-5)
    gradients = backward(np.float32(1))
    expected = {"kernel": summary.weight.grad.numpy().T, "bias": summary.bias.grad.numpy()}
    assert_close(gradients.pop("classifier")["kernel"], expected["kernel"], 1e-4)
    assert_close(gradients, by_our_names(model.transformer, 15), 1e-4)


def fill(body, params):
    """Our numbers in their modules, by attribute access."""
    torch = peer("torch")

    def put(module, part, kernel="kernel"):
        module.weight.copy_(torch.tensor(part[kernel]))
        module.bias.copy_(torch.tensor(part["bias"]))

    with torch.no_grad():
        body.tokens_embed.weight.copy_(torch.tensor(params["token"]["embedding"]))
        body.positions_embed.weight.copy_(torch.tensor(params["position"]["embedding"]))
        for block, ours in zip(body.h, params["blocks"], strict=True):
            attention, hidden = ours["attention"], ours["feed_forward"]
            parts = [attention["sublayer"][name] for name in ("query", "key", "value")]
            joined = [np.concatenate([p[n] for p in parts], axis=-1) for n in ("kernel", "bias")]
            put(block.attn.c_attn, dict(zip(("kernel", "bias"), joined, strict=True)))
            put(block.attn.c_proj, attention["sublayer"]["out"])
            put(block.mlp.c_fc, hidden["sublayer"]["up"])
            put(block.mlp.c_proj, hidden["sublayer"]["down"])
            put(block.ln_1, attention["norm"], "scale")
            put(block.ln_2, hidden["norm"], "scale")


@pytest.mark.parametrize("config", [NARROW])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"afn": "relu"}, "afn is 'relu', and must be 'gelu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06, and must be 1e-05"),
        ({"embd_pdrop": 0.3}, "embd_pdrop is 0.3, and must be 0.1"),
        ({"n_head": 4}, "4 heads do not divide the width 6"),
        ({"vocab_size": None}, "vocabulary is None"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"n_layer": 2}, "missing: transformer.h.1."),
    ],
)
def test_settings_that_our_model_lacks_are_refused_by_name(saved, change, message):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as raised:
        load(saved)
    assert message in str(raised.value) and str(saved) in str(raised.value)


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize("config", [NARROW])
def test_a_size_that_is_missing_is_refused(saved, name):
    path = saved / "config.json"
    settings = json.loads(path.read_text())
    del settings[name]
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        load(saved)


@pytest.mark.parametrize("change", [{"embeddings": "shared"}, {"classes": 2}])
def test_what_hugging_face_s_model_lacks_is_not_saved(tmp_path, change):
    config = replace(NARROW, **change)
    with pytest.raises(InputError, match="no form of openai-gpt holds GPT1Config.*checkpoint"):
        save(tmp_path / "model", config, params_of(config))
    assert not (tmp_path / "model").exists()
