"""What a decoder reads and learns from, and which batches it cannot be trained on.

A text is filled up at its end: causal attention never looks there, so no mask is needed, and what
is kept only says where a text ends.
"""

import numpy as np

from reference.errors import InputError
from reference.layers.embedding import check_ids, check_integers
from reference.layers.mask import padding
from reference.layers.position import check_length
from reference.models.bert_heads import CLASSES, IGNORE, check_answers, check_names

__all__ = []

HEADS = {  # and the names in a batch of what each learns from
    "language": ("labels",),
    "sequence_classification": ("labels",),
    "token_classification": ("labels",),
    "question_answering": ("starts", "ends"),
}
WHOLE = ("sequence_classification", "question_answering")  # one question for each row


def check_head(head, labels):
    """Raise InputError for a head that no decoder has, or for classes that do not go with it."""
    if head not in HEADS:
        raise InputError(f"head is {head!r}; give one of {', '.join(HEADS)}")
    if head not in CLASSES and labels is not None:
        raise InputError(f"labels is {labels!r}, for which the head {head} has no use")
    if head in CLASSES and not (isinstance(labels, int) and labels > 1):
        raise InputError(f"labels is {labels!r}; give the number of classes, 2 or more")


def check_language(config):
    """Raise InputError for a decoder with another head than that which scores the next token."""
    if config.head != "language":
        raise InputError(
            f"the model's head is {config.head}, which does not score the next token; give a model "
            "with the head language"
        )


def check_tokens(tokens, config, *, name="tokens", values=True):
    """Raise DtypeError or InputError for tokens that this model cannot read.

    Without `values`, only what shape and dtype say: for arrays of which no more is known yet.
    """
    check_integers(tokens, name=name)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise InputError(f"{name} has shape {tuple(tokens.shape)}; give (B, T), neither of them 0")
    check_length(tokens.shape[1], config.context)
    if values:
        check_ids(np.asarray(tokens), config.vocabulary, name=name)


def check_documents(documents, tokens):
    """Raise DtypeError or InputError unless there is a number for each token, or none for any."""
    if documents is None:
        return
    check_integers(documents, name="documents")
    if documents.shape != tokens.shape:
        raise InputError(
            f"documents has shape {tuple(documents.shape)}, tokens {tuple(tokens.shape)}; give one "
            "number for each token"
        )


def check_kept(kept, tokens, *, values=True):
    """Raise DtypeError or InputError unless rows of the shape `tokens`, (B, T), end in what fills
    them up, if in anything.  `values` as in `check_tokens`.
    """
    if kept is None:
        return
    padding(kept)
    if tuple(kept.shape) != tuple(tokens):
        raise InputError(
            f"kept has shape {tuple(kept.shape)}, tokens {tuple(tokens)}; give one for each token"
        )
    if values:
        known = np.asarray(kept)
        late = known[:, 1:] & ~known[:, :-1]
        if late.any():
            row, t = np.argwhere(late)[0].tolist()
            raise InputError(
                f"kept[{row}, {t}] is False before a token that is kept; fill a text up at its end"
            )


def check_texts(config, *, tokens, labels, documents=None):
    """Raise DtypeError or InputError for a batch that a language model cannot be trained on."""
    check_tokens(tokens, config)
    check_ids(labels, config.vocabulary, name="labels", ignore=IGNORE)
    check_documents(documents, tokens)
    if labels.shape != tokens.shape:
        raise InputError(
            f"labels has shape {labels.shape}, tokens {tokens.shape}; give a label for each token"
        )


def check_batch(config, *, tokens, kept=None, documents=None, values=True, **answers):
    """Raise DtypeError or InputError for a batch that a decoder's head cannot be trained on.

    `values` as in `check_tokens`.
    """
    if config.head == "language":
        check_names(config, answers, HEADS)
        check_texts(config, tokens=tokens, labels=answers["labels"], documents=documents)
    else:
        check_tokens(tokens, config, values=values)
        check_documents(documents, tokens)
        check_answers(config, answers, tokens.shape, heads=HEADS, values=values)
    check_question(config, tokens, kept, documents, values=values)


def check_question(config, tokens, kept, documents, *, values=True):
    """Raise DtypeError or InputError for kept that cannot be, or several texts to one question."""
    check_kept(kept, tokens.shape, values=values)
    if documents is not None and config.head in WHOLE:
        raise InputError(
            f"the rows have documents, and the head {config.head} asks once for each row; give "
            "each text a row of its own"
        )
