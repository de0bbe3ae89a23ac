"""Llama and Mistral as Hugging Face keeps them: kernels (out, in), rotary positions by halves."""

import re

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.llama import LlamaConfig, Scaling
from reference.pretrained.decoder_heads import HEADS as HEADS  # handed on
from reference.pretrained.decoder_heads import read_head, stored_head, write_head
from reference.pretrained.names import embedding, linear, norm
from reference.pretrained.settings import check_fixed

SIZES = {
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "epsilon": "rms_norm_eps",
}
OPTIONAL = {"groups": "num_key_value_heads", "head_width": "head_dim"}
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
}
SCALING = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "context": "original_max_position_embeddings",
}
MODULES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def read_config(settings, source, *, head=None, labels=None):
    """The LlamaConfig of some settings.

    head, labels: those that are asked for, in place of what the settings say.
    """
    if missing := [name for name in SIZES.values() if name not in settings]:
        raise CheckpointError(f"{source} has no {', '.join(missing)}: copy it again")
    check_fixed(settings, FIXED, source, defaults=FIXED)
    sizes = {ours: settings[theirs] for ours, theirs in SIZES.items()}
    sizes |= {ours: settings.get(theirs) for ours, theirs in OPTIONAL.items()}
    sizes["groups"] = sizes["groups"] or sizes["heads"]
    # Version 5 of transformers has one entry for the base and the scaling, those before had two.
    rotary = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    base = rotary.get("rope_theta", settings.get("rope_theta", 10000.0))
    asked = read_head(settings, source, head=head, labels=labels)
    try:
        return LlamaConfig(
            **sizes,
            base=float(base),
            scaling=read_scaling(rotary, source),
            window=settings.get("sliding_window"),
            tied=settings.get("tie_word_embeddings", False),
            **asked,
        )
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{source}: {error}") from None


def read_scaling(rotary, source):
    """The Scaling of rotary settings, or None."""
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(
            f"{source}: the rotary scaling is {kind!r}, and must be 'llama3' or none for our "
            "model: give another"
        )
    if missing := [name for name in SCALING.values() if name not in rotary]:
        raise CheckpointError(f"{source} has no {', '.join(missing)}: copy it again")
    return Scaling(**{ours: rotary[theirs] for ours, theirs in SCALING.items()})


def write_config(config):
    """The settings of a LlamaConfig: a Mistral's where it has a window."""
    rotary = {"rope_type": "default", "rope_theta": config.base}
    if config.scaling is not None:
        scaling = {theirs: getattr(config.scaling, ours) for ours, theirs in SCALING.items()}
        rotary |= {"rope_type": "llama3"} | scaling
    name = "llama" if config.window is None else "mistral"
    begin = name.capitalize()
    about = {"model_type": name} | write_head(config, begin, f"{begin}ForCausalLM")
    sizes = {theirs: getattr(config, ours) for ours, theirs in (SIZES | OPTIONAL).items()}
    window = {} if config.window is None else {"sliding_window": config.window}
    more = {"rope_parameters": rotary, "tie_word_embeddings": config.tied}
    ends = {"bos_token_id": None, "eos_token_id": None}
    return about | sizes | FIXED | more | window | ends


def stored(config):
    """Where each parameter lies.  A Llama's stack, but no Mistral's, has another name where it
    answers questions.
    """
    asked, blocks = config.head == "question_answering" and config.window is None, []
    body = "transformer" if asked else "model"
    for layer in range(config.layers):
        h = f"{body}.layers.{layer}"
        kernels = {ours: linear(f"{h}.{name}", bias=False) for ours, name in MODULES.items()}
        attention = {name: kernels.pop(name) for name in ("query", "key", "value", "out")}
        before, between = (
            norm(f"{h}.{name}", bias=False)
            for name in ("input_layernorm", "post_attention_layernorm")
        )
        blocks.append(
            {
                "attention": {"norm": before, "sublayer": attention},
                "feed_forward": {"norm": between, "sublayer": kernels},
            }
        )
    tables = {"token": embedding(f"{body}.embed_tokens"), "norm": norm(f"{body}.norm", bias=False)}
    if config.head == "language" and not config.tied:
        tables["output"] = linear("lm_head", bias=False)
    return tree.flatten(tables | {"blocks": blocks} | stored_head(config, each="score"))


BUFFERS = re.compile(r"((model|transformer)\.)?layers\.[0-9]+\.self_attn\.rotary_emb\.inv_freq")
TIED = {"lm_head.weight": "token.embedding"}
BODIES = ("model.", "transformer.")
FAMILY = (read_config, write_config, stored, BODIES, BUFFERS, TIED)
