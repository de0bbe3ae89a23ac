"""A model with another head than it was published with, to be fine-tuned."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.models import model_of
from reference.models.bert import BertConfig, bert_logits
from reference.models.bert_heads import HEADS
from reference.models.gpt1 import GPT1Config
from reference.models.vit import ViTConfig, for_labels
from reference.pretrained import Changes, changes, load, save
from reference.training import array_files
from tests.mirror import assert_close
from tests.peers import peer

KEY = random.key(7)
BERT = BertConfig(19, 11, layers=2, heads=3, width=12, hidden=13, head="pretraining")
VIT = ViTConfig((4, 6), 2, 1, 2, 6, 8, labels=5, activation="erf", epsilon=1e-12)
POOLER = ("pooler.kernel", "pooler.bias")
CLASSIFIER = ("classifier.kernel", "classifier.bias")
MASKED = tuple(
    f"masked.{name}"
    for name in ("transform.kernel", "transform.bias", "norm.scale", "norm.bias", "bias")
)
PAIRS, SPANS = ("next_sentence.kernel", "next_sentence.bias"), ("spans.kernel", "spans.bias")
THEIRS = {
    "pooler": ("bert.pooler.dense.bias", "bert.pooler.dense.weight"),
    "masked": tuple(
        f"cls.predictions.{name}"
        for name in ("bias", "transform.LayerNorm.bias", "transform.LayerNorm.weight")
        + ("transform.dense.bias", "transform.dense.weight")
    ),
    "pairs": ("cls.seq_relationship.bias", "cls.seq_relationship.weight"),
    "classifier": ("classifier.bias", "classifier.weight"),
}


def params_of(config):
    """Of which each is another than a new one's."""
    rng = np.random.default_rng(3)
    params = model_of(config).initial_params(config, key=random.key(1))
    return tree.map(lambda a: a + rng.normal(0, 0.3, a.shape).astype(np.float32), params)


def saved(folder, config):
    save(folder, config, params_of(config))
    return folder


def with_head(head):
    labels = 5 if head in ("sequence_classification", "token_classification") else None
    return replace(BERT, head=head, labels=labels)


FROM_PRETRAINING = {  # drawn, unused
    "pretraining": ((), ()),
    "masked": ((), ("pooler", "pairs")),
    "next_sentence": ((), ("masked",)),
    "sequence_classification": (CLASSIFIER, ("masked", "pairs")),
    "token_classification": (CLASSIFIER, ("pooler", "masked", "pairs")),
    "question_answering": (SPANS, ("pooler", "masked", "pairs")),
}
FROM_CLASSES = {
    "pretraining": ((*MASKED, *PAIRS), ("classifier",)),
    "masked": (MASKED, ("pooler", "classifier")),
    "next_sentence": (PAIRS, ("classifier",)),
    "sequence_classification": ((), ()),
    "token_classification": (CLASSIFIER, ("pooler", "classifier")),
    "question_answering": (SPANS, ("pooler", "classifier")),
}
CASES = [("pretraining", head, *found) for head, found in FROM_PRETRAINING.items()]
CASES += [("sequence_classification", head, *found) for head, found in FROM_CLASSES.items()]


@pytest.mark.parametrize("published, head, drawn, unused", CASES)
def test_the_trunk_is_read_with_the_head_that_is_asked_for(
    tmp_path, published, head, drawn, unused
):
    """What the files have is read, the rest is as new weights are, and both are told.

    Turns red if one of a head's arrays is read for another's, or drawn though it is there.
    """
    folder = saved(tmp_path / "model", with_head(published))
    asked, before = with_head(head), tree.flatten(params_of(with_head(published)))
    labels = asked.labels
    config, params = load(folder, head=head, labels=labels, key=KEY)
    assert config == asked
    shapes = model_of(config).parameter_shapes(config)
    assert list(tree.flatten(params)) == list(shapes)
    for path, array in tree.flatten(params).items():
        assert array.dtype == np.float32 and array.shape == shapes[path]
        if path not in drawn:
            np.testing.assert_array_equal(array, before[path])
        else:
            assert_new(path, array)
    found = changes(folder, head=head, labels=labels)
    assert isinstance(found, Changes) and set(found.drawn) == set(drawn)
    assert sorted(found.unused) == sorted(name for part in unused for name in THEIRS[part])
    if not drawn:
        tree.map(np.testing.assert_array_equal, load(folder, head=head, labels=labels)[1], params)


