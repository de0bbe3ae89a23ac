"""Decoders with other heads than that of language, beside Hugging Face's."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from accelerated import functional
from accelerated.models import twin_of
from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.models import model_of
from reference.models.decoder_batches import HEADS
from reference.models.gpt import GPTConfig, gpt_logits
from reference.models.llama import LlamaConfig, llama_logits
from reference.pretrained import Changes, changes, load, save
from tests.mirror import PLAIN, assert_close
from tests.peers import peer

KEY = random.key(7)
GPT = GPTConfig(19, 11, layers=2, heads=3, width=15, dropout=0.2)
LLAMA = LlamaConfig(19, 11, 1, 4, 2, 24, 20, epsilon=1e-6)
MISTRAL = replace(LLAMA, window=4)
CLASSES = {"sequence_classification": 5, "token_classification": 3}


def with_head(base, head, **changes):
    return replace(base, head=head, labels=CLASSES.get(head), **changes)


CONFIGS = {
    "GPT2ForSequenceClassification": with_head(GPT, "sequence_classification"),
    "GPT2ForTokenClassification": with_head(GPT, "token_classification", classifier_dropout=0.3),
    "GPT2ForQuestionAnswering": with_head(GPT, "question_answering", layers=1),
    "LlamaForSequenceClassification": with_head(LLAMA, "sequence_classification", tied=True),
    "LlamaForTokenClassification": with_head(LLAMA, "token_classification"),
    "LlamaForQuestionAnswering": with_head(LLAMA, "question_answering"),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
MORE = CONFIGS | {"MistralForQuestionAnswering": with_head(MISTRAL, "question_answering")}
KEPT = np.arange(9) < np.array([[9], [4], [7], [1]])
TOKENS = np.where(KEPT, np.random.default_rng(0).integers(0, 18, (4, 9)), 18)  # 18 fills up
LOGITS = {"classes": "logits", "starts": "start_logits", "ends": "end_logits"}


def params_of(config):
    """Of which each matters: no bias is 0, and no scale 1."""
    rng = np.random.default_rng(3)
    params = model_of(config).initial_params(config, key=random.key(1))
    return tree.map(lambda a: a + rng.normal(0, 0.3, a.shape).astype(np.float32), params)


def answers_of(config):
    """What the head learns from, and the same for Hugging Face: answers outside are not < 0."""
    rng = np.random.default_rng(3)
    if config.head == "question_answering":
        starts, ends = rng.integers(0, 9, (2, 4))
        starts[2] = ends[2] = -100
        theirs = {"start_positions": starts, "end_positions": ends}
        theirs = {name: np.where(a == -100, 9, a) for name, a in theirs.items()}
        return {"starts": starts, "ends": ends}, theirs
    each = 4 if config.head == "sequence_classification" else (4, 9)
    labels = rng.integers(0, config.labels, each)
    labels[1] = -100
    if labels.ndim == 2:
        labels = np.where(KEPT, labels, -100)
    return {"labels": labels}, {"labels": labels}


@pytest.fixture
def saved(tmp_path, config):
    save(tmp_path / "model", config, params_of(config))
    return tmp_path / "model"


@pytest.fixture
def theirs(saved):
    transformers = peer("transformers")
    (architecture,) = json.loads((saved / "config.json").read_text())["architectures"]
    options = {"attn_implementation": "eager"}
    return getattr(transformers, architecture).from_pretrained(saved, **options).eval()


@each_config
def test_hugging_face_computes_what_both_engines_do(config, saved, theirs, tmp_path):
    """Logits within 1e-5 of the largest, the loss within 1e-6, its gradient within 1e-4; and it
    predicts the same labels, by the names that we wrote.  It finds a text's end by its own rule.
    """
    torch = peer("torch")
    answers, their_answers = answers_of(config)
    whole = config.head == "question_answering"  # of what fills up its scores are others
    mask = {} if whole else {"attention_mask": torch.tensor(KEPT.astype(np.int64))}
    tensors = {name: torch.tensor(a) for name, a in their_answers.items()}
    found = theirs(torch.tensor(TOKENS), **mask, **tensors)
    found.loss.backward()
    _, params = load(saved)
    expected = gradients_of(theirs, tmp_path)
    read = KEPT if config.head == "token_classification" else ...
    for logits, loss, gradients in (
        of_reference(config, params, answers),
        of_accelerated(config, params, answers),
    ):
        for question, ours in logits.items():
            them = found[LOGITS[question]].detach().numpy()
            assert_close(np.asarray(ours)[read], them[read], 1e-5)
            if question == "classes":
                names = [theirs.config.id2label[i] for i in them[read].argmax(axis=-1).ravel()]
                labels = np.asarray(ours)[read].argmax(axis=-1).ravel()
                assert names == [f"LABEL_{label}" for label in labels]
        np.testing.assert_allclose(loss, found.loss.item(), rtol=1e-6)
        assert_close(but_shifts(gradients, config), but_shifts(expected, config), 1e-4)


def but_shifts(gradients, config):
    """Gradients without those that are 0 but for rounding: a softmax over places ignores what
    shifts them all.
    """
    flat = {path: np.asarray(array) for path, array in tree.flatten(gradients).items()}
    if config.head != "question_answering":
        return flat
    largest = max(np.abs(array).max() for array in flat.values())
    shifts = [flat.pop(path) for path in ("spans.bias", "norm.bias") if path in flat]
    assert all(np.abs(array).max() < 1e-6 * largest for array in shifts)
    return flat


def gradients_of(model, folder):
    """Their gradients as our tree: saved in place of the weights, and read as those are."""
    torch = peer("torch")
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.grad)
    model.save_pretrained(folder / "gradients")
    return load(folder / "gradients")[1]


def of_reference(config, params, answers):
    batch = {"tokens": TOKENS, "kept": KEPT, "config": config}
    logits, _ = (gpt_logits if isinstance(config, GPTConfig) else llama_logits)(params, **batch)
    loss, backward = model_of(config).loss(params, **batch, **answers)
    return logits, loss, backward(np.float32(1))


def of_accelerated(config, params, answers):
    """Logits, loss and gradient.  XLA optimizes nothing, which takes half the time to compile."""
    twin = twin_of(config)
    logits_of, _ = functional(twin.abstract(config), twin.logits)
    loss, _ = functional(twin.abstract(config), twin.loss)

    def run(params, batch, answers):
        return loss(params, **batch, **answers), logits_of(params, **batch)

    compiled = jax.jit(jax.value_and_grad(run, has_aux=True), compiler_options=PLAIN)
    (value, logits), gradients = compiled(params, {"tokens": TOKENS, "kept": KEPT}, answers)
    return logits, value, gradients


@pytest.mark.parametrize("config", MORE.values(), ids=MORE)
def test_what_hugging_face_saves_is_loaded(config, saved, theirs, tmp_path):
    """Turns red if a name is not theirs: they would leave that array at random."""
    theirs.save_pretrained(tmp_path / "again")
    found, params = load(tmp_path / "again")
    assert found == config
    tree.map(np.testing.assert_array_equal, params, params_of(config))
    assert sum(a.size for a in tree.leaves(params)) == sum(p.numel() for p in theirs.parameters())


def test_what_hugging_face_made_with_its_defaults_is_loaded(tmp_path):
    """A GPT2ForSequenceClassification as one would make it there, its end of text filling up."""
    transformers = peer("transformers")
    sizes = dict(zip(("n_positions", "n_layer", "n_head", "n_embd"), (11, 2, 3, 15), strict=True))
    settings = transformers.GPT2Config(vocab_size=19, **sizes, pad_token_id=18)
    transformers.GPT2ForSequenceClassification(settings).save_pretrained(tmp_path)
    config, _ = load(tmp_path)
    assert config == replace(GPT, dropout=0.1, head="sequence_classification", labels=2)


# Another head than that of the directory


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("published", HEADS)
@pytest.mark.parametrize("base", [GPT, LLAMA, MISTRAL], ids=["gpt2", "llama", "mistral"])
def test_the_trunk_is_read_with_the_head_that_is_asked_for(tmp_path, base, published, head):
    """What the files have is read, the rest is as new weights are, and both are told.

    Turns red if one of a head's arrays is read for another's, or drawn though it is there.
    """
    before = with_head(base, published)
    save(tmp_path / "model", before, params_of(before))
    asked = {"head": head, "labels": CLASSES.get(head)}
    config, params = load(tmp_path / "model", **asked, key=KEY)
    assert config == with_head(base, head)
    old, new = tree.flatten(params_of(before)), tree.flatten(params)
    shapes = model_of(config).parameter_shapes(config)
    drawn = [path for path in shapes if path not in old or head != published and is_head(path)]
    for path, array in new.items():
        assert array.dtype == np.float32 and array.shape == shapes[path]
        if path not in drawn:
            np.testing.assert_array_equal(array, old[path])
        elif path.endswith("bias"):
            assert not array.any()
        else:
            assert 0.01 < array.std() < 0.03
    found = changes(tmp_path / "model", **asked)
    assert found.drawn == tuple(drawn)
    unused = sum(is_head(path) for path in old) if head != published else 0
    assert len(found.unused) == unused


def is_head(path):
    return path.startswith(("output", "classifier", "spans"))


def test_another_number_of_classes_draws_the_head_anew(tmp_path):
    before = with_head(GPT, "sequence_classification")
    save(tmp_path / "model", before, params_of(before))
    asked = {"head": "sequence_classification", "labels": 2}
    found = changes(tmp_path / "model", **asked)
    assert found == Changes(("classifier.kernel",), ("score.weight",))
    first, again = (load(tmp_path / "model", **asked, key=KEY) for _ in range(2))
    assert first[0] == replace(before, labels=2)
    tree.map(np.testing.assert_array_equal, first[1], again[1])


def test_an_output_table_that_is_written_twice_matters_only_to_the_head_of_language(tmp_path):
    save(tmp_path / "model", GPT, params_of(GPT))
    path = tmp_path / "model" / "model.safetensors"
    arrays = load_file(path)
    name, table = "lm_head.weight", arrays["transformer.wte.weight"]
    asked = {"head": "token_classification", "labels": 3}
    save_file(arrays | {name: table}, path)
    assert load(tmp_path / "model", head="language")[0] == GPT
    save_file(arrays | {name: table + 1}, path)
    assert changes(tmp_path / "model", **asked).unused == (name,)
    load(tmp_path / "model", **asked, key=KEY)
    with pytest.raises(CheckpointError, match="lm_head.weight is not equal to what is our token"):
        load(tmp_path / "model", head="language")


@pytest.mark.parametrize("config", [CONFIGS["GPT2ForTokenClassification"]])
def test_settings_of_the_head_have_hugging_face_s_defaults(saved):
    path = saved / "config.json"
    settings = json.loads(path.read_text())
    rate = settings.pop("classifier_dropout")
    assert rate == 0.3 and "pad_token_id" not in settings
    for more, expected in (({}, 0.1), ({"hidden_dropout": 0.25}, 0.25)):
        path.write_text(json.dumps(settings | more))
        assert load(saved)[0].classifier_dropout == expected
    path.write_text(json.dumps(settings | {"classifier_dropout": 2.0}))
    with pytest.raises(CheckpointError, match="config.json: the dropout rate is 2.0"):
        load(saved)


@pytest.mark.parametrize("config", [CONFIGS["LlamaForSequenceClassification"]])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"problem_type": "regression"}, "problem_type is 'regression', and must be 'single_label"),
        ({"id2label": {"0": "score"}}, "labels is 1; give the number of classes, 2 or more"),
        ({"id2label": {"0": "a", "1": "b"}}, "of another shape: score.weight"),
        ({"architectures": ["LlamaForTokenClassification"]}, "missing: score.bias"),
        ({"architectures": ["LlamaForCausalLM"]}, "left over: score.weight"),
    ],
)
def test_settings_that_our_heads_lack_are_refused_by_name(saved, change, message):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as raised:
        load(saved)
    assert message in str(raised.value) and str(saved) in str(raised.value)


def test_labels_or_a_key_that_is_missing_is_said(tmp_path):
    save(tmp_path / "model", GPT, params_of(GPT))
    for asked, message in (
        ({"head": "sequence_classification"}, "names no classes for the head sequence_classific"),
        ({"head": "language", "labels": 2}, "labels is 2, for which the head language has no use"),
        ({"head": "question_answering"}, "has no spans.kernel, spans.bias: give a key"),
        ({"head": "pretraining"}, "head is 'pretraining', which the model gpt does not have; give"),
    ):
        with pytest.raises(InputError, match=message):
            load(tmp_path / "model", **asked)


def test_a_banded_model_with_a_head_has_no_published_form_here(tmp_path):
    config = with_head(replace(GPT, band=3), "question_answering")
    with pytest.raises(InputError, match="no form of gpt2, gpt_neo holds GPTConfig"):
        save(tmp_path / "model", config, params_of(config))
