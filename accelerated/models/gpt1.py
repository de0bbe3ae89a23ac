"""GPT-1: the stack of 2018, whose blocks add before they normalize, and how it was fine-tuned."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from accelerated.layers.attention import MultiHeadAttention
from accelerated.layers.block import TransformerBlock, blocks_of, through
from accelerated.layers.dropout import dropout
from accelerated.layers.embedding import Embed, known, signed, without_negatives
from accelerated.layers.feed_forward import FeedForward
from accelerated.layers.linear import Linear, rows
from accelerated.layers.loss import cross_entropy
from accelerated.layers.normalization import LayerNorm
from accelerated.layers.position import LearnedPosition, for_each
from accelerated.layers.residual import PostNorm
from reference.layers.embedding import check_ids
from reference.layers.mask import both, causal, places
from reference.layers.mask import documents as mask_of_documents
from reference.models.gpt import check_documents, check_tokens
from reference.models.gpt1 import check_choices

__all__ = ["GPT1"]


class GPT1(nnx.Module):
    """`gpt1` is its call, the losses are its methods `loss` and `classification_loss`; the options
    are those of `GPT`.
    """

    def __init__(self, config, *, rngs, attention=None, unroll=None, recompute=None):
        def block(rngs):
            options = {"heads": config.heads, "implementation": attention, "rngs": rngs}
            return TransformerBlock(
                attention=MultiHeadAttention(config.width, **options),
                feed_forward=FeedForward(config.width, hidden=4 * config.width, rngs=rngs),
                wiring=partial(PostNorm, norm=partial(LayerNorm, config.width)),
            )

        self.config, self.compiled = config, {"unroll": unroll, "recompute": recompute}
        self.token = Embed(config.vocabulary, config.width, rngs=rngs)
        self.position = LearnedPosition(config.context, config.width, rngs=rngs)
        self.blocks = blocks_of(config.layers, block, unroll=unroll, rngs=rngs)
        if config.classes is not None:
            self.classifier = Linear(config.width, config.classes, rngs=rngs)

    def __call__(self, *, tokens, documents=None, key=None):
        x, table = self.read(tokens=tokens, documents=documents, key=key)
        return scored(x, table)

    def read(self, *, tokens, documents=None, key=None):
        """What the blocks make of tokens, and the table that scores it."""
        config = self.config
        check_tokens(tokens, config, values=known(tokens))
        check_documents(documents, tokens)
        rate = config.dropout
        embedding_key = None if key is None else jax.random.fold_in(key, config.layers)
        own_places = None if documents is None else places(jnp.asarray(documents))
        if config.embeddings == "shared":
            parts = [self.token.embedding[...], self.position.embedding[...]]
            table = dropout(jnp.concatenate(parts), rate=rate, key=embedding_key)
            x = looked_up(table, config.vocabulary, tokens, own_places)
        else:
            table = self.token.embedding[...]
            placed = self.position(self.token(ids=tokens), places=own_places)
            x = dropout(placed, rate=rate, key=embedding_key)
        mask = causal if documents is None else both(causal, mask_of_documents(documents))
        options = {"mask": mask, "rate": rate, "key": key} | self.compiled
        return through(self.blocks, x, layers=config.layers, **options), table

    def loss(self, *, tokens, labels, ignore=-100, **options):
        checked = tokens_alone(labels, self.config.vocabulary, ignore)
        return cross_entropy(self(tokens=tokens, **options), labels=checked, ignore=ignore)

    def classification_loss(
        self, *, tokens, labels, at, answers, weight=0.5, ignore=-100, key=None, **options
    ):
        config = self.config
        values = known(at) and known(answers)
        check_choices(config, tokens, labels, at, answers, values=values)
        batch, number, length = tokens.shape
        following = tokens_alone(labels.reshape(-1, length), config.vocabulary, ignore)
        x, table = self.read(tokens=tokens.reshape(-1, length), key=key, **options)
        surprise = cross_entropy(scored(x, table), labels=following, ignore=ignore)
        head_key = None if key is None else jax.random.fold_in(key, config.layers + 1)
        kept = dropout(
            jnp.ones((batch, 1, config.width), x.dtype), rate=config.dropout, key=head_key
        )
        place = without_negatives(at.reshape(-1), length)[:, None, None]
        picked = jnp.take_along_axis(x, place, axis=1, mode="fill", fill_value=jnp.nan)
        scores = self.classifier(picked.reshape(batch, number, -1) * kept)
        return cross_entropy(scores.reshape(batch, -1), labels=answers) + weight * surprise

    @classmethod
    def abstract(cls, config, **options):
        """A GPT1 without its numbers, for `functional`: they come from elsewhere."""
        return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **options))


def scored(x, table):
    """x (..., T, D) by each row of a table (V, D) -> (..., T, V)."""
    return (rows(x) @ table.T).reshape(*x.shape[:-1], -1)


def looked_up(table, vocabulary, tokens, own_places):
    """Tokens and their positions in one table; a token outside the vocabulary gives NaN."""
    inside = without_negatives(tokens, vocabulary)
    x = jnp.take(table[:vocabulary], inside, axis=0, mode="fill", fill_value=jnp.nan)
    if own_places is not None:
        return x + jnp.take(table[vocabulary:], own_places, axis=0)
    return x + for_each(x, table[vocabulary:][: tokens.shape[1]])


def tokens_alone(labels, vocabulary, ignore):
    """Labels of which none is a position: an InputError, or NaN where they are not known yet."""
    if known(labels):
        check_ids(np.asarray(labels), vocabulary, name="labels", ignore=ignore)
        return labels
    ids = signed(labels)
    return jnp.where((ids < vocabulary) | (ids == ignore), ids, -1)
