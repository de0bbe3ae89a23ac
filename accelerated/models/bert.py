"""BERT: an encoder that reads a text from both sides at once, and heads that ask about it."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from accelerated.layers.attention import MultiHeadAttention
from accelerated.layers.block import TransformerBlock, blocks_of, through
from accelerated.layers.dropout import dropout
from accelerated.layers.embedding import Embed, SegmentEmbed, known
from accelerated.layers.feed_forward import FeedForward
from accelerated.layers.linear import Linear
from accelerated.layers.loss import cross_entropy, next_sentence
from accelerated.layers.normalization import LayerNorm
from accelerated.layers.position import LearnedPosition
from accelerated.layers.residual import PostNorm
from accelerated.models.bert_heads import ACTIVATIONS, BertPooler, MaskedHead
from reference.layers.mask import padding
from reference.models.bert import check_batch, check_inputs
from reference.models.bert_heads import CLASSES, IGNORE, MASKED, PAIRS, POOLED, share_of

__all__ = ["Bert"]


class Bert(nnx.Module):
    """`bert` is its call, `bert_logits` and `bert_loss` its methods `logits` and `loss`; the
    options are those of `GPT`.
    """

    def __init__(self, config, *, rngs, attention=None, unroll=None, recompute=None):
        width = config.width
        norm = partial(LayerNorm, width, epsilon=config.epsilon)

        def block(rngs):
            options = {"heads": config.heads, "implementation": attention, "rngs": rngs}
            return TransformerBlock(
                attention=MultiHeadAttention(width, **options),
                feed_forward=BertFeedForward(config, rngs=rngs),
                wiring=partial(PostNorm, norm=norm),
            )

        self.config, self.compiled = config, {"unroll": unroll, "recompute": recompute}
        self.token = Embed(config.vocabulary, width, rngs=rngs)
        self.position = LearnedPosition(config.context, width, rngs=rngs)
        self.segment = SegmentEmbed(config.segments, width, rngs=rngs)
        self.norm = norm()
        self.blocks = blocks_of(config.layers, block, unroll=unroll, rngs=rngs)
        if config.head in POOLED:
            self.pooler = BertPooler(width, rngs=rngs)
        if config.head in MASKED:
            self.masked = MaskedHead(config, rngs=rngs)
        if config.head in PAIRS:
            self.next_sentence = Linear(width, 2, rngs=rngs)
        if config.head in CLASSES:
            self.classifier = Linear(width, config.labels, rngs=rngs)
        if config.head == "question_answering":
            self.spans = Linear(width, 2, rngs=rngs)

    def __call__(self, *, tokens, segments=None, kept=None, key=None):
        config = self.config
        check_inputs(config, tokens, segments, kept, values=known(tokens) and known(segments))
        kinds = jnp.zeros(tokens.shape, jnp.int32) if segments is None else segments
        embedded = self.segment(self.position(self.token(ids=tokens)), segments=kinds)
        embedding_key = None if key is None else jax.random.fold_in(key, config.layers)
        x = dropout(self.norm(embedded), rate=config.dropout, key=embedding_key)
        mask = None if kept is None else padding(kept)
        options = {"mask": mask, "rate": config.dropout, "key": key} | self.compiled
        return through(self.blocks, x, layers=config.layers, **options)

    def logits(self, *, key=None, **inputs):
        config = self.config
        x = self(key=key, **inputs)
        head_key = None if key is None else jax.random.fold_in(key, config.layers + 1)
        logits = {}
        if config.head in MASKED:
            logits["masked"] = self.masked(x, self.token)
        if config.head in PAIRS:
            logits["next_sentence"] = self.next_sentence(self.pooler(x))
        if config.head in CLASSES:
            read = self.pooler(x) if config.head in POOLED else x
            logits["classes"] = self.classifier(dropout(read, rate=config.dropout, key=head_key))
        if config.head == "question_answering":
            scores = self.spans(x)
            logits |= {"starts": scores[..., 0], "ends": scores[..., 1]}
        return logits

    def loss(self, *, tokens, segments=None, kept=None, key=None, **answers):
        inputs = {"tokens": tokens, "segments": segments, "kept": kept}
        values = all(known(array) for array in (inputs | answers).values())
        check_batch(self.config, **inputs, **answers, values=values)
        total = 0.0
        for question, scores in self.logits(**inputs, key=key).items():
            if question == "next_sentence":
                total += next_sentence(scores, follows=answers["follows"])
            else:
                right = answers.get(question, answers.get("labels"))
                total += cross_entropy(scores, labels=right, ignore=IGNORE)
        return share_of(self.config) * total

    @classmethod
    def abstract(cls, config, **options):
        """A Bert without its numbers, for `functional`: they come from elsewhere."""
        return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **options))


class BertFeedForward(FeedForward):
    """With the activation of the config."""

    def __init__(self, config, *, rngs):
        super().__init__(config.width, hidden=config.hidden, rngs=rngs)
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x):
        return super().__call__(x, activation=self.activation)
