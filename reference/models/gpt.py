"""GPT: a stack of causal pre-norm blocks that predicts the next token.

The one of 2019; that of 2020, with its bands, is `gpt3.py`, and that of 2018 is `gpt1.py`.
"""

from functools import partial

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.attention import multi_head_attention
from reference.layers.block import transformer_block
from reference.layers.dropout import dropout
from reference.layers.embedding import check_ids, check_integers, embed, unembed
from reference.layers.loss import cross_entropy
from reference.layers.mask import both, causal, locally_banded, places
from reference.layers.mask import documents as mask_of_documents
from reference.layers.normalization import layer_norm
from reference.layers.position import check_length, learned_position
from reference.layers.recompute import recomputed
from reference.models.gpt_sizes import INITIALIZATIONS as INITIALIZATIONS  # all of these: handed on
from reference.models.gpt_sizes import PRESETS as PRESETS
from reference.models.gpt_sizes import GPTConfig as GPTConfig
from reference.models.gpt_sizes import check_initialization as check_initialization
from reference.models.gpt_sizes import flops_per_token as flops_per_token
from reference.models.gpt_sizes import initial_params as initial_params
from reference.models.gpt_sizes import parameter_count as parameter_count
from reference.models.gpt_sizes import parameter_shapes as parameter_shapes

__all__ = ["gpt", "gpt_loss"]


def gpt(params, *, tokens, config, documents=None, recompute=False, key=None):
    """Score every token of the vocabulary as the next one, at every position.

        x₀ = dropout(E[tokens] + P),   xₗ = block(xₗ₋₁),   logits = norm(x_L) Eᵀ

    params: token and position (embeddings), blocks (a list), norm.
    tokens (B, T), integers in [0, V) -> logits (B, T, V).  With a key, dropout is on: block l's
    key is fold_in(key, l), the embeddings' fold_in(key, L).
    documents (B, T): a number for each token, where several texts are packed into a sequence: each
    is then read as if it were alone.  recompute: blocks keep only their input, see `recomputed`.
    With a `band` in the config, dense and locally banded blocks take turns, as in GPT-3.
    Raises DtypeError and InputError for tokens that are no batch of sequences of the vocabulary, or
    longer than the context.
    Source: Radford et al. 2019, sec. 2.3; dropout: Radford et al. 2018, sec. 4.1.

    Backward: block by block, from the last to the first; the token table served at both ends, so
    its gradient is the sum of both uses.
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
    logits, unembed_backward = unembed(params["token"], normed)

    def backward(dlogits):
        dtoken_as_output, dnormed = unembed_backward(dlogits)
        dnorm, dx = norm_backward(dnormed)
        dblocks = []
        for block_backward in reversed(block_backwards):
            dblock, dx, _ = block_backward(dx)
            dblocks.append(dblock)
        dposition, dembedded = position_backward(embedding_dropout_backward(dx))
        dtoken = tree.map(np.add, token_backward(dembedded), dtoken_as_output)
        return {"token": dtoken, "position": dposition, "blocks": dblocks[::-1], "norm": dnorm}

    return logits, backward


def gpt_loss(params, *, tokens, labels, config, ignore=-100, **options):
    """How surprised the model is, in nats a token, by what did come next: what training descends.

        loss = cross_entropy(gpt(tokens), labels),   labelsₜ = tokensₜ₊₁

    params, tokens (B, T) and options as of `gpt`;  labels (B, T), `ignore` where nothing is to be
    learnt -> a scalar.  Raises what `gpt` and `cross_entropy` raise.
    Source: Radford et al. 2019, eq. 1.

    Backward: the chain rule.
    """
    logits, gpt_backward = gpt(params, tokens=tokens, config=config, **options)
    loss, cross_entropy_backward = cross_entropy(logits, labels=labels, ignore=ignore)
    return loss, lambda dloss: gpt_backward(cross_entropy_backward(dloss))


def masks_of(config, documents=None):
    """What the blocks see, in turns: a dense one, and where there is a band, a banded one."""
    masks = [causal]
    if config.band is not None:
        masks = [locally_banded(layer, width=config.band) for layer in (0, 1)]
    return masks if documents is None else [both(m, mask_of_documents(documents)) for m in masks]


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


def check_batch(config, *, tokens, labels, documents=None):
    """Raise DtypeError or InputError for a batch that `gpt_loss` cannot be trained on."""
    check_tokens(tokens, config)
    check_ids(labels, config.vocabulary, name="labels", ignore=-100)
    check_documents(documents, tokens)
    if labels.shape != tokens.shape:
        raise InputError(
            f"labels has shape {labels.shape}, tokens {tokens.shape}; give a label for each token"
        )
