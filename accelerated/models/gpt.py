"""GPT: a stack of causal pre-norm blocks that predicts the next token."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from accelerated.layers.attention import MultiHeadAttention
from accelerated.layers.block import TransformerBlock, blocks_of, through
from accelerated.layers.dropout import dropout
from accelerated.layers.embedding import Embed, known
from accelerated.layers.feed_forward import FeedForward
from accelerated.layers.normalization import LayerNorm
from accelerated.layers.position import LearnedPosition
from accelerated.layers.residual import PreNorm
from accelerated.models.decoder_heads import head_of, logits_of, loss_of
from reference.layers.mask import places
from reference.models.decoder_batches import check_documents, check_language, check_tokens
from reference.models.gpt import masks_of

__all__ = ["GPT"]


class GPT(nnx.Module):
    """`gpt` is its call; `gpt_hidden`, `gpt_logits` and `gpt_loss` are its methods.

    unroll, recompute: how the blocks are compiled, as in `through`; with `unroll` the parameters of
    the blocks are one stack.  attention: "cudnn" for that kernel.  The token table may have more
    rows than the vocabulary, up to a size that the device likes: they score nothing.
    """

    def __init__(self, config, *, rngs, attention=None, unroll=None, recompute=None):
        def block(rngs):
            options = {"heads": config.heads, "head_width": config.head_width}
            options |= {"implementation": attention, "rngs": rngs}
            return TransformerBlock(
                attention=MultiHeadAttention(config.width, **options),
                feed_forward=FeedForward(config.width, hidden=4 * config.width, rngs=rngs),
                wiring=partial(PreNorm, norm=partial(LayerNorm, config.width)),
            )

        self.config, self.compiled = config, {"unroll": unroll, "recompute": recompute}
        self.token = Embed(config.vocabulary, config.width, rngs=rngs)
        self.position = LearnedPosition(config.context, config.width, rngs=rngs)
        self.blocks = blocks_of(config.layers, block, unroll=unroll, rngs=rngs)
        self.norm = LayerNorm(config.width, rngs=rngs)
        for name, layer in head_of(config, rngs=rngs).items():
            setattr(self, name, layer)

    def __call__(self, *, tokens, **options):
        check_language(self.config)
        return self.score(self.hidden(tokens=tokens, **options))

    def hidden(self, *, tokens, documents=None, key=None):
        check_tokens(tokens, self.config, values=known(tokens))
        check_documents(documents, tokens)
        rate = self.config.dropout
        embedding_key = None if key is None else jax.random.fold_in(key, self.config.layers)
        own_places = None if documents is None else places(jnp.asarray(documents))
        placed = self.position(self.token(ids=tokens), places=own_places)
        x = dropout(placed, rate=rate, key=embedding_key)
        options = {"rate": rate, "key": key} | self.compiled
        turns = [{"mask": mask} for mask in masks_of(self.config, documents)]
        y = through(self.blocks, x, layers=self.config.layers, turns=turns, **options)
        return self.norm(y)

    def score(self, x):
        return self.token.unembed(x)[..., : self.config.vocabulary]

    def logits(self, *, tokens, kept=None, **options):
        return logits_of(self, tokens=tokens, kept=kept, **options)

    def loss(self, *, tokens, labels=None, starts=None, ends=None, ignore=-100, **options):
        answers = {"labels": labels, "starts": starts, "ends": ends}
        return loss_of(self, tokens=tokens, answers=answers, ignore=ignore, **options)

    @classmethod
    def abstract(cls, config, **options):
        """A GPT without its numbers, for `functional`: they come from elsewhere."""
        return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **options))
