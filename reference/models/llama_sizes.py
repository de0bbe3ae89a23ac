"""The sizes of a Llama, the weights that its training starts from, and its cost."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.attention import check_heads
from reference.layers.dropout import check_rate
from reference.layers.mask import sliding_window
from reference.layers.rotary import check_frequency_arguments
from reference.models.decoder_batches import check_head
from reference.models.decoder_heads import head_flops, head_shapes
from reference.models.gpt_sizes import check_initialization

__all__ = []


@dataclass(frozen=True)
class Scaling:
    """Llama 3's stretching of rotary positions to a longer context: see `rotary.llama3`."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    context: int  # that of training, before


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama.  Raises InputError for sizes that make no model."""

    vocabulary: int
    context: int  # the longest sequence: of training, for no table ends here
    layers: int
    heads: int
    groups: int  # heads of keys and values, each of which serves heads / groups
    width: int  # D
    hidden: int  # F
    head_width: int | None = None  # K; None: D / H
    base: float = 10000.0  # of the rotary frequencies
    scaling: Scaling | None = None
    window: int | None = None  # the last so many positions are seen (Mistral); None: all
    epsilon: float = 1e-5
    tied: bool = False  # the output layer is the token table
    head: str = "language"  # one of decoder_batches.HEADS
    labels: int | None = None  # classes that a head of them tells apart
    classifier_dropout: float = 0.1  # of the head token_classification alone, as Hugging Face's

    def __post_init__(self):
        for name in ("vocabulary", "context", "layers", "heads", "groups", "width", "hidden"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{name} is {size!r}; give a positive integer")
        if self.head_width is None:
            check_heads(self.width, self.heads, self.groups)
            object.__setattr__(self, "head_width", self.width // self.heads)
        check_heads(self.heads * self.head_width, self.heads, self.groups)
        if isinstance(self.scaling, dict):  # as JSON has it
            object.__setattr__(self, "scaling", Scaling(**self.scaling))
        if self.window is not None:
            sliding_window(self.window)
        if not 0 < self.epsilon < 1:
            raise InputError(f"epsilon is {self.epsilon!r}; give a small positive number")
        check_frequency_arguments(self.head_width, self.base)
        check_rate(self.classifier_dropout)
        check_head(self.head, self.labels)


LLAMA3 = partial(LlamaConfig, 128256, 8192, base=500000.0)
LLAMA31 = partial(LLAMA3, scaling=Scaling(8.0, 1.0, 4.0, 8192))
# The published sizes: Touvron et al. 2023a, table 2; 2023b, table 1; Llama Team 2024, table 3, and
# the released settings of what the papers leave out; Jiang et al. 2023, table 1.
PRESETS = {
    "llama_7b": LlamaConfig(32000, 2048, 32, 32, 32, 4096, 11008, epsilon=1e-6),
    "llama_13b": LlamaConfig(32000, 2048, 40, 40, 40, 5120, 13824, epsilon=1e-6),
    "llama_33b": LlamaConfig(32000, 2048, 60, 52, 52, 6656, 17920, epsilon=1e-6),
    "llama_65b": LlamaConfig(32000, 2048, 80, 64, 64, 8192, 22016, epsilon=1e-6),
    "llama2_7b": LlamaConfig(32000, 4096, 32, 32, 32, 4096, 11008),
    "llama2_13b": LlamaConfig(32000, 4096, 40, 40, 40, 5120, 13824),
    "llama2_70b": LlamaConfig(32000, 4096, 80, 64, 8, 8192, 28672),
    "llama3_8b": LLAMA3(32, 32, 8, 4096, 14336),
    "llama3_70b": LLAMA3(80, 64, 8, 8192, 28672),
    "llama3.1_8b": replace(LLAMA31(32, 32, 8, 4096, 14336), context=131072),
    "llama3.1_70b": replace(LLAMA31(80, 64, 8, 8192, 28672), context=131072),
    "llama3.1_405b": replace(LLAMA31(126, 128, 8, 16384, 53248), context=131072),
    "llama3.2_1b": LlamaConfig(
        *(128256, 131072, 16, 32, 8, 2048, 8192),
        base=500000.0,
        scaling=Scaling(32.0, 1.0, 4.0, 8192),
        tied=True,
    ),
    "llama3.2_3b": LlamaConfig(
        *(128256, 131072, 28, 24, 8, 3072, 8192),
        base=500000.0,
        scaling=Scaling(32.0, 1.0, 4.0, 8192),
        tied=True,
    ),
    "mistral_7b": LlamaConfig(32000, 32768, 32, 32, 8, 4096, 14336, window=4096),
    "llama_micro": LlamaConfig(1024, 128, 4, 4, 2, 128, 344),  # ours, for a processor
}


def initial_params(config, *, key, initialization="paper", dtype=np.float32):
    """The weights that training starts from: normal numbers of the standard deviation 0.02.

    The papers do not say; it is that of Hugging Face's settings, and all initializations are the
    same here.  Biases of a head are 0.  Drawn in float32 for every dtype.  Keys: those of
    `split(key, kernels and tables)`, in the order of `parameter_shapes`.
    Raises InputError for another initialization.
    """
    check_initialization(initialization)
    shapes = parameter_shapes(config)
    drawn = [path for path in shapes if path.endswith(("kernel", "embedding"))]
    keys = dict(zip(drawn, random.split(key, len(drawn)), strict=True))

    def draw(path, shape):
        if path not in keys:
            return np.full(shape, path.endswith("scale"), dtype)
        return (random.normal(keys[path], shape) * np.float32(0.02)).astype(dtype)

    return tree.unflatten({path: draw(path, shape) for path, shape in shapes.items()})


def parameter_shapes(config):
    """The shape of every parameter of a LlamaConfig, by its path in the tree."""
    width, hidden, wide = config.width, config.hidden, config.heads * config.head_width
    narrow = config.groups * config.head_width
    norm = {"scale": (width,)}
    attention = {"query": (width, wide), "key": (width, narrow), "value": (width, narrow)}
    attention |= {"out": (wide, width)}
    feed_forward = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    block = {
        name: {"norm": norm, "sublayer": {n: {"kernel": shape} for n, shape in kernels.items()}}
        for name, kernels in (("attention", attention), ("feed_forward", feed_forward))
    }
    params = {
        "token": {"embedding": (config.vocabulary, width)},
        "blocks": [block] * config.layers,
        "norm": norm,
    }
    if config.head == "language" and not config.tied:
        params["output"] = {"kernel": (width, config.vocabulary)}
    return tree.flatten(params | head_shapes(config))


def flops_per_token(config, length):
    """Floating-point operations of one training step, forward and backward, for each token.

        6 N + 12 L H K T

    As `gpt.flops_per_token`, with other heads too; N leaves out an input table that is not the
    output layer: it multiplies nothing.
    Source: Chowdhery et al. 2022, "PaLM", appendix B.
    """
    idle = ("classifier", "spans")
    idle += () if config.head == "language" and config.tied else ("token",)
    weights = sum(
        int(np.prod(shape))
        for path, shape in parameter_shapes(config).items()
        if not path.startswith(idle)
    )
    wide = config.heads * config.head_width
    return 6 * weights + head_flops(config, length) + 12 * config.layers * wide * length
