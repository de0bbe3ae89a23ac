import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from accelerated import functional
from accelerated.models.bert import Bert
from reference import random, tree
from reference.errors import CheckpointError
from reference.models.bert import (
    PRESETS,
    BertConfig,
    bert_logits,
    bert_loss,
    initial_params,
    parameter_shapes,
)
from reference.models.bert_heads import CLASSES, HEADS
from reference.pretrained import load, save
from tests.mirror import PLAIN, assert_close
from tests.peers import peer

BASE = BertConfig(19, 11, layers=2, heads=3, width=21, hidden=13, dropout=0.0, head="masked")
CONFIGS = {
    "pretraining": replace(BASE, head="pretraining", dropout=0.1),
    "masked": replace(BASE, activation="tanh", segments=3),
    "next_sentence": replace(BASE, head="next_sentence", layers=1, activation="tanh"),
    "sequence_classification": replace(
        BASE, head="sequence_classification", labels=5, layers=1, epsilon=1e-5
    ),
    "token_classification": replace(BASE, head="token_classification", labels=3, layers=1, heads=7),
    "question_answering": replace(BASE, head="question_answering", layers=1, context=9),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
INPUTS = {  # token 0 is [PAD] there, which no gradient reaches as an input
    "tokens": np.random.default_rng(0).integers(1, 19, (3, 9)),
    "segments": np.random.default_rng(1).integers(0, 2, (3, 9)),
    "kept": np.arange(9) < np.array([[9], [4], [7]]),
}
QUESTIONS = {  # and what Hugging Face calls their logits
    "masked": ("prediction_logits", "logits"),
    "next_sentence": ("seq_relationship_logits", "logits"),
    "classes": ("logits",),
    "starts": ("start_logits",),
    "ends": ("end_logits",),
}


def params_of(config):
    """Large enough for each of them to matter."""
    flat = tree.flatten(initial_params(config, key=random.key(1)))
    keys = dict(zip(flat, random.split(random.key(2), len(flat)), strict=True))

    def enlarged(path, a):
        noise = np.float32(0.2) * random.normal(keys[path], a.shape)
        return 12 * a if path.endswith(("kernel", "embedding")) else a + noise

    return tree.unflatten({path: enlarged(path, a) for path, a in flat.items()})


def answers_of(config):
    """What the head learns from, and the same for Hugging Face: answers outside are not < 0."""
    rng = np.random.default_rng(3)
    shape = 3 if config.head == "sequence_classification" else (3, 9)
    labels = rng.integers(0, config.labels or 19, shape)
    labels[1] = -100
    starts, ends = rng.integers(0, 9, (2, 3))
    starts[2] = ends[2] = -100
    every = {"labels": labels, "follows": np.array([True, False, False])}
    every |= {"starts": starts, "ends": ends}
    ours = {name: every[name] for name in HEADS[config.head]}
    names = {"labels": "labels", "starts": "start_positions", "ends": "end_positions"}
    names["follows"] = "next_sentence_label" if config.head == "pretraining" else "labels"
    theirs = {names[name]: answer for name, answer in ours.items()}
    if "follows" in ours:
        theirs[names["follows"]] = 1 - ours["follows"]
    if "starts" in ours:
        theirs = {name: np.where(a == -100, 9, a) for name, a in theirs.items()}
    return ours, theirs


@pytest.fixture
def saved(tmp_path, config):
    save(tmp_path / "model", config, params_of(config))
    return tmp_path / "model"


@pytest.fixture
def theirs(saved):
    transformers = peer("transformers")
    architecture = json.loads((saved / "config.json").read_text())["architectures"][0]
    options = {"attn_implementation": "eager"}
    return getattr(transformers, architecture).from_pretrained(saved, **options).eval()


@each_config
def test_hugging_face_computes_what_both_engines_do(config, saved, theirs):
    """Logits within 1e-5 of the largest, the loss within 1e-6, its gradient within 1e-4: with
    padding, segments, both forms of GELU.
    """
    torch = peer("torch")
    answers, their_answers = answers_of(config)
    tensors = {name: torch.tensor(a.astype(np.int64)) for name, a in their_answers.items()}
    found = theirs(
        torch.tensor(INPUTS["tokens"]),
        attention_mask=torch.tensor(INPUTS["kept"].astype(np.int64)),
        token_type_ids=torch.tensor(INPUTS["segments"]),
        **tensors,
    )
    found.loss.backward()
    _, params = load(saved)
    logits, _ = bert_logits(params, **INPUTS, config=config)
    loss, backward = bert_loss(params, **INPUTS, **answers, config=config)
    twin = of_accelerated(config, params, answers)
    for our_logits, our_loss, gradients in ((logits, loss, backward(np.float32(1))), twin):
        for question, ours in our_logits.items():
            name = next(name for name in QUESTIONS[question] if name in found)
            assert_close(np.asarray(ours), found[name].detach().numpy(), 1e-5)
        np.testing.assert_allclose(our_loss, found.loss.item(), rtol=1e-6)
        assert_close(jax.tree.map(np.asarray, gradients), by_our_names(theirs, config), 1e-4)


def of_accelerated(config, params, answers):
    """Logits, loss and gradient.  XLA optimizes nothing, which takes half the time to compile."""
    logits_of, _ = functional(Bert.abstract(config), Bert.logits)
    loss_of, _ = functional(Bert.abstract(config), Bert.loss)

    def run(params, inputs, answers):
        return loss_of(params, **inputs, **answers), logits_of(params, **inputs)

    compiled = jax.jit(
        jax.value_and_grad(run, has_aux=True),
        compiler_options=PLAIN,
    )
    (loss, logits), gradients = compiled(params, INPUTS, answers)
    return logits, loss, gradients


def by_our_names(model, config):
    """Their gradients, sorted into our tree by attribute access: not by the names of any file."""

    def linear(module):
        return {"kernel": module.weight.grad.numpy().T, "bias": module.bias.grad.numpy()}

    def norm(module):
        return {"scale": module.weight.grad.numpy(), "bias": module.bias.grad.numpy()}

    def embedding(module):
        return {"embedding": module.weight.grad.numpy()}

    def block(layer):
        attention = {
            "query": linear(layer.attention.self.query),
            "key": linear(layer.attention.self.key),
            "value": linear(layer.attention.self.value),
            "out": linear(layer.attention.output.dense),
        }
        hidden = {"up": linear(layer.intermediate.dense), "down": linear(layer.output.dense)}
        return {
            "attention": {
                "sublayer": attention,
                "norm": norm(layer.attention.output.LayerNorm),
            },
            "feed_forward": {"sublayer": hidden, "norm": norm(layer.output.LayerNorm)},
        }

    body, start = model.bert, model.bert.embeddings
    params = {
        "token": embedding(start.word_embeddings),
        "position": embedding(start.position_embeddings),
        "segment": embedding(start.token_type_embeddings),
        "norm": norm(start.LayerNorm),
        "blocks": [block(layer) for layer in body.encoder.layer],
    }
    if body.pooler is not None:
        params["pooler"] = linear(body.pooler.dense)
    if hasattr(getattr(model, "cls", None), "predictions"):
        own = model.cls.predictions
        params["masked"] = {
            "transform": linear(own.transform.dense),
            "norm": norm(own.transform.LayerNorm),
            "bias": own.bias.grad.numpy(),
        }
    for ours, module in (
        ("next_sentence", getattr(getattr(model, "cls", None), "seq_relationship", None)),
        ("classifier", getattr(model, "classifier", None)),
        ("spans", getattr(model, "qa_outputs", None)),
    ):
        if module is not None:
            params[ours] = linear(module)
    return params


@each_config
def test_what_hugging_face_saves_is_loaded(config, saved, theirs, tmp_path):
    """Turns red if a name is not theirs: they would leave that array at random."""
    theirs.save_pretrained(tmp_path / "again")
    found, params = load(tmp_path / "again")
    assert found == config
    tree.map(np.testing.assert_array_equal, params, params_of(config))
    assert sum(a.size for a in tree.leaves(params)) == sum(p.numel() for p in theirs.parameters())


def test_the_published_sizes_are_those_of_hugging_face():
    torch, transformers = peer("torch"), peer("transformers")
    for config in PRESETS.values():
        with torch.device("meta"):
            model = transformers.BertForPreTraining(
                transformers.BertConfig(
                    vocab_size=config.vocabulary,
                    hidden_size=config.width,
                    num_hidden_layers=config.layers,
                    num_attention_heads=config.heads,
                    intermediate_size=config.hidden,
                )
            )
        ours = sum(np.prod(shape) for shape in parameter_shapes(config).values())
        assert ours == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", [CONFIGS["masked"]])
def test_older_files_with_buffers_and_copies_of_the_tied_arrays_are_read(saved):
    path = saved / "model.safetensors"
    arrays = load_file(path)
    own = "cls.predictions"
    more = {f"{own}.decoder.weight": arrays["bert.embeddings.word_embeddings.weight"]}
    more |= {f"{own}.decoder.bias": arrays[f"{own}.bias"]}
    more |= {"bert.embeddings.position_ids": np.arange(11)[None]}
    save_file(arrays | more, path)
    tree.map(np.testing.assert_array_equal, load(saved)[1], params_of(CONFIGS["masked"]))
    save_file(arrays | {f"{own}.decoder.bias": arrays[f"{own}.bias"] + 1}, path)
    with pytest.raises(CheckpointError, match="decoder.bias is not equal to what is our masked.b"):
        load(saved)


@pytest.mark.parametrize("config", [CONFIGS["sequence_classification"]])
def test_what_the_settings_leave_out_has_their_default(saved):
    path = saved / "config.json"
    settings = json.loads(path.read_text())
    for name in ("type_vocab_size", "layer_norm_eps", "hidden_act", "problem_type", "label2id"):
        del settings[name]
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        del settings[name]
    settings["num_labels"] = len(settings.pop("id2label"))
    path.write_text(json.dumps(settings | {"classifier_dropout": None}))
    expected = replace(CONFIGS["sequence_classification"], dropout=0.1, epsilon=1e-12)
    assert load(saved)[0] == expected


@pytest.mark.parametrize("config", [CONFIGS["sequence_classification"]])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu', and must be one of gelu, gelu_new"),
        ({"architectures": ["BertModel"]}, "architectures is 'BertModel', and must be one of Bert"),
        ({"architectures": None}, "architectures is None, and must be one of"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True, and must be False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"attention_probs_dropout_prob": 0.3}, "attention_probs_dropout_prob is 0.3, and must"),
        ({"classifier_dropout": 0.2}, "classifier_dropout is 0.2, and must be 0.0"),
        ({"problem_type": "regression"}, "problem_type is 'regression'"),
        ({"id2label": {"0": "score"}}, "labels is 1; give the number of classes"),
        ({"num_attention_heads": 4}, "4 heads do not divide the width 21"),
        ({"num_hidden_layers": 2}, "missing: bert.encoder.layer.1."),
        ({"architectures": ["BertForTokenClassification"]}, "left over: bert.pooler.dense.bias"),
        ({"hidden_size": None}, "width is None"),
    ],
)
def test_settings_that_our_model_lacks_are_refused_by_name(saved, change, message):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as raised:
        load(saved)
    assert message in str(raised.value) and str(saved) in str(raised.value)


@pytest.mark.parametrize("config", [CONFIGS["question_answering"]])
@pytest.mark.parametrize("name", ["vocab_size", "intermediate_size", "max_position_embeddings"])
def test_a_size_that_is_missing_is_refused(saved, name):
    path = saved / "config.json"
    settings = json.loads(path.read_text())
    del settings[name]
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"has no {name}: copy it again"):
        load(saved)


def test_every_head_has_been_compared():
    assert {config.head for config in CONFIGS.values()} == set(HEADS)
    assert {c.head for c in CONFIGS.values() if c.labels is not None} == set(CLASSES)
