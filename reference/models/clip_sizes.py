"""The sizes of CLIP, the weights that its training starts from, and its cost."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.embedding import check_ids, check_integers
from reference.models.gpt import check_initialization, check_tokens
from reference.models.tower import (
    block_shapes,
    check_images,
    check_sizes,
    check_tower,
    training_flops,
)

__all__ = []


@dataclass(frozen=True)
class ClipTextConfig:
    """The sizes of the tower for texts.  Raises InputError for sizes that make no model."""

    vocabulary: int
    context: int  # the longest text: rows of the position table
    layers: int
    heads: int
    width: int  # D
    hidden: int  # F
    end: int | None = None  # the token that ends a text; None: the largest of each, as OpenAI's is
    activation: str = "quick"  # or "erf", as in some that others trained
    epsilon: float = 1e-5

    def __post_init__(self):
        check_sizes(self, "vocabulary", "context", "layers", "heads", "width", "hidden")
        check_tower(self)
        if self.end is not None:
            check_ids(np.asarray(self.end), self.vocabulary, name="end")

    @property
    def length(self):
        """T: every text is filled up to the context."""
        return self.context


@dataclass(frozen=True)
class ClipImageConfig:
    """The sizes of the tower for images.  Raises InputError for sizes that make no model."""

    image: int  # pixels along each side
    patch: int
    layers: int
    heads: int
    width: int  # D
    hidden: int  # F
    channels: int = 3  # C
    activation: str = "quick"
    epsilon: float = 1e-5

    def __post_init__(self):
        check_sizes(self, "image", "patch", "layers", "heads", "width", "hidden", "channels")
        check_tower(self)
        if self.image % self.patch:
            raise InputError(f"image is {self.image}, patch {self.patch}; give a divisor of it")

    @property
    def pixels(self):
        """The shape of an image."""
        return self.image, self.image, self.channels

    @property
    def length(self):
        """T: the patches, and the class token before."""
        return (self.image // self.patch) ** 2 + 1


@dataclass(frozen=True)
class ClipConfig:
    """Both towers, and where they meet.  Raises InputError for what makes no model."""

    text: ClipTextConfig
    vision: ClipImageConfig
    projection: int  # P, the width of the features
    # exp(logit_scale) counts as at most this: 100 in the paper.  None: as in OpenAI's forward pass,
    # which leaves that to the optimizer; see `clamped`.
    largest_scale: float | None = None

    def __post_init__(self):
        if isinstance(self.text, dict):  # as JSON has it
            object.__setattr__(self, "text", ClipTextConfig(**self.text))
        if isinstance(self.vision, dict):
            object.__setattr__(self, "vision", ClipImageConfig(**self.vision))
        check_sizes(self, "projection")
        if self.largest_scale is not None and not 0 < self.largest_scale < math.inf:
            raise InputError(
                f"largest_scale is {self.largest_scale!r}; give a positive number, or None"
            )

    @property
    def vocabulary(self):
        """V, that of the texts."""
        return self.text.vocabulary


TEXT = partial(ClipTextConfig, 49408, 77, 12)
LARGE = partial(ClipImageConfig, patch=14, layers=24, heads=16, width=1024, hidden=4096)
# The published sizes: Radford et al. 2021, table 20.
PRESETS = {
    "clip_b32": ClipConfig(TEXT(8, 512, 2048), ClipImageConfig(224, 32, 12, 12, 768, 3072), 512),
    "clip_b16": ClipConfig(TEXT(8, 512, 2048), ClipImageConfig(224, 16, 12, 12, 768, 3072), 512),
    "clip_l14": ClipConfig(TEXT(12, 768, 3072), LARGE(224), 768),
    "clip_l14_336": ClipConfig(TEXT(12, 768, 3072), LARGE(336), 768),
}


def initial_params(config, *, key, initialization="paper", dtype=np.float32):
    """The weights that training starts from: normal numbers, and none in biases.

    The deviations are 0.02 for tokens and 0.01 for their positions;  in the blocks of a tower
    D^-½ for query, key and value, (2 D)^-½ for up, and D^-½ (2 L)^-½ for out and down, which write
    into the residual stream;  D^-½ for projections, the class token and the places of patches.
    The patches' kernel is uniform in ±(p p C)^-½, and logit_scale log(1 / 0.07): scores are at
    first cosines / 0.07.
    "released", OpenAI's code, draws only the text's blocks like that, and leaves what it does not
    name to PyTorch: see `left_to_torch`.  "paper", which does not say it, and "scaled" have both
    towers alike.  (Hugging Face, too, but has the (2 L)^-½ at query, key and value, not at out.)
    Drawn in float32 for every dtype.  Keys: those of `split(key, parameters)`, in the order of
    `parameter_shapes`.
    Raises InputError for another initialization.
    Source: Radford et al. 2021, sec. 2.5, the temperature; openai/CLIP, clip/model.py, all else.
    """
    check_initialization(initialization)
    shapes = parameter_shapes(config)
    keys = dict(zip(shapes, random.split(key, len(shapes)), strict=True))

    def draw(path, shape):
        tower, part, leaf = getattr(config, path.split(".")[0], None), *path.split(".")[-2:]
        limit = math.prod(shape[:-1]) ** -0.5 if part == "patch" else None
        if initialization == "released" and ".blocks." in path:
            limit = left_to_torch(tower, part, leaf, texts=tower is config.text)
        if limit is not None:
            return random.uniform(keys[path], shape, low=-limit, high=limit)
        if leaf in ("scale", "bias"):
            return np.full(shape, leaf == "scale")
        return random.normal(keys[path], shape) * np.float32(deviation(config, path, part, tower))

    drawn = {path: draw(path, s) for path, s in shapes.items() if path != "logit_scale"}
    drawn["logit_scale"] = np.full(1, math.log(1 / 0.07))
    return tree.unflatten({path: array.astype(dtype) for path, array in drawn.items()})


def deviation(config, path, part, tower):
    """The standard deviation of a kernel or an embedding at first."""
    if tower is config.text and part in ("token", "position"):
        return {"token": 0.02, "position": 0.01}[part]
    factors = dict.fromkeys(("out", "down"), (2 * tower.layers) ** -0.5) | {"up": 2**-0.5}
    return tower.width**-0.5 * factors.get(part, 1)


def left_to_torch(tower, part, leaf, *, texts):
    """How far from 0 PyTorch's own numbers go, which are uniform, for what a block's parameter
    OpenAI's code says nothing of;  None where it does, or where PyTorch has ones or zeros.

    A linear map's kernel and bias: (fan in)^-½;  those of query, key and value, which are one of
    D x 3 D, by Glorot's rule √(6 / (4 D)), and no biases in attention.
    """
    fan_in = {"up": tower.width, "down": tower.hidden, "out": tower.width}
    if leaf == "bias":
        return fan_in[part] ** -0.5 if part in ("up", "down") else None
    if texts or leaf == "scale":
        return None
    return fan_in[part] ** -0.5 if part in fan_in else (6 / (4 * tower.width)) ** 0.5


def parameter_shapes(config):
    """The shape of every parameter of a ClipConfig, by its path in the tree."""
    text, vision, projection = config.text, config.vision, config.projection
    params = {
        "text": {
            "token": {"embedding": (text.vocabulary, text.width)},
            "position": {"embedding": (text.context, text.width)},
            "blocks": [block_shapes(text)] * text.layers,
        },
        "vision": {
            "patch": {"kernel": (*(vision.patch,) * 2, vision.channels, vision.width)},
            "class_token": {"embedding": (vision.width,)},
            "position": {"embedding": (vision.length, vision.width)},
            "norm_before": norm_shapes(vision),
            "blocks": [block_shapes(vision)] * vision.layers,
        },
    }
    for name, tower in (("text", text), ("vision", vision)):
        params[name] |= {"norm": norm_shapes(tower)}
        params[name] |= {"projection": {"kernel": (tower.width, projection)}}
    return tree.flatten(params | {"logit_scale": (1,)})


def norm_shapes(tower):
    """The shapes of a `layer_norm`'s parameters."""
    return {"scale": (tower.width,), "bias": (tower.width,)}


