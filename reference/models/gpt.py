"""GPT: a stack of causal pre-norm blocks that predicts the next token.

The one of 2019; that of 2020, with its bands, is `gpt3.py`, and that of 2018 is `gpt1.py`.
"""

from functools import partial

import numpy as np

from reference import random, tree
from reference.layers.attention import multi_head_attention
from reference.layers.block import transformer_block
from reference.layers.dropout import dropout
from reference.layers.embedding import embed
from reference.layers.mask import both, causal, locally_banded, places
from reference.layers.mask import documents as mask_of_documents
from reference.layers.normalization import layer_norm
from reference.layers.position import learned_position
from reference.layers.recompute import recomputed
from reference.models.decoder_batches import check_batch as check_batch  # all of these: handed on
from reference.models.decoder_batches import check_documents as check_documents
from reference.models.decoder_batches import check_language
from reference.models.decoder_batches import check_tokens as check_tokens
from reference.models.decoder_heads import logits_of, loss_of
from reference.models.gpt_sizes import INITIALIZATIONS as INITIALIZATIONS
from reference.models.gpt_sizes import PRESETS as PRESETS
from reference.models.gpt_sizes import GPTConfig as GPTConfig
from reference.models.gpt_sizes import check_initialization as check_initialization
from reference.models.gpt_sizes import flops_per_token as flops_per_token
from reference.models.gpt_sizes import initial_params as initial_params
from reference.models.gpt_sizes import parameter_shapes as parameter_shapes

__all__ = ["gpt", "gpt_hidden", "gpt_logits", "gpt_loss"]


def gpt_hidden(params, *, tokens, config, documents=None, recompute=False, key=None):
    """Read a text, each position in view of what came before: what every head of a GPT reads.

        x₀ = dropout(E[tokens] + P),   xₗ = block(xₗ₋₁),   x = norm(x_L)

    params: token and position (embeddings), blocks (a list), norm, and those of a head.
    tokens (B, T), integers in [0, V) -> hidden states x (B, T, D).  With a key, dropout is on:
    block l's key is fold_in(key, l), the embeddings' fold_in(key, L).
    documents (B, T): a number for each token, where several texts are packed into a sequence: each
    is then read as if it were alone.  recompute: blocks keep only their input, see `recomputed`.
    With a `band` in the config, dense and locally banded blocks take turns, as in GPT-3.
    Raises DtypeError and InputError for tokens that are no batch of sequences of the vocabulary, or
    longer than the context.
    Source: Radford et al. 2019, sec. 2.3; dropout: Radford et al. 2018, sec. 4.1.

    Backward: block by block, from the last to the first; a head's parameters are not read, so their
    gradient is 0.
    """
    check_tokens(tokens, config)
    check_documents(documents, tokens)
    embedded, token_backward = embed(params["token"], ids=tokens)
    own_places = None if documents is None else places(documents)
    placed, position_backward = learned_position(params["position"], embedded, places=own_places)
    embedding_key = None if key is None else random.fold_in(key, config.layers)
    x, embedding_dropout_backward = dropout(placed, rate=config.dropout, key=embedding_key)

    block_backwards = []
    block_of = recomputed(transformer_block) if recompute else transformer_block
    masks = masks_of(config, documents)
    for layer, block in enumerate(params["blocks"]):
        block_key = None if key is None else random.fold_in(key, layer)
        mask = masks[layer % len(masks)]
        attention = partial(multi_head_attention, heads=config.heads, mask=mask)
        x, block_backward = block_of(
            block, x, attention=attention, rate=config.dropout, key=block_key
        )
        block_backwards.append(block_backward)
    normed, norm_backward = layer_norm(params["norm"], x)

    def backward(dnormed):
        dnorm, dx = norm_backward(dnormed)
        dblocks = []
        for block_backward in reversed(block_backwards):
            dblock, dx, _ = block_backward(dx)
            dblocks.append(dblock)
        dposition, dembedded = position_backward(embedding_dropout_backward(dx))
        dparams = {"token": token_backward(dembedded), "position": dposition}
        dparams |= {"blocks": dblocks[::-1], "norm": dnorm}
        unread = {name: part for name, part in params.items() if name not in dparams}
        return dparams | tree.map(np.zeros_like, unread)

    return normed, backward


