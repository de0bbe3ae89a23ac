"""Sub-layers wired together by residual connections."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from accelerated import functional
from accelerated.layers.attention import MultiHeadAttention
from accelerated.layers.dropout import dropout
from accelerated.layers.feed_forward import FeedForward
from accelerated.layers.normalization import LayerNorm

__all__ = ["PreNormBlock"]


class PreNormBlock(nnx.Module):
    def __init__(self, width, *, heads, hidden, rngs, implementation=None):
        attention = {"heads": heads, "implementation": implementation}
        self.attention_norm = LayerNorm(width, rngs=rngs)
        self.attention = MultiHeadAttention(width, **attention, rngs=rngs)
        self.feed_forward_norm = LayerNorm(width, rngs=rngs)
        self.feed_forward = FeedForward(width, hidden=hidden, rngs=rngs)

    def __call__(self, x, *, mask=None, rate=0.0, key=None):
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        attention_output = self.attention(self.attention_norm(x), mask=mask, rate=rate, key=keys[0])
        h = x + dropout(attention_output, rate=rate, key=keys[1])
        feed_forward_output = self.feed_forward(self.feed_forward_norm(h))
        return h + dropout(feed_forward_output, rate=rate, key=keys[2])


def stack_of(layers, make, *, rngs):
    """One module in place of L equal ones: each of its parameters has a leading axis L."""
    return nnx.split_rngs(splits=layers)(nnx.vmap(make))(rngs)


def through(blocks, x, *, layers, key=None, unroll=None, recompute=None, **options):
    """x through L blocks, one after another; block l's key is fold_in(key, l).

    blocks: an nnx.List;  or with `unroll`, a `stack_of` them: then they are one compiled loop with
    that many blocks a turn, which takes the same time to compile for any L.
    recompute: what the backward may find kept, a policy of `jax.checkpoint_policies` by its name
    ("nothing_saveable", "dots_saveable", …); the rest it computes again.  None: keep all.
    """
    in_loop = unroll is not None

    def step(params, h, layer, *, apply):
        layer_key = None if key is None else jax.random.fold_in(key, layer)
        return apply(params, h, key=layer_key, **options)

    def compiled(block):
        apply, params = functional(block)
        one = partial(step, apply=apply)
        if recompute is not None:
            policy = getattr(jax.checkpoint_policies, recompute)
            one = jax.checkpoint(one, policy=policy, prevent_cse=not in_loop)
        return one, params

    if in_loop:
        one, stacked = compiled(blocks)
        each = (stacked, jnp.arange(layers))
        y, _ = jax.lax.scan(lambda h, at: (one(at[0], h, at[1]), None), x, each, unroll=unroll)
        return y
    y = x
    for layer, block in enumerate(blocks):
        one, params = compiled(block)
        y = one(params, y, layer)
    return y
