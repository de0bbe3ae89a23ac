"""What is done to each number, row or token by itself."""

from functools import partial

import reference.layers.lora
from accelerated.layers import activation, dropout, lora, normalization, softmax
from accelerated.layers.embedding import Embed, SegmentEmbed
from accelerated.layers.linear import Linear
from benchmarks.cases import pytorch
from benchmarks.cases.case import Case, module, normal, shape, weights
from benchmarks.cases.pytorch import functional, torch
from reference import random

CASES = {
    "linear": lambda s: module(
        reference.linear,
        partial(Linear, s.width, s.hidden),
        pytorch.linear,
        s.stream(),
    ),
    "relu": lambda s: Case(reference.relu, activation.relu, lambda x: torch.relu(x), (s.wide(),)),
    "relu_squared": lambda s: Case(
        reference.relu_squared,
        activation.relu_squared,
        lambda x: torch.relu(x).square(),
        (s.wide(),),
    ),
    "sigmoid": lambda s: Case(
        reference.sigmoid, activation.sigmoid, lambda x: torch.sigmoid(x), (s.wide(),)
    ),
    "tanh": lambda s: Case(reference.tanh, activation.tanh, lambda x: torch.tanh(x), (s.wide(),)),
    "softplus": lambda s: Case(
        reference.softplus, activation.softplus, lambda x: functional.softplus(x), (s.wide(),)
    ),
    "silu": lambda s: Case(
        reference.silu, activation.silu, lambda x: functional.silu(x), (s.wide(),)
    ),
    "quick_gelu": lambda s: Case(
        reference.quick_gelu,
        activation.quick_gelu,
        lambda x: x * torch.sigmoid(1.702 * x),
        (s.wide(),),
    ),
    "gelu": lambda s: Case(
        reference.gelu, activation.gelu, lambda x: functional.gelu(x), (s.wide(),)
    ),
    "gelu_tanh": lambda s: Case(
        reference.gelu_tanh,
        activation.gelu_tanh,
        lambda x: functional.gelu(x, approximate="tanh"),
        (s.wide(),),
    ),
    "soft_cap": lambda s: Case(
        partial(reference.soft_cap, cap=50.0),
        partial(activation.soft_cap, cap=50.0),
        lambda x: 50 * torch.tanh(x / 50),
        (s.scores(),),
    ),
    "softmax": lambda s: Case(
        reference.softmax, softmax.softmax, lambda x: x.softmax(dim=-1), (s.scores(),)
    ),
    "log_softmax": lambda s: Case(
        reference.log_softmax, softmax.log_softmax, lambda x: x.log_softmax(dim=-1), (s.logits(),)
    ),
    "softmax_with_sink": lambda s: Case(
        reference.softmax_with_sink,
        softmax.softmax_with_sink,
        pytorch.softmax_with_sink,
        (s.scores(), normal(s.heads)),
    ),
    "l2_norm": lambda s: Case(
        reference.l2_norm,
        normalization.l2_norm,
        lambda x: functional.normalize(x, dim=-1),
        (s.stream(times=4),),
    ),
    "rms_norm": lambda s: module(
        reference.rms_norm,
        partial(normalization.RMSNorm, s.width),
        pytorch.rms_norm,
        s.stream(times=4),
    ),
    "layer_norm": lambda s: module(
        reference.layer_norm,
        partial(normalization.LayerNorm, s.width),
        pytorch.layer_norm,
        s.stream(times=4),
    ),
    "query_key_norm": lambda s: module(
        reference.query_key_norm,
        partial(normalization.QueryKeyNorm, s.head),
        lambda p, q, k: (pytorch.rms_norm(p["query"], q), pytorch.rms_norm(p["key"], k)),
        *(s.in_heads(seed, times=2) for seed in (0, 1)),
    ),
    "dropout": lambda s: Case(
        partial(reference.dropout, rate=0.1),
        partial(dropout.dropout, rate=0.1),
        lambda x, key: functional.dropout(x, 0.1),
        (s.wide(),),
        {"key": random.key(0)},
        noise=True,
    ),
    "stochastic_depth": lambda s: Case(
        partial(reference.stochastic_depth, rate=0.1),
        partial(dropout.stochastic_depth, rate=0.1),
        lambda x, key: x * x.new_empty(len(x), 1, 1).bernoulli_(0.9).div_(0.9),
        (s.stream(times=4),),
        {"key": random.key(0)},
        noise=True,
    ),
    "embed": lambda s: module(
        reference.embed,
        partial(Embed, s.vocabulary, s.width),
        lambda p, ids: functional.embedding(ids, p["embedding"]),
        ids=s.ids(),
    ),
    "unembed": lambda s: module(
        reference.unembed,
        partial(Embed, s.vocabulary, s.width),
        lambda p, x: functional.linear(x, p["embedding"]),
        s.stream(),
        method=Embed.unembed,
    ),
    "segment_embed": lambda s: module(
        reference.segment_embed,
        partial(SegmentEmbed, 2, s.width),
        lambda p, x, segments: x + functional.embedding(segments, p["embedding"]),
        s.stream(),
        segments=s.ids(2),
    ),
    "lora": lambda s: module(
        partial(reference.layers.lora.lora, alpha=16),
        partial(lora.LoRA, s.width, s.hidden, rank=s.rank, alpha=16),
        lambda p, x, frozen: (
            pytorch.linear(frozen, x) + 16 / s.rank * (x @ p["lora_a"] @ p["lora_b"])
        ),
        s.stream(),
        frozen=weights({"kernel": shape(s.width, s.hidden), "bias": shape(s.hidden)}),
    ),
    "lora_merge": lambda s: Case(
        partial(reference.layers.lora.lora_merge, alpha=16),
        partial(lora.lora_merge, alpha=16),
        partial(pytorch.lora_merge, alpha=16),
        (weights({f"{i}.query.kernel": adapter(s) for i in range(24)}),),
        {"frozen": weights([{"query": {"kernel": shape(s.width, s.width)}} for _ in range(24)])},
    ),
}


def adapter(s):
    return {"lora_a": shape(s.width, s.rank), "lora_b": shape(s.rank, s.width)}
