"""The Transformer of 2017: an encoder reads a sentence, a decoder writes its translation."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from accelerated.layers.activation import gelu, relu, silu
from accelerated.layers.attention import CrossAttention, MultiHeadAttention
from accelerated.layers.block import DecoderBlock, TransformerBlock, blocks_of, through
from accelerated.layers.dropout import dropout
from accelerated.layers.embedding import Embed, known
from accelerated.layers.feed_forward import FeedForward
from accelerated.layers.loss import smoothed_cross_entropy
from accelerated.layers.normalization import LayerNorm
from accelerated.layers.position import sinusoidal_position, sinusoidal_position_concatenated
from accelerated.layers.residual import PostNorm, PreNorm
from reference.layers.mask import causal, padding
from reference.models.gpt import check_tokens
from reference.models.transformer_sizes import check_memory, check_pairs, check_source

__all__ = ["Transformer"]

ACTIVATIONS = {"relu": relu, "silu": silu, "gelu": gelu}
POSITIONS = {
    "interleaved": sinusoidal_position,
    "concatenated": sinusoidal_position_concatenated,
    "marian": partial(sinusoidal_position_concatenated, spacing="paper"),
}
WIRINGS = {"post": PostNorm, "pre": PreNorm}


class Transformer(nnx.Module):
    """`transformer` is its call; the others are its methods `encode`, `decode` and `loss`.

    unroll, recompute: as in `GPT`, for both stacks.  attention: "cudnn" for that kernel, which
    knows no source_kept.
    """

    def __init__(self, config, *, rngs, attention=None, unroll=None, recompute=None):
        self.config, self.compiled = config, {"unroll": unroll, "recompute": recompute}
        options = {
            "heads": config.heads,
            "use_bias": config.attention_bias,
            "implementation": attention,
            "own_rate": config.attention_dropout,
        }
        norm = partial(LayerNorm, config.width, epsilon=config.epsilon)

        def parts(rngs, **attentions):
            made = {n: kind(config.width, rngs=rngs, **options) for n, kind in attentions.items()}
            made["feed_forward"] = Thinking(config, rngs=rngs)
            return made | {"wiring": partial(WIRINGS[config.wiring], norm=norm)}

        def encoder_block(rngs):
            return TransformerBlock(**parts(rngs, attention=OwnAttention))

        def decoder_block(rngs):
            return DecoderBlock(
                **parts(rngs, attention=OwnAttention, cross_attention=SourceAttention)
            )

        last = norm if config.wiring == "pre" else None
        self.token = Embed(config.vocabulary, config.width, rngs=rngs)
        stack = partial(Stack, config.layers, last=last, unroll=unroll, rngs=rngs)
        self.encoder, self.decoder = stack(encoder_block), stack(decoder_block)
        self.output = Bias(config.vocabulary) if config.output_bias else None

    def __call__(self, *, source, tokens, source_kept=None, key=None):
        seen = known(source) and known(tokens)
        check_pairs(source, tokens, source_kept, self.config, values=seen)
        keys = (None, None) if key is None else jax.random.split(key, 2)
        memory = self.encode(source=source, source_kept=source_kept, key=keys[0])
        return self.decode(memory, tokens=tokens, source_kept=source_kept, key=keys[1])

    def encode(self, *, source, source_kept=None, key=None):
        check_source(source, source_kept, self.config, values=known(source))
        x = self.enter(source, key)
        return self.encoder(x, mask=shown(source_kept), **self.options(key))

    def decode(self, memory, *, tokens, source_kept=None, key=None):
        check_tokens(tokens, self.config, values=known(tokens))
        check_memory(memory, tokens, source_kept, self.config)
        options = {"cross_options": {"mask": shown(source_kept)}} | self.options(key)
        return self.score(
            self.decoder(self.enter(tokens, key), memory=memory, mask=causal, **options)
        )

    def loss(self, *, source, tokens, labels, ignore=-100, **options):
        logits = self(source=source, tokens=tokens, **options)
        smoothing = self.config.smoothing
        return smoothed_cross_entropy(logits, labels=labels, smoothing=smoothing, ignore=ignore)

    def enter(self, ids, key):
        """The reference's `enter`."""
        config = self.config
        placed = POSITIONS[config.positions](math.sqrt(config.width) * self.token(ids=ids))
        embedding_key = None if key is None else jax.random.fold_in(key, config.layers)
        return dropout(placed, rate=config.dropout, key=embedding_key)

    def score(self, y):
        """The reference's `score`."""
        logits = self.token.unembed(y)
        return logits if self.output is None else logits + self.output.bias[...]

    def options(self, key):
        return {"rate": self.config.dropout, "key": key} | self.compiled

    @classmethod
    def abstract(cls, config, **options):
        """A Transformer without its numbers, for `functional`: they come from elsewhere."""
        return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **options))


class Stack(nnx.Module):
    """The blocks of one side, and the norm after them, where there is one."""

    def __init__(self, layers, block, *, last, unroll, rngs):
        self.layers = layers
        self.blocks = blocks_of(layers, block, unroll=unroll, rngs=rngs)
        self.norm = None if last is None else last()

    def __call__(self, x, **options):
        y = through(self.blocks, x, layers=self.layers, **options)
        return y if self.norm is None else self.norm(y)


class Bias(nnx.Module):
    """A number for each token."""

    def __init__(self, vocabulary):
        self.bias = nnx.Param(jnp.zeros(vocabulary))


class Thinking(FeedForward):
    """The feed-forward with the config's activation."""

    def __init__(self, config, *, rngs):
        super().__init__(config.width, hidden=config.hidden, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x):
        return super().__call__(x, activation=ACTIVATIONS[self.activation])


class OwnRate:
    """An attention whose weights have a dropout of their own, whatever its block's is."""

    def __init__(self, width, *, own_rate, **options):
        super().__init__(width, **options)
        self.own_rate = own_rate

    def __call__(self, *read, rate, **options):
        return super().__call__(*read, rate=self.own_rate, **options)


class OwnAttention(OwnRate, MultiHeadAttention):
    """A sequence's of itself."""


class SourceAttention(OwnRate, CrossAttention):
    """A target's of its source."""


def shown(source_kept):
    """The mask of whoever looks at the source."""
    return None if source_kept is None else padding(source_kept)