def flops_per_example(config):
    """Floating-point operations of one training step, forward and backward, for each pair.

        Σ over both towers of  6 (N T + M) + 12 L D T²

    As `gpt.flops_per_token`, for all T tokens of a text filled up and of an image: N weights of the
    blocks and the patch embedding, M of the norm and projection of what was read.  The scores, 6 P
    for each other pair of the batch, are left out.
    Source: Chowdhery et al. 2022, "PaLM", appendix B.
    """
    shapes = parameter_shapes(config)

    def of(name):
        own = {p.partition(".")[2]: s for p, s in shapes.items() if p.startswith(f"{name}.")}
        return training_flops(own, getattr(config, name), once=("norm", "projection"))

    return of("text") + of("vision")


def check_batch(config, *, tokens, images):
    """Raise DtypeError or InputError for a batch that `clip_loss` cannot be trained on."""
    check_tokens(tokens, config.text)
    check_ends(tokens, config.text.end)
    check_images(images, config.vision)
    if len(tokens) != len(images):
        raise InputError(
            f"tokens has shape {tokens.shape}, images {images.shape}; give a text for each image"
        )


def check_ends(tokens, end):
    """Raise InputError for a text (B, T) without an end, where there is a token for it."""
    if end is None:
        return
    missing = np.flatnonzero((tokens != end).all(axis=1))
    if missing.size:
        raise InputError(
            f"tokens[{missing[0]}] has no {end}, which ends a text; give texts as the tokenizer "
            "ends them"
        )


def check_prompts(prompts):
    """Raise DtypeError or InputError unless prompts are integers (V, templates, T)."""
    check_integers(prompts, name="prompts")
    if prompts.ndim != 3 or 0 in prompts.shape:
        raise InputError(f"prompts has shape {tuple(prompts.shape)}; give (V, templates, T)")
