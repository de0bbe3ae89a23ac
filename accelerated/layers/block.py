"""Sub-layers wired together by residual connections."""

import jax
from flax import nnx

from accelerated.layers.attention import MultiHeadAttention
from accelerated.layers.dropout import dropout
from accelerated.layers.feed_forward import FeedForward
from accelerated.layers.normalization import LayerNorm

__all__ = ["PreNormBlock"]


class PreNormBlock(nnx.Module):
    def __init__(self, width, *, heads, hidden, rngs):
        self.attention_norm = LayerNorm(width, rngs=rngs)
        self.attention = MultiHeadAttention(width, heads=heads, rngs=rngs)
        self.feed_forward_norm = LayerNorm(width, rngs=rngs)
        self.feed_forward = FeedForward(width, hidden=hidden, rngs=rngs)

    def __call__(self, x, *, mask=None, rate=0.0, key=None):
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        attention_output = self.attention(self.attention_norm(x), mask=mask, rate=rate, key=keys[0])
        h = x + dropout(attention_output, rate=rate, key=keys[1])
        feed_forward_output = self.feed_forward(self.feed_forward_norm(h))
        return h + dropout(feed_forward_output, rate=rate, key=keys[2])
