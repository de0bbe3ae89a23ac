"""Checkpoints: a run on disk, whole at every moment, and one form for both engines.

    run/latest                       "step-200": the checkpoint to go on from
    run/step-200/
        params.safetensors           the parameters, named by their paths in the tree
        optimizer.safetensors        AdamW's moments: mean.<path> and square.<path>
        checkpoint.json              the step, the model's sizes, the run's settings
        merges.txt, vocab.json       the tokenizer

A full disk or a power cut may end a program between any two writes.  So a folder gets its name
only when all of it is on the disk, nothing that has its name is written to again, and `latest`,
which is replaced in one go, is the last to change.
"""

import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.gpt import GPTConfig, parameter_shapes
from reference.tokenizers import BPE

FORMAT = {"format": "twinformer checkpoint", "version": 1}
STEP_FOLDER = re.compile(r"step-[0-9]+")
MOMENTS = ("mean", "square")
FEW = 8  # names of a kind in one message


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on, or to be used."""

    step: int  # steps done; AdamW's count, too
    params: dict
    optimizer: dict  # "mean" and "square", trees like params
    config: GPTConfig
    training: dict  # the run's settings, of plain JSON values
    tokenizer: BPE


def new_run(folder):
    """Make the folder of a new run.  Raises InputError where something is there already.

    A step that a killed run did not finish counts as nothing.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and all(map(_unfinished, folder.iterdir()))):
        raise InputError(f"{folder} is not empty; give another, or --resume to go on with it")
    folder.mkdir(parents=True, exist_ok=True)


def _unfinished(path):
    return path.suffix == ".tmp" and STEP_FOLDER.fullmatch(path.stem) and path.is_dir()


def save(folder, checkpoint):
    """Write a checkpoint into a run's folder, and make it the latest -> its own folder.

    Arrays may be NumPy's or JAX's.  Where the disk is full or fails, OSError is raised, and the
    checkpoint before stays the latest.
    """
    folder = Path(folder)
    name = f"step-{checkpoint.step}"
    # One folder cannot take another's place in one go, and `latest` may name the one that is
    # there.  So the same step, saved again, gets a name of its own: a zero more.
    while (folder / name).exists():
        name = name.replace("-", "-0")
    unfinished = folder / f"{name}.tmp"
    if unfinished.exists():  # of a run that was killed
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    _write(unfinished, checkpoint)
    os.rename(unfinished, folder / name)
    _sync(folder)

    latest = folder / "latest.tmp"
    latest.write_text(name + "\n", encoding="utf-8")
    _sync(latest)
    os.replace(latest, folder / "latest")
    _sync(folder)
    return folder / name


def load(folder):
    """The latest checkpoint of a run's folder, or the one in a folder `step-N`.

    The arrays are NumPy's, in the dtype they were saved in, and in the order of `initial_params`.
    Raises CheckpointError for anything that is missing, torn, foreign, or does not fit the rest.
    """
    folder = _step_folder(Path(folder))
    path = folder / "checkpoint.json"
    step, config, training = _described(path)
    tokenizer = BPE.load(folder)
    if tokenizer.vocabulary_size > config.vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary_size} tokens, the model only "
            f"{config.vocabulary}; give the folder with the tokenizer that it was trained with"
        )
    shapes = parameter_shapes(config)
    moment_shapes = {f"{moment}.{path}": shapes[path] for moment in MOMENTS for path in shapes}
    params = _read_arrays(folder / "params.safetensors", shapes)
    moments = _read_arrays(folder / "optimizer.safetensors", moment_shapes)
    if len({a.dtype for a in (*params.values(), *moments.values())}) > 1:
        raise CheckpointError(
            f"{folder} has some arrays in float32 and some in float64; give files that were saved "
            "together"
        )
    optimizer = tree.unflatten(moments)
    return Checkpoint(step, tree.unflatten(params), optimizer, config, training, tokenizer)


