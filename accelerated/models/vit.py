"""The Vision Transformer: an encoder whose tokens are the patches of an image."""

import jax
import jax.numpy as jnp
from flax import nnx

from accelerated.layers.block import through
from accelerated.layers.convolution import PatchEmbed
from accelerated.layers.dropout import dropout
from accelerated.layers.linear import Linear
from accelerated.layers.loss import cross_entropy
from accelerated.layers.normalization import LayerNorm
from accelerated.layers.position import LearnedPosition
from accelerated.models.tower import ClassToken, tower_blocks
from reference.models.tower import check_images
from reference.models.vit_sizes import check_head

__all__ = ["ViT"]


class ViT(nnx.Module):
    """`vit` is its call, `vit_features` its method `features`, `vit_loss` its method `loss`; the
    options are those of `GPT`.
    """

    def __init__(self, config, *, rngs, attention=None, unroll=None, recompute=None):
        self.config, self.compiled = config, {"unroll": unroll, "recompute": recompute}
        width, options = config.width, {"attention": attention, "unroll": unroll, "rngs": rngs}
        self.patch = PatchEmbed(config.channels, width, size=config.patch, rngs=rngs)
        self.class_token = ClassToken(width) if config.pooling == "token" else None
        self.position = LearnedPosition(config.length, width, rngs=rngs)
        self.blocks = tower_blocks(config, qkv_bias=config.qkv_bias, **options)
        self.norm = LayerNorm(width, epsilon=config.epsilon, rngs=rngs)
        wide, labels = config.representation, config.labels
        self.representation = Linear(width, wide, rngs=rngs) if wide else None
        self.head = Linear(wide or width, labels, rngs=rngs) if labels else None

    def __call__(self, *, images, key=None):
        check_head(self.config)
        return self.head(self.features(images=images, key=key))

    def features(self, *, images, key=None):
        check_images(images, self.config)
        rate, layers = self.config.dropout, self.config.layers
        embedding_key = None if key is None else jax.random.fold_in(key, layers)
        tokens = self.patch(jnp.asarray(images, self.patch.kernel[...].dtype))
        placed = self.position(tokens if self.class_token is None else self.class_token(tokens))
        x = dropout(placed, rate=rate, key=embedding_key)
        y = self.norm(through(self.blocks, x, layers=layers, rate=rate, key=key, **self.compiled))
        pooled = y[:, 0] if self.config.pooling == "token" else y.mean(axis=1)
        return pooled if self.representation is None else jnp.tanh(self.representation(pooled))

    def loss(self, *, images, labels, ignore=-100, **options):
        return cross_entropy(self(images=images, **options), labels=labels, ignore=ignore)

    @classmethod
    def abstract(cls, config, **options):
        """A ViT without its numbers, for `functional`: they come from elsewhere."""
        return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **options))
