"""What checkpoint.json says: all of a checkpoint that is no array, and how to tell if it can be."""

import json
import math

from reference.errors import CheckpointError, InputError
from reference.models import described

FORMAT = {"format": "twinformer checkpoint", "version": 2}


def description(checkpoint):
    """The text of checkpoint.json.  Raises InputError for values that would not come back."""
    state = checkpoint.state
    written = FORMAT | {
        "step": state.step,
        "model": described(checkpoint.config),
        "settings": checkpoint.settings,
        "random_key": list(checkpoint.random_key),
        "position": checkpoint.position,
        "evaluation": checkpoint.evaluation,
        "scaling": state.scaling,
        "tokenizer": checkpoint.tokenizer is not None,
    }
    try:
        text = json.dumps(written, indent=2, allow_nan=False) + "\n"
        found = json.loads(text)
        if found != written:
            raise ValueError("there are tuples, or names that are no texts")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the checkpoint of step {state.step} has what JSON does not keep ({error}); give "
            "finite numbers, texts, booleans, None, or lists and dicts of these"
        ) from None
    _check_values(f"the checkpoint of step {state.step}", found)
    return text


def described_in(found, path):
    """What a checkpoint.json says, of which `found` was read.  Raises CheckpointError."""
    form = {name: found.pop(name, None) for name in FORMAT}
    if form != FORMAT:
        raise CheckpointError(f"{path} is of {form}, and must be of {FORMAT}: give another")
    if found.keys() != VALUES.keys():
        raise CheckpointError(
            f"{path} has {sorted(found)!r:.200} where it must have {sorted(VALUES)}: it was "
            "written by another version, or by hand; give another checkpoint"
        )
    _check_values(path, found)
    return found


def _check_values(source, values):
    """Raise CheckpointError for a value that no run has, but a hand may have written."""
    for name, (words, fits) in VALUES.items():
        if not fits(values[name]):
            raise CheckpointError(
                f"{source}: {name} is {values[name]!r:.80}, and must be {words}: give another"
            )


def _is_object(value):
    return isinstance(value, dict)


def _is_count(value):
    return type(value) is int and 0 <= value < 2**63


def _is_average(value):
    return value is None or (type(value) is float and 0 < value < 1)


def _is_key(value):
    return isinstance(value, list) and [_is_count(k) and k < 2**32 for k in value] == [True] * 2


def _has_numbers(value, number, *counts):
    """Whether it is an object of a finite number and some counts, which have these names."""
    return (
        _is_object(value)
        and value.keys() == {number, *counts}
        and type(value[number]) is float
        and math.isfinite(value[number])
        and all(_is_count(value[name]) for name in counts)
    )


VALUES = {  # what each must be, in words and as a test
    "step": ("an integer from 0 on", _is_count),
    "model": (
        "an object with a name",
        lambda value: _is_object(value) and isinstance(value.get("name"), str),
    ),
    "settings": (
        "an object, whose average is null or between 0 and 1",
        lambda value: _is_object(value) and _is_average(value.get("average")),
    ),
    "random_key": ("two integers of 32 bits", _is_key),
    "position": ("an object", _is_object),
    "evaluation": (
        "empty, or have best_loss, best_step and waited",
        lambda value: value == {} or _has_numbers(value, "best_loss", "best_step", "waited"),
    ),
    "scaling": (
        "null, or have a scale above 0, streak and skipped",
        lambda value: (
            value is None
            or (_has_numbers(value, "scale", "streak", "skipped") and value["scale"] > 0)
        ),
    ),
    "tokenizer": ("true or false", lambda value: isinstance(value, bool)),
}
