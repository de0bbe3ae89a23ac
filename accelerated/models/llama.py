"""Llama and its relatives."""

from functools import partial

from flax import nnx

from accelerated.layers.attention import MultiHeadAttention
from accelerated.layers.block import TransformerBlock, blocks_of, through
from accelerated.layers.embedding import Embed, known
from accelerated.layers.feed_forward import SwiGLU
from accelerated.layers.linear import Linear
from accelerated.layers.normalization import RMSNorm
from accelerated.layers.residual import PreNorm
from accelerated.layers.rotary import rotary_halves
from accelerated.models.decoder_heads import head_of, logits_of, loss_of
from reference.layers.mask import both, causal, sliding_window
from reference.layers.mask import documents as mask_of_documents
from reference.models.decoder_batches import check_documents, check_language, check_tokens
from reference.models.llama import frequencies_of

__all__ = ["Llama"]


class Llama(nnx.Module):
    """`llama` is its call; `llama_hidden`, `llama_logits` and `llama_loss` are its methods; the
    options are those of `GPT`.
    """

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
        self.blocks = blocks_of(config.layers, block, unroll=unroll, rngs=rngs)
        self.norm = norm(rngs=rngs)
        for name, layer in head_of(config, rngs=rngs).items():
            setattr(self, name, layer)
        if config.head == "language" and not config.tied:
            self.output = Linear(config.width, config.vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, *, tokens, **options):
        check_language(self.config)
        return self.score(self.hidden(tokens=tokens, **options))

    def hidden(self, *, tokens, documents=None, key=None):
        check_tokens(tokens, self.config, values=known(tokens))
        check_documents(documents, tokens)
        config = self.config
        seen = causal if config.window is None else sliding_window(config.window)
        mask = seen if documents is None else both(seen, mask_of_documents(documents))
        rotary = partial(rotary_halves, frequencies=frequencies_of(config))
        options = {"mask": mask, "rotary": rotary} | self.compiled
        y = through(self.blocks, self.token(ids=tokens), layers=config.layers, **options)
        return self.norm(y)

    def score(self, x):
        logits = self.token.unembed(x) if self.config.tied else self.output(x)
        return logits[..., : self.config.vocabulary]

    def logits(self, *, tokens, kept=None, **options):
        return logits_of(self, tokens=tokens, kept=kept, **options)

    def loss(self, *, tokens, labels=None, starts=None, ends=None, ignore=-100, **options):
        answers = {"labels": labels, "starts": starts, "ends": ends}
        return loss_of(self, tokens=tokens, answers=answers, ignore=ignore, **options)

    @classmethod
    def abstract(cls, config, **options):
        """A Llama without its numbers, for `functional`: they come from elsewhere."""
        return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **options))
