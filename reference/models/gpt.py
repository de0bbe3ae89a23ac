"""GPT: a stack of causal pre-norm blocks that predicts the next token."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.layers.attention import check_heads, multi_head_attention
from reference.layers.block import transformer_block
from reference.layers.dropout import check_rate, dropout
from reference.layers.embedding import check_ids, check_integers, embed, unembed
from reference.layers.loss import cross_entropy
from reference.layers.mask import both, causal, places
from reference.layers.mask import documents as mask_of_documents
from reference.layers.normalization import layer_norm
from reference.layers.position import check_length, learned_position
from reference.layers.recompute import recomputed

__all__ = ["gpt", "gpt_loss"]

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

    def __post_init__(self):
        for name in ("vocabulary", "context", "layers", "heads", "width"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{name} is {size!r}; give a positive integer")
        check_heads(self.width, self.heads)
        check_rate(self.dropout)


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


def gpt(params, *, tokens, config, documents=None, recompute=False, key=None):
    """Score every token of the vocabulary as the next one, at every position.

        x₀ = dropout(E[tokens] + P),   xₗ = block(xₗ₋₁),   logits = norm(x_L) Eᵀ

    params: token and position (embeddings), blocks (a list), norm.
    tokens (B, T), integers in [0, V) -> logits (B, T, V).  With a key, dropout is on: block l's
    key is fold_in(key, l), the embeddings' fold_in(key, L).
    documents (B, T): a number for each token, where several texts are packed into a sequence: each
    is then read as if it were alone.  recompute: blocks keep only their input, see `recomputed`.
    Raises DtypeError and InputError for tokens that are no batch of sequences of the vocabulary, or
    longer than the context.
    Source: Radford et al. 2019, sec. 2.3; dropout: Radford et al. 2018, sec. 4.1.

    Backward: block by block, from the last to the first; the token table served at both ends, so
    its gradient is the sum of both uses.
    """
    check_tokens(tokens, config)
    check_documents(documents, tokens)
    embedded, token_backward = embed(params["token"], ids=tokens)
    own_places = None if documents is None else places(documents)
    placed, position_backward = learned_position(params["position"], embedded, places=own_places)
    embedding_key = None if key is None else random.fold_in(key, config.layers)
    x, embedding_dropout_backward = dropout(placed, rate=config.dropout, key=embedding_key)

    block_backwards = []
    block_of = recomputed(transformer_block) if recompute else transformer_block
    mask = causal if documents is None else both(causal, mask_of_documents(documents))
    attention = partial(multi_head_attention, heads=config.heads, mask=mask)
    for layer, block in enumerate(params["blocks"]):
        block_key = None if key is None else random.fold_in(key, layer)
        x, block_backward = block_of(
            block, x, attention=attention, rate=config.dropout, key=block_key
        )
        block_backwards.append(block_backward)

    normed, norm_backward = layer_norm(params["norm"], x)
    logits, unembed_backward = unembed(params["token"], normed)

    def backward(dlogits):
        dtoken_as_output, dnormed = unembed_backward(dlogits)
        dnorm, dx = norm_backward(dnormed)
        dblocks = []
        for block_backward in reversed(block_backwards):
            dblock, dx, _ = block_backward(dx)
            dblocks.append(dblock)
        dposition, dembedded = position_backward(embedding_dropout_backward(dx))
        dtoken = tree.map(np.add, token_backward(dembedded), dtoken_as_output)
        return {"token": dtoken, "position": dposition, "blocks": dblocks[::-1], "norm": dnorm}

    return logits, backward


def gpt_loss(params, *, tokens, labels, config, ignore=-100, **options):
    """How surprised the model is, in nats a token, by what did come next: what training descends.

        loss = cross_entropy(gpt(tokens), labels),   labelsₜ = tokensₜ₊₁

    params, tokens (B, T) and options as of `gpt`;  labels (B, T), `ignore` where nothing is to be
    learnt -> a scalar.  Raises what `gpt` and `cross_entropy` raise.
    Source: Radford et al. 2019, eq. 1.

    Backward: the chain rule.
    """
    logits, gpt_backward = gpt(params, tokens=tokens, config=config, **options)
    loss, cross_entropy_backward = cross_entropy(logits, labels=labels, ignore=ignore)
    return loss, lambda dloss: gpt_backward(cross_entropy_backward(dloss))


def initial_params(config, *, key, initialization="paper", dtype=np.float32):
    """The weights that training starts from: normal numbers, and none in biases.

    Kernels and token embeddings have the standard deviation 0.02, positions 0.01, as in OpenAI's
    code (Hugging Face: 0.02 for both).  "paper" divides it by √(2 L) for the kernels that write
    into the residual stream, whose 2 L terms then sum to the same size at any depth; "released",
    the code, does not.  "scaled" has that of "paper" for the width of GPT-2, 768, and for another D
    √(768 / D) times as much in all kernels: sums over D features then keep their size, and a narrow
    model learns much faster.
    Drawn in float32 for every dtype.  Keys: block l's is fold_in(key, l), split in the order query,
    key, value, out, up, down; the token table's fold_in(key, L), the position table's fold_in(key,
    L + 1).
    Raises InputError for another initialization.
    Source: Radford et al. 2019, sec. 2.3; openai/gpt-2, src/model.py.  "scaled" as Glorot & Bengio
    2010, eq. 12, with the factor that is theirs.
    """
    check_initialization(initialization)
    shapes, layers = parameter_shapes(config), config.layers
    kernel_std = 0.02 * (768 / config.width) ** 0.5 if initialization == "scaled" else 0.02
    residual_std = 0.02 if initialization == "released" else kernel_std / (2 * layers) ** 0.5
    std = {"token": 0.02, "position": 0.01, "out": residual_std, "down": residual_std}
    kernels = [path for path in shapes if path.endswith("kernel")]
    block_keys = [random.split(random.fold_in(key, layer), 6) for layer in range(layers)]
    keys = dict(zip(kernels, np.concatenate(block_keys), strict=True)) | {
        "token.embedding": random.fold_in(key, layers),
        "position.embedding": random.fold_in(key, layers + 1),
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

    attention = {part: linear(width, width) for part in ("query", "key", "value", "out")}
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
    return tree.flatten(params)


def parameter_count(config):
    """How many numbers are learnt; the output layer is the token table and counts once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def flops_per_token(config, length):
    """Floating-point operations of one training step, forward and backward, for each token.

        6 N + 12 L D T

    Each of N weights takes part in a multiplication and an addition, once forward and twice
    backward; attention's two products over T positions come to 12 D T a layer (its causal half is
    counted whole).  N leaves out the position table, which multiplies nothing.
    Source: Chowdhery et al. 2022, "PaLM", appendix B.
    """
    weights = parameter_count(config) - config.context * config.width
    return 6 * weights + 12 * config.layers * config.width * length


