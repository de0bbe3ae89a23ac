"""The Transformer of 2017 as Hugging Face keeps it: Marian, with kernels (out, in).

Its positions, biases and activation are options of our config; the wiring is the paper's.  The
smoothing of the labels is not among its settings: a config that is read has none.
"""

import re

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.transformer import TransformerConfig
from reference.pretrained.names import Reshaped, embedding, linear, norm
from reference.pretrained.settings import check_fixed, choice

SIZES = {
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "width": "d_model",
    "hidden": "encoder_ffn_dim",
    "pad": "pad_token_id",
    "end": "eos_token_id",
}
OF_DECODER = {  # as many as the encoder has
    "layers": "decoder_layers",
    "heads": "decoder_attention_heads",
    "hidden": "decoder_ffn_dim",
    "vocabulary": "decoder_vocab_size",
    "pad": "decoder_start_token_id",
}
DROPOUTS = {"dropout": "dropout", "attention_dropout": "attention_dropout"}
ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu"}
FIXED = {
    "scale_embedding": True,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
OLD = {  # in earlier files only
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}
OURS = {  # what our config must say, for Hugging Face has nothing else
    "positions": "marian",
    "wiring": "post",
    "attention_bias": True,
    "output_bias": True,
    "epsilon": 1e-5,
}
# What Hugging Face takes where a file says nothing, if it is not what we have.
DEFAULTS = {"scale_embedding": False}
BLOCK = {
    "attention": ("self_attn", "self_attn_layer_norm"),
    "cross_attention": ("encoder_attn", "encoder_attn_layer_norm"),
}
PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def read_config(settings, source):
    """The TransformerConfig of some settings."""
    if missing := [name for name in SIZES.values() if name not in settings]:
        raise CheckpointError(f"{source} has no {', '.join(missing)}: copy it again")
    sizes = {ours: settings[theirs] for ours, theirs in SIZES.items()}
    decoder = {theirs: sizes[ours] for ours, theirs in OF_DECODER.items()}
    fixed = FIXED | OLD | decoder
    check_fixed(settings, fixed, source, defaults=fixed | DEFAULTS)
    name = "activation_function"
    activation = choice(name, settings.get(name, "gelu"), ACTIVATIONS, source)
    rates = {"dropout": settings.get("dropout", 0.1)}
    rates["attention_dropout"] = settings.get("attention_dropout", 0.0)
    try:
        return TransformerConfig(**sizes, **rates, **OURS, activation=activation, smoothing=0.0)
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{source}: {error}") from None


def check_form(config):
    """Raise InputError for a config that Marian's form cannot hold."""
    for name, value in OURS.items():
        if getattr(config, name) != value:
            raise InputError(
                f"{name} is {getattr(config, name)!r}, and Hugging Face's Marian has {value!r} "
                "alone: only a model that was made with that can be saved in its form"
            )


def write_config(config):
    """The settings of a TransformerConfig.  Raises InputError as `check_form` does."""
    check_form(config)
    about = {"model_type": "marian", "architectures": ["MarianMTModel"]}
    named = SIZES.items() | OF_DECODER.items() | DROPOUTS.items()
    sizes = {theirs: getattr(config, ours) for ours, theirs in named}
    activation = next(n for n, ours in ACTIVATIONS.items() if ours == config.activation)
    more = {"activation_function": activation, "bos_token_id": None, "forced_eos_token_id": None}
    return about | dict(sorted(sizes.items())) | FIXED | more


def stored(config):
    """Where each parameter lies.  Raises InputError as `check_form` does."""
    check_form(config)

    def block(h, attentions):
        parts = {}
        for name in attentions:
            module, normed = BLOCK[name]
            kernels = {ours: linear(f"{h}.{module}.{theirs}") for ours, theirs in PARTS.items()}
            parts[name] = {"norm": norm(f"{h}.{normed}"), "sublayer": kernels}
        hidden = {"up": linear(f"{h}.fc1"), "down": linear(f"{h}.fc2")}
        return parts | {"feed_forward": {"norm": norm(f"{h}.final_layer_norm"), "sublayer": hidden}}

    sides = {
        side: {"blocks": [block(f"model.{side}.layers.{i}", names) for i in range(config.layers)]}
        for side, names in (("encoder", ["attention"]), ("decoder", list(BLOCK)))
    }
    scores = (config.vocabulary,)
    output = {"output": {"bias": Reshaped("final_logits_bias", scores, (1, *scores))}}
    return tree.flatten({"token": embedding("model.shared")} | sides | output)


BUFFERS = re.compile(r"(model\.)?(encoder|decoder)\.embed_positions\.weight")
TIED = dict.fromkeys(
    ["lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"],
    "token.embedding",
)
FAMILY = (read_config, write_config, stored, "model.", BUFFERS, TIED)
