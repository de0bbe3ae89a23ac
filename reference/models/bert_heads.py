"""What BERT is asked: a head is one question about a text, or two.

Two are for learning from bare text: which token was hidden, and whether the second part followed
the first.  The others are what it is then used for.

A head's function takes the whole tree of parameters and the encoder's hidden states x (B, T, D),
and gives its scores by the name of the question.  Its `backward` picks its own out of the gradients
of all scores, and gives that of each part of the tree that it has read, and of x.
"""

import numpy as np

from reference.errors import InputError
from reference.layers.activation import gelu, gelu_tanh, tanh
from reference.layers.dropout import dropout
from reference.layers.embedding import check_integers, unembed
from reference.layers.linear import linear, rows
from reference.layers.loss import check_booleans
from reference.layers.normalization import layer_norm

__all__ = ["bert_pooler"]

HEADS = {  # and the names in a batch of what each learns from
    "pretraining": ("labels", "follows"),
    "masked": ("labels",),
    "next_sentence": ("follows",),
    "sequence_classification": ("labels",),
    "token_classification": ("labels",),
    "question_answering": ("starts", "ends"),
}
MASKED = ("pretraining", "masked")
PAIRS = ("pretraining", "next_sentence")
CLASSES = ("sequence_classification", "token_classification")
POOLED = ("pretraining", "next_sentence", "sequence_classification")
ACTIVATIONS = {"erf": gelu, "tanh": gelu_tanh}
IGNORE = -100


def bert_pooler(params, x):
    """One vector for a whole text: what stands at its first token, [CLS], put through a layer.

        y = tanh(x₀ W + b)

    params: kernel (D, D), bias (D,).  x (B, T, D) -> y (B, D).
    Source: google-research/bert, modeling.py (pooled_output); Devlin et al. 2018, sec. 3, C.

    Backward: only the first position was read, the others get 0.
    """
    projected, linear_backward = linear(params, x[:, 0])
    y, tanh_backward = tanh(projected)

    def backward(dy):
        dparams, dfirst = linear_backward(tanh_backward(dy))
        dx = np.zeros_like(x)
        dx[:, 0] = dfirst
        return dparams, dx

    return y, backward


def score_tokens(params, x, *, config, key):
    """Of every token, whether it is what is hidden; the token table serves as the last kernel."""
    own = params["masked"]
    h, transform_backward = linear(own["transform"], x)
    activated, activation_backward = ACTIVATIONS[config.activation](h)
    normed, norm_backward = layer_norm(own["norm"], activated, epsilon=config.epsilon)
    scores, unembed_backward = unembed(params["token"], normed)
    np.add(scores, own["bias"], out=scores)

    def backward(dlogits):
        dscores = dlogits["masked"]
        dtoken, dnormed = unembed_backward(dscores)
        dnorm, dactivated = norm_backward(dnormed)
        dtransform, dx = transform_backward(activation_backward(dactivated))
        dmasked = {"transform": dtransform, "norm": dnorm, "bias": rows(dscores).sum(axis=0)}
        return {"token": dtoken, "masked": dmasked}, dx

    return {"masked": scores}, backward


def score_pairs(params, x, *, config, key):
    """Whether the second part follows the first."""
    pooled, pooler_backward = bert_pooler(params["pooler"], x)
    scores, linear_backward = linear(params["next_sentence"], pooled)

    def backward(dlogits):
        dlinear, dpooled = linear_backward(dlogits["next_sentence"])
        dpooler, dx = pooler_backward(dpooled)
        return {"pooler": dpooler, "next_sentence": dlinear}, dx

    return {"next_sentence": scores}, backward


def score_texts(params, x, *, config, key):
    """Which class a text is of."""
    pooled, pooler_backward = bert_pooler(params["pooler"], x)
    scores, classes_backward = score_each(params, pooled, config=config, key=key)

    def backward(dlogits):
        dclasses, dpooled = classes_backward(dlogits)
        dpooler, dx = pooler_backward(dpooled)
        return dclasses | {"pooler": dpooler}, dx

    return scores, backward


