"""GPT-1: the stack of 2018, whose blocks add before they normalize, and how it was fine-tuned."""

from functools import partial

import numpy as np

from reference import random, tree
from reference.layers.attention import multi_head_attention
from reference.layers.block import transformer_block
from reference.layers.dropout import dropout
from reference.layers.embedding import check_ids, embed, unembed
from reference.layers.linear import linear
from reference.layers.loss import cross_entropy
from reference.layers.mask import both, causal, places
from reference.layers.mask import documents as mask_of_documents
from reference.layers.position import learned_position
from reference.layers.recompute import recomputed
from reference.layers.residual import post_norm
from reference.models.decoder_batches import check_documents, check_texts, check_tokens
from reference.models.gpt1_sizes import PRESETS as PRESETS  # all of these: handed on
from reference.models.gpt1_sizes import GPT1Config as GPT1Config
from reference.models.gpt1_sizes import check_choices as check_choices
from reference.models.gpt1_sizes import flops_per_token as flops_per_token
from reference.models.gpt1_sizes import initial_params as initial_params
from reference.models.gpt1_sizes import parameter_shapes as parameter_shapes
from reference.models.tower import pick

__all__ = ["gpt1", "gpt1_classification_loss", "gpt1_loss"]

check_batch = check_texts


def gpt1(params, *, tokens, config, documents=None, recompute=False, key=None):
    """Score every token of the vocabulary as the next one, at every position.

        x₀ = E[tokens] + P,   xₗ = block(xₗ₋₁),   each part of a block norm(x + f(x))
        logits = x_L Eᵀ          dropout(x₀)         "separate" embeddings
        logits = x_L [E; P]ᵀ     dropout([E; P])     "shared"

    params: token and position (embeddings), blocks (a list), and the classifier, of no use here.
    tokens (B, T), integers in [0, V) -> logits (B, T, V), or where embeddings are shared
    (B, T, V + C), of a context of C.
    OpenAI's code has one table for tokens and positions: all of it is scored, so each position has
    a share of the softmax, and dropout falls on the table, before anything is read: who reads a
    token twice, or scores it, sees the same.  Hugging Face's has two, scores tokens alone, and
    drops after the sum.  The paper leaves this open.
    With a key, dropout is on: block l's key is fold_in(key, l), that of the embeddings, whichever
    it is, fold_in(key, L).  documents and recompute as in `gpt`.
    Raises DtypeError and InputError for tokens that are no batch of sequences of the vocabulary, or
    longer than the context.
    Pre-training, as published: BooksCorpus, 64 sequences of 512 tokens, 100 epochs; Adam with
    a rate that rises for 2000 steps to 2.5e-4 and falls to 0 as a cosine; weight decay 0.01, not of
    biases and gains; dropout 0.1.
    Source: Radford et al. 2018, eq. 2 and sec. 4.1; openai/finetune-transformer-lm, train.py.
    Differs from both codes, which give what is not seen a score of -1e9, or -1e4 in Hugging Face's:
    here it has no weight at all.

    Backward: block by block, from the last to the first; a table served at both ends.
    """
    (x, table), read_backward = read(
        params, tokens=tokens, config=config, documents=documents, recompute=recompute, key=key
    )
    logits, unembed_backward = unembed(table, x)

    def backward(dlogits):
        dtable, dx = unembed_backward(dlogits)
        return read_backward(dx, dtable)

    return logits, backward


def gpt1_loss(params, *, tokens, labels, config, ignore=-100, **options):
    """How surprised the model is, in nats a token, by what did come next: pre-training's loss.

        loss = cross_entropy(gpt1(tokens), labels),   labelsₜ = tokensₜ₊₁

    params, tokens (B, T) and options as of `gpt1`;  labels (B, T), integers in [0, V), `ignore`
    where nothing is to be learnt -> a scalar.  With shared embeddings too a label is a token: that
    a position came next is never true, and its score only takes from theirs.
    Raises what `gpt1` and `cross_entropy` raise.
    Source: Radford et al. 2018, eq. 1.

    Backward: the chain rule.
    """
    check_ids(labels, config.vocabulary, name="labels", ignore=ignore)
    logits, gpt1_backward = gpt1(params, tokens=tokens, config=config, **options)
    loss, cross_entropy_backward = cross_entropy(logits, labels=labels, ignore=ignore)
    return loss, lambda dloss: gpt1_backward(cross_entropy_backward(dloss))


