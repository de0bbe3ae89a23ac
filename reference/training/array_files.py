"""Files of arrays (safetensors) and of settings (JSON), of which nothing is believed unseen.

    8 bytes    the length of the header
    header     JSON: for each array its dtype, shape, and where it begins and ends in the data
    data       one array after another, without a gap

A file may come from anybody, and a copy of it may have stopped half-way.  So the header is looked
at before anything is read by it: no array takes more memory than the file has bytes.
"""

import json
import math
import os
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reference.errors import CheckpointError

BYTES = {"BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}  # of a number
BYTES |= {"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}
BYTES |= {"I64": 8, "U64": 8, "F64": 8, "C64": 8}
READ_AS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
LONGEST = 100_000_000  # bytes of a header, as in safetensors' own library, or of settings
MOST_AXES = 64  # that NumPy's arrays can have
FEW = 8  # names in one line


class Entry(NamedTuple):
    """Where an array lies, and what it is."""

    path: Path
    dtype: str  # as the file names it
    shape: tuple[int, ...]
    begin: int  # in bytes, from the beginning of the file
    end: int


def entries_in(path):
    """What a safetensors file has -> {name: Entry}, in the order of the data.

    Raises CheckpointError where the file is missing, torn or foreign, with the name of the array
    that shows it; only the header is read.
    """
    with opened(path) as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        if size < 8:
            raise torn(path, f"it ends after {size} bytes, in the length of its header")
        if length > min(size - 8, LONGEST):
            raise torn(path, f"its header would have {length} bytes, the file has {size}")
        text = file.read(length)
    header = parsed(path, text, "torn, or no safetensors file")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise torn(path, "__metadata__ must map names to texts")
    entries = {name: entry_of(path, name, stated) for name, stated in header.items()}
    placed = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
    end, data = 0, size - 8 - length
    for name, entry in placed:
        if entry.begin != end:
            kind = "overlaps with" if entry.begin < end else "leaves a gap after"
            raise torn(path, f"{name:.200} begins at {entry.begin} and {kind} what ends at {end}")
        if (end := entry.end) > data:
            raise torn(path, f"{name:.200} would end at {end}, the data at {data}")
    if end != data:
        raise torn(path, f"its arrays end at {end}, its data at {data}")
    start = 8 + length
    return {n: e._replace(begin=e.begin + start, end=e.end + start) for n, e in placed}


def entry_of(path, name, stated):
    """The Entry of an array, its place counted from the beginning of the data."""

    def are_counts(values):
        return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)

    named = f"{name:.200}"
    if not isinstance(stated, dict) or not {"dtype", "shape", "data_offsets"} <= stated.keys():
        raise torn(path, f"{named} is {stated!r:.80}, without a dtype, shape and data_offsets")
    dtype, shape, places = stated["dtype"], stated["shape"], stated["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise torn(path, f"{named} is of dtype {dtype!r:.80}, and must be of {', '.join(BYTES)}")
    if not are_counts(shape) or len(shape) > MOST_AXES:
        raise torn(path, f"{named} has the shape {shape!r:.80}, and must have integers from 0 on")
    if not are_counts(places) or len(places) != 2 or places[0] > places[1]:
        raise torn(path, f"{named} has the data_offsets {places!r:.80}: a beginning and an end")
    bytes_of = math.prod(shape) * BYTES[dtype]
    if bytes_of != places[1] - places[0]:
        raise torn(
            path,
            f"{named} of {dtype} and shape {shape!r:.80} has {places[1] - places[0]} bytes, and "
            "its numbers are more or less than that",
        )
    return Entry(path, dtype, tuple(shape), *places)


def array_of(name, entry):
    """Read an array, which is then its owner's alone; BF16 as its bits, which NumPy lacks.

    Raises CheckpointError for a dtype that is no float, or a file that cannot be read.
    """
    if entry.dtype not in READ_AS:
        raise CheckpointError(f"{entry.path}: {name} is {entry.dtype}; give floats")
    array = np.empty(entry.shape, READ_AS[entry.dtype])
    with opened(entry.path) as file:
        file.seek(entry.begin)
        if file.readinto(array.reshape(-1)) != array.nbytes:
            raise torn(entry.path, f"it ends in {name:.200}, and did not a moment ago")
    return array


def check_fit(source, arrays, shapes):
    """Raise CheckpointError unless arrays and shapes, two dicts, have the same names and shapes.

    All that do not fit are named: missing ones and other shapes in the model's order, those left
    over by the alphabet.
    """
    misfits = {
        "missing": [name for name in shapes if name not in arrays],
        "left over": sorted(name for name in arrays if name not in shapes),
        "of another shape": [
            f"{name} {arrays[name].shape}, not {shape}"
            for name, shape in shapes.items()
            if name in arrays and arrays[name].shape != shape
        ],
    }
    misfits = {kind: names for kind, names in misfits.items() if names}
    if not misfits:
        return
    remedy = "give files that were saved together"
    if sum(map(len, misfits.values())) <= FEW:
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in misfits.items())
        raise CheckpointError(f"{source} does not fit the model's sizes; {listed}: {remedy}")
    lines = [f"\n  {kind}: {name}" for kind, names in misfits.items() for name in names]
    raise CheckpointError(f"{source} does not fit the model's sizes: {remedy}{''.join(lines)}")


def read_json(path):
    """The JSON object in a file.  Raises CheckpointError where there is none."""
    with opened(path) as file:
        text = file.read(LONGEST + 1)
    if len(text) > LONGEST:
        raise CheckpointError(f"{path} has more than {LONGEST} bytes: give a file of settings")
    return parsed(path, text, "not JSON")


def parsed(path, text, otherwise):
    """The JSON object in a file's bytes.  Raises CheckpointError for a name that is there twice."""

    def unique(pairs):
        if len(found := dict(pairs)) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"{twice!r:.200} is there twice")
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is {otherwise} ({error}): copy it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} has no JSON object but {value!r:.40}: copy it again")
    return value


@contextmanager
def opened(path):
    """A file, open for its bytes.  Raises CheckpointError where it cannot be read."""
    try:
        if not Path(path).is_file():
            there = "is no file" if Path(path).exists() else "is missing"
            raise CheckpointError(f"{path} {there}: copy it again, or give another folder")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): look at its rights and the disk, or copy "
            "it again"
        ) from None


def torn(path, what):
    """The error of a file that is not what it should be."""
    return CheckpointError(f"{path} is torn, or no safetensors file ({what}): copy it again")
