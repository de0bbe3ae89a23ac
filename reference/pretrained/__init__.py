"""Published weights in and out: directories in Hugging Face's form, as the tree of both engines.

    config, params = load("gpt2")        what others trained, in NumPy or in JAX
    save("mine", config, params)         what was trained here, for `transformers` to load

To be fine-tuned, a model gets the head that its new task asks for:

    config, params = load("bert", head="sequence_classification", labels=2, key=key)
    changes("bert", head="sequence_classification", labels=2)      what of it is new

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
from reference.pretrained import bert, clip, files, gpt2, gpt_neo, llama, marian, openai_gpt, vit
from reference.pretrained.fitting import check_copies, check_head, drawn_anew, fitted, gathered
from reference.pretrained.tokenizer_files import check_no_tokenizer
from reference.tokenizers.checks import check_tokenizer
from reference.training.array_files import check_fit, read_json

__all__ = ["Changes", "changes", "load", "save"]


class Family(NamedTuple):
    """How the directories of a family read."""

    model: str  # the name of ours, as in `reference.models`
    read_config: Callable  # (settings, source) -> our config; raises CheckpointError
    write_config: Callable  # (config) -> settings
    stored: Callable  # (config) -> {our path: names.Stored}
    prefix: str | tuple[str, ...] = ""  # of names, which files without a head leave out; or several
    left_out: Pattern | None = None  # names that hold nothing to learn
    tied: dict = {}  # names in some files -> our path of which they are a copy
    holds: Callable | None = None  # (config) -> whether this form holds such a model; None: all
    heads: tuple[str, ...] = ()  # to choose from; read_config then takes head and labels, too
    of_heads: Callable | None = None  # (settings, head) -> {how names of a head begin: if its own}


FAMILIES = {  # by config.json's model_type
    "bert": Family("bert", *bert.FAMILY, **bert.HEADS),
    "clip": Family("clip", *clip.FAMILY),
    "gpt2": Family("gpt", *gpt2.FAMILY, **gpt2.HEADS),
    "gpt_neo": Family("gpt", *gpt_neo.FAMILY),
    "llama": Family("llama", *llama.FAMILY, **llama.HEADS),
    "marian": Family("transformer", *marian.FAMILY),
    "mistral": Family("llama", *llama.FAMILY, **llama.HEADS),
    "openai-gpt": Family("gpt1", *openai_gpt.FAMILY),
    "vit": Family("vit", *vit.FAMILY, **vit.HEADS),
}


PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]  # what is fetched from the hub


class Changes(NamedTuple):
    """What `load` makes of a model for another head, and `str` says so."""

    drawn: tuple[str, ...]  # our paths of what the files do not have
    unused: tuple[str, ...]  # names in the files of what the model does not have

    def __str__(self):
        said = [f"drawn anew: {', '.join(self.drawn)}"] if self.drawn else []
        return "; ".join(said + ([f"not used: {', '.join(self.unused)}"] if self.unused else []))


def load(directory, *, head=None, labels=None, key=None):
    """A published model -> its config and its float32 parameters.

    directory: one with config.json and *.safetensors;  or a name on Hugging Face's hub, such as
    "openai-community/gpt2", where the library huggingface_hub and a network are there.
    head: another than the model was published with, by the names of our config ("features" or
    "classification" of a ViT), and labels, the classes of it.  What the directory does not have of
    it, or in another shape, is drawn with this key as `initial_params` does; `changes` says what.
    Raises CheckpointError for a file that is missing or torn, for a family or settings that we do
    not have, for numbers that are not finite, and for arrays that are missing, left over or of
    another shape: all of them by name.  InputError for a name that is neither, for a head that the
    model does not have, and where a key or labels are missing.
    """
    directory, family, fit = opened(directory, head, labels)
    if fit.drawn and key is None:
        raise InputError(
            f"{directory} has no {', '.join(fit.drawn)}: give a key, to draw them with"
        )
    params = gathered(fit, drawn_anew(fit, key))
    check_copies(directory, fit, family.tied, params)
    return fit.config, tree.unflatten(params)


def changes(directory, *, head, labels=None):
    """What `load` with this head draws, and what of the directory it does not use -> Changes.

    Only headers are read.  Raises what `load` does.
    """
    _, _, fit = opened(directory, head, labels)
    return Changes(fit.drawn, fit.unused)


def opened(directory, head, labels):
    """A directory that is here, its Family and its Fit."""
    directory = local(directory)
    path = directory / files.SETTINGS
    settings = read_json(path)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(f"{path}: model_type is {kind!r}; give one of {', '.join(FAMILIES)}")
    check_head(FAMILIES[kind], head, labels)
    fit = fitted(directory, FAMILIES[kind], settings, head=head, labels=labels)
    return directory, FAMILIES[kind], fit


def save(directory, config, params, *, dtype="float32", tokenizer=None):
    """Write a model as a directory that `transformers` loads.

    params: as of `load`;  dtype: of the file, "float32", "float16" or "bfloat16";  tokenizer: its
    files are written beside, where `load_tokenizer` finds them, and AutoTokenizer all but those of
    Characters, which Hugging Face does not have.
    Nothing is loaded until all of it is on the disk, and what fails leaves nothing behind.
    Raises InputError for a directory with a model or, where one is given, a tokenizer in it, for
    another dtype, numbers that are not finite in it, a tokenizer with more tokens than the model,
    or parameters that are not this config's; OSError where it cannot be written.
    """
    directory = Path(directory)
    for name in (files.SETTINGS, files.ARRAYS, files.INDEX):
        if (directory / name).exists():
            raise InputError(f"{directory} has a model already, {name}; give another directory")
    if tokenizer is not None:
        check_tokenizer(config, tokenizer, source="the model to be saved")
        check_no_tokenizer(directory)
    family = family_of(config)
    flat = {path: np.asarray(array) for path, array in tree.flatten(params).items()}
    check_fit("params", flat, model_of(config).parameter_shapes(config))
    files.check_numbers(flat, dtype)
    pieces = {}
    for path, stored in family.stored(config).items():
        if stored.name is None:
            check_zero(path, flat[path])
            continue
        pieces.setdefault(stored.name, []).append((stored, flat[path]))
    arrays = {name: joined(parts) for name, parts in pieces.items()}
    settings = family.write_config(config)
    files.write(directory, settings, arrays, dtype=dtype, tokenizer=tokenizer)


def joined(parts):
    """An array of theirs, of pairs of a Stored and what we have of it."""
    stored, array = parts[0]
    if stored.parts > 1:
        array = np.concatenate([a for _, a in sorted(parts, key=lambda p: p[0].part)], axis=-1)
    return stored.theirs(array)


def family_of(config):
    """The first Family that holds such a model.  Raises InputError where none does."""
    model = name_of(config)
    names = [name for name, family in FAMILIES.items() if family.model == model]
    for family in (FAMILIES[name] for name in names):
        if family.holds is None or family.holds(config):
            return family
    raise InputError(
        f"no form of {', '.join(names)} holds {config}; give another config, or keep the model as "
        "a checkpoint"
    )


def check_zero(path, array):
    """Raise InputError unless a parameter that a published form leaves out is 0."""
    if array.any():
        raise InputError(
            f"{path} is not 0, and the published form of this model has no such parameter; set it "
            "to 0, or keep the model as a checkpoint"
        )


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
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except Exception as error:  # of many kinds: no network, no such name, no permission
        said = " ".join(str(error).split())
        raise InputError(
            f"{name} is no directory here, and Hugging Face's hub did not give it "
            f"({type(error).__name__}: {said:.200}); give a directory, or look at the network"
        ) from None
