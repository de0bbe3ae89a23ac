"""What makes a run this one and no other: a run that goes on must be the one that was begun."""

import json
from dataclasses import asdict, replace

from reference import random
from reference.errors import InputError
from reference.models import described


def identity(config, training, data, validation, settings):
    """What makes a run this one and no other, as a checkpoint has it."""
    return {
        "model": plain(described(config)),
        "settings": plain(settings | asdict(training)),
        "position": {
            "fingerprint": data.fingerprint,
            "validation": None if validation is None else validation.fingerprint,
        },
        "random_key": tuple(int(word) for word in random.key(training.seed)),
    }


def plain(values):
    """A dict as JSON gives it back.  Raises InputError for what it could not keep."""
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise InputError(
                f"{name} is {value!r:.80} of {type(value).__name__}, which a checkpoint cannot "
                "keep; give finite numbers, texts, booleans, None, or lists and dicts of these"
            ) from None
    return json.loads(json.dumps(values))


def same_run(found, ours):
    """The Checkpoint found, if it is of this run.  Raises InputError for the first difference.

    Settings that it does not have, as those of another engine, are added to its own.
    """
    remedy = "give what it was begun with, or begin a new run in another folder"
    model, settings, position = described(found.config), found.settings, found.position
    for whose, theirs, now in (
        ("the model's ", model, ours["model"]),
        ("", settings, ours["settings"]),
    ):
        for name, value in now.items():
            if name in theirs and value != theirs[name]:
                raise InputError(
                    f"{whose}{name} is {value!r:.80}, but the run was begun with "
                    f"{theirs[name]!r:.80}; {remedy}"
                )
    for name, words in (("fingerprint", "data"), ("validation", "validation data")):
        if name in position and position[name] != ours["position"][name]:
            raise InputError(f"the {words} are not those that the run was begun with; {remedy}")
    added = {name: getattr(found, name) | ours[name] for name in ("settings", "position")}
    return replace(found, **added)
