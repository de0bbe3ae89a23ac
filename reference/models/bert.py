"""BERT: an encoder that reads a text from both sides at once, and heads that ask about it.

The heads are in `bert_heads.py`; the rule by which tokens are hidden is in `data/masking.py`.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.attention import check_heads, multi_head_attention
from reference.layers.block import transformer_block
from reference.layers.dropout import check_rate, dropout
from reference.layers.embedding import check_ids, check_integers, embed, segment_embed
from reference.layers.feed_forward import feed_forward
from reference.layers.loss import cross_entropy, next_sentence
from reference.layers.mask import padding
from reference.layers.normalization import layer_norm
from reference.layers.position import learned_position
from reference.layers.recompute import recomputed
from reference.layers.residual import post_norm
from reference.models.bert_heads import (
    ACTIVATIONS,
    CLASSES,
    HEADS,
    IGNORE,
    MASKED,
    PARTS,
    check_answers,
    head_shapes,
    share_of,
)
from reference.models.gpt import check_initialization, check_tokens

__all__ = ["bert", "bert_logits", "bert_loss"]


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT and its head.  Raises InputError for what makes no model."""

    vocabulary: int
    context: int  # the longest sequence: rows of the position table
    layers: int
    heads: int
    width: int  # D
    hidden: int  # F
    segments: int = 2  # kinds of segments: first and second part
    dropout: float = 0.1
    activation: str = "erf"  # GELU as in Hugging Face's code; "tanh": as in Google's
    epsilon: float = 1e-12  # of all norms
    head: str = "pretraining"  # one of HEADS
    labels: int | None = None  # classes that a head of CLASSES tells apart

    def __post_init__(self):
        for name in ("vocabulary", "context", "layers", "heads", "width", "hidden", "segments"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{name} is {size!r}; give a positive integer")
        check_heads(self.width, self.heads)
        check_rate(self.dropout)
        for name, allowed in (("activation", ACTIVATIONS), ("head", HEADS)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; give one of {', '.join(allowed)}"
                )
        if not 0 < self.epsilon < 1:
            raise InputError(f"epsilon is {self.epsilon!r}; give a small positive number")
        if self.head not in CLASSES and self.labels is not None:
            raise InputError(
                f"labels is {self.labels!r}, for which the head {self.head} has no use"
            )
        if self.head in CLASSES and not (isinstance(self.labels, int) and self.labels > 1):
            raise InputError(f"labels is {self.labels!r}; give the number of classes, 2 or more")


# The published sizes: Devlin et al. 2018, sec. 3, with the vocabularies of the released files; the
# smaller ones: Turc et al. 2019, "Well-read students learn better", table 1.
BASE = BertConfig(30522, 512, layers=12, heads=12, width=768, hidden=3072)
LARGE = BertConfig(30522, 512, layers=24, heads=16, width=1024, hidden=4096)
PRESETS = {
    "bert_base_uncased": BASE,
    "bert_base_cased": replace(BASE, vocabulary=28996),
    "bert_large_uncased": LARGE,
    "bert_large_cased": replace(LARGE, vocabulary=28996),
    "bert_tiny": replace(BASE, layers=2, heads=2, width=128, hidden=512),
    "bert_mini": replace(BASE, layers=4, heads=4, width=256, hidden=1024),
    "bert_small": replace(BASE, layers=4, heads=8, width=512, hidden=2048),
    "bert_medium": replace(BASE, layers=8, heads=8, width=512, hidden=2048),
}


def bert(params, *, tokens, config, segments=None, kept=None, recompute=False, key=None):
    """Read a text, each position in view of all others, those after it too.

        x₀ = dropout(norm(E[tokens] + P + S[segments])),   xₗ = block(xₗ₋₁)

    params: token, position, segment (embeddings), norm, blocks (a list), and those of the head.
    tokens (B, T), integers in [0, V) -> hidden states x_L (B, T, D).
    segments (B, T): the part that a token belongs to, 0 or 1; all 0 if left out.
    kept (B, T), booleans: False for what only fills up, which nobody looks at.  recompute: as in
    `gpt`.  With a key, dropout is on: block l's key is fold_in(key, l), the embeddings'
    fold_in(key, L).
    Raises DtypeError and InputError for tokens that are no batch of sequences of the vocabulary, or
    longer than the context, and for segments and kept that do not fit them.
    Source: Devlin et al. 2018, sec. 3 and figure 2; norm and dropout of the embeddings: google-
    research/bert, modeling.py.
    Differs from the released code, which adds -10000 to the scores of what is not kept: here it has
    no weight at all, and a text of which nothing is kept reads zeros;  and from Hugging Face's, in
    which token 0, [PAD], gets no gradient as an input.

    Backward: block by block, from the last to the first; the head's parameters are not read, so
    their gradient is 0.
    """
    check_inputs(config, tokens, segments, kept)
    kinds = np.zeros_like(tokens) if segments is None else segments
    embedded, token_backward = embed(params["token"], ids=tokens)
    placed, position_backward = learned_position(params["position"], embedded)
    told, segment_backward = segment_embed(params["segment"], placed, segments=kinds)
    normed, norm_backward = layer_norm(params["norm"], told, epsilon=config.epsilon)
    embedding_key = None if key is None else random.fold_in(key, config.layers)
    x, dropout_backward = dropout(normed, rate=config.dropout, key=embedding_key)

    block_backwards, options = [], block_options(config, kept)
    block_of = recomputed(transformer_block) if recompute else transformer_block
    for layer, block in enumerate(params["blocks"]):
        block_key = None if key is None else random.fold_in(key, layer)
        x, block_backward = block_of(block, x, rate=config.dropout, key=block_key, **options)
        block_backwards.append(block_backward)

    def backward(dx):
        dblocks = []
        for block_backward in reversed(block_backwards):
            dblock, dx, _ = block_backward(dx)
            dblocks.append(dblock)
        dnorm, dtold = norm_backward(dropout_backward(dx))
        dsegment, dplaced = segment_backward(dtold)
        dposition, dembedded = position_backward(dplaced)
        dparams = {"token": token_backward(dembedded), "position": dposition, "segment": dsegment}
        dparams |= {"norm": dnorm, "blocks": dblocks[::-1]}
        unread = {name: part for name, part in params.items() if name not in dparams}
        return dparams | tree.map(np.zeros_like, unread)

    return x, backward


def bert_logits(params, *, config, key=None, **inputs):
    """What the head of a model answers, as scores by the name of the question.

        pretraining               masked and next_sentence
        masked                    masked (B, T, V):  norm(gelu(x W + b)) Eᵀ + c
        next_sentence             next_sentence (B, 2):  pooler(x) W + b, the first for "follows"
        sequence_classification   classes (B, labels):  dropout(pooler(x)) W + b
        token_classification      classes (B, T, labels):  dropout(x) W + b
        question_answering        starts and ends (B, T), the two columns of x W + b

    params: as of `bert`, and by the head: masked (transform, norm, bias), pooler, next_sentence,
    classifier, spans.  inputs: tokens (B, T) and what else `bert` reads, which gives x -> a dict of
    logits.  The classifier's dropout key is fold_in(key, L + 1).
    Source: Devlin et al. 2018, sec. 3.1 and 4; google-research/bert, run_pretraining.py (masked),
    run_classifier.py, run_squad.py.
    Differs from the released code, which scores only the masked positions: here all are.

    Backward: what a parameter's uses cause is summed: the token table's, at both ends.
    """
    hidden, bert_backward = bert(params, config=config, key=key, **inputs)
    head_key = None if key is None else random.fold_in(key, config.layers + 1)
    logits, part_backwards = {}, []
    for part in PARTS[config.head]:
        scores, part_backward = part(params, hidden, config=config, key=head_key)
        logits |= scores
        part_backwards.append(part_backward)

    def backward(dlogits):
        dparts = [part_backward(dlogits) for part_backward in part_backwards]
        dparams = bert_backward(sum(dhidden for _, dhidden in dparts))
        for dpart, _ in dparts:
            dparams |= {name: tree.map(np.add, dparams[name], d) for name, d in dpart.items()}
        return dparams

    return logits, backward


def bert_loss(
    params, *, tokens, config, segments=None, kept=None, recompute=False, key=None, **answers
):
    """How surprised the head is, in nats, by the answers: what training descends.

        loss = Σ over its questions of cross_entropy(logits, answers)
        question answering:   (cross_entropy(starts) + cross_entropy(ends)) / 2

    params, tokens (B, T) and the options as of `bert` -> a scalar.  answers, as of HEADS:
    labels: the hidden tokens (B, T), or classes (B, T) or (B,), -100 where nothing is to be learnt;
    follows (B,): whether the second part follows the first, booleans;
    starts, ends (B,): the answer's first and last token, -100 where the text has no answer.
    Raises what `bert` does, and InputError or DtypeError for other answers than the head learns
    from, or of another shape, or outside its classes.
    Source: Devlin et al. 2018, sec. 3.1 and A.2; 4.1 (classes), 4.2 (answers), 5.3 (tokens).
    Differs from the paper: start and end are averaged, as in the released code, where it has their
    sum; and from Hugging Face's, which leaves out starts and ends from T on, and takes those below
    0 for 0.

    Backward: the chain rule; each question's loss hands on its share.
    """
    inputs = {"tokens": tokens, "segments": segments, "kept": kept}
    check_batch(config, **inputs, **answers)
    options = {"config": config, "recompute": recompute, "key": key}
    logits, logits_backward = bert_logits(params, **inputs, **options)
    losses, loss_backwards, share = {}, {}, share_of(config)
    for question, scores in logits.items():
        if question == "next_sentence":
            found = next_sentence(scores, follows=answers["follows"])
        else:
            right = answers.get(question, answers.get("labels"))
            found = cross_entropy(scores, labels=right, ignore=IGNORE)
        losses[question], loss_backwards[question] = found

    def backward(dloss):
        shares = {question: each(share * dloss) for question, each in loss_backwards.items()}
        return logits_backward(shares)

    return share * sum(losses.values()), backward


def block_options(config, kept):
    """What makes a `transformer_block` one of BERT's."""
    mask = None if kept is None else padding(kept)
    return {
        "attention": partial(multi_head_attention, heads=config.heads, mask=mask),
        "feed_forward": partial(feed_forward, activation=ACTIVATIONS[config.activation]),
        "wiring": partial(post_norm, norm=partial(layer_norm, epsilon=config.epsilon)),
    }


def initial_params(config, *, key, initialization="paper", dtype=np.float32):
    """The weights that training starts from: normal numbers of the standard deviation 0.02, of
    which none is more than two of them from 0; biases are 0.

    What is cut off leaves a deviation of 0.0176.  The paper does not say; it is what Google's code
    does, for which all initializations are the same here.  (Hugging Face's cuts nothing off.)
    Drawn in float32 for every dtype by `random.truncated_normal`, the distribution's inverse.
    Keys: those of `split(key, kernels and tables)`, in the order of `parameter_shapes`.
    Raises InputError for another initialization.
    Source: google-research/bert, modeling.py (create_initializer).
    """
    check_initialization(initialization)
    shapes = parameter_shapes(config)
    drawn = [path for path in shapes if path.endswith(("kernel", "embedding"))]
    keys = dict(zip(drawn, random.split(key, len(drawn)), strict=True))

    def draw(path, shape):
        if path not in keys:
            return np.full(shape, path.endswith("scale"), dtype)
        numbers = random.truncated_normal(keys[path], -2, 2, shape)
        return (numbers * np.float32(0.02)).astype(dtype)

    return tree.unflatten({path: draw(path, shape) for path, shape in shapes.items()})


def parameter_shapes(config):
    """The shape of every parameter of a BertConfig, by its path in the tree."""
    width, hidden = config.width, config.hidden
    norm = {"scale": (width,), "bias": (width,)}

    def linear(inputs, outputs):
        return {"kernel": (inputs, outputs), "bias": (outputs,)}

    attention = {part: linear(width, width) for part in ("query", "key", "value", "out")}
    thought = {"up": linear(width, hidden), "down": linear(hidden, width)}
    block = {
        "attention": {"sublayer": attention, "norm": norm},
        "feed_forward": {"sublayer": thought, "norm": norm},
    }
    params = {
        "token": {"embedding": (config.vocabulary, width)},
        "position": {"embedding": (config.context, width)},
        "segment": {"embedding": (config.segments, width)},
        "norm": norm,
        "blocks": [block] * config.layers,
    }
    return tree.flatten(params | head_shapes(config))


def flops_per_token(config, length):
    """Floating-point operations of one training step, forward and backward, for each token.

        6 (N + N₁ / T) + 12 L D T

    As `gpt.flops_per_token`; N has the token table only if a head scores tokens by it, and not the
    tables of positions and segments.  N₁ are the weights that only the first position meets: the
    pooler and what reads it.
    Source: Chowdhery et al. 2022, "PaLM", appendix B.
    """
    once = ["pooler", "next_sentence"]
    once += ["classifier"] if config.head == "sequence_classification" else []
    idle = ["position", "segment"] + ([] if config.head in MASKED else ["token"])
    every = first = 0
    for path, shape in parameter_shapes(config).items():
        part, size = path.split(".")[0], int(np.prod(shape))
        every += size * (part not in once + idle)
        first += size * (part in once)
    return 6 * (every + first / length) + 12 * config.layers * config.width * length


def check_inputs(config, tokens, segments, kept, *, values=True):
    """Raise DtypeError or InputError for what `bert` cannot read; `values` as in `check_tokens`."""
    check_tokens(tokens, config, values=values)
    if segments is not None:
        check_integers(segments, name="segments")
    if kept is not None:
        padding(kept)
    for name, array in (("segments", segments), ("kept", kept)):
        if array is not None and array.shape != tokens.shape:
            raise InputError(
                f"{name} has shape {tuple(array.shape)}, tokens {tuple(tokens.shape)}; give one "
                "for each token"
            )
    if values and segments is not None:
        check_ids(np.asarray(segments), config.segments, name="segments")


def check_batch(config, *, tokens, segments=None, kept=None, values=True, **answers):
    """Raise DtypeError or InputError for a batch that `bert_loss` cannot be trained on.

    `values` as in `check_tokens`.
    """
    check_inputs(config, tokens, segments, kept, values=values)
    check_answers(config, answers, tokens.shape, values=values)
