"""The published systems, and what training asks of each.

A model's file has its config, its initial weights and its loss.  The config says which model it is:
whoever has one needs no other name.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import NamedTuple

from reference.errors import CheckpointError, InputError
from reference.models import bert, clip, gpt, gpt1, llama, transformer, vit


class Model(NamedTuple):
    """What training, checkpoints and commands use of a model."""

    config: type
    loss: Callable  # (params, *, config, key, recompute, **batch) -> a scalar, backward
    initial_params: Callable  # (config, *, key, initialization, dtype) -> params
    parameter_shapes: Callable  # (config) -> {path: shape}
    check_batch: Callable  # (config, **batch) raises InputError or DtypeError
    in_parts: Callable = lambda config: True  # is a batch's loss the mean of those of its parts?
    later: tuple[str, ...] = ()  # fields of the config whose default is what was before they were


MODELS = {
    "bert": Model(
        bert.BertConfig,
        bert.bert_loss,
        bert.initial_params,
        bert.parameter_shapes,
        bert.check_batch,
        in_parts=lambda config: config.head != "pretraining",  # the sum of two means
    ),
    "clip": Model(
        clip.ClipConfig,
        clip.clip_loss,
        clip.initial_params,
        clip.parameter_shapes,
        clip.check_batch,
        in_parts=lambda config: False,  # each image is told from all texts of the batch
    ),
    "gpt": Model(
        gpt.GPTConfig,
        gpt.gpt_loss,
        gpt.initial_params,
        gpt.parameter_shapes,
        gpt.check_batch,
        later=("head_width", "band", "head", "labels", "classifier_dropout"),
    ),
    "gpt1": Model(
        gpt1.GPT1Config,
        gpt1.gpt1_loss,
        gpt1.initial_params,
        gpt1.parameter_shapes,
        gpt1.check_batch,
    ),
    "llama": Model(
        llama.LlamaConfig,
        llama.llama_loss,
        llama.initial_params,
        llama.parameter_shapes,
        llama.check_batch,
        later=("head", "labels", "classifier_dropout"),
    ),
    "transformer": Model(
        transformer.TransformerConfig,
        transformer.transformer_loss,
        transformer.initial_params,
        transformer.parameter_shapes,
        transformer.check_batch,
    ),
    "vit": Model(
        vit.ViTConfig, vit.vit_loss, vit.initial_params, vit.parameter_shapes, vit.check_batch
    ),
}


def name_of(config):
    """The name of a config's model.  Raises InputError for what is no model's config."""
    for name, model in MODELS.items():
        if type(config) is model.config:
            return name
    raise InputError(
        f"config is a {type(config).__name__}; give one of "
        f"{', '.join(model.config.__name__ for model in MODELS.values())}"
    )


def model_of(config):
    """The Model that a config is of."""
    return MODELS[name_of(config)]


def parameter_count(config):
    """How many numbers a model learns; a table that serves at both ends counts once."""
    return sum(math.prod(shape) for shape in model_of(config).parameter_shapes(config).values())


def described(config):
    """A config as plain JSON values, with the model's name, and without `later` defaults."""
    later, values = model_of(config).later, asdict(config)
    usual = {f.name for f in fields(config) if f.name in later and values[f.name] == f.default}
    return {"name": name_of(config)} | {n: v for n, v in values.items() if n not in usual}


def config_of(description, *, source):
    """The config that `described` described.  Raises CheckpointError, which names the source."""
    names = sorted(description) if isinstance(description, dict) else description
    name = description.get("name") if isinstance(description, dict) else None
    if not isinstance(name, str) or name not in MODELS:
        raise CheckpointError(
            f"{source} is of the model {name!r}; give a checkpoint of one of {', '.join(MODELS)}"
        )
    config, sizes = MODELS[name].config, {k: v for k, v in description.items() if k != "name"}
    expected = sorted(["name", *(field.name for field in fields(config))])
    if not set(expected) - set(MODELS[name].later) <= set(names) <= set(expected):
        raise CheckpointError(
            f"{source} has {names!r:.200} where it must have {expected}: it was written by another "
            "version, or by hand; give another checkpoint"
        )
    try:
        return config(**sizes)
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{source}: {error}") from None
