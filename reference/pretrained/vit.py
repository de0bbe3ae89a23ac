"""The Vision Transformer as Hugging Face keeps it: kernels (out, in), that of the patches too."""

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.vit import ViTConfig
from reference.pretrained.names import CONV, Reshaped, Stored, linear, norm
from reference.pretrained.settings import (
    check_fixed,
    choice,
    labels_for,
    named_labels,
    names_of_labels,
)

SIZES = {
    "image": "image_size",
    "patch": "patch_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "hidden": "intermediate_size",
}
OPTIONAL = {  # with Hugging Face's defaults
    "channels": ("num_channels", 3),
    "epsilon": ("layer_norm_eps", 1e-12),
    "qkv_bias": ("qkv_bias", True),
    "dropout": ("hidden_dropout_prob", 0.0),
}
FIXED = {"attention_probs_dropout_prob": 0.0, "pooler_act": "tanh"}
ACTIVATIONS = {  # by their names; the first of a kind is written
    "gelu": "erf",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "quick_gelu": "quick",
}
MODULES = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
HEADLESS = "ViTModel"  # its "pooler" is the layer before the head, in pre-training


def read_config(settings, source, *, head=None, labels=None):
    """The ViTConfig of some settings; one that is left out has Hugging Face's default.

    head, labels: those that are asked for, in place of what the settings say.
    """
    if missing := [name for name in SIZES.values() if name not in settings]:
        raise CheckpointError(f"{source} has no {', '.join(missing)}: copy it again")
    check_fixed(settings, FIXED, source, defaults=FIXED)
    sizes = {ours: settings[name] for ours, name in SIZES.items()}
    sizes |= {ours: settings.get(name, default) for ours, (name, default) in OPTIONAL.items()}
    pooled = settings.get("pooler_output_size") or settings["hidden_size"]
    own = head or ("features" if settings.get("architectures") == [HEADLESS] else "classification")
    if own == "features" and labels is not None:
        raise InputError(f"labels is {labels!r}, for which the head features has no use")
    if own == "features":
        end = {"labels": 0, "representation": pooled}
    elif head is None:
        end = {"labels": named_labels(settings) or 2}  # Hugging Face's default
    else:
        end = {"labels": labels_for(head, labels, settings, source)}
    activation = choice("hidden_act", settings.get("hidden_act", "gelu"), ACTIVATIONS, source)
    try:
        return ViTConfig(**sizes, **end, activation=activation)
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{source}: {error}") from None


def write_activation(ours):
    """Their name of an activation."""
    return next(name for name, activation in ACTIVATIONS.items() if activation == ours)


def write_config(config):
    """The settings of a ViTConfig."""
    headless = config.labels == 0
    rows, columns = config.image
    sizes = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    sizes |= {theirs: getattr(config, ours) for ours, (theirs, _) in OPTIONAL.items()}
    sizes |= {"image_size": rows if rows == columns else [rows, columns]}
    head = {"pooler_output_size": config.representation} if headless else {}
    head |= names_of_labels(config.labels) if config.labels else {}
    architecture = HEADLESS if headless else "ViTForImageClassification"
    about = {"model_type": "vit", "architectures": [architecture]}
    return about | sizes | head | FIXED | {"hidden_act": write_activation(config.activation)}


def stored(config):
    """Where each parameter lies.  Raises InputError for what Hugging Face has no form for."""
    if config.pooling != "token" or (config.labels == 0) != (config.representation is not None):
        raise InputError(
            "Hugging Face's ViT has a class token, and a representation if it has no head, else "
            f"none; this has the pooling {config.pooling!r}, {config.labels} labels and the "
            f"representation {config.representation}"
        )
    blocks, width = [], config.width
    for layer in range(config.layers):
        h = f"vit.encoder.layer.{layer}"
        maps = {
            ours: linear(
                f"{h}.{name}", bias=config.qkv_bias or ours not in ("query", "key", "value")
            )
            for ours, name in MODULES.items()
        }
        hidden = {name: maps.pop(name) for name in ("up", "down")}
        blocks.append(
            {
                "attention": {"norm": norm(f"{h}.layernorm_before"), "sublayer": maps},
                "feed_forward": {"norm": norm(f"{h}.layernorm_after"), "sublayer": hidden},
            }
        )
    patch, places = "vit.embeddings.patch_embeddings.projection", (config.length, width)
    token = Reshaped("vit.embeddings.cls_token", (width,), (1, 1, width))
    position = Reshaped("vit.embeddings.position_embeddings", places, (1, *places))
    params = {
        "patch": {"kernel": Stored(f"{patch}.weight", CONV), "bias": Stored(f"{patch}.bias")},
        "class_token": {"embedding": token},
        "position": {"embedding": position},
        "blocks": blocks,
        "norm": norm("vit.layernorm"),
    }
    end = {"head": "classifier"} if config.labels else {"representation": "vit.pooler.dense"}
    return tree.flatten(params | {ours: linear(name) for ours, name in end.items()})


def of_heads(settings, head):
    """How names of the heads' arrays begin, and whether they are this one's."""
    return {"classifier.": head == "classification", "vit.pooler.": head == "features"}


FAMILY = (read_config, write_config, stored, "vit.")
HEADS = {"heads": ("classification", "features"), "of_heads": of_heads}