def gpt(params, *, tokens, config, **options):
    """Score every token of the vocabulary as the next one, at every position.

        logits = x Eᵀ,   x = gpt_hidden(tokens)

    params: token and position (embeddings), blocks (a list), norm.
    tokens (B, T), integers in [0, V), and options as of `gpt_hidden` -> logits (B, T, V).
    Raises what `gpt_hidden` does, and InputError for a model with another head.
    Source: Radford et al. 2018, eq. 2;  2019, sec. 2.3.

    Backward: the token table served at both ends, so its gradient is the sum of both uses.
    """
    check_language(config)
    logits, logits_backward = gpt_logits(params, tokens=tokens, config=config, **options)
    return logits["tokens"], lambda dlogits: logits_backward({"tokens": dlogits})


def gpt_logits(params, *, tokens, config, kept=None, **options):
    """What the head of a model answers, as scores by the name of the question.

        language                  tokens (B, T, V):  x Eᵀ
        sequence_classification   classes (B, labels):  x_t W,  t the last token that is kept
        token_classification      classes (B, T, labels):  dropout(x) W + b
        question_answering        starts and ends (B, T), the two columns of x W + b

    params: as of `gpt_hidden`, with the head's, `classifier` or `spans`.  tokens (B, T) and options
    as there, which gives x -> a dict of logits.  kept (B, T), booleans: False for what only fills
    up, at the end of a row; what is kept never sees it.  The classifier's dropout, of the rate
    `classifier_dropout`, has the key fold_in(key, L + 2).
    Raises what `gpt_hidden` does, and InputError or DtypeError for kept that is not True and then
    False, and for several documents in a row that is asked once.
    Source: Radford et al. 2018, sec. 3.2 (a text's class, from its last token);  all heads: Hugging
    Face's GPT2For… in modeling_gpt2.py.
    Differs from Hugging Face's, which takes for the last token the last that is not `pad_token_id`,
    and where it has an `attention_mask` gives other scores at what fills up, which nobody reads
    there but a softmax over all positions of an answer.

    Backward: that of the head, then that of `gpt_hidden`.
    """
    return logits_of(gpt_hidden, params, tokens=tokens, config=config, kept=kept, **options)


def gpt_loss(
    params, *, tokens, config, labels=None, starts=None, ends=None, ignore=-100, **options
):
    """How surprised the model is, in nats, by what is right: what training descends.

        language:             loss = cross_entropy(gpt(tokens), labels),   labelsₜ = tokensₜ₊₁
        classes:              loss = cross_entropy(classes, labels)
        question answering:   loss = (cross_entropy(starts) + cross_entropy(ends)) / 2

    params, tokens (B, T) and options as of `gpt_logits` -> a scalar.  By the head:  labels (B, T)
    or, for a text's class, (B,);  starts, ends (B,): the answer's first and last token;  all of
    them `ignore` where nothing is to be learnt, which is -100 in all heads but that of language.
    Raises what `gpt_logits` and `cross_entropy` raise, and InputError or DtypeError for other
    answers than the head learns from, or of another shape, or outside its classes.
    Source: Radford et al. 2019, eq. 1;  2018, eq. 4 (classes).

    Backward: the chain rule.
    """
    inputs = {"tokens": tokens, "config": config, "ignore": ignore} | options
    answers = {"labels": labels, "starts": starts, "ends": ends}
    return loss_of(gpt_logits, params, answers=answers, **inputs)


def masks_of(config, documents=None):
    """What the blocks see, in turns: a dense one, and where there is a band, a banded one."""
    masks = [causal]
    if config.band is not None:
        masks = [locally_banded(layer, width=config.band) for layer in (0, 1)]
    return masks if documents is None else [both(m, mask_of_documents(documents)) for m in masks]