def assert_new(path, array):
    """As a new BERT's: see its `initial_params`."""
    if path.endswith("kernel"):
        assert 0.012 < array.std() < 0.023 and np.abs(array).max() <= 0.04
    else:
        np.testing.assert_array_equal(array, path.endswith("scale"))


def test_the_key_decides_what_is_drawn(tmp_path):
    """And nothing else.  Turns red if the head of two runs is the same, or of one run is not."""
    folder = saved(tmp_path / "model", BERT)
    asked = {"head": "sequence_classification", "labels": 31}
    first, again, other = (
        load(folder, **asked, key=random.key(seed))[1]["classifier"]["kernel"] for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).min() > 0 and abs(np.corrcoef(first.flat, other.flat)[0, 1]) < 0.2


def test_every_head_is_asked_for():
    assert set(FROM_PRETRAINING) == set(FROM_CLASSES) == set(HEADS)


def test_changes_are_told_in_words_and_read_no_numbers(tmp_path, monkeypatch):
    folder = saved(tmp_path / "model", BERT)
    monkeypatch.setattr("reference.pretrained.files.array_of", None)
    monkeypatch.setattr(array_files, "array_of", None)
    found = changes(folder, head="question_answering")
    assert str(found).startswith("drawn anew: spans.kernel, spans.bias; not used: bert.pooler")
    assert str(changes(folder, head="pretraining")) == ""
    assert str(Changes((), ("a",))) == "not used: a"


def test_another_number_of_classes_draws_the_head_anew(tmp_path):
    """All of it: turns red if what fits by chance is kept."""
    config = with_head("sequence_classification")
    folder = saved(tmp_path / "model", config)
    asked = {"head": "sequence_classification", "labels": 3}
    assert changes(folder, **asked) == Changes(CLASSIFIER, ("classifier.bias", "classifier.weight"))
    found, params = load(folder, **asked, key=KEY)
    assert found == replace(config, labels=3)
    assert_new("classifier.kernel", params["classifier"]["kernel"])
    old = load(folder)[1]
    tree.map(np.testing.assert_array_equal, params["blocks"], old["blocks"])
    tree.map(np.testing.assert_array_equal, params["pooler"], old["pooler"])
    assert load(folder, head="sequence_classification")[0] == config


def test_a_model_without_any_head_is_read_as_hugging_face_does(tmp_path):
    """BertModel, whose names lack "bert."; its pooler belongs to it.  Refused without `head`."""
    transformers, torch = peer("transformers"), peer("torch")
    theirs = transformers.BertModel.from_pretrained(saved(tmp_path / "full", BERT)).eval()
    theirs.save_pretrained(tmp_path / "trunk")
    assert "pooler.dense.weight" in load_file(tmp_path / "trunk" / "model.safetensors")
    asked = {"head": "sequence_classification", "labels": 4}
    assert changes(tmp_path / "trunk", **asked) == Changes(CLASSIFIER, ())
    config, params = load(tmp_path / "trunk", **asked, key=KEY)
    tokens = np.random.default_rng(0).integers(1, 19, (2, 7))
    with torch.no_grad():
        pooled = theirs(torch.tensor(tokens)).pooler_output.numpy()
    quiet = replace(config, dropout=0.0)
    found, _ = bert_logits(params, tokens=tokens, config=quiet)
    classifier = params["classifier"]
    expected = pooled @ classifier["kernel"] + classifier["bias"]
    assert_close(found["classes"], expected, 1e-5)
    unused = ("bert.pooler.dense.bias", "bert.pooler.dense.weight")
    found = changes(tmp_path / "trunk", head="token_classification", labels=4)
    assert found.drawn == CLASSIFIER and tuple(sorted(found.unused)) == unused
    with pytest.raises(CheckpointError, match="architectures is 'BertModel', and must be one of"):
        load(tmp_path / "trunk")