def check_initialization(initialization):
    """Raise InputError for one that no model has."""
    if initialization not in INITIALIZATIONS:
        raise InputError(
            f"initialization is {initialization!r}; give one of {', '.join(INITIALIZATIONS)}"
        )


def check_tokens(tokens, config, *, name="tokens", values=True):
    """Raise DtypeError or InputError for tokens that this model cannot read.

    Without `values`, only what shape and dtype say: for arrays of which no more is known yet.
    """
    check_integers(tokens, name=name)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise InputError(f"{name} has shape {tuple(tokens.shape)}; give (B, T), neither of them 0")
    check_length(tokens.shape[1], config.context)
    if values:
        check_ids(np.asarray(tokens), config.vocabulary, name=name)


def check_documents(documents, tokens):
    """Raise DtypeError or InputError unless there is a number for each token, or none for any."""
    if documents is None:
        return
    check_integers(documents, name="documents")
    if documents.shape != tokens.shape:
        raise InputError(
            f"documents has shape {tuple(documents.shape)}, tokens {tuple(tokens.shape)}; give one "
            "number for each token"
        )


def check_batch(config, *, tokens, labels, documents=None):
    """Raise DtypeError or InputError for a batch that `gpt_loss` cannot be trained on."""
    check_tokens(tokens, config)
    check_ids(labels, config.vocabulary, name="labels", ignore=-100)
    check_documents(documents, tokens)
    if labels.shape != tokens.shape:
        raise InputError(
            f"labels has shape {labels.shape}, tokens {tokens.shape}; give a label for each token"
        )
