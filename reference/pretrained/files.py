"""The files of a published model: settings, and arrays by name in one or several files.

config.json                    the sizes and settings
model.safetensors              the arrays; or several such files, and
model.safetensors.index.json   which array is in which of them
"""

import json
from pathlib import Path

import numpy as np

from reference.errors import CheckpointError, InputError
from reference.training.checkpoint import open_arrays, read_json

SETTINGS, ARRAYS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def read_arrays(directory, *, leave_out=None):
    """All arrays of a directory, by their names, in float32: halves are widened.

    leave_out: a compiled pattern of names that are not read.
    Raises CheckpointError for files that are missing, torn or foreign, and for arrays of another
    dtype or with numbers that are not finite.
    """
    arrays = {}
    for path in array_files(Path(directory)):
        with open_arrays(path) as file:
            for name in file.keys():
                if leave_out is None or not leave_out.fullmatch(name):
                    arrays[name] = _read(path, file, name)
    return arrays


def array_files(directory):
    """The files that hold the arrays."""
    index = directory / INDEX
    if not index.exists() or (directory / ARRAYS).exists():
        return [directory / ARRAYS]
    placed = read_json(index).get("weight_map")
    files = sorted(set(map(str, placed.values()))) if isinstance(placed, dict) else []
    if not files or any(Path(name).name != name for name in files):
        raise CheckpointError(f"{index} has no weight_map of names to files: copy it again")
    return [directory / name for name in files]


def write(directory, settings, arrays, *, dtype):
    """Write config.json and model.safetensors.

    Raises InputError for another dtype, OSError for a full disk.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f"{ARRAYS}.tmp"
    try:
        write_arrays(unfinished, arrays, dtype)
        unfinished.replace(directory / ARRAYS)
    finally:
        unfinished.unlink(missing_ok=True)
    text = json.dumps(settings | {"dtype": dtype}, indent=2) + "\n"
    (directory / SETTINGS).write_text(text, encoding="utf-8")


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
            file.write(narrowed(array, dtype).tobytes())


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


def _read(path, file, name):
    """An array of an open file; bfloat16, which NumPy lacks, is the upper half of a float32."""
    dtype = file.get_slice(name).get_dtype()
    if dtype in ("F16", "F32"):
        array = file.get_tensor(name).astype(np.float32, copy=False)
    elif dtype == "BF16":
        with open(path, "rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            entry = json.loads(raw.read(length))[name]
        begin, end = entry["data_offsets"]
        halves = np.fromfile(path, "<u2", count=(end - begin) // 2, offset=8 + length + begin)
        array = (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    else:
        raise CheckpointError(f"{path}: {name} is {dtype}; give float32, float16 or bfloat16")
    if not np.isfinite(array).all():
        raise CheckpointError(
            f"{path}: {name} has numbers that are not finite: training went wrong, or the file is "
            "damaged; give another"
        )
    return array
