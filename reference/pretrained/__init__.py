"""Published weights in and out: directories in Hugging Face's form, as the tree of both engines.

    config, params = load("gpt2")        what others trained, in NumPy or in JAX
    save("mine", config, params)         what was trained here, for `transformers` to load

Each family has a file beside this one, which says how its settings and names read; here is what is
common to all.  Half-precision files are widened to float32.  Tokenizers are read by `tokenizers`.
"""

from collections.abc import Callable
from pathlib import Path
from re import Pattern
from typing import NamedTuple

import numpy as np

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models import model_of, name_of
from reference.pretrained import bert, clip, files, gpt2, llama, marian, vit
from reference.training.checkpoint import check_fit, read_json

__all__ = ["load", "save"]


class Family(NamedTuple):
    """How the directories of a family read."""

    model: str  # the name of ours, as in `reference.models`
    read_config: Callable  # (settings, source) -> our config; raises CheckpointError
    write_config: Callable  # (config) -> settings
    stored: Callable  # (config) -> {our path: names.Stored}
    prefix: str = ""  # of names, which files of the model without its head leave out
    left_out: Pattern | None = None  # names that hold nothing to learn
    tied: dict = {}  # names in some files -> our path of which they are a copy


FAMILIES = {  # by config.json's model_type
    "bert": Family("bert", *bert.FAMILY),
    "clip": Family("clip", *clip.FAMILY),
    "gpt2": Family("gpt", *gpt2.FAMILY),
    "llama": Family("llama", *llama.FAMILY),
    "marian": Family("transformer", *marian.FAMILY),
    "mistral": Family("llama", *llama.FAMILY),
    "vit": Family("vit", *vit.FAMILY),
}


RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def load(directory):
    """A published model -> its config and its float32 parameters.

    directory: one with config.json and *.safetensors;  or a name on Hugging Face's hub, such as
    "openai-community/gpt2", where the library huggingface_hub and a network are there.
    Raises CheckpointError for a file that is missing or torn, for a family or settings that we do
    not have, for numbers that are not finite, and for arrays that are missing, left over or of
    another shape: all of them by name.  InputError for a name that is neither.
    """
    directory = local(directory)
    path = directory / files.SETTINGS
    settings = read_json(path)
    family = FAMILIES.get(settings.get("model_type"))
    if family is None:
        raise CheckpointError(
            f"{path}: model_type is {settings.get('model_type')!r}; give one of "
            f"{', '.join(FAMILIES)}"
        )
    config = family.read_config(settings, path)
    where = family.stored(config)
    names = {stored.name for stored in where.values()}
    read = files.read_arrays(directory, leave_out=family.left_out)
    arrays = {current(name, family.prefix, names): array for name, array in read.items()}
    tied = {
        name: arrays.pop(name)
        for name, path in family.tied.items()
        if name in arrays and name not in names and path in where
    }
    params = gathered(directory, where, model_of(config).parameter_shapes(config), arrays)
    for name, array in tied.items():
        ours = params[family.tied[name]]
        if not np.array_equal(array, ours):
            raise CheckpointError(
                f"{directory}: {name} is not equal to what is our {family.tied[name]}, and our "
                "model has one table for both; give a model with tied embeddings"
            )
    return config, tree.unflatten(params)


def save(directory, config, params, *, dtype="float32"):
    """Write a model as a directory that `transformers` loads.

    params: as of `load`;  dtype: of the file, "float32", "float16" or "bfloat16".
    Raises InputError for a directory with a model in it, another dtype, or parameters that are not
    this config's; OSError where it cannot be written.
    """
    directory = Path(directory)
    if (directory / files.SETTINGS).exists():
        raise InputError(f"{directory} has a model already; give another directory")
    family = next(f for f in FAMILIES.values() if f.model == name_of(config))
    flat = {path: np.asarray(array) for path, array in tree.flatten(params).items()}
    check_fit("params", flat, model_of(config).parameter_shapes(config))
    pieces = {}
    for path, stored in family.stored(config).items():
        pieces.setdefault(stored.name, []).append((stored, flat[path]))
    arrays = {}
    for name, parts in pieces.items():
        joined = np.concatenate([a for _, a in sorted(parts, key=lambda p: p[0].part)], axis=-1)
        stored = parts[0][0]
        arrays[name] = stored.theirs(joined)
    files.write(directory, family.write_config(config), arrays, dtype=dtype)


def current(name, prefix, names):
    """The name of today for one of a file: of a model without its head, or one from TensorFlow."""
    for old, new in RENAMED.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return prefix + name if prefix + name in names else name


def gathered(source, where, shapes, arrays):
    """Our parameters by their paths, of the arrays of a file by their names."""
    expected = {}
    for path, stored in where.items():
        *rest, last = shapes[path]
        expected[stored.name] = stored.shape_of_theirs((*rest, last * stored.parts))
    check_fit(source, arrays, expected)
    params = {}
    for path in shapes:
        stored = where[path]
        whole = stored.ours(arrays[stored.name])
        part = np.split(whole, stored.parts, axis=-1)[stored.part]
        params[path] = np.array(part, np.float32, order="C")
    return params


def local(directory):
    """The directory itself, or what the hub has under this name, downloaded."""
    path = Path(directory)
    if path.is_dir():
        return path
    name = str(directory)
    if path.exists() or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{path} is not there, or no directory: give that of a model")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{name} is no directory here, and to get it from Hugging Face's hub the library "
            "huggingface_hub is needed: pip install huggingface_hub, or give a directory"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:  # of many kinds: no network, no such name, no permission
        raise InputError(
            f"{name} is no directory here, and Hugging Face's hub did not give it "
            f"({type(error).__name__}: {error!s:.200}); give a directory, or look at the network"
        ) from None
