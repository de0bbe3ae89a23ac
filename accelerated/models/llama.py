"""Llama and its relatives."""

from functools import partial

from flax import nnx

from accelerated.layers.attention import MultiHeadAttention
from accelerated.layers.block import TransformerBlock, stack_of, through
from accelerated.layers.embedding import Embed, known
from accelerated.layers.feed_forward import SwiGLU
from accelerated.layers.linear import Linear
from accelerated.layers.loss import cross_entropy
from accelerated.layers.normalization import RMSNorm
from accelerated.layers.residual import PreNorm
from accelerated.layers.rotary import rotary_halves
from reference.layers.mask import both, causal, sliding_window
from reference.layers.mask import documents as mask_of_documents
from reference.models.gpt import check_documents, check_tokens
from reference.models.llama import frequencies_of

__all__ = ["Llama"]


class Llama(nnx.Module):
    """`llama` is its call, `llama_loss` its method `loss`; the options are those of `GPT`."""

    def __init__(self, config, *, rngs, attention=None, unroll=None, recompute=None):
        norm = partial(RMSNorm, config.width, epsilon=config.epsilon)

        def block(rngs):
            return TransformerBlock(
                attention=MultiHeadAttention(
                    config.width,
                    heads=config.heads,
                    groups=config.groups,
                    head_width=config.head_width,
                    use_bias=False,
                    implementation=attention,
                    rngs=rngs,
                ),
                feed_forward=SwiGLU(config.width, hidden=config.hidden, rngs=rngs),
                wiring=partial(PreNorm, norm=norm),
            )

        self.config, self.compiled = config, {"unroll": unroll, "recompute": recompute}
        self.token = Embed(config.vocabulary, config.width, rngs=rngs)
        if unroll is None:
            self.blocks = nnx.List([block(rngs) for _ in range(config.layers)])
        else:
            self.blocks = stack_of(config.layers, block, rngs=rngs)
        self.norm = norm(rngs=rngs)
        if not config.tied:
            self.output = Linear(config.width, config.vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, *, tokens, documents=None, key=None):
        check_tokens(tokens, self.config, values=known(tokens))
        check_documents(documents, tokens)
        config = self.config
        seen = causal if config.window is None else sliding_window(config.window)
        mask = seen if documents is None else both(seen, mask_of_documents(documents))
        rotary = partial(rotary_halves, frequencies=frequencies_of(config))
        options = {"mask": mask, "rotary": rotary} | self.compiled
        y = through(self.blocks, self.token(ids=tokens), layers=config.layers, **options)
        normed = self.norm(y)
        logits = self.token.unembed(normed) if config.tied else self.output(normed)
        return logits[..., : config.vocabulary]

    def loss(self, *, tokens, labels, ignore=-100, **options):
        return cross_entropy(self(tokens=tokens, **options), labels=labels, ignore=ignore)

    @classmethod
    def abstract(cls, config, **options):
        """A Llama without its numbers, for `functional`: they come from elsewhere."""
        return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **options))
