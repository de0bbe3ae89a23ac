"""What BERT is asked.  The other heads are one `Linear` each, and in `Bert.logits`."""

import jax.numpy as jnp
from flax import nnx

from accelerated.layers.activation import gelu, gelu_tanh
from accelerated.layers.linear import Linear
from accelerated.layers.normalization import LayerNorm

__all__ = ["BertPooler"]

ACTIVATIONS = {"erf": gelu, "tanh": gelu_tanh}


class BertPooler(Linear):
    def __init__(self, width, *, rngs):
        super().__init__(width, width, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(super().__call__(x[:, 0]))


class MaskedHead(nnx.Module):
    """Its last kernel is the token table."""

    def __init__(self, config, *, rngs):
        self.transform = Linear(config.width, config.width, rngs=rngs)
        self.norm = LayerNorm(config.width, epsilon=config.epsilon)
        self.bias = nnx.Param(jnp.zeros(config.vocabulary))
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x, token):
        normed = self.norm(self.activation(self.transform(x)))
        return token.unembed(normed) + self.bias[...]
