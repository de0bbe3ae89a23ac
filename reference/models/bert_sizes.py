"""The sizes of a BERT, the weights that its training starts from, and its cost."""

from dataclasses import dataclass, replace

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.attention import check_heads
from reference.layers.dropout import check_rate
from reference.models.bert_heads import ACTIVATIONS, CLASSES, HEADS, MASKED, head_shapes
from reference.models.gpt import check_initialization

__all__ = []


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT and its head.  Raises InputError for what makes no model."""

    vocabulary: int
    context: int  # the longest sequence: rows of the position table
    layers: int
    heads: int
    width: int  # D
    hidden: int  # F
    segments: int = 2  # kinds of segments: first and second part
    dropout: float = 0.1
    activation: str = "erf"  # GELU as in Hugging Face's code; "tanh": as in Google's
    epsilon: float = 1e-12  # of all norms
    head: str = "pretraining"  # one of HEADS
    labels: int | None = None  # classes that a head of CLASSES tells apart

    def __post_init__(self):
        for name in ("vocabulary", "context", "layers", "heads", "width", "hidden", "segments"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{name} is {size!r}; give a positive integer")
        check_heads(self.width, self.heads)
        check_rate(self.dropout)
        for name, allowed in (("activation", ACTIVATIONS), ("head", HEADS)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; give one of {', '.join(allowed)}"
                )
        if not 0 < self.epsilon < 1:
            raise InputError(f"epsilon is {self.epsilon!r}; give a small positive number")
        if self.head not in CLASSES and self.labels is not None:
            raise InputError(
                f"labels is {self.labels!r}, for which the head {self.head} has no use"
            )
        if self.head in CLASSES and not (isinstance(self.labels, int) and self.labels > 1):
            raise InputError(f"labels is {self.labels!r}; give the number of classes, 2 or more")

    @property
    def classifier_dropout(self):
        """That of the classifier: as everywhere."""
        return self.dropout


# The published sizes: Devlin et al. 2018, sec. 3, with the vocabularies of the released files; the
# smaller ones: Turc et al. 2019, "Well-read students learn better", table 1.
BASE = BertConfig(30522, 512, layers=12, heads=12, width=768, hidden=3072)
LARGE = BertConfig(30522, 512, layers=24, heads=16, width=1024, hidden=4096)
PRESETS = {
    "bert_base_uncased": BASE,
    "bert_base_cased": replace(BASE, vocabulary=28996),
    "bert_large_uncased": LARGE,
    "bert_large_cased": replace(LARGE, vocabulary=28996),
    "bert_tiny": replace(BASE, layers=2, heads=2, width=128, hidden=512),
    "bert_mini": replace(BASE, layers=4, heads=4, width=256, hidden=1024),
    "bert_small": replace(BASE, layers=4, heads=8, width=512, hidden=2048),
    "bert_medium": replace(BASE, layers=8, heads=8, width=512, hidden=2048),
}


def initial_params(config, *, key, initialization="paper", dtype=np.float32):
    """The weights that training starts from: normal numbers of the standard deviation 0.02, of
    which none is more than two of them from 0; biases are 0.

    What is cut off leaves a deviation of 0.0176.  The paper does not say; it is what Google's code
    does, for which all initializations are the same here.  (Hugging Face's cuts nothing off.)
    Drawn in float32 for every dtype by `random.truncated_normal`, the distribution's inverse.
    Keys: those of `split(key, kernels and tables)`, in the order of `parameter_shapes`.
    Raises InputError for another initialization.
    Source: google-research/bert, modeling.py (create_initializer).
    """
    check_initialization(initialization)
    shapes = parameter_shapes(config)
    drawn = [path for path in shapes if path.endswith(("kernel", "embedding"))]
    keys = dict(zip(drawn, random.split(key, len(drawn)), strict=True))

    def draw(path, shape):
        if path not in keys:
            return np.full(shape, path.endswith("scale"), dtype)
        numbers = random.truncated_normal(keys[path], -2, 2, shape)
        return (numbers * np.float32(0.02)).astype(dtype)

    return tree.unflatten({path: draw(path, shape) for path, shape in shapes.items()})


def parameter_shapes(config):
    """The shape of every parameter of a BertConfig, by its path in the tree."""
    width, hidden = config.width, config.hidden
    norm = {"scale": (width,), "bias": (width,)}

    def linear(inputs, outputs):
        return {"kernel": (inputs, outputs), "bias": (outputs,)}

    attention = {part: linear(width, width) for part in ("query", "key", "value", "out")}
    thought = {"up": linear(width, hidden), "down": linear(hidden, width)}
    block = {
        "attention": {"sublayer": attention, "norm": norm},
        "feed_forward": {"sublayer": thought, "norm": norm},
    }
    params = {
        "token": {"embedding": (config.vocabulary, width)},
        "position": {"embedding": (config.context, width)},
        "segment": {"embedding": (config.segments, width)},
        "norm": norm,
        "blocks": [block] * config.layers,
    }
    return tree.flatten(params | head_shapes(config))


def flops_per_token(config, length):
    """Floating-point operations of one training step, forward and backward, for each token.

        6 (N + N₁ / T) + 12 L D T

    As `gpt.flops_per_token`; N has the token table only if a head scores tokens by it, and not the
    tables of positions and segments.  N₁ are the weights that only the first position meets: the
    pooler and what reads it.
    Source: Chowdhery et al. 2022, "PaLM", appendix B.
    """
    once = ["pooler", "next_sentence"]
    once += ["classifier"] if config.head == "sequence_classification" else []
    idle = ["position", "segment"] + ([] if config.head in MASKED else ["token"])
    every = first = 0
    for path, shape in parameter_shapes(config).items():
        part, size = path.split(".")[0], int(np.prod(shape))
        every += size * (part not in once + idle)
        first += size * (part in once)
    return 6 * (every + first / length) + 12 * config.layers * config.width * length
