"""CLIP as Hugging Face keeps it: kernels (out, in), that of the patches too."""

import re

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.clip import ClipConfig, ClipImageConfig, ClipTextConfig
from reference.pretrained.names import CONV, Reshaped, Stored, embedding, linear, norm
from reference.pretrained.settings import check_fixed, choice
from reference.pretrained.vit import ACTIVATIONS, write_activation

COMMON = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "epsilon": "layer_norm_eps",
}
TEXT = COMMON | {"vocabulary": "vocab_size", "context": "max_position_embeddings"}
VISION = COMMON | {"image": "image_size", "patch": "patch_size", "channels": "num_channels"}
# Hugging Face's own values, which files leave out: those of OpenAI's ViT-B/32.
DEFAULTS = {"num_hidden_layers": 12, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
TEXT_DEFAULTS = DEFAULTS | {
    "num_attention_heads": 8,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VISION_DEFAULTS = DEFAULTS | {
    "num_attention_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
}
FIXED = {"attention_dropout": 0.0}
LARGEST = 2  # the eos_token_id that says: a text ends at its largest token
MODULES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def read_config(settings, source):
    """The ClipConfig of some settings; one that is left out has Hugging Face's default."""
    text, text_activation = read_tower(settings, "text_config", TEXT_DEFAULTS, source)
    vision, vision_activation = read_tower(settings, "vision_config", VISION_DEFAULTS, source)
    end = text["eos_token_id"]
    try:
        return ClipConfig(
            ClipTextConfig(
                **{ours: text[theirs] for ours, theirs in TEXT.items()},
                end=None if end == LARGEST else end,
                activation=text_activation,
            ),
            ClipImageConfig(
                **{ours: vision[theirs] for ours, theirs in VISION.items()},
                activation=vision_activation,
            ),
            settings.get("projection_dim", 512),
            settings.get("largest_scale"),
        )
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{source}: {error}") from None


def read_tower(settings, name, defaults, source):
    """The settings of a tower, and its activation.

    Earlier versions have a second entry, "text_config_dict": where it is there, it alone counts.
    """
    given = settings.get(f"{name}_dict")
    given = settings.get(name) if given is None else given
    if not isinstance(given, dict):
        raise CheckpointError(f"{source} has no {name}: copy it again")
    check_fixed(given, FIXED, f"{source}, {name}", defaults=FIXED)
    tower = defaults | given
    return tower, choice("hidden_act", tower["hidden_act"], ACTIVATIONS, f"{source}, {name}")


def write_config(config):
    """The settings of a ClipConfig.  Raises InputError for one that Hugging Face has no form for.

    largest_scale is a setting of ours: Hugging Face's model has no limit.
    """
    if config.text.end == LARGEST:
        raise InputError(
            f"the text's end is the token {LARGEST}, by which Hugging Face's CLIP means the "
            "largest of each text; give None if that is it, or number the tokens otherwise"
        )
    end = LARGEST if config.text.end is None else config.text.end
    towers = {}
    for name, tower, names in (("text", config.text, TEXT), ("vision", config.vision, VISION)):
        sizes = {theirs: getattr(tower, ours) for ours, theirs in names.items()}
        sizes |= {"hidden_act": write_activation(tower.activation)}
        towers[name] = sizes | FIXED | {"projection_dim": config.projection}
    tokens = {"eos_token_id": end, "bos_token_id": None, "pad_token_id": None}
    limit = {} if config.largest_scale is None else {"largest_scale": config.largest_scale}
    return limit | {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "text_config": towers["text"] | tokens | {"model_type": "clip_text_model"},
        "vision_config": towers["vision"] | {"model_type": "clip_vision_model"},
        "projection_dim": config.projection,
    }


def stored(config):
    """Where each parameter lies."""
    text, vision = "text_model.embeddings", "vision_model.embeddings"
    params = {
        "text": {
            "token": embedding(f"{text}.token_embedding"),
            "position": embedding(f"{text}.position_embedding"),
            "blocks": blocks("text_model", config.text),
            "norm": norm("text_model.final_layer_norm"),
            "projection": linear("text_projection", bias=False),
        },
        "vision": {
            "patch": {"kernel": Stored(f"{vision}.patch_embedding.weight", CONV)},
            "class_token": {"embedding": Stored(f"{vision}.class_embedding")},
            "position": embedding(f"{vision}.position_embedding"),
            "norm_before": norm("vision_model.pre_layrnorm"),
            "blocks": blocks("vision_model", config.vision),
            "norm": norm("vision_model.post_layernorm"),
            "projection": linear("visual_projection", bias=False),
        },
        "logit_scale": Reshaped("logit_scale", (1,), ()),
    }
    return tree.flatten(params)


def blocks(prefix, tower):
    """Where the parameters of a tower's blocks lie."""
    found = []
    for layer in range(tower.layers):
        h = f"{prefix}.encoder.layers.{layer}"
        maps = {ours: linear(f"{h}.{name}") for ours, name in MODULES.items()}
        hidden = {name: maps.pop(name) for name in ("up", "down")}
        found.append(
            {
                "attention": {"norm": norm(f"{h}.layer_norm1"), "sublayer": maps},
                "feed_forward": {"norm": norm(f"{h}.layer_norm2"), "sublayer": hidden},
            }
        )
    return found


BUFFERS = re.compile(r"(text|vision)_model\.embeddings\.position_ids")
FAMILY = (read_config, write_config, stored, "", BUFFERS)
