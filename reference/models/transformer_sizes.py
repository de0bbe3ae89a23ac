"""The sizes of a Transformer of 2017, the weights that its training starts from, and its cost."""

import math
from dataclasses import dataclass, replace

import numpy as np

from reference import random, tree
from reference.errors import DtypeError, InputError
from reference.layers.attention import check_heads
from reference.layers.dropout import check_rate
from reference.layers.embedding import check_ids
from reference.layers.loss import check_smoothing
from reference.layers.position import check_waves
from reference.models.gpt import check_initialization, check_tokens

__all__ = []

CHOICES = {  # the options of a config that are names
    "positions": ("interleaved", "concatenated", "marian"),
    "wiring": ("post", "pre"),
    "activation": ("relu", "silu", "gelu"),
}


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a Transformer.  Raises InputError for sizes that make no model."""

    vocabulary: int  # of source and target together
    context: int  # the longest sequence, for checks only: positions are computed
    layers: int  # of the encoder, and as many of the decoder
    heads: int
    width: int  # D
    hidden: int  # F
    dropout: float = 0.1  # of each sub-layer's output, and of the sums with positions
    attention_dropout: float = 0.0  # of attention's weights: not in the paper; later settings: 0.1
    smoothing: float = 0.1  # of the labels
    positions: str = "interleaved"  # as printed;  "concatenated": tensor2tensor;  "marian"
    wiring: str = "post"  # as printed;  "pre": tensor2tensor soon after
    activation: str = "relu"  # as printed;  "silu" and "gelu" in models of Marian's form
    attention_bias: bool = False  # in attention's projections: as printed, none;  Marian: yes
    output_bias: bool = False  # of the scores: as printed, none;  Marian: yes
    epsilon: float = 1e-6  # of the norms, as tensor2tensor's;  Marian: 1e-5
    pad: int = 0  # fills batches up, and begins targets as in Marian (tensor2tensor: a zero vector)
    end: int = 1  # ends each target

    def __post_init__(self):
        for name in ("vocabulary", "context", "layers", "heads", "width", "hidden"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{name} is {size!r}; give a positive integer")
        check_heads(self.width, self.heads)
        check_rate(self.dropout)
        check_rate(self.attention_dropout)
        check_smoothing(self.smoothing)
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; give one of {', '.join(allowed)}")
        check_waves(self.width, "tensor2tensor" if self.positions == "concatenated" else "paper")
        if not 0 < self.epsilon < 1:
            raise InputError(f"epsilon is {self.epsilon!r}; give a small positive number")
        for name in ("pad", "end"):
            token = getattr(self, name)
            if not isinstance(token, int) or not 0 <= token < self.vocabulary:
                raise InputError(
                    f"{name} is {token!r}; give a token of the vocabulary [0, {self.vocabulary})"
                )


# The published sizes: Vaswani et al. 2017, table 3, rows base, big, A and C (D is of other dropout
# and smoothing, B and E of another form), with a vocabulary of "about 37000".  Printed for base and
# big: 65 and 213 million parameters; ours have 63 and 214.  The context is tensor2tensor's
# max_length.
BASE = TransformerConfig(37000, 256, layers=6, heads=8, width=512, hidden=2048)
PRESETS = {
    "base": BASE,
    "big": replace(BASE, heads=16, width=1024, hidden=4096, dropout=0.3),
    "base_1_head": replace(BASE, heads=1),
    "base_4_heads": replace(BASE, heads=4),
    "base_16_heads": replace(BASE, heads=16),
    "base_32_heads": replace(BASE, heads=32),
    "base_2_layers": replace(BASE, layers=2),
    "base_4_layers": replace(BASE, layers=4),
    "base_8_layers": replace(BASE, layers=8),
    "base_width_256": replace(BASE, width=256),
    "base_width_1024": replace(BASE, width=1024),
    "base_hidden_1024": replace(BASE, hidden=1024),
    "base_hidden_4096": replace(BASE, hidden=4096),
}


def initial_params(config, *, key, initialization="paper", dtype=np.float32):
    """The weights that training starts from.  The paper does not say; these are tensor2tensor's.

        kernels ~ U(-a, a),  a = √(6 / (inputs + outputs));   table ~ N(0, 1/D);   no biases

    The kernels' is "uniform unit scaling", also named after Xavier Glorot; with √D the table's rows
    enter with variance 1.  All initializations are the same here.  Drawn in float32 for every
    dtype.  Keys: those of `split(key, kernels and the table)`, in the order of `parameter_shapes`.
    Raises InputError for another initialization.
    Source: tensor2tensor, models/transformer.py and layers/modalities.py; Glorot & Bengio 2010,
    eq. 16.
    """
    check_initialization(initialization)
    shapes = parameter_shapes(config)
    drawn = [path for path in shapes if path.endswith(("kernel", "embedding"))]
    keys = dict(zip(drawn, random.split(key, len(drawn)), strict=True))

    def draw(path, shape):
        if path not in keys:
            return np.full(shape, path.endswith("scale"), dtype)
        if path.endswith("embedding"):
            return (random.normal(keys[path], shape) * np.float32(shape[1] ** -0.5)).astype(dtype)
        limit = math.sqrt(6 / sum(shape))
        return random.uniform(keys[path], shape, low=-limit, high=limit).astype(dtype)

    return tree.unflatten({path: draw(path, shape) for path, shape in shapes.items()})


def parameter_shapes(config):
    """The shape of every parameter of a TransformerConfig, by its path in the tree."""
    width, hidden = config.width, config.hidden
    norm = {"scale": (width,), "bias": (width,)}

    def linear(inputs, outputs, bias=True):
        return {"kernel": (inputs, outputs)} | ({"bias": (outputs,)} if bias else {})

    def wired(sublayer):
        return {"norm": norm, "sublayer": sublayer}

    parts = ("query", "key", "value", "out")
    attention = wired({part: linear(width, width, config.attention_bias) for part in parts})
    think = wired({"up": linear(width, hidden), "down": linear(hidden, width)})
    encoder = {"attention": attention, "feed_forward": think}
    decoder = {"attention": attention, "cross_attention": attention, "feed_forward": think}
    last = {"norm": norm} if config.wiring == "pre" else {}
    params = {
        "token": {"embedding": (config.vocabulary, width)},
        "encoder": {"blocks": [encoder] * config.layers} | last,
        "decoder": {"blocks": [decoder] * config.layers} | last,
    }
    output = {"output": {"bias": (config.vocabulary,)}} if config.output_bias else {}
    return tree.flatten(params | output)


def flops_per_example(config, source, target):
    """Floating-point operations of one training step, forward and backward, for a pair of
    sentences of so many tokens.

        6 (N_source S + N_target T) + 12 L D (S² + T² + S T)

    Each weight takes part in a multiplication and an addition for each token, once forward and
    twice backward.  N_source: the encoder's kernels, and those of the decoder that make keys and
    values of the memory;  N_target: the decoder's others, and the table as the output layer.  The
    rest is attention's two products, of which the causal half is counted whole.
    Source: Chowdhery et al. 2022, "PaLM", appendix B, counted for each side.
    """
    square, think = config.width**2, 2 * config.width * config.hidden
    of_source = config.layers * (4 * square + think + 2 * square)
    of_target = config.layers * (4 * square + 2 * square + think)
    of_target += config.vocabulary * config.width
    pairs = source**2 + target**2 + source * target
    weights = 6 * (of_source * source + of_target * target)
    return weights + 12 * config.layers * config.width * pairs


def check_source(source, source_kept, config, *, values=True):
    """Raise DtypeError or InputError for a source that this model cannot read.

    Without `values`, only what shape and dtype say, as in `check_tokens`.
    """
    check_tokens(source, config, name="source", values=values)
    check_kept(source_kept, tuple(source.shape), name="source")


def check_kept(source_kept, shape, *, name):
    """Raise DtypeError or InputError unless there is a boolean for each place, or none for any."""
    if source_kept is None:
        return
    dtype = getattr(source_kept, "dtype", None)
    if not np.issubdtype(dtype, np.bool_):
        raise DtypeError(
            f"source_kept is {'of ' + str(dtype) if dtype is not None else 'no array'}; give "
            "booleans, True where there is a token"
        )
    if tuple(source_kept.shape) != shape:
        raise InputError(
            f"source_kept has shape {tuple(source_kept.shape)}, {name} {shape}; give one for each "
            "token of the source"
        )


def check_memory(memory, tokens, source_kept, config):
    """Raise InputError unless there is a memory for each target."""
    shape = tuple(memory.shape)
    if len(shape) != 3 or shape[::2] != (len(tokens), config.width):
        raise InputError(
            f"memory has shape {shape}, tokens {tuple(tokens.shape)}; give (B, S, {config.width}), "
            "with as many rows"
        )
    check_kept(source_kept, shape[:2], name="memory")


def check_pairs(source, tokens, source_kept, config, *, values=True):
    """Raise DtypeError or InputError for pairs that this model cannot read; values as above."""
    check_source(source, source_kept, config, values=values)
    check_tokens(tokens, config, values=values)
    if len(tokens) != len(source):
        raise InputError(
            f"source has shape {tuple(source.shape)}, tokens {tuple(tokens.shape)}; give as many "
            "rows of each"
        )


def check_batch(config, *, source, tokens, labels, source_kept=None):
    """Raise DtypeError or InputError for a batch that `transformer_loss` cannot be trained on."""
    check_pairs(source, tokens, source_kept, config)
    check_ids(labels, config.vocabulary, name="labels", ignore=-100)
    if labels.shape != tokens.shape:
        raise InputError(
            f"labels has shape {labels.shape}, tokens {tokens.shape}; give a label for each token"
        )
