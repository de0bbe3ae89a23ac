"""The sizes of a Vision Transformer, the weights that its training starts from, and its cost."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.convolution import pair
from reference.layers.dropout import check_rate
from reference.layers.embedding import check_ids
from reference.models.gpt import check_initialization
from reference.models.tower import (
    block_shapes,
    check_images,
    check_sizes,
    check_tower,
    linear_shapes,
    training_flops,
)

__all__ = []

POOLINGS = ("token", "mean")
CUT = 0.87962566103423978  # the deviation of a normal number between -2 and 2


@dataclass(frozen=True)
class Size:
    """Of an image, in pixels."""

    rows: int
    columns: int

    def __iter__(self):
        return iter((self.rows, self.columns))


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a Vision Transformer.  Raises InputError for sizes that make no model."""

    image: Size  # or rows and columns as a pair, or one number for both
    patch: int  # pixels along the side of a patch
    layers: int
    heads: int
    width: int  # D
    hidden: int  # F
    labels: int  # V, classes; 0: a model of features, without a head
    channels: int = 3  # C
    pooling: str = "token"  # an image is what its class token has become; or the "mean" of patches
    representation: int | None = None  # width of the layer before the head, in pre-training alone
    activation: str = "tanh"  # Google's GELU; "erf": Hugging Face's
    epsilon: float = 1e-6  # Google's; Hugging Face: 1e-12
    qkv_bias: bool = True  # whether queries, keys and values have biases
    dropout: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "image", size_of(self.image))
        check_sizes(self, "patch", "layers", "heads", "width", "hidden", "channels")
        if not isinstance(self.labels, int) or self.labels < 0:
            raise InputError(f"labels is {self.labels!r}; give a number of classes, or 0 for none")
        if self.representation is not None:
            check_sizes(self, "representation")
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling is {self.pooling!r}; give one of {', '.join(POOLINGS)}")
        if any(side % self.patch for side in self.image):
            sides = tuple(self.image)
            raise InputError(f"image is {sides}, patch {self.patch}; give a divisor of both")
        check_tower(self)
        check_rate(self.dropout)

    @property
    def grid(self):
        """How many patches lie below and beside each other."""
        return self.image.rows // self.patch, self.image.columns // self.patch

    @property
    def pixels(self):
        """The shape of an image."""
        return *self.image, self.channels

    @property
    def length(self):
        """T, the number of tokens: the patches and, if there is one, the class token before."""
        return math.prod(self.grid) + (self.pooling == "token")


def size_of(image):
    """A Size, of a pair, one number for both, or a dict, as JSON has it.  Raises InputError."""
    size = Size(**image) if isinstance(image, dict) else image
    return Size(*pair(tuple(size) if isinstance(size, Size) else size, name="image"))


BASE = partial(ViTConfig, 224, layers=12, heads=12, width=768, hidden=3072, labels=1000)
LARGE = partial(ViTConfig, 224, layers=24, heads=16, width=1024, hidden=4096, labels=1000)
# The published sizes: Dosovitskiy et al. 2020, table 1; "small" and "tiny" as in Steiner et al.
# 2021, "How to train your ViT?", and all dropouts as in google-research/vision_transformer.
PRESETS = {
    "vit_b16": BASE(16),
    "vit_b32": BASE(32),
    "vit_l16": LARGE(16, dropout=0.1),
    "vit_l32": LARGE(32),
    "vit_h14": ViTConfig(224, 14, 32, 16, 1280, 5120, labels=1000, dropout=0.1),
    "vit_s16": ViTConfig(224, 16, 12, 6, 384, 1536, labels=1000),
    "vit_ti16": ViTConfig(224, 16, 12, 3, 192, 768, labels=1000),
}


def initial_params(config, *, key, initialization="paper", dtype=np.float32):
    """The weights that training starts from, as Google's code draws them; the paper does not say.

    Of attention and feed-forward, kernels of a (fan in) x (fan out) are uniform in ±√(6/(in + out))
    and the feed-forward's biases normal with 10⁻⁶.  Positions are normal with 0.02.  The patches'
    kernel and the representation's are normal with √(1/in), without what is beyond 2 deviations of
    the normal they were cut from.  All else is 0, the class token and the head too, but scales 1.
    All initializations are the same here.  (Hugging Face: 0.02 for all, cut off likewise.)
    Drawn in float32 for every dtype.  Keys: those of `split(key, parameters)`, in the order of
    `parameter_shapes`.
    Raises InputError for another initialization.
    Source: google-research/vision_transformer, vit_jax/models_vit.py, and Flax's defaults.
    """
    check_initialization(initialization)
    shapes = parameter_shapes(config)
    keys = dict(zip(shapes, random.split(key, len(shapes)), strict=True))

    def draw(path, shape):
        part, leaf = path.split(".")[-2:]
        if part in ("patch", "representation") and leaf == "kernel":
            std = math.prod(shape[:-1]) ** -0.5 / CUT
            return random.truncated_normal(keys[path], -2, 2, shape) * np.float32(std)
        if part == "position" or leaf == "bias" and part in ("up", "down"):
            std = 0.02 if part == "position" else 1e-6
            return random.normal(keys[path], shape) * np.float32(std)
        if leaf == "kernel" and part != "head":
            limit = math.sqrt(6 / sum(shape))
            return random.uniform(keys[path], shape, low=-limit, high=limit)
        return np.full(shape, leaf == "scale")

    return tree.unflatten({path: draw(path, s).astype(dtype) for path, s in shapes.items()})


def parameter_shapes(config):
    """The shape of every parameter of a ViTConfig, by its path in the tree."""
    width, size = config.width, config.patch
    params = {"patch": {"kernel": (size, size, config.channels, width), "bias": (width,)}}
    if config.pooling == "token":
        params["class_token"] = {"embedding": (width,)}
    params |= {
        "position": {"embedding": (config.length, width)},
        "blocks": [block_shapes(config, qkv_bias=config.qkv_bias)] * config.layers,
        "norm": {"scale": (width,), "bias": (width,)},
    }
    if config.representation is not None:
        params["representation"] = linear_shapes(width, config.representation)
    if config.labels:
        params["head"] = linear_shapes(config.representation or width, config.labels)
    return tree.flatten(params)


def flops_per_example(config):
    """Floating-point operations of one training step, forward and backward, for each image.

        6 (N T + M) + 12 L D T²

    As `gpt.flops_per_token`, for all T tokens: N weights of the blocks and the patch embedding, M
    of what the pooled vector goes through.
    Source: Chowdhery et al. 2022, "PaLM", appendix B.
    """
    return training_flops(parameter_shapes(config), config, once=("head", "representation"))


def check_batch(config, *, images, labels):
    """Raise DtypeError or InputError for a batch that `vit_loss` cannot be trained on."""
    check_head(config)
    check_images(images, config)
    check_ids(labels, config.labels, name="labels", ignore=-100)
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"labels has shape {labels.shape}, images {images.shape}; give a label for each image"
        )


def check_head(config):
    """Raise InputError for a config without a head."""
    if not config.labels:
        raise InputError("the config has no labels, so no head; take the features, or for_labels")
