"""The Transformer of 2017: an encoder reads a sentence, a decoder writes its translation.

Both are stacks of the same blocks.  In a decoder's block each position also reads what the encoder
made of the source; and one table serves source, target and output.
"""

import math
from functools import partial

import numpy as np

from reference import random, tree
from reference.layers.activation import gelu, relu, silu
from reference.layers.attention import cross_attention, multi_head_attention
from reference.layers.block import decoder_block, transformer_block
from reference.layers.dropout import dropout
from reference.layers.embedding import embed, unembed
from reference.layers.feed_forward import feed_forward
from reference.layers.linear import rows
from reference.layers.loss import smoothed_cross_entropy
from reference.layers.mask import causal, padding
from reference.layers.normalization import layer_norm
from reference.layers.position import sinusoidal_position, sinusoidal_position_concatenated
from reference.layers.recompute import recomputed
from reference.layers.residual import post_norm, pre_norm
from reference.models.gpt import check_tokens
from reference.models.transformer_sizes import PRESETS as PRESETS  # all of these: handed on
from reference.models.transformer_sizes import TransformerConfig as TransformerConfig
from reference.models.transformer_sizes import check_batch as check_batch
from reference.models.transformer_sizes import check_memory, check_pairs, check_source
from reference.models.transformer_sizes import flops_per_example as flops_per_example
from reference.models.transformer_sizes import initial_params as initial_params
from reference.models.transformer_sizes import parameter_shapes as parameter_shapes

__all__ = ["transformer", "transformer_decode", "transformer_encode", "transformer_loss"]

ACTIVATIONS = {"relu": relu, "silu": silu, "gelu": gelu}
POSITIONS = {
    "interleaved": sinusoidal_position,
    "concatenated": sinusoidal_position_concatenated,
    "marian": partial(sinusoidal_position_concatenated, spacing="paper"),
}
WIRINGS = {"post": post_norm, "pre": pre_norm}


def transformer_encode(params, *, source, config, source_kept=None, recompute=False, key=None):
    """Read a sentence: a vector for each token of it, which knows of all the others.

        x₀ = dropout(√D E[source] + PE),   xₗ = block(xₗ₋₁),   memory = x_L

    params: token (embedding), encoder: blocks (a list) and, with the wiring "pre", norm, which then
    comes last.  source (B, S), integers in [0, V) -> memory (B, S, D).
    source_kept (B, S): True where there is a token, False where a row is only filled up; None: all
    are.  recompute: blocks keep only their input, see `recomputed`.  With a key, dropout is on:
    block l's key is fold_in(key, l), the embeddings' fold_in(key, L).
    Raises DtypeError and InputError for a source that is no batch of sequences of the vocabulary,
    or longer than the context.
    Source: Vaswani et al. 2017, sec. 3.1, 3.4 and 5.4.
    Differs from tensor2tensor, whose later settings have dropout in the feed-forward too.

    Backward: block by block, from the last to the first.
    """
    check_source(source, source_kept, config)
    x, enter_backward = enter(params["token"], source, config, key)
    attend = partial(multi_head_attention, heads=config.heads, mask=shown(source_kept))
    block = partial(transformer_block, attention=at_rate(attend, config.attention_dropout))
    options = {"config": config, "recompute": recompute, "key": key}
    memory, stack_backward = stack(params["encoder"], x, block=block, **options)

    def backward(dmemory):
        dencoder, dx = stack_backward(dmemory)
        return {"token": enter_backward(dx), "encoder": dencoder}

    return memory, backward


def transformer_decode(
    params, memory, *, tokens, config, source_kept=None, recompute=False, key=None
):
    """Score every token of the vocabulary as the next one of the target, at every position.

        x₀ = dropout(√D E[tokens] + PE),   xₗ = block(xₗ₋₁, memory),   logits = x_L Eᵀ

    params: token (embedding), decoder: as the encoder's; with output_bias, output: a bias (V,),
    which is added to the logits.  memory (B, S, D), of `transformer_encode`; tokens (B, T), the
    target, one place later -> logits (B, T, V).  The rest as in `transformer_encode`.
    Raises what `transformer_encode` does, of tokens.
    Source: Vaswani et al. 2017, sec. 3.1, 3.4 and 5.4; the shared table: Press & Wolf 2017.

    Backward: block by block; every block read the memory, so its gradient is a sum, as that of the
    table, which served at both ends.
    """
    check_tokens(tokens, config)
    check_memory(memory, tokens, source_kept, config)
    x, enter_backward = enter(params["token"], tokens, config, key)
    rate, heads = config.attention_dropout, {"heads": config.heads}
    block = partial(
        decoder_block,
        attention=at_rate(partial(multi_head_attention, mask=causal, **heads), rate),
        cross_attention=at_rate(partial(cross_attention, mask=shown(source_kept), **heads), rate),
    )
    options = {"config": config, "recompute": recompute, "key": key}
    y, stack_backward = stack(params["decoder"], x, memory, block=block, **options)
    logits, score_backward = score(params, y)

    def backward(dlogits):
        doutput, dy = score_backward(dlogits)
        ddecoder, dx, dmemory = stack_backward(dy)
        dtoken = tree.map(np.add, enter_backward(dx), doutput["token"])
        return doutput | {"token": dtoken, "decoder": ddecoder}, dmemory

    return logits, backward


