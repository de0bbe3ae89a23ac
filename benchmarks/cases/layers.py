"""What a Transformer is made of: attention, feed-forward, their wiring, and whole blocks."""

from functools import partial

import reference
from accelerated.layers import attention, block, feed_forward, residual
from accelerated.layers.normalization import LayerNorm
from benchmarks.cases import pytorch
from benchmarks.cases.case import Case, module
from benchmarks.cases.pytorch import functional
from reference.layers.mask import causal
from reference.layers.residual import deep_norm_scales

ALPHA, _ = deep_norm_scales(12)

CASES = {
    "attention": lambda s: Case(
        partial(reference.attention, mask=causal),
        partial(attention.attention, mask=causal),
        pytorch.attention,
        tuple(s.in_heads(seed) for seed in range(3)),
    ),
    "multi_head_attention": lambda s: module(
        partial(reference.multi_head_attention, heads=s.heads, mask=causal),
        partial(attention.MultiHeadAttention, s.width, heads=s.heads),
        partial(pytorch.multi_head_attention, heads=s.heads),
        s.stream(),
        options={"mask": causal},
    ),
    "cross_attention": lambda s: module(
        partial(reference.cross_attention, heads=s.heads),
        partial(attention.CrossAttention, s.width, heads=s.heads),
        partial(pytorch.cross_attention, heads=s.heads),
        s.stream(),
        s.stream(1, length=s.memory),
    ),
    "feed_forward": lambda s: module(
        reference.feed_forward,
        partial(feed_forward.FeedForward, s.width, hidden=s.hidden),
        pytorch.feed_forward,
        s.stream(),
    ),
    "gated_feed_forward": lambda s: module(
        partial(reference.gated_feed_forward, activation=reference.gelu_tanh),
        partial(feed_forward.GatedFeedForward, s.width, hidden=s.hidden),
        lambda p, x: pytorch.gated_feed_forward(
            p, x, activation=partial(functional.gelu, approximate="tanh")
        ),
        s.stream(),
        options={"activation": feed_forward.gelu_tanh},
    ),
    "reglu": lambda s: module(
        reference.reglu,
        partial(feed_forward.ReGLU, s.width, hidden=s.hidden),
        lambda p, x: pytorch.gated_feed_forward(p, x, activation=functional.relu),
        s.stream(),
    ),
    "geglu": lambda s: module(
        reference.geglu,
        partial(feed_forward.GeGLU, s.width, hidden=s.hidden),
        lambda p, x: pytorch.gated_feed_forward(p, x, activation=functional.gelu),
        s.stream(),
    ),
    "swiglu": lambda s: module(
        reference.swiglu,
        partial(feed_forward.SwiGLU, s.width, hidden=s.hidden),
        lambda p, x: pytorch.gated_feed_forward(p, x, activation=functional.silu),
        s.stream(),
    ),
    "pre_norm": lambda s: wired(s, reference.pre_norm, residual.PreNorm, pytorch.pre_norm),
    "post_norm": lambda s: wired(s, reference.post_norm, residual.PostNorm, pytorch.post_norm),
    "sandwich_norm": lambda s: wired(
        s, reference.sandwich_norm, residual.SandwichNorm, pytorch.sandwich_norm
    ),
    "deep_norm": lambda s: wired(
        s,
        partial(reference.deep_norm, alpha=ALPHA),
        partial(residual.DeepNorm, alpha=ALPHA),
        partial(pytorch.post_norm, alpha=ALPHA),
    ),
    "layer_scale": lambda s: wired(
        s,
        reference.layer_scale,
        partial(residual.LayerScale, width=s.width),
        pytorch.layer_scale,
    ),
    "rezero": lambda s: module(
        partial(reference.rezero, sublayer=reference.feed_forward),
        lambda rngs: residual.ReZero(feed_forward_of(s, rngs)),
        lambda p, x: x + p["scale"] * pytorch.feed_forward(p["sublayer"], x),
        s.stream(),
    ),
    "transformer_block": lambda s: module(
        partial(
            reference.transformer_block,
            attention=partial(reference.multi_head_attention, heads=s.heads, mask=causal),
        ),
        lambda rngs: block.TransformerBlock(
            attention=attention.MultiHeadAttention(s.width, heads=s.heads, rngs=rngs),
            feed_forward=feed_forward_of(s, rngs),
            wiring=partial(residual.PreNorm, norm=partial(LayerNorm, s.width)),
        ),
        partial(pytorch.transformer_block, heads=s.heads),
        s.stream(),
        options={"mask": causal},
    ),
    "decoder_block": lambda s: module(
        partial(
            reference.decoder_block,
            attention=partial(reference.multi_head_attention, heads=s.heads, mask=causal),
            cross_attention=partial(reference.cross_attention, heads=s.heads),
        ),
        lambda rngs: block.DecoderBlock(
            attention=attention.MultiHeadAttention(s.width, heads=s.heads, rngs=rngs),
            cross_attention=attention.CrossAttention(s.width, heads=s.heads, rngs=rngs),
            feed_forward=feed_forward_of(s, rngs),
            wiring=partial(residual.PreNorm, norm=partial(LayerNorm, s.width)),
        ),
        partial(pytorch.decoder_block, heads=s.heads),
        s.stream(),
        s.stream(1, length=s.memory),
        options={"mask": causal},
    ),
    "parallel_block": lambda s: module(
        partial(
            reference.parallel_block,
            attention=partial(reference.multi_head_attention, heads=s.heads, mask=causal),
        ),
        lambda rngs: block.ParallelBlock(
            attention=attention.MultiHeadAttention(s.width, heads=s.heads, rngs=rngs),
            feed_forward=feed_forward_of(s, rngs),
            norm=partial(LayerNorm, s.width),
        ),
        partial(pytorch.parallel_block, heads=s.heads),
        s.stream(),
        options={"mask": causal},
    ),
}


def feed_forward_of(s, rngs):
    return feed_forward.FeedForward(s.width, hidden=s.hidden, rngs=rngs)


def wired(s, ours, twin, torch):
    """A feed-forward layer, wired to the stream with layer norms."""
    return module(
        partial(ours, sublayer=reference.feed_forward),
        lambda rngs: twin(feed_forward_of(s, rngs), norm=partial(LayerNorm, s.width)),
        partial(torch, sublayer=pytorch.feed_forward),
        s.stream(),
    )
