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
    H heads    G key/value heads        K width of a head        F hidden width
    C channels of an image, or context  L layers                 N rows, all leading axes in one

A reading order
    layers/linear, activation, softmax, normalization, embedding: one equation each
    layers/mask, attention: who reads from whom, and the formula for it
    layers/position, rotary, relative_position, grid_position: where a token stands
    layers/feed_forward, dropout, residual, block: what makes it a Transformer
    layers/loss, regression, contrastive, distillation: one number to descend
    models/gpt: a whole language model and its gradient;  llama, transformer, bert, vit, clip
    layers/convolution: the way in for images;  layers/lora: learning a little more
    random: where every number that is drawn comes from
    training/schedule, optimizer, loop: how it learns;  layers/recompute: in how much memory
    training/run, checkpoint, run_folder: how a run is stopped, killed and gone on with
    tokenizers/characters, bpe, wordpiece, unigram;  data/text, tokens, batches, packing: from what
    inference/sampling, cache, decoding, beam, speculative: how it writes
    pretrained: weights that others trained
"""

from reference.layers.activation import (
    gelu,
    gelu_tanh,
    quick_gelu,
    relu,
    relu_squared,
    sigmoid,
    silu,
    soft_cap,
    softplus,
    tanh,
)
from reference.layers.attention import attention, cross_attention, multi_head_attention
from reference.layers.block import decoder_block, parallel_block, transformer_block
from reference.layers.contrastive import clip_loss, siglip_loss
from reference.layers.convolution import (
    assemble,
    conv2d,
    max_pool,
    nearest_upsample,
    patch_embed,
    patches,
)
from reference.layers.distillation import distillation
from reference.layers.dropout import dropout, stochastic_depth
from reference.layers.embedding import embed, segment_embed, unembed
from reference.layers.feed_forward import feed_forward, gated_feed_forward, geglu, reglu, swiglu
from reference.layers.grid_position import learned_grid_position, sinusoidal_grid_position
from reference.layers.linear import linear
from reference.layers.lora import lora, lora_merge
from reference.layers.loss import (
    binary_cross_entropy,
    cross_entropy,
    masked_language_modelling,
    next_sentence,
    smoothed_cross_entropy,
    z_loss,
)
from reference.layers.mask import (
    both,
    causal,
    documents,
    either,
    every,
    fixed,
    locally_banded,
    padding,
    prefix,
    sliding_window,
    strided,
)
from reference.layers.normalization import l2_norm, layer_norm, query_key_norm, rms_norm
from reference.layers.position import (
    learned_position,
    sinusoidal_position,
    sinusoidal_position_concatenated,
)
from reference.layers.regression import huber, squared_error
from reference.layers.relative_position import (
    alibi,
    shaw_attention,
    t5_bias,
    transformer_xl_attention,
)
from reference.layers.residual import (
    deep_norm,
    layer_scale,
    post_norm,
    pre_norm,
    rezero,
    sandwich_norm,
)
from reference.layers.rotary import rotary_halves, rotary_pairs
from reference.layers.softmax import log_softmax, softmax, softmax_with_sink
from reference.models.bert import BertConfig, bert, bert_logits, bert_loss
from reference.models.bert_heads import bert_pooler
from reference.models.clip import ClipConfig, clip, clip_image, clip_text
from reference.models.decoder_heads import last_kept
from reference.models.gpt import GPTConfig, gpt, gpt_hidden, gpt_logits, gpt_loss
from reference.models.gpt1 import GPT1Config, gpt1, gpt1_classification_loss, gpt1_loss
from reference.models.llama import LlamaConfig, llama, llama_hidden, llama_logits, llama_loss
from reference.models.transformer import (
    TransformerConfig,
    transformer,
    transformer_decode,
    transformer_encode,
    transformer_loss,
)
from reference.models.vit import ViTConfig, vit, vit_features, vit_loss

__all__ = [
    "BertConfig",
    "ClipConfig",
    "GPT1Config",
    "GPTConfig",
    "LlamaConfig",
    "TransformerConfig",
    "ViTConfig",
    "alibi",
    "assemble",
    "attention",
    "bert",
    "bert_logits",
    "bert_loss",
    "bert_pooler",
    "binary_cross_entropy",
    "both",
    "causal",
    "clip",
    "clip_image",
    "clip_loss",
    "clip_text",
    "conv2d",
    "cross_attention",
    "cross_entropy",
    "decoder_block",
    "deep_norm",
    "distillation",
    "documents",
    "dropout",
    "either",
    "embed",
    "every",
    "feed_forward",
    "fixed",
    "gated_feed_forward",
    "geglu",
    "gelu",
    "gelu_tanh",
    "gpt",
    "gpt1",
    "gpt1_classification_loss",
    "gpt1_loss",
    "gpt_hidden",
    "gpt_logits",
    "gpt_loss",
    "huber",
    "l2_norm",
    "last_kept",
    "layer_norm",
    "layer_scale",
    "learned_grid_position",
    "learned_position",
    "linear",
    "llama",
    "llama_hidden",
    "llama_logits",
    "llama_loss",
    "locally_banded",
    "log_softmax",
    "lora",
    "lora_merge",
    "masked_language_modelling",
    "max_pool",
    "multi_head_attention",
    "nearest_upsample",
    "next_sentence",
    "padding",
    "parallel_block",
    "patch_embed",
    "patches",
    "post_norm",
    "pre_norm",
    "prefix",
    "query_key_norm",
    "quick_gelu",
    "reglu",
    "relu",
    "relu_squared",
    "rezero",
    "rms_norm",
    "rotary_halves",
    "rotary_pairs",
    "sandwich_norm",
    "segment_embed",
    "shaw_attention",
    "siglip_loss",
    "sigmoid",
    "silu",
    "sinusoidal_grid_position",
    "sinusoidal_position",
    "sinusoidal_position_concatenated",
    "sliding_window",
    "smoothed_cross_entropy",
    "soft_cap",
    "softmax",
    "softmax_with_sink",
    "softplus",
    "squared_error",
    "stochastic_depth",
    "strided",
    "swiglu",
    "t5_bias",
    "tanh",
    "transformer",
    "transformer_block",
    "transformer_decode",
    "transformer_encode",
    "transformer_loss",
    "transformer_xl_attention",
    "unembed",
    "vit",
    "vit_features",
    "vit_loss",
    "z_loss",
]