def transformer(params, *, source, tokens, config, source_kept=None, recompute=False, key=None):
    """Score every token as the next one of a target, given its source.

        logits = decode(tokens, encode(source))

    params: those of `transformer_encode` and `transformer_decode`, which also say what source_kept
    and recompute are.  source (B, S), tokens (B, T) -> logits (B, T, V).  With a key: the encoder's
    and the decoder's are split(key, 2).
    Raises what both raise, and InputError unless there are as many sources as targets.
    Source: Vaswani et al. 2017, sec. 3 and figure 1.

    Backward: the chain rule; the table's gradient is the sum of what both say.
    """
    check_pairs(source, tokens, source_kept, config)
    keys = (None, None) if key is None else random.split(key, 2)
    shared = {"source_kept": source_kept, "config": config, "recompute": recompute}
    memory, encode_backward = transformer_encode(params, source=source, key=keys[0], **shared)
    logits, decode_backward = transformer_decode(
        params, memory, tokens=tokens, key=keys[1], **shared
    )

    def backward(dlogits):
        ddecode, dmemory = decode_backward(dlogits)
        dencode = encode_backward(dmemory)
        dtoken = tree.map(np.add, dencode["token"], ddecode["token"])
        return dencode | ddecode | {"token": dtoken}

    return logits, backward


def transformer_loss(params, *, source, tokens, labels, config, ignore=-100, **options):
    """How far the scores are from the target, smoothed: what training descends.

        loss = smoothed_cross_entropy(transformer(source, tokens), labels),   labelsₜ = tokensₜ₊₁

    params, source (B, S), tokens (B, T), and options as of `transformer`;  labels (B, T), `ignore`
    where nothing is to be learnt -> a scalar.  The smoothing ε of the config is of Szegedy's form,
    see `smoothed_cross_entropy`.  Raises what `transformer` and `smoothed_cross_entropy` raise.
    Source: Vaswani et al. 2017, sec. 5.4.

    Backward: the chain rule.
    """
    batch = {"source": source, "tokens": tokens}
    logits, transformer_backward = transformer(params, **batch, config=config, **options)
    loss, cross_entropy_backward = smoothed_cross_entropy(
        logits, labels=labels, smoothing=config.smoothing, ignore=ignore
    )
    return loss, lambda dloss: transformer_backward(cross_entropy_backward(dloss))


def enter(table, ids, config, key):
    """dropout(√D E[ids] + PE): the way into either stack."""
    embedded, embed_backward = embed(table, ids=ids)
    scale = math.sqrt(config.width)
    placed, position_backward = POSITIONS[config.positions](scale * embedded)
    embedding_key = None if key is None else random.fold_in(key, config.layers)
    x, dropout_backward = dropout(placed, rate=config.dropout, key=embedding_key)
    return x, lambda dx: embed_backward(scale * position_backward(dropout_backward(dx)))


def stack(params, x, *memory, block, config, recompute, key):
    """x through the blocks of one side, each of which reads the memory, if there is one."""
    norm = partial(layer_norm, epsilon=config.epsilon)
    wiring = partial(WIRINGS[config.wiring], norm=norm)
    think = partial(feed_forward, activation=ACTIVATIONS[config.activation])
    options = {"feed_forward": think, "wiring": wiring, "rate": config.dropout}
    block_backwards, block_of = [], recomputed(block) if recompute else block
    for layer, each in enumerate(params["blocks"]):
        block_key = None if key is None else random.fold_in(key, layer)
        x, block_backward = block_of(each, x, *memory, key=block_key, **options)
        block_backwards.append(block_backward)
    y, norm_backward = norm(params["norm"], x) if "norm" in params else (x, None)

    def backward(dy):
        dnorm, dx = (None, dy) if norm_backward is None else norm_backward(dy)
        dblocks, dmemory = [], [0] * len(memory)
        for block_backward in reversed(block_backwards):
            dblock, dx, *dothers = block_backward(dx)
            dblocks.append(dblock)
            dmemory = [total + d for total, d in zip(dmemory, dothers, strict=False)]
        dparams = {"blocks": dblocks[::-1]} | ({} if dnorm is None else {"norm": dnorm})
        return dparams, dx, *dmemory

    return y, backward


def score(params, y):
    """Each token's agreement with y, and its bias, where there is one."""
    agreement, unembed_backward = unembed(params["token"], y)
    logits = agreement + params["output"]["bias"] if "output" in params else agreement

    def backward(dlogits):
        dtoken, dy = unembed_backward(dlogits)
        dbias = {"output": {"bias": rows(dlogits).sum(axis=0)}} if "output" in params else {}
        return {"token": dtoken} | dbias, dy

    return logits, backward


def at_rate(attention, own):
    """An attention whose weights have a dropout of their own, whatever its block's is."""

    def attend(params, *read, rate, **options):
        return attention(params, *read, rate=own, **options)

    return attend


def shown(source_kept):
    """The mask of whoever looks at the source."""
    return None if source_kept is None else padding(source_kept)