def gpt1_classification_loss(
    params, *, tokens, labels, at, answers, config, weight=0.5, ignore=-100, key=None, **options
):
    """Fine-tuning's loss: how surprised a classifier is, and with a weight, still the language
    model, which keeps what it knew and learns the task faster.

        loss = cross_entropy(scores, answers) + λ cross_entropy(logits, labels)
        scores = dropout(x_L[at]) W + b

    params and options as of `gpt1`, with a classifier (D -> classes).
    tokens (B, N, T): of each example N texts, such as start, a premise, delimiter, a hypothesis,
    classify;  at (B, N): where the last of these stands, at which the classifier reads;
    labels (B, N, T) as of `gpt1_loss`;  answers (B,), integers in [0, N · classes): the class, of
    one text (N = 1), or which of N choices is right (classes = 1) -> a scalar.
    λ = weight.  The classifier's dropout, whose key is fold_in(key, L + 1), is the same for all
    texts of an example, as in the released code.
    Raises what `gpt1` and `cross_entropy` raise, and InputError without classes in the config, for
    other shapes, or for what is outside a text or the classes.
    Fine-tuning, as published: 3 epochs in batches of 32, Adam with a rate that rises over 0.2 % of
    the steps to 6.25e-5 and falls to 0 in a line (`linear` with start=0), gradients clipped at 1,
    weight decay 0.01 of matrices; λ = 0.5.
    Source: Radford et al. 2018, eq. 3 to 5, sec. 3.3 and 4.1; train.py.
    Differs from the paper, which has no b; the released code has it, and takes the mean over the
    tokens of each text first.

    Backward: x_L was read twice, so its gradient is a sum.
    """
    check_choices(config, tokens, labels, at, answers)
    batch, number, length = tokens.shape
    texts, following = tokens.reshape(-1, length), labels.reshape(-1, length)
    check_ids(following, config.vocabulary, name="labels", ignore=ignore)
    (x, table), read_backward = read(params, tokens=texts, config=config, key=key, **options)
    logits, unembed_backward = unembed(table, x)
    surprise, surprise_backward = cross_entropy(logits, labels=following, ignore=ignore)

    head_key = None if key is None else random.fold_in(key, config.layers + 1)
    ones = np.ones((batch, 1, config.width), x.dtype)
    kept, _ = dropout(ones, rate=config.dropout, key=head_key)
    picked, pick_backward = pick(x, at=at.reshape(-1))
    scores, linear_backward = linear(params["classifier"], picked.reshape(batch, number, -1) * kept)
    missed, missed_backward = cross_entropy(scores.reshape(batch, -1), labels=answers)

    def backward(dloss):
        dclassifier, dread = linear_backward(missed_backward(dloss).reshape(scores.shape))
        dpicked = pick_backward((dread * kept).reshape(-1, config.width))
        dtable, dx = unembed_backward(surprise_backward(weight * dloss))
        return read_backward(dx + dpicked, dtable) | {"classifier": dclassifier}

    return missed + weight * surprise, backward


def read(params, *, tokens, config, documents=None, recompute=False, key=None):
    """What the blocks make of tokens (B, T), and the table that scores it -> (x_L, table).

    Its `backward` takes dx and dtable; the classifier is not read, so its gradient is 0.
    """
    check_tokens(tokens, config)
    check_documents(documents, tokens)
    table_key, sum_key = embedding_keys(config, key)
    (token, position, table), tables_backward = tables(params, config=config, key=table_key)
    embedded, token_backward = embed(token, ids=tokens)
    own_places = None if documents is None else places(documents)
    placed, position_backward = learned_position(position, embedded, places=own_places)
    x, dropout_backward = dropout(placed, rate=config.dropout, key=sum_key)

    block_backwards = []
    block_of = recomputed(transformer_block) if recompute else transformer_block
    mask = causal if documents is None else both(causal, mask_of_documents(documents))
    attention = partial(multi_head_attention, heads=config.heads, mask=mask)
    for layer, block in enumerate(params["blocks"]):
        block_key = None if key is None else random.fold_in(key, layer)
        options = {"wiring": post_norm, "rate": config.dropout, "key": block_key}
        x, block_backward = block_of(block, x, attention=attention, **options)
        block_backwards.append(block_backward)

    def backward(dx, dtable):
        dblocks = []
        for block_backward in reversed(block_backwards):
            dblock, dx, _ = block_backward(dx)
            dblocks.append(dblock)
        dposition, dembedded = position_backward(dropout_backward(dx))
        dparams = tables_backward(token_backward(dembedded), dposition, dtable)
        unread = {name: part for name, part in params.items() if name == "classifier"}
        return dparams | {"blocks": dblocks[::-1]} | tree.map(np.zeros_like, unread)

    return (x, table), backward


def tables(params, *, config, key):
    """The tables that tokens and positions are read from, and the one that is scored by.

    "shared": one matrix, with dropout, in three uses; its `backward` sums their gradients.
    """
    if config.embeddings == "separate":

        def backward(dtoken, dposition, dtable):
            return {"token": tree.map(np.add, dtoken, dtable), "position": dposition}

        return (params["token"], params["position"], params["token"]), backward
    parts = [params[name]["embedding"] for name in ("token", "position")]
    whole, dropout_backward = dropout(np.concatenate(parts), rate=config.dropout, key=key)
    token, position, table = (
        {"embedding": rows}
        for rows in (whole[: config.vocabulary], whole[config.vocabulary :], whole)
    )

    def shared_backward(dtoken, dposition, dtable):
        read = np.concatenate([dtoken["embedding"], dposition["embedding"]])
        dwhole = dropout_backward(read + dtable["embedding"])
        dparts = np.split(dwhole, [config.vocabulary])
        return {"token": {"embedding": dparts[0]}, "position": {"embedding": dparts[1]}}

    return (token, position, table), shared_backward


def embedding_keys(config, key):
    """The keys of the dropout on the table and on the sum, of which there is one or the other."""
    if key is None:
        return None, None
    own = random.fold_in(key, config.layers)
    return (own, None) if config.embeddings == "shared" else (None, own)
