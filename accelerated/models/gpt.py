"""GPT: a stack of causal pre-norm blocks that predicts the next token."""

import jax
from flax import nnx

from accelerated.layers.block import PreNormBlock
from accelerated.layers.dropout import dropout
from accelerated.layers.embedding import Embed, known
from accelerated.layers.loss import cross_entropy
from accelerated.layers.normalization import LayerNorm
from accelerated.layers.position import LearnedPosition
from reference.layers.attention import causal
from reference.models.gpt import check_tokens

__all__ = ["GPT"]


class GPT(nnx.Module):
    """`gpt` is its call, `gpt_loss` its method `loss`."""

    def __init__(self, config, *, rngs):
        self.config = config
        self.token = Embed(config.vocabulary, config.width, rngs=rngs)
        self.position = LearnedPosition(config.context, config.width, rngs=rngs)
        sizes = {"heads": config.heads, "hidden": 4 * config.width}
        blocks = [PreNormBlock(config.width, **sizes, rngs=rngs) for _ in range(config.layers)]
        self.blocks = nnx.List(blocks)
        self.norm = LayerNorm(config.width, rngs=rngs)

    def __call__(self, *, tokens, key=None):
        check_tokens(tokens, self.config, values=known(tokens))
        rate = self.config.dropout
        embedding_key = None if key is None else jax.random.fold_in(key, self.config.layers)
        x = dropout(self.position(self.token(ids=tokens)), rate=rate, key=embedding_key)
        for layer, block in enumerate(self.blocks):
            block_key = None if key is None else jax.random.fold_in(key, layer)
            x = block(x, mask=causal, rate=rate, key=block_key)
        return self.token.unembed(self.norm(x))

    def loss(self, *, tokens, labels, key=None, ignore=-100):
        return cross_entropy(self(tokens=tokens, key=key), labels=labels, ignore=ignore)

    @classmethod
    def abstract(cls, config):
        """A GPT without its numbers, for `functional`: they come from elsewhere."""
        return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
