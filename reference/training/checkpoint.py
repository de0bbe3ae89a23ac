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

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from reference import tree
from reference.errors import CheckpointError
from reference.models import config_of, described, model_of
from reference.tokenizers import load_tokenizer
from reference.training.run_folder import checkpoint_in, point, sync
from reference.training.state import TREES, State, weights

FORMAT = {"format": "twinformer checkpoint", "version": 2}
SCALING = {"scale": float, "streak": int, "skipped": int}
KINDS = {
    "step": int,
    "model": dict,
    "settings": dict,
    "random_key": list,
    "position": dict,
    "evaluation": dict,
    "scaling": dict,
    "tokenizer": bool,
}
WORDS = {int: "an integer", dict: "an object", list: "a list", bool: "true or false"}
FEW = 8  # names of a kind in one message


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

    Arrays may be NumPy's or JAX's.  Where the disk is full or fails, OSError is raised, and the
    checkpoint before stays the latest.  best: it becomes the best one, too.
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
    sync(folder)
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
    found = _described(path)
    config = config_of(found["model"], source=path)
    tokenizer = load_tokenizer(folder) if found["tokenizer"] else None
    if tokenizer is not None and tokenizer.vocabulary_size > config.vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary_size} tokens, the model only "
            f"{config.vocabulary}; give the folder with the tokenizer that it was trained with"
        )
    return Checkpoint(
        _read_state(folder, found, model_of(config).parameter_shapes(config)),
        config,
        found["settings"],
        tokenizer,
        tuple(found["random_key"]),
        found["position"],
        found["evaluation"],
    )


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
    text = json.dumps(written, indent=2, allow_nan=False) + "\n"
    (folder / "checkpoint.json").write_text(text, encoding="utf-8")
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.save(folder)
    trees = {name: getattr(state, name) for name in TREES if getattr(state, name) is not None}
    _write_arrays(folder / "params.safetensors", trees.pop("params"))
    _write_arrays(folder / "optimizer.safetensors", trees)
    for file in folder.iterdir():
        sync(file)
    sync(folder)


def _write_arrays(path, arrays):
    contiguous = {name: np.ascontiguousarray(a) for name, a in tree.flatten(arrays).items()}
    try:
        save_file(contiguous, path)
    except SafetensorError as error:  # that is how it reports a full disk
        raise OSError(f"{path} could not be written: {error}") from error


def _read_state(folder, found, shapes):
    """The State in a checkpoint's folder, of which checkpoint.json says what is `found`."""
    params = _read_arrays(folder / "params.safetensors", shapes)
    path = folder / "optimizer.safetensors"
    kinds = [name for name in TREES[1:] if name != "average" or found["settings"].get("average")]
    each = {f"{kind}.{path}": shape for kind in kinds for path, shape in shapes.items()}
    moments = _read_arrays(path, each)
    if len({a.dtype for a in (*params.values(), *moments.values())}) > 1:
        raise CheckpointError(
            f"{folder} has some arrays in float32 and some in float64; give files that were saved "
            "together"
        )
    trees = tree.unflatten(moments)
    return State(found["step"], tree.unflatten(params), **trees, scaling=found["scaling"])


def _described(path):
    """What checkpoint.json says."""
    found = read_json(path)
    form = {name: found.pop(name, None) for name in FORMAT}
    if form != FORMAT:
        raise CheckpointError(f"{path} is of {form}, and must be of {FORMAT}: give another")
    _check_names(path, found, KINDS)
    for name, kind in KINDS.items():
        if type(found[name]) is not kind and not (name == "scaling" and found[name] is None):
            raise CheckpointError(
                f"{path}: {name} is {found[name]!r:.80}, and must be {WORDS[kind]}: copy it again"
            )
    scaling, key, step = found["scaling"], found["random_key"], found["step"]
    if scaling is not None and {n: type(v) for n, v in scaling.items()} != SCALING:
        raise CheckpointError(f"{path}: scaling is {scaling!r:.80}: copy it again")
    if step < 0 or len(key) != 2 or not all(type(k) is int and 0 <= k < 2**32 for k in key):
        raise CheckpointError(
            f"{path}: step must be 0 or more, random_key two words of 32 bits: copy it again"
        )
    return found


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
