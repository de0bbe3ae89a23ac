"""BERT as Hugging Face keeps it: kernels (out, in), a class for each head."""

import re

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.bert import BertConfig
from reference.models.bert_heads import CLASSES, MASKED, PAIRS, POOLED
from reference.pretrained.names import Stored, embedding, linear, norm
from reference.pretrained.settings import (
    PROBLEM,
    architecture,
    check_fixed,
    choice,
    classes_of,
    names_of_labels,
)

SIZES = {
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "hidden": "intermediate_size",
}
OPTIONAL = {  # and Hugging Face's defaults
    "segments": ("type_vocab_size", 2),
    "dropout": ("hidden_dropout_prob", 0.1),
    "epsilon": ("layer_norm_eps", 1e-12),
}
ACTIVATIONS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
ARCHITECTURES = {
    "BertForPreTraining": "pretraining",
    "BertForMaskedLM": "masked",
    "BertForNextSentencePrediction": "next_sentence",
    "BertForSequenceClassification": "sequence_classification",
    "BertForTokenClassification": "token_classification",
    "BertForQuestionAnswering": "question_answering",
}
FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
MODULES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def read_config(settings, source, *, head=None, labels=None):
    """The BertConfig of some settings; the head is that of the first architecture.

    head, labels: those that are asked for, in place of what the settings say.
    """
    if missing := [name for name in SIZES.values() if name not in settings]:
        raise CheckpointError(f"{source} has no {', '.join(missing)}: copy it again")
    sizes = {ours: settings[theirs] for ours, theirs in SIZES.items()}
    sizes |= {ours: settings.get(*theirs) for ours, theirs in OPTIONAL.items()}
    own = head or choice("architectures", architecture(settings), ARCHITECTURES, source)
    rate = sizes["dropout"]
    fixed = FIXED | {"attention_probs_dropout_prob": rate, "classifier_dropout": rate}
    defaults = fixed | {"attention_probs_dropout_prob": 0.1}
    if own == "sequence_classification":
        fixed["problem_type"] = defaults["problem_type"] = PROBLEM
    check_fixed(settings, fixed, source, defaults=defaults)
    activation = choice("hidden_act", settings.get("hidden_act", "gelu"), ACTIVATIONS, source)
    labels = classes_of(own, head, labels, settings, source)
    try:
        return BertConfig(**sizes, activation=activation, head=own, labels=labels)
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{source}: {error}") from None


def write_config(config):
    """The settings of a BertConfig."""
    (kind,) = (name for name, head in ARCHITECTURES.items() if head == config.head)
    activation = next(name for name, ours in ACTIVATIONS.items() if ours == config.activation)
    about = {"model_type": "bert", "architectures": [kind], "hidden_act": activation}
    sizes = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    sizes |= {theirs: getattr(config, ours) for ours, (theirs, _) in OPTIONAL.items()}
    fixed = FIXED | {"attention_probs_dropout_prob": config.dropout}
    if config.head not in CLASSES:
        return about | sizes | fixed
    problem = {"problem_type": PROBLEM} if config.head == "sequence_classification" else {}
    return about | sizes | fixed | names_of_labels(config.labels) | problem


def stored(config):
    """Where each parameter lies."""
    blocks = []
    for layer in range(config.layers):
        h = f"bert.encoder.layer.{layer}"
        kernels = {ours: linear(f"{h}.{name}") for ours, name in MODULES.items()}
        attention = {name: kernels.pop(name) for name in ("query", "key", "value", "out")}
        blocks.append(
            {
                "attention": {
                    "sublayer": attention,
                    "norm": norm(f"{h}.attention.output.LayerNorm"),
                },
                "feed_forward": {"sublayer": kernels, "norm": norm(f"{h}.output.LayerNorm")},
            }
        )
    embeddings = "bert.embeddings"
    params = {
        "token": embedding(f"{embeddings}.word_embeddings"),
        "position": embedding(f"{embeddings}.position_embeddings"),
        "segment": embedding(f"{embeddings}.token_type_embeddings"),
        "norm": norm(f"{embeddings}.LayerNorm"),
        "blocks": blocks,
    }
    return tree.flatten(params | head(config))


def head(config):
    """Where those of the head lie."""
    params, own = {}, "cls.predictions"
    if config.head in POOLED:
        params["pooler"] = linear("bert.pooler.dense")
    if config.head in MASKED:
        transform = linear(f"{own}.transform.dense"), norm(f"{own}.transform.LayerNorm")
        params["masked"] = dict(zip(("transform", "norm"), transform, strict=True))
        params["masked"]["bias"] = Stored(f"{own}.bias")
    if config.head in PAIRS:
        params["next_sentence"] = linear("cls.seq_relationship")
    if config.head in CLASSES:
        params["classifier"] = linear("classifier")
    if config.head == "question_answering":
        params["spans"] = linear("qa_outputs")
    return params


def of_heads(settings, head):
    """How names of the heads' arrays begin, and whether they are this one's."""
    found = {
        "bert.pooler.": head in POOLED,
        "cls.predictions.": head in MASKED,
        "cls.seq_relationship.": head in PAIRS,
        "qa_outputs.": head == "question_answering",
    }
    # Two heads have arrays of this name.
    return found | {"classifier.": ARCHITECTURES.get(str(architecture(settings))) == head}


BUFFERS = re.compile(r"(bert\.)?embeddings\.(position_ids|token_type_ids)")
TIED = {
    "cls.predictions.decoder.weight": "token.embedding",
    "cls.predictions.decoder.bias": "masked.bias",
}
FAMILY = (read_config, write_config, stored, "bert.", BUFFERS, TIED)
HEADS = {"heads": tuple(ARCHITECTURES.values()), "of_heads": of_heads}