def check_fit(source, arrays, shapes):
    """Raise CheckpointError unless arrays and shapes, two dicts, have the same names and shapes."""
    misfits = {
        "missing": [name for name in shapes if name not in arrays],
        "left over": [name for name in arrays if name not in shapes],
        "of another shape": [
            f"{name} {arrays[name].shape}, not {shape}"
            for name, shape in shapes.items()
            if name in arrays and arrays[name].shape != shape
        ],
    }
    listed = [
        f"{kind}: {', '.join(names[:FEW])}"
        + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
        for kind, names in misfits.items()
        if names
    ]
    if listed:
        raise CheckpointError(
            f"{source} does not fit the model's sizes; {'; '.join(listed)}: "
            "give files that were saved together"
        )


def read_json(path):
    """The JSON object in a file.  Raises CheckpointError where there is none."""
    _check_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): copy it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} has no JSON object but {value!r:.40}: copy it again")
    return value


@contextmanager
def open_arrays(path):
    """A safetensors file, open.  Raises CheckpointError where it is missing, torn or foreign."""
    _check_file(path)
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is torn, or no safetensors file ({error}): copy it again"
        ) from None


def _check_file(path):
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy it again, or give another folder")


def _write(folder, checkpoint):
    """All files of a checkpoint, which are on the disk when this returns."""
    model = {"name": "gpt"} | asdict(checkpoint.config)
    described = FORMAT | {"step": checkpoint.step, "model": model, "training": checkpoint.training}
    text = json.dumps(described, indent=2, allow_nan=False) + "\n"
    (folder / "checkpoint.json").write_text(text, encoding="utf-8")
    checkpoint.tokenizer.save(folder)
    _write_arrays(folder / "params.safetensors", checkpoint.params)
    _write_arrays(folder / "optimizer.safetensors", checkpoint.optimizer)
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _write_arrays(path, arrays):
    contiguous = {name: np.ascontiguousarray(a) for name, a in tree.flatten(arrays).items()}
    try:
        save_file(contiguous, path)
    except SafetensorError as error:  # that is how it reports a full disk
        raise OSError(f"{path} could not be written: {error}") from error


def _sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _step_folder(folder):
    """The folder of the checkpoint itself."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not there, or no folder: give that of a run")
    latest = folder / "latest"
    if not latest.is_file():
        if STEP_FOLDER.fullmatch(folder.resolve().name):
            return folder
        raise CheckpointError(
            f"{folder} has no file `latest`, so no checkpoint was finished in it: "
            "give another run's folder, or one of its folders step-N"
        )
    name = latest.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
    if not STEP_FOLDER.fullmatch(name) or not (folder / name).is_dir():
        raise CheckpointError(
            f"{latest} names {name!r:.40}, which is no checkpoint beside it: "
            "write the name of one into it, such as step-100"
        )
    return folder / name


def _described(path):
    """What checkpoint.json says: the step, the GPTConfig, the run's settings."""
    described = read_json(path)
    found = {name: described.pop(name, None) for name in FORMAT}
    if found != FORMAT:
        raise CheckpointError(f"{path} is of {found}, and must be of {FORMAT}: give another")
    _check_names(path, described, ("step", "model", "training"))
    step, model, training = described["step"], described["model"], described["training"]
    if type(step) is not int or step < 0 or not isinstance(training, dict):
        raise CheckpointError(f"{path}: step must be 0 or more, training an object: copy it again")
    _check_names(path, model, ("name", *(field.name for field in fields(GPTConfig))))
    if model.pop("name") != "gpt":
        raise CheckpointError(f"{path} is of another model than 'gpt': give a GPT's checkpoint")
    try:
        return step, GPTConfig(**model), training
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _check_names(path, described, names):
    found = sorted(described) if isinstance(described, dict) else described
    if found != sorted(names):
        raise CheckpointError(
            f"{path} has {found!r:.200} where it must have {sorted(names)}: it was written by "
            "another version, or by hand; give another checkpoint"
        )


def _read_arrays(path, shapes):
    """The arrays of a file, which must have these names and shapes, in this order."""
    with open_arrays(path) as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}
        if not dtypes <= {"F32", "F64"}:
            raise CheckpointError(f"{path} has arrays of {dtypes}; all must be of float32 or 64")
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    check_fit(path, arrays, shapes)
    return {name: arrays[name] for name in shapes}
