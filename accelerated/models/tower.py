"""What a Vision Transformer and both towers of CLIP are made of."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from accelerated.layers.activation import gelu, gelu_tanh, quick_gelu
from accelerated.layers.attention import MultiHeadAttention
from accelerated.layers.block import blocks_of
from accelerated.layers.dropout import dropout
from accelerated.layers.feed_forward import FeedForward
from accelerated.layers.linear import Linear
from accelerated.layers.normalization import LayerNorm
from accelerated.layers.residual import PreNorm

__all__ = []

ACTIVATIONS = {"tanh": gelu_tanh, "erf": gelu, "quick": quick_gelu}


class ClassToken(nnx.Module):
    """The token before all others, from which an image is read: (B, N, D) -> (B, 1 + N, D)."""

    def __init__(self, width):
        self.embedding = nnx.Param(jnp.zeros(width))

    def __call__(self, x):
        first = jnp.broadcast_to(self.embedding[...], (len(x), 1, x.shape[-1]))
        return jnp.concatenate([first, x], axis=1)


class Block(nnx.Module):
    """The reference's `block`; a call's options are the attention's."""

    def __init__(self, *, attention, feed_forward, wiring, activation):
        self.attention, self.feed_forward = wiring(attention), wiring(feed_forward)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x, *, rate=0.0, key=None, **options):
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        h = self.attention(x, options=options, rate=rate, key=keys[0])
        think = {"activation": partial(self.activated, rate=rate, key=keys[1])}
        return self.feed_forward(h, options=think, rate=rate, key=keys[2])

    def activated(self, x, *, rate, key):
        return dropout(self.activation(x), rate=rate, key=key)


def tower_blocks(config, *, attention, unroll, qkv_bias=True, rngs):
    """The blocks of a tower: a list, or with `unroll` one stack of them."""

    def block(rngs):
        options = {"heads": config.heads, "implementation": attention, "rngs": rngs}
        attend = MultiHeadAttention(config.width, **options)
        if not qkv_bias:
            for part in ("query", "key", "value"):
                setattr(attend, part, Linear(config.width, config.width, use_bias=False, rngs=rngs))
        return Block(
            attention=attend,
            feed_forward=FeedForward(config.width, hidden=config.hidden, rngs=rngs),
            wiring=partial(PreNorm, norm=partial(LayerNorm, config.width, epsilon=config.epsilon)),
            activation=config.activation,
        )

    return blocks_of(config.layers, block, unroll=unroll, rngs=rngs)
