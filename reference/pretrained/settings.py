"""What a published config.json says, looked at before it is believed."""

from dataclasses import fields, is_dataclass

from reference.errors import CheckpointError, InputError
from reference.models.bert_heads import CLASSES

PROBLEM = "single_label_classification"
NUMBER = (int, float)
INNER = ("rope_parameters", "rope_scaling")  # settings that hold others
INNER += ("text_config", "text_config_dict", "vision_config", "vision_config_dict")
KINDS = dict.fromkeys((*INNER, "id2label"), dict) | {"architectures": list, "num_labels": int}
KINDS |= dict.fromkeys(("model_type", "hidden_act", "activation_function", "afn"), str)
KINDS |= dict.fromkeys(("rope_type", "type"), str)
KINDS |= dict.fromkeys(("tie_word_embeddings", "qkv_bias"), bool)
KINDS |= dict.fromkeys(("rope_theta", "factor", "low_freq_factor", "high_freq_factor"), NUMBER)
KINDS["original_max_position_embeddings"] = int
WORDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
WORDS |= {int: "an integer", NUMBER: "a number"}
LAYERS = ("n_layer", "num_layers", "num_hidden_layers", "encoder_layers", "decoder_layers")


def check_settings(settings, source, *, arrays):
    """Raise CheckpointError for what no model's settings are, before anything is made by them.

    That is a value of another kind, an integer that takes more than 64 bits, and more layers than
    there are arrays.
    """
    for name, value in settings.items():
        kind = KINDS.get(name)
        if kind is not None and value is not None and not is_of(value, kind):
            raise CheckpointError(
                f"{source}: {name} is {value!r:.80}, and must be {WORDS[kind]}: copy it again"
            )
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise CheckpointError(f"{source}: {name} is {value!r:.40}…, which no size is")
        if type(value) is int and name in LAYERS and value > arrays:
            raise CheckpointError(
                f"{source}: {name} is {value}, and the files have {arrays} arrays in all: give "
                "files that were saved together"
            )
        if name in INNER and value is not None:
            check_settings(value, f"{source}, {name}", arrays=arrays)


def is_of(value, kind):
    """Whether a value of JSON is of this kind; true and false are no numbers."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check_numbers(config, source):
    """Raise CheckpointError where a number of a config is true or false, which Python lets pass."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            check_numbers(value, source)
        if isinstance(value, bool) and field.type is not bool:
            raise CheckpointError(f"{source}: {field.name} is {value}; give a number")


def check_fixed(settings, ours, source, *, defaults):
    """Raise CheckpointError for the first setting that our model has another value of."""
    theirs = defaults | {name: value for name, value in settings.items() if value is not None}
    for name, value in ours.items():
        if theirs[name] != value:
            raise CheckpointError(
                f"{source}: {name} is {theirs[name]!r}, and must be {value!r} for our model: give "
                "another"
            )


def choice(name, value, ours, source):
    """Our word for one of their settings."""
    if not isinstance(value, str) or value not in ours:
        raise CheckpointError(
            f"{source}: {name} is {value!r}, and must be one of {', '.join(ours)} for our model: "
            "give another"
        )
    return ours[value]


def named_labels(settings):
    """The number of classes that the settings name, or None."""
    return settings.get("num_labels") or len(settings.get("id2label") or ()) or None


def labels_for(head, labels, settings, source):
    """The number of classes of a head that is asked for.  Raises InputError if nobody says it."""
    found = named_labels(settings) if labels is None else labels
    if found is None:
        raise InputError(
            f"{source} names no classes for the head {head}: give their number as labels"
        )
    return found


def classes_of(own, head, labels, settings, source):
    """The number of classes of a model's own head, or None where it has no use for it.

    head, labels: those that are asked for, in place of what the settings say, or None.  Raises
    InputError where classes are missing, or for no use.
    """
    if own in CLASSES:
        if head is None:
            return named_labels(settings) or 2  # Hugging Face's default
        return labels_for(head, labels, settings, source)
    if labels is not None:
        raise InputError(f"labels is {labels!r}, for which the head {head} has no use")
    return None


def architecture(settings):
    """The first of the classes that the settings are for, or None."""
    return (settings.get("architectures") or [None])[0]


def names_of_labels(labels):
    """The settings that name so many classes, as Hugging Face does where nobody has."""
    names = {str(label): f"LABEL_{label}" for label in range(labels)}
    return {"id2label": names, "label2id": {name: int(label) for label, name in names.items()}}