def score_each(params, x, *, config, key):
    """Which class each vector is of."""
    noisy, dropout_backward = dropout(x, rate=config.classifier_dropout, key=key)
    scores, linear_backward = linear(params["classifier"], noisy)

    def backward(dlogits):
        dlinear, dnoisy = linear_backward(dlogits["classes"])
        return {"classifier": dlinear}, dropout_backward(dnoisy)

    return {"classes": scores}, backward


def score_spans(params, x, *, config, key):
    """Whether the answer begins here, or ends here."""
    scores, linear_backward = linear(params["spans"], x)

    def backward(dlogits):
        dlinear, dx = linear_backward(np.stack([dlogits["starts"], dlogits["ends"]], axis=-1))
        return {"spans": dlinear}, dx

    return {"starts": scores[..., 0], "ends": scores[..., 1]}, backward


PARTS = {
    "pretraining": (score_tokens, score_pairs),
    "masked": (score_tokens,),
    "next_sentence": (score_pairs,),
    "sequence_classification": (score_texts,),
    "token_classification": (score_each,),
    "question_answering": (score_spans,),
}


def share_of(config):
    """The weight of each question's loss: of an answer, both ends are half."""
    return 0.5 if config.head == "question_answering" else 1.0


def head_shapes(config):
    """The parameters of a head, as a tree of shapes."""
    width = config.width
    norm = {"scale": (width,), "bias": (width,)}

    def linear(outputs):
        return {"kernel": (width, outputs), "bias": (outputs,)}

    masked = {"transform": linear(width), "norm": norm, "bias": (config.vocabulary,)}
    parts = {
        "pooler": (POOLED, linear(width)),
        "masked": (MASKED, masked),
        "next_sentence": (PAIRS, linear(2)),
        "classifier": (CLASSES, linear(config.labels)),
        "spans": (("question_answering",), linear(2)),
    }
    return {name: shapes for name, (heads, shapes) in parts.items() if config.head in heads}


def check_answers(config, answers, shape, *, heads=HEADS, values=True):
    """Raise DtypeError or InputError unless the answers are those that this head learns from.

    answers: by their names;  shape: of the tokens, (B, T);  heads: as HEADS, of the model.  Without
    `values`, only what their shapes and dtypes say.
    """
    given = check_names(config, answers, heads)
    classes = {"starts": shape[1], "ends": shape[1]}
    classes["labels"] = config.labels or config.vocabulary  # classes, or the tokens themselves
    for name, answer in given.items():
        each = name == "labels" and config.head != "sequence_classification"
        expected = tuple(shape if each else shape[:1])
        if tuple(answer.shape) != expected:
            raise InputError(
                f"{name} has shape {tuple(answer.shape)}, tokens {tuple(shape)}; give one for each "
                f"{'token' if each else 'text'}, {expected}"
            )
        if name == "follows":
            check_booleans(answer, name=name)
        else:
            check_integers(answer, name=name)
            if values:
                check_classes(np.asarray(answer), classes[name], name=name)


def check_names(config, answers, heads):
    """The answers that are given, or the InputError unless they are those of the head."""
    given = {name: answer for name, answer in answers.items() if answer is not None}
    if set(given) != set(heads[config.head]):
        raise InputError(
            f"the batch has {', '.join(given) or 'no answers'}, and the head {config.head} learns "
            f"from {' and '.join(heads[config.head])}: give it that"
        )
    return given


def check_classes(answers, classes, *, name):
    """Raise InputError unless all are classes, or -100."""
    outside = ((answers < 0) | (answers >= classes)) & (answers != IGNORE)
    if outside.any():
        at = np.argwhere(outside)[0].tolist()
        raise InputError(
            f"{name}{at} is {answers[tuple(at)]}; give integers in [0, {classes}), or {IGNORE} "
            "where nothing is to be learnt"
        )
