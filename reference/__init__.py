"""Every Transformer component in NumPy, written to be read.

A component is a function that returns its value and its own derivative:

    y, backward = layer_norm(params, x, epsilon=1e-5)
    dparams, dx = backward(dy)

It has the type of `jax.vjp(f, params, x)`, so that one test compares any component with its twin
in `accelerated/`.

The contract
    What stands before the `*` is differentiated: `backward` returns a cotangent for each, in order.
    Token ids, masks, sizes and random keys come after the `*` and have none.
    `params` is a tree of dicts, lists and arrays with Flax's names; `dparams` is the same tree.
    Nothing is written to, argument or captured array: `backward` may be called twice.
    float32 in, float32 out; float64 in, float64 out.

The axes, one letter each, the same in every equation and docstring
    B batch    T positions that look    S positions looked at    D model width    V vocabulary
    H heads    K width of a head        F hidden width           L layers
    N rows, all leading axes in one

A reading order
    layers/linear, activation, normalization, embedding, position: one equation each
    layers/attention, feed_forward, dropout, block: what makes it a Transformer
    layers/loss, then models/gpt: a whole language model and its gradient, on two pages
    random: where every number that is drawn comes from
    training/schedule, optimizer, loop, checkpoint: how it learns
    tokenizers/bpe, data/batches: what it learns from
    inference/sampling, decoding: how it writes
"""

from reference.layers.activation import gelu, gelu_tanh
from reference.layers.attention import attention, multi_head_attention
from reference.layers.block import pre_norm_block
from reference.layers.dropout import dropout
from reference.layers.embedding import embed, unembed
from reference.layers.feed_forward import feed_forward
from reference.layers.linear import linear
from reference.layers.loss import cross_entropy
from reference.layers.mask import causal
from reference.layers.normalization import layer_norm
from reference.layers.position import learned_position
from reference.layers.softmax import log_softmax, softmax
from reference.models.gpt import GPTConfig, gpt, gpt_loss

__all__ = [
    "GPTConfig",
    "attention",
    "causal",
    "cross_entropy",
    "dropout",
    "embed",
    "feed_forward",
    "gelu",
    "gelu_tanh",
    "gpt",
    "gpt_loss",
    "layer_norm",
    "learned_position",
    "linear",
    "log_softmax",
    "multi_head_attention",
    "pre_norm_block",
    "softmax",
    "unembed",
]
