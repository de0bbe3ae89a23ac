"""Checkpoints: a run at one step, whole at every moment, and one form for both engines.

    step-200/
        params.safetensors           the parameters, named by their paths in the tree
        optimizer.safetensors        AdamW's moments, mean.<path> and square.<path>; where weights
                                     are averaged, average.<path>
        checkpoint.json              the step, the model's sizes, the run's settings, its random
                                     key, its place in the data, what evaluation has found
        merges.txt, vocab.json       the tokenizer, or characters.json

A full disk or a power cut may end a program between any two writes.  So a folder gets its name
only when all of it is on the disk, nothing that has its name is written to again, and `latest`,
which is replaced in one go, is the last to change.
"""

import errno
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from reference import tree
from reference.errors import CheckpointError
from reference.models import config_of, model_of
from reference.tokenizers import load_tokenizer
from reference.tokenizers.checks import check_tokenizer
from reference.training.array_files import array_of, check_fit, entries_in, read_json
from reference.training.description import described_in, description
from reference.training.log import named_errors
from reference.training.run_folder import (
    checkpoint_in,
    make_folder,
    point,
    remove_unfinished,
    sync,
)
from reference.training.state import TREES, State, weights


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on, or to be used."""

    state: State  # arrays are NumPy's
    config: Any  # of the model
    settings: dict  # of the run: TrainingConfig and all else that decides it, plain JSON values
    tokenizer: Any = None
    random_key: tuple[int, int] = (0, 0)  # that the run's streams are split from
    position: dict = field(default_factory=dict)  # in the data: epoch, batch, and its fingerprint
    evaluation: dict = field(default_factory=dict)  # best_loss, best_step, waited

    @property
    def step(self):
        """Steps done."""
        return self.state.step

    @property
    def weights(self):
        """The parameters to use: averaged ones where the run averages."""
        return weights(self.state, self.settings.get("average"))


def save(folder, checkpoint, *, best=False):
    """Write a checkpoint into a run's folder, and make it the latest -> its own folder.

    Arrays may be NumPy's or JAX's.  best: it becomes the best one, too.
    Raises InputError, before anything is written, for what `load` would not take.  Where the disk
    is full or fails, OSError says which file it was; nothing half stays, and the checkpoint before
    is the latest still.  One program at a time saves into a folder: see `claimed`.
    """
    folder = Path(folder)
    text, arrays = description(checkpoint), _arrays(checkpoint)
    if checkpoint.tokenizer is not None:
        check_tokenizer(checkpoint.config, checkpoint.tokenizer, source="the checkpoint")
    make_folder(folder)
    remove_unfinished(folder)
    # One folder cannot take another's place in one go, and `latest` may name the one that is
    # there.  So the same step, saved again, gets a name of its own: a zero more.
    name = f"step-{checkpoint.step}"
    while (folder / name).exists():
        name = name.replace("-", "-0")
    unfinished = folder / f"{name}.tmp"
    try:
        unfinished.mkdir()
        _write(unfinished, text, arrays, checkpoint.tokenizer)
        os.rename(unfinished, folder / name)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)  # it may be what has filled the disk
        raise
    sync(folder)
    # `best` comes first.  Who is killed between the two goes on from the checkpoint before, and
    # finds this best again; the other way round, nothing would tell that `best` is not the best.
    if best:
        point(folder, "best", name)
    point(folder, "latest", name)
    return folder / name


def load(folder, *, pointer="latest"):
    """A checkpoint: that of a folder `step-N`, or of a run's folder its latest, or its best.

    The arrays are NumPy's, in the dtype they were saved in, and in the order of `initial_params`.
    Raises CheckpointError for anything that is missing, torn, foreign, or does not fit the rest.
    """
    folder = checkpoint_in(folder, pointer)
    path = folder / "checkpoint.json"
    found = described_in(read_json(path), path)
    config = config_of(found["model"], source=path)
    tokenizer = load_tokenizer(folder) if found["tokenizer"] else None
    if tokenizer is not None:
        check_tokenizer(config, tokenizer, source=folder)
    arrays = {}
    for name, shapes in _shapes(config, found["settings"]).items():
        arrays[name] = _read_arrays(folder / f"{name}.safetensors", shapes)
    _check_dtypes(folder, arrays)
    params, rest = (tree.unflatten(arrays[name]) for name in ("params", "optimizer"))
    return Checkpoint(
        State(found["step"], params, **rest, scaling=found["scaling"]),
        config,
        found["settings"],
        tokenizer,
        tuple(found["random_key"]),
        found["position"],
        found["evaluation"],
    )


def _arrays(checkpoint):
    """The arrays of both files.  Raises CheckpointError unless they are a state of the model's."""
    state = checkpoint.state
    trees = {name: getattr(state, name) for name in TREES if getattr(state, name) is not None}
    arrays = {"params": tree.flatten(trees.pop("params")), "optimizer": tree.flatten(trees)}
    for name, shapes in _shapes(checkpoint.config, checkpoint.settings).items():
        check_fit(f"{name} to be saved", arrays[name], shapes)
    _check_dtypes("the state to be saved", arrays)
    return arrays


def _write(folder, text, arrays, tokenizer):
    """All files of a checkpoint, which are on the disk when this returns."""
    path = folder / "checkpoint.json"
    with named_errors(path):
        path.write_text(text, encoding="utf-8", newline="\n")
    if tokenizer is not None:
        with named_errors(folder):
            tokenizer.save(folder)
    for name, several in arrays.items():
        _write_arrays(folder / f"{name}.safetensors", several)
        with suppress(PermissionError):  # some disks know no rights
            # safetensors lets only the owner read its files.
            shutil.copymode(path, folder / f"{name}.safetensors")
    for file in folder.iterdir():
        sync(file)
    sync(folder)


def _write_arrays(path, arrays):
    in_rows = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        save_file(in_rows, path)
    except SafetensorError as error:  # that is how it reports a full disk
        number = re.search(r"os error ([0-9]+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, f"it could not be written ({error})", str(path)) from error


def _shapes(config, settings):
    """The shapes of the arrays in both files, by their names."""
    shapes = model_of(config).parameter_shapes(config)
    kinds = TREES[1:] if settings.get("average") is not None else TREES[1:-1]
    moments = {f"{kind}.{path}": shape for kind in kinds for path, shape in shapes.items()}
    return {"params": shapes, "optimizer": moments}


def _read_arrays(path, shapes):
    """The arrays of a file, which must have these names and shapes, in this order."""
    entries = entries_in(path)
    dtypes = {entry.dtype for entry in entries.values()}
    if not dtypes <= {"F32", "F64"}:
        raise CheckpointError(f"{path} has arrays of {dtypes}; all must be of float32 or 64")
    check_fit(path, entries, shapes)
    return {name: array_of(name, entries[name]) for name in shapes}


def _check_dtypes(source, arrays):
    """Raise CheckpointError unless all arrays of both files are of float32, or all of float64."""
    dtypes = sorted({str(array.dtype) for several in arrays.values() for array in several.values()})
    if dtypes not in (["float32"], ["float64"]):
        raise CheckpointError(
            f"{source} has arrays of {' and '.join(dtypes)}; all must be of float32, or all of "
            "float64: give files that were saved together"
        )