def test_the_trunk_must_fit_all_the_same(tmp_path):
    """Turns red if an array that is missing is drawn, or one left over unused, wherever it is."""
    folder = saved(tmp_path / "model", BERT)
    path, asked = folder / "model.safetensors", {"head": "question_answering", "key": KEY}
    arrays = load_file(path)
    name = "bert.encoder.layer.1.output.LayerNorm.bias"
    save_file({n: a for n, a in arrays.items() if n != name}, path)
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        load(folder, **asked)
    save_file(arrays | {name.replace("1", "2"): arrays[name], "more": arrays[name]}, path)
    with pytest.raises(CheckpointError, match="left over: bert.encoder.layer.2.* more:"):
        load(folder, **asked)
    save_file(arrays | {name: np.ones(5, np.float32)}, path)
    with pytest.raises(CheckpointError, match=f"of another shape: {name}"):
        load(folder, **asked)
    save_file({n: a for n, a in arrays.items() if not n.startswith("cls.")}, path)
    assert changes(folder, head="masked").drawn == MASKED
    half = {n: a for n, a in arrays.items() if n != "cls.predictions.transform.dense.bias"}
    save_file(half, path)
    assert changes(folder, head="masked").drawn == MASKED
    with pytest.raises(CheckpointError, match="missing: cls.predictions.transform.dense.bias"):
        load(folder)


def test_an_output_table_of_its_own_matters_only_to_the_head_that_has_it(tmp_path):
    folder = saved(tmp_path / "model", BERT)
    path, name = folder / "model.safetensors", "cls.predictions.decoder.weight"
    arrays = load_file(path)
    save_file(arrays | {name: arrays["bert.embeddings.word_embeddings.weight"] + 1}, path)
    assert name in changes(folder, head="question_answering").unused
    load(folder, head="question_answering", key=KEY)
    with pytest.raises(CheckpointError, match=f"{name} is not equal to what is our token.emb"):
        load(folder, head="masked")


def test_a_key_labels_or_a_head_that_is_missing_is_said(tmp_path):
    folder = saved(tmp_path / "bert", BERT)
    gpt1 = saved(tmp_path / "gpt1", GPT1Config(7, 5, 1, 2, 6))
    classes = "sequence_classification"
    for words, where, asked in (
        ("has no classifier.kernel, classifier.bias: give a key", folder, (classes, 2)),
        ("names no classes for the head sequence_classification: give", folder, (classes, None)),
        ("labels is 2 without a head: say which", folder, (None, 2)),
        ("labels is 2, for which the head masked has no use", folder, ("masked", 2)),
        ("head is 'lm', .* bert does not have; give one of pretraining", folder, ("lm", None)),
        ("head is 'lm', which the model gpt1 does not have; leave it out", gpt1, ("lm", None)),
    ):
        head, labels = asked
        with pytest.raises(InputError, match=words):
            load(where, head=head, labels=labels)
    with pytest.raises(InputError, match="labels is 1; give the number of classes"):
        load(folder, head=classes, labels=1, key=KEY)


def test_a_vision_transformer_gets_other_classes_as_the_paper_does(tmp_path):
    """A head of zeros, which is how its training starts: what `for_labels` makes."""
    folder = saved(tmp_path / "model", VIT)
    config, params = load(folder, head="classification", labels=3, key=KEY)
    expected, new = for_labels(load(folder)[1], VIT, 3)
    assert config == new
    tree.map(np.testing.assert_array_equal, params, expected)
    found = changes(folder, head="classification", labels=3)
    assert found == Changes(("head.kernel", "head.bias"), ("classifier.bias", "classifier.weight"))
    same = load(folder, head="classification")
    assert same[0] == VIT
    tree.map(np.testing.assert_array_equal, same[1], load(folder)[1])
    features, params = load(folder, head="features", key=KEY)
    assert features == replace(VIT, labels=0, representation=6)
    new = params["representation"]
    assert not new["bias"].any() and 0.2 < new["kernel"].std() < 0.6  # √(1/6), cut off
    with pytest.raises(InputError, match="labels is 3, for which the head features has no use"):
        load(folder, head="features", labels=3, key=KEY)


def test_features_with_their_layer_are_given_classes_without_it(tmp_path):
    """As the model that was trained before: its representation goes, by the paper."""
    config = replace(VIT, labels=0, representation=6)
    folder = saved(tmp_path / "model", config)
    found, params = load(folder, head="classification", labels=3, key=KEY)
    assert found == replace(VIT, labels=3)
    assert "representation" not in params and not params["head"]["kernel"].any()
    unused = ("vit.pooler.dense.bias", "vit.pooler.dense.weight")
    assert changes(folder, head="classification", labels=3).unused == unused
    with pytest.raises(InputError, match="names no classes for the head classification"):
        load(folder, head="classification", key=KEY)
    settings = json.loads((folder / "config.json").read_text())
    assert "id2label" not in settings
