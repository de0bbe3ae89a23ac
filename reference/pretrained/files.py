"""The files of a published model: settings, and arrays by name in one or several files.

config.json                    the sizes and settings
model.safetensors              the arrays; or several such files, and
model.safetensors.index.json   which array is in which of them
"""

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from reference.errors import CheckpointError, InputError
from reference.pretrained.tokenizer_files import write_tokenizer
from reference.training.array_files import array_of, entries_in, read_json
from reference.training.log import named_errors
from reference.training.run_folder import make_folder, missing_folders, sync

SETTINGS, ARRAYS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Numbers from here on are rounded to infinity: half a step above the largest.
ENDS = {
    "float32": (2 - 2**-24) * 2.0**127,
    "float16": (2 - 2**-11) * 2.0**15,
    "bfloat16": (2 - 2**-8) * 2.0**127,
}


def entries(directory, settings):
    """All arrays of a directory, of which only the headers are read -> {name: Entry}.

    Raises CheckpointError for files that are missing, torn or foreign, and for an index that does
    not say what is in them.
    """
    check_form(directory, settings)
    placed, found = placed_in(directory), {}
    for file in dict.fromkeys(placed.values()) if placed else [ARRAYS]:
        path = directory / file
        for name, entry in entries_in(path).items():
            if name in found:
                raise CheckpointError(
                    f"{name} is in {found[name].path} and in {path}: give files that were saved "
                    "together"
                )
            found[name] = entry
    for name, file in placed.items():
        if name not in found or found[name].path.name != file:
            raise CheckpointError(
                f"{directory / INDEX} has {name} in {file}, which has no such array: give files "
                "that were saved together"
            )
    return found


def placed_in(directory):
    """The index, {name: file};  empty where one file has all arrays.  Raises CheckpointError."""
    index = directory / INDEX
    if not index.exists() or (directory / ARRAYS).exists():
        return {}
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index} has no weight_map of names to files: copy it again")
    for name, file in placed.items():
        plain = isinstance(file, str) and file.endswith(".safetensors") and file.isprintable()
        if not plain or Path(file).name != file or "\\" in file:
            raise CheckpointError(
                f"{index} has {name} in {file!r:.200}; its weight_map must give files beside it, "
                "whose names end in .safetensors: copy it again"
            )
    return placed


def check_form(directory, settings):
    """Raise CheckpointError for arrays in a form that is not read, and say how to convert them."""
    there = any((directory / name).exists() for name in (ARRAYS, INDEX))
    pickles = [name for name in PICKLES if (directory / name).exists()]
    if there or not pickles:
        return
    kinds = [kind for kind in settings.get("architectures") or [] if isinstance(kind, str)]
    kind = kinds[0] if kinds and kinds[0].isidentifier() else "AutoModel"
    where = str(directory)
    raise CheckpointError(
        f"{directory} has its arrays in {pickles[0]}, and a pickle runs what it likes when it is "
        "read.  Where you trust it, convert it to safetensors in Python, with torch: "
        f"from transformers import {kind}; {kind}.from_pretrained({where!r})"
        f".save_pretrained({where!r})"
    )


def read(name, entry):
    """An array in float32: halves are widened, bfloat16 is the upper half of a float32.

    Raises CheckpointError for a file that cannot be read, and for numbers that are not finite.
    """
    array = array_of(name, entry)
    if entry.dtype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    if not np.isfinite(array).all():
        raise CheckpointError(
            f"{entry.path}: {name} has numbers that are not finite: training went wrong, or the "
            "file is damaged; give another"
        )
    return array.astype(np.float32, copy=False)


def check_dtypes(entries):
    """Raise CheckpointError unless all arrays are of a dtype that is read."""
    for name, entry in entries.items():
        if entry.dtype not in DTYPES.values():
            raise CheckpointError(
                f"{entry.path}: {name} is {entry.dtype}; give float32, float16 or bfloat16"
            )


def check_numbers(arrays, dtype):
    """Raise InputError for a dtype that is not written, or numbers that are not finite in it."""
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
    for name, array in arrays.items():
        if not float(np.abs(array).max(initial=0)) < ENDS[dtype]:
            finite = np.isfinite(array).all()
            raise InputError(
                f"{name} has numbers that {f'{dtype} cannot hold' if finite else 'are not finite'},"
                f" and nobody could load them; {'give float32' if finite else 'train it again'}"
            )


def write(directory, settings, arrays, *, dtype, tokenizer=None):
    """Write config.json, model.safetensors and a tokenizer's files.

    config.json gets its name last, when all is on the disk: without it nothing is loaded.  What
    ends it before that, a full disk or Ctrl-C, leaves nothing behind.  Raises OSError for those.
    """
    made = missing_folders(directory)
    before = set(directory.iterdir()) if directory.exists() else set()
    try:
        make_folder(directory)
        unfinished = {name: directory / f"{name}.tmp" for name in (ARRAYS, SETTINGS)}
        text = json.dumps(settings | {"dtype": dtype}, indent=2) + "\n"
        with named_errors(unfinished[ARRAYS]):
            write_arrays(unfinished[ARRAYS], arrays, dtype)
        with named_errors(unfinished[SETTINGS]):
            unfinished[SETTINGS].write_text(text, encoding="utf-8", newline="\n")
        if tokenizer is not None:
            with named_errors(directory):
                write_tokenizer(directory, tokenizer)
        for path in unfinished.values():
            sync(path)
        for name, path in unfinished.items():
            sync(directory)
            os.replace(path, directory / name)
        sync(directory)
    except BaseException:
        if not (directory / SETTINGS).exists():
            remove(directory, before, made)
        raise


def remove(directory, kept, folders):
    """Remove what is in a directory, but for some, and folders, as far as the disk lets us."""
    for path in set(directory.glob("*")) - kept:
        with suppress(OSError):
            path.unlink()
    for path in folders:
        with suppress(OSError):  # where there is something in it
            path.rmdir()


def write_arrays(path, arrays, dtype):
    """A file of safetensors: the length of its header (8 bytes), the header (JSON), the arrays.

    The library for NumPy has no bfloat16.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.size * (4 if dtype == "float32" else 2)
        header[name] = {"dtype": DTYPES[dtype], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(narrowed(array, dtype).reshape(-1).data)


def narrowed(array, dtype):
    """An array as a file has it; bfloat16 is a float32 without its lower half, rounded.

    To the nearest, ties to even: half of the last place that stays, less one if that is even, is
    added before the lower half is cut off.
    """
    array = np.ascontiguousarray(array, "<f4")
    if dtype != "bfloat16":
        return array.astype({"float32": "<f4", "float16": "<f2"}[dtype])
    words = array.view("<u4")
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype("<u2")
