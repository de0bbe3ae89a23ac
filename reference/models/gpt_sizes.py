"""The sizes of a GPT, the weights that its training starts from, and its cost."""

import math
from dataclasses import dataclass

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.attention import check_heads
from reference.layers.dropout import check_rate
from reference.models.decoder_batches import check_head
from reference.models.decoder_heads import head_flops, head_shapes

__all__ = []

INITIALIZATIONS = ("paper", "released", "scaled")


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT.  Raises InputError for sizes that make no model."""

    vocabulary: int
    context: int  # the longest sequence: rows of the position table
    layers: int
    heads: int
    width: int  # D; the feed-forward's hidden width is 4 D, as in every GPT
    dropout: float = 0.0
    head_width: int | None = None  # K; None: D / H
    band: int | None = None  # every second block sees the last so many positions alone, as in GPT-3
    head: str = "language"  # one of decoder_batches.HEADS
    labels: int | None = None  # classes that a head of them tells apart
    classifier_dropout: float = 0.1  # of the head token_classification alone, as Hugging Face's

    def __post_init__(self):
        sizes = ["vocabulary", "context", "layers", "heads", "width"]
        sizes += [name for name in ("head_width", "band") if getattr(self, name) is not None]
        for name in sizes:
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{name} is {size!r}; give a positive integer")
        if self.head_width is None:
            check_heads(self.width, self.heads)
        check_rate(self.dropout)
        check_rate(self.classifier_dropout)
        check_head(self.head, self.labels)

    @property
    def attention_width(self):
        """H K, of all heads together: what queries, keys and values have."""
        return self.heads * self.head_width if self.head_width else self.width


# The published sizes (Radford et al. 2019, table 2, with the heads of the released checkpoints;
# dropout as in Hugging Face's config), and three for a processor (those of minGPT).
PRESETS = {
    "gpt2": GPTConfig(50257, 1024, layers=12, heads=12, width=768, dropout=0.1),
    "gpt2_medium": GPTConfig(50257, 1024, layers=24, heads=16, width=1024, dropout=0.1),
    "gpt2_large": GPTConfig(50257, 1024, layers=36, heads=20, width=1280, dropout=0.1),
    "gpt2_xl": GPTConfig(50257, 1024, layers=48, heads=25, width=1600, dropout=0.1),
    "nano": GPTConfig(1024, 64, layers=3, heads=3, width=48),
    "micro": GPTConfig(1024, 128, layers=4, heads=4, width=128),
    "mini": GPTConfig(1024, 256, layers=6, heads=6, width=192),
}


def initial_params(config, *, key, initialization="paper", dtype=np.float32):
    """The weights that training starts from: normal numbers, and none in biases.

    Kernels and token embeddings have the standard deviation 0.02, positions 0.01, as in OpenAI's
    code (Hugging Face: 0.02 for both).  "paper" divides it by √(2 L) for the kernels that write
    into the residual stream, whose 2 L terms then sum to the same size at any depth; "released",
    the code, does not.  "scaled" has that of "paper" for the width of GPT-2, 768, and for another D
    √(768 / D) times as much in all kernels: sums over D features then keep their size, and a narrow
    model learns much faster.
    The kernel of a head has 0.02 in all of them, as in Hugging Face's code.
    Drawn in float32 for every dtype.  Keys: block l's is fold_in(key, l), split in the order query,
    key, value, out, up, down; the token table's fold_in(key, L), the position table's fold_in(key,
    L + 1), a head's fold_in(key, L + 2).
    Raises InputError for another initialization.
    Source: Radford et al. 2019, sec. 2.3; openai/gpt-2, src/model.py.  "scaled" as Glorot & Bengio
    2010, eq. 12, with the factor that is theirs.
    """
    check_initialization(initialization)
    shapes, layers = parameter_shapes(config), config.layers
    kernel_std = 0.02 * (768 / config.width) ** 0.5 if initialization == "scaled" else 0.02
    residual_std = 0.02 if initialization == "released" else kernel_std / (2 * layers) ** 0.5
    tables, heads = {"token": 0.02, "position": 0.01}, dict.fromkeys(("classifier", "spans"), 0.02)
    std = tables | heads | {"out": residual_std, "down": residual_std}
    kernels = [path for path in shapes if path.startswith("blocks") and path.endswith("kernel")]
    block_keys = [random.split(random.fold_in(key, layer), 6) for layer in range(layers)]
    keys = dict(zip(kernels, np.concatenate(block_keys), strict=True)) | {
        "token.embedding": random.fold_in(key, layers),
        "position.embedding": random.fold_in(key, layers + 1),
        "classifier.kernel": random.fold_in(key, layers + 2),
        "spans.kernel": random.fold_in(key, layers + 2),
    }

    def draw(path, shape):
        part, leaf = path.split(".")[-2:]
        if leaf in ("scale", "bias"):
            return np.full(shape, leaf == "scale", dtype)
        deviation = np.float32(std.get(part, kernel_std))
        return (random.normal(keys[path], shape) * deviation).astype(dtype)

    return tree.unflatten({path: draw(path, shape) for path, shape in shapes.items()})


def parameter_shapes(config):
    """The shape of every parameter of a GPTConfig, by its path in the tree."""
    width = config.width
    norm = {"scale": (width,), "bias": (width,)}

    def linear(inputs, outputs):
        return {"kernel": (inputs, outputs), "bias": (outputs,)}

    wide = config.attention_width
    attention = {part: linear(width, wide) for part in ("query", "key", "value")}
    attention |= {"out": linear(wide, width)}
    feed_forward = {"up": linear(width, 4 * width), "down": linear(4 * width, width)}
    block = {
        "attention": {"norm": norm, "sublayer": attention},
        "feed_forward": {"norm": norm, "sublayer": feed_forward},
    }
    params = {
        "token": {"embedding": (config.vocabulary, width)},
        "position": {"embedding": (config.context, width)},
        "blocks": [block] * config.layers,
        "norm": norm,
    }
    return tree.flatten(params | head_shapes(config))


def flops_per_token(config, length):
    """Floating-point operations of one training step, forward and backward, for each token.

        6 N + 12 H K Σₗ Sₗ,   Sₗ = T, or min(T, band) in a banded block

    Each of N weights takes part in a multiplication and an addition, once forward and twice
    backward; attention's two products over S positions come to 12 H K S a layer (of the S = T of a
    dense one, the causal half is counted whole).  N leaves out the position table, which multiplies
    nothing;  and so does the token table where the head is not that of language: then 6 N₁ come to
    it for the head's N₁ weights, and 6 N₁ / T where it reads the last token alone.
    Source: Chowdhery et al. 2022, "PaLM", appendix B, where H K = D and all layers are dense; the
    band counts as what it shows.
    """
    idle = ("position", "classifier", "spans")
    idle += () if config.head == "language" else ("token",)
    weights = sum(
        math.prod(shape)
        for path, shape in parameter_shapes(config).items()
        if not path.startswith(idle)
    )
    banded = 0 if config.band is None else config.layers // 2
    seen = (config.layers - banded) * length + banded * min(length, config.band or length)
    return 6 * weights + head_flops(config, length) + 12 * config.attention_width * seen


def check_initialization(initialization):
    """Raise InputError for one that no model has."""
    if initialization not in INITIALIZATIONS:
        raise InputError(
            f"initialization is {initialization!r}; give one of {', '.join(INITIALIZATIONS)}"
        )
