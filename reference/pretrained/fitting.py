"""Which array of a directory is which parameter: told by names and shapes, before any is read."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models import model_of
from reference.pretrained import files
from reference.pretrained.settings import check_numbers, check_settings
from reference.training.array_files import check_fit

RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclass(frozen=True)
class Fit:
    """A model in a directory, unread."""

    config: Any
    where: dict  # our path -> names.Stored
    entries: dict  # the name of today -> array_files.Entry
    copies: dict  # likewise, of arrays that must equal one of ours
    drawn: tuple[str, ...] = ()  # our paths of what the files do not have
    unused: tuple[str, ...] = ()  # names in the files of what the model does not have


def fitted(directory, family, settings, *, head=None, labels=None):
    """The Fit of a directory: all of its arrays are the model's, and the other way round.

    family: an entry of FAMILIES.  head: but for those of heads, if one is asked for; its own are to
    be drawn where the files do not have them all in their shapes, and those of others are unused.
    Raises CheckpointError for whatever does not fit.
    """
    source, found = directory / files.SETTINGS, files.entries(directory, settings)
    check_settings(settings, source, arrays=len(found))
    asked = {} if head is None else {"head": head, "labels": labels}
    config = family.read_config(settings, source, **asked)
    check_numbers(config, source)
    where = family.stored(config)
    expected = shapes_of_theirs(where, model_of(config).parameter_shapes(config))
    of_heads = {} if head is None else family.of_heads(settings, head)
    entries = renamed(directory, found, family, expected, tuple(of_heads))
    unused, drawn = {}, set()
    for beginning, own in of_heads.items():
        wanted = {name: shape for name, shape in expected.items() if name.startswith(beginning)}
        if own and all(n in entries and entries[n].shape == s for n, s in wanted.items()):
            continue
        unused |= {name: None for name in entries if name.startswith(beginning)}
        drawn |= wanted.keys()
    entries = {name: entry for name, entry in entries.items() if name not in unused}
    copies = {
        name: entries.pop(name)
        for name, path in family.tied.items()
        if name in entries and name not in expected and path in where
    }
    check_fit(directory, entries, {n: s for n, s in expected.items() if n not in drawn})
    files.check_dtypes(entries | copies)
    paths = tuple(path for path, stored in where.items() if stored.name in drawn)
    return Fit(config, where, entries, copies, paths, tuple(sorted(unused)))


def shapes_of_theirs(where, shapes):
    """The shapes that the arrays of the files must have, by their names."""
    expected = {}
    for path, stored in where.items():
        if stored.name is not None:
            shape = shapes[path]
            if stored.parts > 1:
                shape = *shape[:-1], shape[-1] * stored.parts
            expected[stored.name] = stored.shape_of_theirs(shape)
    return expected


def renamed(directory, found, family, known, beginnings):
    """The entries by their names of today, without those that hold nothing to learn.

    known: names that the model has;  beginnings: of others that it may have.
    """
    entries, before = {}, {}
    for name, entry in found.items():
        if family.left_out is not None and family.left_out.fullmatch(name):
            continue
        new = current(name, family.prefix, known, beginnings)
        if new in entries:
            raise CheckpointError(
                f"{directory} has {before[new]} and {name}, two names of one array: give files "
                "that were saved together"
            )
        entries[new], before[new] = entry, name
    return entries


def current(name, prefix, known, beginnings):
    """The name of today for one of a file: of a model without its head or with another, or one from
    TensorFlow.
    """
    for old, new in RENAMED.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    several = (prefix,) if isinstance(prefix, str) else prefix
    bare = next((name.removeprefix(one) for one in several if name.startswith(one)), name)
    possible = (one + bare for one in several)
    return next((n for n in possible if n in known or n.startswith(beginnings)), name)


def gathered(fit, drawn):
    """The parameters of a Fit, read, by our paths; those that are not there from `drawn`."""
    shapes, params = model_of(fit.config).parameter_shapes(fit.config), {}
    paths = {}
    for path, stored in fit.where.items():
        paths.setdefault(stored.name, []).append(path)
    for name, several in paths.items():
        whole = None
        for path in several:
            stored = fit.where[path]
            if name is None:
                params[path] = np.zeros(shapes[path], np.float32)
            elif path in fit.drawn:
                params[path] = drawn[path]
            else:
                whole = stored.ours(files.read(name, fit.entries[name])) if whole is None else whole
                params[path] = np.array(part_of(whole, stored), np.float32, order="C")
    return {path: params[path] for path in shapes}


def drawn_anew(fit, key):
    """What the files do not have, as new weights are, by our paths.

    `initial_params` draws whole models, and a head is little: so it is given one that is as small
    as the shapes of what is drawn allow.
    """
    if not fit.drawn:
        return {}
    shapes, small = model_of(fit.config).parameter_shapes(fit.config), fit.config
    sizes = ("layers", "hidden", "vocabulary", "context")
    for name in filter(vars(small).__contains__, sizes):
        smaller = replace(small, **{name: 1})
        others = model_of(smaller).parameter_shapes(smaller)
        if all(others[path] == shapes[path] for path in fit.drawn):
            small = smaller
    params = tree.flatten(model_of(small).initial_params(small, key=key))
    return {path: params[path] for path in fit.drawn}


def part_of(whole, stored):
    """One of the parameters that an array of theirs holds side by side."""
    if stored.parts == 1:
        return whole
    return np.split(whole, stored.parts, axis=-1)[stored.part]


def check_copies(directory, fit, tied, params):
    """Raise CheckpointError unless what the files have twice is the same both times."""
    for name, entry in fit.copies.items():
        ours = params[tied[name]]
        if entry.shape != ours.shape or not np.array_equal(files.read(name, entry), ours):
            raise CheckpointError(
                f"{directory}: {name} is not equal to what is our {tied[name]}, and our model has "
                "one table for both; give a model with tied embeddings"
            )


def check_head(family, head, labels):
    """Raise InputError for a head that a family has no choice of, or labels without a head."""
    if head is None and labels is not None:
        raise InputError(f"labels is {labels!r} without a head: say which, as head")
    if head is not None and head not in family.heads:
        choices = f"give one of {', '.join(family.heads)}" if family.heads else "leave it out"
        raise InputError(
            f"head is {head!r}, which the model {family.model} does not have; {choices}"
        )
