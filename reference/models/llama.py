"""Llama and its relatives: the decoder that today's open language models are made of.

GPT's stack with four parts exchanged: the norm does not subtract the mean, positions turn queries
and keys, the feed-forward is gated, and several heads share their keys and values.  No biases.

What GPT-4 is made of was never published (OpenAI 2023: no architecture, sizes or data).  Where the
parts of a model of its time are known, they are those of this family.
"""

from functools import partial

import numpy as np

from reference import tree
from reference.layers.attention import multi_head_attention
from reference.layers.block import transformer_block
from reference.layers.embedding import embed
from reference.layers.feed_forward import swiglu
from reference.layers.mask import both, causal, sliding_window
from reference.layers.mask import documents as mask_of_documents
from reference.layers.normalization import rms_norm
from reference.layers.recompute import recomputed
from reference.layers.residual import pre_norm
from reference.layers.rotary import llama3, rotary_frequencies, rotary_halves
from reference.models.decoder_batches import check_batch as check_batch  # handed on
from reference.models.decoder_batches import check_documents, check_language, check_tokens
from reference.models.decoder_heads import logits_of, loss_of
from reference.models.llama_sizes import PRESETS as PRESETS  # all of these: handed on
from reference.models.llama_sizes import LlamaConfig as LlamaConfig
from reference.models.llama_sizes import Scaling as Scaling
from reference.models.llama_sizes import flops_per_token as flops_per_token
from reference.models.llama_sizes import initial_params as initial_params
from reference.models.llama_sizes import parameter_shapes as parameter_shapes

__all__ = ["llama", "llama_hidden", "llama_logits", "llama_loss"]


def llama_hidden(params, *, tokens, config, documents=None, recompute=False, key=None):
    """Read a text, each position in view of what came before: what every head of a Llama reads.

        x₀ = E[tokens],   xₗ = block(xₗ₋₁),   x = rms_norm(x_L)

    params: token (embedding), blocks (a list), norm, and those of a head.
    tokens (B, T), integers in [0, V) -> hidden states x (B, T, D).
    documents, recompute: as in `gpt_hidden`.  key: of no use, for these models were published
    without dropout.
    Raises DtypeError and InputError for tokens that are no batch of sequences of the vocabulary, or
    longer than the context.
    Source: Touvron et al. 2023, "LLaMA", sec. 2.2;  grouped queries: Touvron et al. 2023, "Llama
    2";  the scaling: Llama Team 2024;  the window: Jiang et al. 2023, "Mistral 7B".

    Backward: block by block, from the last to the first; a head's parameters are not read, so their
    gradient is 0.
    """
    check_tokens(tokens, config)
    check_documents(documents, tokens)
    x, token_backward = embed(params["token"], ids=tokens)
    block_backwards, options = [], block_options(config, documents)
    block_of = recomputed(transformer_block) if recompute else transformer_block
    for block in params["blocks"]:
        x, block_backward = block_of(block, x, **options)
        block_backwards.append(block_backward)
    normed, norm_backward = rms_norm(params["norm"], x, epsilon=config.epsilon)

    def backward(dnormed):
        dnorm, dx = norm_backward(dnormed)
        dblocks = []
        for block_backward in reversed(block_backwards):
            dblock, dx, _ = block_backward(dx)
            dblocks.append(dblock)
        dparams = {"token": token_backward(dx), "blocks": dblocks[::-1], "norm": dnorm}
        unread = {name: part for name, part in params.items() if name not in dparams}
        return dparams | tree.map(np.zeros_like, unread)

    return normed, backward


def llama(params, *, tokens, config, **options):
    """Score every token of the vocabulary as the next one, at every position.

        logits = x W_output,   x = llama_hidden(tokens)

    params: token (embedding), blocks (a list), norm, and output (a kernel) unless tied: then the
    token table serves.  tokens (B, T), integers in [0, V), and options as of `llama_hidden` ->
    logits (B, T, V).
    Raises what `llama_hidden` does, and InputError for a model with another head.
    Source: Touvron et al. 2023, "LLaMA", sec. 2.2.

    Backward: that of the output layer, then that of `llama_hidden`.
    """
    check_language(config)
    logits, logits_backward = llama_logits(params, tokens=tokens, config=config, **options)
    return logits["tokens"], lambda dlogits: logits_backward({"tokens": dlogits})


def llama_logits(params, *, tokens, config, kept=None, **options):
    """What the head of a model answers, as scores by the name of the question.

        language                  tokens (B, T, V):  x W_output
        sequence_classification   classes (B, labels):  x_t W,  t the last token that is kept
        token_classification      classes (B, T, labels):  dropout(x) W + b
        question_answering        starts and ends (B, T), the two columns of x W + b

    params: as of `llama_hidden`, with the head's: output unless tied, `classifier` or `spans`.
    tokens (B, T) and options as there, which gives x -> a dict of logits.  kept, the classifier's
    dropout and what is raised: as in `gpt_logits`.
    Source: Hugging Face's GenericFor… in modeling_layers.py;  Radford et al. 2018, sec. 3.2 (the
    last token).

    Backward: that of the head, then that of `llama_hidden`.
    """
    return logits_of(llama_hidden, params, tokens=tokens, config=config, kept=kept, **options)


def llama_loss(
    params, *, tokens, config, labels=None, starts=None, ends=None, ignore=-100, **options
):
    """How surprised the model is, in nats, by what is right: what training descends.

        language:   loss = cross_entropy(llama(tokens), labels),   labelsₜ = tokensₜ₊₁

    params, tokens (B, T) and options as of `llama_logits` -> a scalar.  The other heads' losses,
    labels, starts, ends, `ignore` and what is raised: as in `gpt_loss`.
    Source: Touvron et al. 2023, sec. 2.

    Backward: the chain rule.
    """
    inputs = {"tokens": tokens, "config": config, "ignore": ignore} | options
    answers = {"labels": labels, "starts": starts, "ends": ends}
    return loss_of(llama_logits, params, answers=answers, **inputs)


def block_options(config, documents=None):
    """What makes a `transformer_block` a Llama's."""
    seen = causal if config.window is None else sliding_window(config.window)
    attention = partial(
        multi_head_attention,
        heads=config.heads,
        groups=config.groups,
        mask=seen if documents is None else both(seen, mask_of_documents(documents)),
        rotary=partial(rotary_halves, frequencies=frequencies_of(config)),
    )
    wiring = partial(pre_norm, norm=partial(rms_norm, epsilon=config.epsilon))
    return {"attention": attention, "feed_forward": swiglu, "wiring": wiring}


def frequencies_of(config):
    """The rotary frequencies of a config, (K/2,)."""
    plain = rotary_frequencies(config.head_width, base=config.base)
    if config.scaling is None:
        return plain
    scaling = config.scaling
    return llama3(
        plain,
        factor=scaling.factor,
        low_frequency_factor=scaling.low_frequency_factor,
        high_frequency_factor=scaling.high_frequency_factor,
        context=scaling.context,
    )
