"""BERT: an encoder that reads a text from both sides at once, and heads that ask about it.

The heads are in `bert_heads.py`; the rule by which tokens are hidden is in `data/masking.py`.
"""

from functools import partial

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.attention import multi_head_attention
from reference.layers.block import transformer_block
from reference.layers.dropout import dropout
from reference.layers.embedding import check_ids, check_integers, embed, segment_embed
from reference.layers.feed_forward import feed_forward
from reference.layers.loss import cross_entropy, next_sentence
from reference.layers.mask import padding
from reference.layers.normalization import layer_norm
from reference.layers.position import learned_position
from reference.layers.recompute import recomputed
from reference.layers.residual import post_norm
from reference.models.bert_heads import ACTIVATIONS, IGNORE, PARTS, check_answers, share_of
from reference.models.bert_sizes import PRESETS as PRESETS  # all of these: handed on
from reference.models.bert_sizes import BertConfig as BertConfig
from reference.models.bert_sizes import flops_per_token as flops_per_token
from reference.models.bert_sizes import initial_params as initial_params
from reference.models.bert_sizes import parameter_shapes as parameter_shapes
from reference.models.gpt import check_tokens

__all__ = ["bert", "bert_logits", "bert_loss"]


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
