"""The sizes of a GPT-1, the weights that its training starts from, and its cost."""

from dataclasses import dataclass

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.attention import check_heads
from reference.layers.dropout import check_rate
from reference.layers.embedding import check_ids, check_integers
from reference.models.gpt_sizes import check_initialization

__all__ = []

EMBEDDINGS = ("separate", "shared")


@dataclass(frozen=True)
class GPT1Config:
    """The sizes of a GPT-1.  Raises InputError for sizes that make no model."""

    vocabulary: int  # with the special tokens of fine-tuning, if there are any
    context: int  # the longest sequence: rows of the position table
    layers: int
    heads: int
    width: int  # D; the feed-forward's hidden width is 4 D
    dropout: float = 0.0
    embeddings: str = "separate"  # of tokens and positions; "shared": one table, see `gpt1`
    classes: int | None = None  # of a classifier to be fine-tuned; 1: a score for each choice

    def __post_init__(self):
        sizes = ["vocabulary", "context", "layers", "heads", "width"]
        for name in sizes + ["classes"] * (self.classes is not None):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{name} is {size!r}; give a positive integer")
        check_heads(self.width, self.heads)
        check_rate(self.dropout)
        if self.embeddings not in EMBEDDINGS:
            raise InputError(
                f"embeddings is {self.embeddings!r}; give one of {', '.join(EMBEDDINGS)}"
            )


# The published size: Radford et al. 2018, sec. 4.1, with the vocabulary of the released files.
PRESETS = {"gpt1": GPT1Config(40478, 512, layers=12, heads=12, width=768, dropout=0.1)}


def initial_params(config, *, key, initialization="paper", dtype=np.float32):
    """The weights that training starts from: normal numbers of the standard deviation 0.02 in
    kernels and both tables, 0 in biases.

    All initializations are the same here.  Drawn in float32 for every dtype.  Keys: those of
    `split(key, kernels and tables)`, in the order of `parameter_shapes`.
    Raises InputError for another initialization.
    Source: Radford et al. 2018, sec. 4.1; openai/finetune-transformer-lm, train.py.
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
    """The shape of every parameter of a GPT1Config, by its path in the tree."""
    width = config.width
    norm = {"scale": (width,), "bias": (width,)}

    def linear(inputs, outputs):
        return {"kernel": (inputs, outputs), "bias": (outputs,)}

    attention = {part: linear(width, width) for part in ("query", "key", "value", "out")}
    feed_forward = {"up": linear(width, 4 * width), "down": linear(4 * width, width)}
    block = {
        "attention": {"sublayer": attention, "norm": norm},
        "feed_forward": {"sublayer": feed_forward, "norm": norm},
    }
    params = {
        "token": {"embedding": (config.vocabulary, width)},
        "position": {"embedding": (config.context, width)},
        "blocks": [block] * config.layers,
    }
    if config.classes is not None:
        params["classifier"] = linear(width, config.classes)
    return tree.flatten(params)


def flops_per_token(config, length):
    """Floating-point operations of one step of pre-training, forward and backward, for each token.

        6 N + 12 L D T

    As `gpt.flops_per_token`.  N has the position table where the embeddings are shared, for its
    rows are scored too, and never the classifier.
    Source: Chowdhery et al. 2022, "PaLM", appendix B.
    """
    idle = ["classifier"] + (["position"] if config.embeddings == "separate" else [])
    shapes = parameter_shapes(config).items()
    weights = sum(int(np.prod(shape)) for path, shape in shapes if path.split(".")[0] not in idle)
    return 6 * weights + 12 * config.layers * config.width * length


def check_choices(config, tokens, labels, at, answers, *, values=True):
    """Raise DtypeError or InputError for a batch that no classifier can be fine-tuned on.

    Without `values`, only what shape and dtype say.
    """
    if config.classes is None:
        raise InputError("the config has no classes, so no classifier; give it some")
    for name, array in (("tokens", tokens), ("labels", labels), ("at", at), ("answers", answers)):
        check_integers(array, name=name)
    if tokens.ndim != 3 or 0 in tokens.shape:
        raise InputError(
            f"tokens has shape {tuple(tokens.shape)}; give (B, N, T), N texts of each example, "
            "none of them 0"
        )
    batch, number, length = tokens.shape
    for name, array, shape in (
        ("labels", labels, (batch, number, length)),
        ("at", at, (batch, number)),
        ("answers", answers, (batch,)),
    ):
        if tuple(array.shape) != shape:
            raise InputError(
                f"{name} has shape {tuple(array.shape)}, tokens {tuple(tokens.shape)}; give {shape}"
            )
    if values:
        check_ids(np.asarray(at), length, name="at")
        check_ids(np.asarray(answers), number * config.classes, name="answers")
