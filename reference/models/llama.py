"""Llama and its relatives: the decoder that today's open language models are made of.

GPT's stack with four parts exchanged: the norm does not subtract the mean, positions turn queries
and keys, the feed-forward is gated, and several heads share their keys and values.  No biases.

What GPT-4 is made of was never published (OpenAI 2023: no architecture, sizes or data).  Where the
parts of a model of its time are known, they are those of this family.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.attention import check_heads, multi_head_attention
from reference.layers.block import transformer_block
from reference.layers.embedding import embed, unembed
from reference.layers.feed_forward import swiglu
from reference.layers.linear import linear
from reference.layers.loss import cross_entropy
from reference.layers.mask import both, causal, sliding_window
from reference.layers.mask import documents as mask_of_documents
from reference.layers.normalization import rms_norm
from reference.layers.recompute import recomputed
from reference.layers.residual import pre_norm
from reference.layers.rotary import (
    check_frequency_arguments,
    llama3,
    rotary_frequencies,
    rotary_halves,
)
from reference.models.gpt import check_batch as check_batch  # handed on: of any decoder
from reference.models.gpt import check_documents, check_initialization, check_tokens

__all__ = ["llama", "llama_loss"]


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


def llama(params, *, tokens, config, documents=None, recompute=False, key=None):
    """Score every token of the vocabulary as the next one, at every position.

        x₀ = E[tokens],   xₗ = block(xₗ₋₁),   logits = rms_norm(x_L) W_output

    params: token (embedding), blocks (a list), norm, and output (a kernel) unless tied: then the
    token table serves.  tokens (B, T), integers in [0, V) -> logits (B, T, V).
    documents, recompute: as in `gpt`.  key: of no use, for these models were published without
    dropout.
    Raises DtypeError and InputError for tokens that are no batch of sequences of the vocabulary, or
    longer than the context.
    Source: Touvron et al. 2023, "LLaMA", sec. 2.2;  grouped queries: Touvron et al. 2023, "Llama
    2";  the scaling: Llama Team 2024;  the window: Jiang et al. 2023, "Mistral 7B".

    Backward: block by block, from the last to the first.
    """
    check_tokens(tokens, config)
    check_documents(documents, tokens)
    x, token_backward = embed(params["token"], ids=tokens)
    block_backwards, block_of = (
        [],
        recomputed(transformer_block) if recompute else transformer_block,
    )
    options = block_options(config, documents)
    for block in params["blocks"]:
        x, block_backward = block_of(block, x, **options)
        block_backwards.append(block_backward)
    normed, norm_backward = rms_norm(params["norm"], x, epsilon=config.epsilon)
    output = partial(unembed, params["token"]) if config.tied else partial(linear, params["output"])
    logits, output_backward = output(normed)

    def backward(dlogits):
        doutput, dnormed = output_backward(dlogits)
        dnorm, dx = norm_backward(dnormed)
        dblocks = []
        for block_backward in reversed(block_backwards):
            dblock, dx, _ = block_backward(dx)
            dblocks.append(dblock)
        dtoken = token_backward(dx)
        dparams = {"token": dtoken, "blocks": dblocks[::-1], "norm": dnorm}
        if config.tied:
            return dparams | {"token": tree.map(np.add, dtoken, doutput)}
        return dparams | {"output": doutput}

    return logits, backward


def llama_loss(params, *, tokens, labels, config, ignore=-100, **options):
    """How surprised the model is, in nats a token, by what did come next.

        loss = cross_entropy(llama(tokens), labels),   labelsₜ = tokensₜ₊₁

    params, tokens (B, T) and options as of `llama`;  labels (B, T), `ignore` where nothing is to be
    learnt -> a scalar.  Raises what `llama` and `cross_entropy` raise.
    Source: Touvron et al. 2023, sec. 2.

    Backward: the chain rule.
    """
    logits, llama_backward = llama(params, tokens=tokens, config=config, **options)
    loss, cross_entropy_backward = cross_entropy(logits, labels=labels, ignore=ignore)
    return loss, lambda dloss: llama_backward(cross_entropy_backward(dloss))


def block_options(config, documents=None):
    """What makes a `transformer_block` a Llama's."""
    seen = causal if config.window is None else sliding_window(config.window)
    attention = partial(
        multi_head_attention,
        heads=config.heads,
        groups=config.groups,
        mask=seen if documents is None else both(seen, mask_of_documents(documents)),
        rotary=partial(rotary_halves, frequencies=frequencies_of(config)),
    )
    wiring = partial(pre_norm, norm=partial(rms_norm, epsilon=config.epsilon))
    return {"attention": attention, "feed_forward": swiglu, "wiring": wiring}


def frequencies_of(config):
    """The rotary frequencies of a config, (K/2,)."""
    plain = rotary_frequencies(config.head_width, base=config.base)
    if config.scaling is None:
        return plain
    scaling = config.scaling
    return llama3(
        plain,
        factor=scaling.factor,
        low_frequency_factor=scaling.low_frequency_factor,
        high_frequency_factor=scaling.high_frequency_factor,
        context=scaling.context,
    )


def initial_params(config, *, key, initialization="paper", dtype=np.float32):
    """The weights that training starts from: normal numbers of the standard deviation 0.02.

    The papers do not say; it is that of Hugging Face's settings, and all initializations are the
    same here.  Drawn in float32 for every dtype.  Keys: those of `split(key, kernels and tables)`,
    in the order of `parameter_shapes`.
    Raises InputError for another initialization.
    """
    check_initialization(initialization)
    shapes = parameter_shapes(config)
    drawn = [path for path in shapes if not path.endswith("scale")]
    keys = dict(zip(drawn, random.split(key, len(drawn)), strict=True))

    def draw(path, shape):
        if path.endswith("scale"):
            return np.ones(shape, dtype)
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
    output = {} if config.tied else {"output": {"kernel": (width, config.vocabulary)}}
    return tree.flatten(params | output)


def flops_per_token(config, length):
    """Floating-point operations of one training step, forward and backward, for each token.

        6 N + 12 L H K T

    As `gpt.flops_per_token`; N leaves out an input table that is not the output layer, too: it
    multiplies nothing.  Source: Chowdhery et al. 2022, "PaLM", appendix B.
    """
    shapes = parameter_shapes(config)
    weights = sum(int(np.prod(shape)) for shape in shapes.values())
    idle = 0 if config.tied else config.vocabulary * config.width
    wide = config.heads * config.head_width
    return 6 * (weights - idle) + 12 * config.layers * wide * length
