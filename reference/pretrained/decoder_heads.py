"""The heads of a decoder as Hugging Face keeps them: a class for each.

Of a batch, its class for whole texts needs to know which token fills up: it takes the last other
one of each row.  Ours are told by `kept`, so what is written as `pad_token_id` is a choice: the
last token of the vocabulary, GPT-2's end of text.  Rows are to be filled up with it there.
"""

from reference.models.bert_heads import CLASSES
from reference.models.decoder_batches import HEADS as NAMES
from reference.pretrained.names import linear
from reference.pretrained.settings import (
    PROBLEM,
    architecture,
    check_fixed,
    classes_of,
    names_of_labels,
)

ENDINGS = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
}


def head_in(settings):
    """The head of the first architecture: that of language where it is none of the others."""
    kind = str(architecture(settings))
    return next((head for end, head in ENDINGS.items() if kind.endswith(end)), "language")


def read_head(settings, source, *, head, labels):
    """The fields of a config that are its head's; head, labels: asked for, in place of its own."""
    own = head or head_in(settings)
    if own == "sequence_classification":
        problem = {"problem_type": PROBLEM}
        check_fixed(settings, problem, source, defaults=problem)
    fields = {"head": own, "labels": classes_of(own, head, labels, settings, source)}
    if own == "token_classification":
        rates = (settings.get(name) for name in ("classifier_dropout", "hidden_dropout"))
        fields["classifier_dropout"] = next((rate for rate in rates if rate is not None), 0.1)
    return fields


def write_head(config, begin, language):
    """The settings of a head, of a class whose name begins so, or is `language`."""
    if config.head == "language":
        return {"architectures": [language]}
    (end,) = (end for end, head in ENDINGS.items() if head == config.head)
    found = {"architectures": [begin + end]}
    if config.head not in CLASSES:
        return found
    found |= names_of_labels(config.labels)
    if config.head == "token_classification":
        return found | {"classifier_dropout": config.classifier_dropout}
    return found | {"problem_type": PROBLEM, "pad_token_id": config.vocabulary - 1}


def stored_head(config, *, each="classifier"):
    """Where the parameters of a head lie; each: the name of the layer for each token's class."""
    if config.head == "sequence_classification":
        return {"classifier": linear("score", bias=False)}
    if config.head == "token_classification":
        return {"classifier": linear(each)}
    return {"spans": linear("qa_outputs")} if config.head == "question_answering" else {}


def of_heads(settings, head):
    """How names of the heads' arrays begin, and whether they are this one's."""
    return {
        "lm_head.": head == "language",
        "score.": head in CLASSES and head_in(settings) == head,  # of a text or of each token
        "classifier.": head == "token_classification",
        "qa_outputs.": head == "question_answering",
    }


HEADS = {"heads": tuple(NAMES), "of_heads": of_heads}
