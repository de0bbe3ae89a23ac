"""CLIP: an image and its caption, each read by its own tower, meet in one space of features."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from accelerated.layers.block import through
from accelerated.layers.contrastive import clip_loss as contrastive_loss
from accelerated.layers.convolution import PatchEmbed
from accelerated.layers.embedding import Embed, known
from accelerated.layers.linear import Linear
from accelerated.layers.normalization import LayerNorm, l2_norm
from accelerated.layers.position import LearnedPosition
from accelerated.layers.softmax import softmax, widen
from accelerated.models.tower import ClassToken, tower_blocks
from reference.layers.mask import causal
from reference.models.clip_sizes import check_ends, check_prompts
from reference.models.gpt import check_tokens
from reference.models.tower import check_images

__all__ = ["Clip", "ClipImage", "ClipText"]


class Abstract(nnx.Module):
    """A module that can be had without its numbers."""

    @classmethod
    def abstract(cls, config, **options):
        """One without its numbers, for `functional`: they come from elsewhere."""
        return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **options))


class ClipText(Abstract):
    """While it is compiled the tokens are not known: a text without an end then gives NaN."""

    def __init__(self, config, *, rngs, attention=None, unroll=None, recompute=None):
        self.config, self.compiled = config, {"unroll": unroll, "recompute": recompute}
        tower, options = config.text, {"attention": attention, "unroll": unroll, "rngs": rngs}
        self.token = Embed(tower.vocabulary, tower.width, rngs=rngs)
        self.position = LearnedPosition(tower.context, tower.width, rngs=rngs)
        self.blocks = tower_blocks(tower, **options)
        self.norm = LayerNorm(tower.width, epsilon=tower.epsilon, rngs=rngs)
        self.projection = Linear(tower.width, config.projection, use_bias=False, rngs=rngs)

    def __call__(self, *, tokens):
        tower = self.config.text
        check_tokens(tokens, tower, values=known(tokens))
        if known(tokens):
            check_ends(np.asarray(tokens), tower.end)
        x = self.position(self.token(ids=tokens))
        y = through(self.blocks, x, layers=tower.layers, mask=causal, **self.compiled)
        scored = jnp.asarray(tokens) if tower.end is None else jnp.asarray(tokens) == tower.end
        read = jnp.take_along_axis(y, scored.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        ended = True if tower.end is None else scored.any(axis=1, keepdims=True)
        return self.projection(self.norm(jnp.where(ended, read, jnp.nan)))


class ClipImage(Abstract):
    def __init__(self, config, *, rngs, attention=None, unroll=None, recompute=None):
        self.config, self.compiled = config, {"unroll": unroll, "recompute": recompute}
        tower, options = config.vision, {"attention": attention, "unroll": unroll, "rngs": rngs}
        channels, plain = tower.channels, {"use_bias": False, "rngs": rngs}
        self.patch = PatchEmbed(channels, tower.width, size=tower.patch, **plain)
        self.class_token = ClassToken(tower.width)
        self.position = LearnedPosition(tower.length, tower.width, rngs=rngs)
        self.norm_before = LayerNorm(tower.width, epsilon=tower.epsilon, rngs=rngs)
        self.blocks = tower_blocks(tower, **options)
        self.norm = LayerNorm(tower.width, epsilon=tower.epsilon, rngs=rngs)
        self.projection = Linear(tower.width, config.projection, **plain)

    def __call__(self, *, images):
        check_images(images, self.config.vision)
        tokens = self.patch(jnp.asarray(images, self.patch.kernel[...].dtype))
        x = self.norm_before(self.position(self.class_token(tokens)))
        y = through(self.blocks, x, layers=self.config.vision.layers, **self.compiled)
        return self.projection(self.norm(y[:, 0]))


class Clip(Abstract):
    """`clip` is its call, `clip_loss` its method `loss`, and there is `zero_shot`; the options are
    those of `GPT`.
    """

    def __init__(self, config, *, rngs, attention=None, unroll=None, recompute=None):
        self.config = config
        options = {"attention": attention, "unroll": unroll, "recompute": recompute}
        self.text = ClipText(config, rngs=rngs, **options)
        self.vision = ClipImage(config, rngs=rngs, **options)
        self.logit_scale = nnx.Param(jnp.full(1, math.log(1 / 0.07)))

    def __call__(self, *, tokens, images, key=None):
        """Scores in float32 or wider."""
        units = l2_norm(self.vision(images=images)), l2_norm(self.text(tokens=tokens))
        return self.scores(*units), *units

    def loss(self, *, tokens, images, key=None):
        features = self.vision(images=images), self.text(tokens=tokens)
        return contrastive_loss(*features, self.limited_scale())

    def zero_shot(self, *, images, prompts):
        """Probabilities (B, V), as the reference's function of that name."""
        classes = self.class_features(prompts=prompts)
        return softmax(self.scores(l2_norm(self.vision(images=images)), classes))

    def class_features(self, *, prompts):
        check_prompts(prompts)
        units = l2_norm(self.text(tokens=prompts.reshape(-1, prompts.shape[-1])))
        return l2_norm(units.reshape(*prompts.shape[:2], -1).mean(axis=1))

    def scores(self, images, texts):
        return jnp.exp(widen(self.limited_scale())) * (widen(images) @ widen(texts).T)

    def limited_scale(self):
        scale, largest = self.logit_scale[0], self.config.largest_scale
        if largest is None:
            return scale
        limit = math.log(
            largest
        )  # not jnp.minimum: where both are equal, half of its slope is left
        return jnp.where(scale <= limit, scale, limit)
