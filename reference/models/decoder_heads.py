"""What a decoder is asked: which token comes next, or what else its last layer can tell.

A head's function takes the tree of parameters and the hidden states x (B, T, D), and gives its
scores by the name of the question.  Its `backward` gives the gradient of the parts of the tree that
it has read, and of x.  What classes and answers need is as in `bert_heads.py`; but a decoder's
first token has read nothing of the text, and its last token all of it.
"""

from functools import partial

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.embedding import unembed
from reference.layers.linear import linear
from reference.layers.loss import cross_entropy
from reference.models.bert_heads import CLASSES, check_names, score_each, score_spans, share_of
from reference.models.decoder_batches import HEADS, check_batch, check_kept, check_question

__all__ = ["last_kept"]

PARTS = ("output", "classifier", "spans")  # of a decoder's tree: what only heads read


def last_kept(x, *, kept=None):
    """One vector for a whole text: what stands at its last token, which alone has read it all.

        y_b = x_bt,   t = the last position of row b that is kept

    x (B, T, D) -> y (B, D).  kept (B, T), booleans: False for what only fills up, at the end of a
    row; all True if left out.  Of a row of which nothing is kept, the first vector.
    Raises DtypeError or InputError for kept of another kind or shape, or for one that is not True
    and then False.
    Source: Radford et al. 2018, sec. 3.2 (the last block's activation at the last token);  Hugging
    Face's GPT2ForSequenceClassification, where the last kept token is the last that is not
    `pad_token_id`.

    Backward: only one position was read, the others get 0.
    """
    check_kept(kept, x.shape[:2])
    rows = np.arange(len(x))
    at = x.shape[1] - 1 if kept is None else ends_of(kept)
    y = x[rows, at]

    def backward(dy):
        dx = np.zeros_like(x)
        dx[rows, at] = dy
        return dx

    return y, backward


def ends_of(kept):
    """The last position that is kept of each row, (B,); 0 where none is."""
    xp = kept.__array_namespace__()
    return (xp.arange(kept.shape[1]) * kept).max(axis=1)


def score_next(params, x, *, config, key):
    """Of every token, whether it comes next: by the token table, or a kernel of its own."""
    tied = getattr(config, "tied", True)
    scores, output_backward = unembed(params["token"], x) if tied else linear(params["output"], x)

    def backward(dlogits):
        doutput, dx = output_backward(dlogits["tokens"])
        return {"token" if tied else "output": doutput}, dx

    return {"tokens": scores}, backward


def score_text(params, x, *, config, key, kept):
    """Which class a text is of."""
    last, last_backward = last_kept(x, kept=kept)
    scores, linear_backward = linear(params["classifier"], last)

    def backward(dlogits):
        dlinear, dlast = linear_backward(dlogits["classes"])
        return {"classifier": dlinear}, last_backward(dlast)

    return {"classes": scores}, backward


def part_of(config, kept):
    """The function of a config's head."""
    return {
        "language": score_next,
        "sequence_classification": partial(score_text, kept=kept),
        "token_classification": score_each,
        "question_answering": score_spans,
    }[config.head]


def logits_of(hidden, params, *, tokens, config, kept=None, documents=None, key=None, **options):
    """What the head answers: `gpt_logits` of a decoder whose hidden states are from `hidden`.

    The head's dropout key is fold_in(key, L + 2).
    """
    check_question(config, tokens, kept, documents)
    body = {name: part for name, part in params.items() if name not in PARTS}
    inputs = {"tokens": tokens, "documents": documents, "key": key} | options
    x, hidden_backward = hidden(body, config=config, **inputs)
    head_key = None if key is None else random.fold_in(key, config.layers + 2)
    logits, part_backward = part_of(config, kept)(params, x, config=config, key=head_key)

    def backward(dlogits):
        dpart, dx = part_backward(dlogits)
        dparams = hidden_backward(dx)
        for name, d in dpart.items():  # the token table may have been used at both ends
            dparams[name] = tree.map(np.add, dparams[name], d) if name in dparams else d
        return dparams

    return logits, backward


def loss_of(logits_of, params, *, config, answers, ignore, **inputs):
    """How surprised the head is: `gpt_loss` of a decoder whose logits are from `logits_of`."""
    check_names(config, answers, HEADS)
    if config.head != "language":
        read = {name: inputs.get(name) for name in ("tokens", "kept", "documents")}
        check_ignore(ignore)
        check_batch(config, **read, **answers)
    logits, logits_backward = logits_of(params, config=config, **inputs)
    losses, loss_backwards, share = {}, {}, share_of(config)
    for question, scores in logits.items():
        right = answers["labels"] if answers.get(question) is None else answers[question]
        found = cross_entropy(scores, labels=right, ignore=ignore)
        losses[question], loss_backwards[question] = found

    def backward(dloss):
        shares = {question: each(share * dloss) for question, each in loss_backwards.items()}
        return logits_backward(shares)

    return share * sum(losses.values()), backward


def head_shapes(config):
    """The parameters of a head beside those of the language model, as a tree of shapes."""
    kernel = {"kernel": (config.width, config.labels or 2)}
    bias = {} if config.head == "sequence_classification" else {"bias": (config.labels or 2,)}
    if config.head in CLASSES:
        return {"classifier": kernel | bias}
    return {"spans": kernel | bias} if config.head == "question_answering" else {}


def head_flops(config, length):
    """Operations of a head other than that of language, for each token, as in `flops_per_token`:
    6 for each weight that a token meets, of a text's class at the last one alone.
    """
    weights = sum(int(np.prod(shape)) for shape in tree.flatten(head_shapes(config)).values())
    return 6 * weights / (length if config.head == "sequence_classification" else 1)


def check_ignore(ignore):
    """Raise InputError for another label to ignore than batches of these heads have."""
    if ignore != -100:
        raise InputError(f"ignore is {ignore}, which is for the head language; leave it out")
