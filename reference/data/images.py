"""Images and their labels, as arrays: MNIST's idx files and NumPy's npz."""

import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from reference.data.rows import open_file
from reference.errors import DtypeError, InputError

# The third byte of an idx file says what its numbers are; they are big-endian.
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MOST_AXES = 32
BLOCK = 2**20  # bytes
# What zipfile raises: OSError for a place before the start, RuntimeError for what seems encrypted.
TORN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


def read_images(path, labels_path=None, *, names=("images", "labels")):
    """Images with their labels: two idx files, or one .npz that has both under two names.

    -> images (N, H, W) or (N, H, W, C), uint8 or floats as the file has them, and labels (N,)
    int32, from 0.  Images of an idx file that is not packed stay on the disk until they are looked
    at, and cannot be written to.

    Raises OSError for what cannot be opened; InputError for a file that is torn or of another form,
    shapes that do not fit, and labels below 0; DtypeError for images or labels of another dtype.
    """
    if Path(path).suffix.lower() == ".npz":
        if labels_path is not None:
            raise InputError(f"{path} must have the labels too: give no other file, {labels_path}")
        arrays = read_npz(path, names)
        images, labels = (arrays[name] for name in names)
        images_name, labels_name = (f"{path}, {name}" for name in names)
    else:
        if labels_path is None:
            raise InputError(f"{path} has the images alone: give the idx file of their labels, too")
        images, labels = read_idx(path), read_idx(labels_path)
        images_name, labels_name = path, labels_path
    _check_images(images_name, images)
    _check_labels(labels_name, labels)
    if len(images) != len(labels):
        raise InputError(
            f"{images_name} has {len(images):,} images and {labels_name} {len(labels):,} labels: "
            "give two that belong together"
        )
    return images, labels.astype(np.int32)


def read_idx(path):
    """The array in an idx file, in the dtype it is stored in: big-endian, one of IDX_DTYPES.

    It cannot be written to.  Of a file that is not packed, only what is looked at is read from the
    disk; one whose name ends in .gz is unpacked into memory.
    Raises OSError for what cannot be opened, InputError for what is not an idx file, has no numbers
    in it, or is shorter or longer than its shape says, before memory is taken for that shape.

    Source: LeCun, Cortes and Burges, the MNIST database, "the IDX file format".
    """
    with open_file(path) as file:
        dtype, shape = _idx_header(path, file)
        size, start = math.prod(shape) * dtype.itemsize, 4 + 4 * len(shape)
        if str(path).lower().endswith(".gz"):
            content = _read_up_to(file, size + 1)
            found = len(content)
        else:
            content = None
            found = os.stat(path).st_size - start
    if found != size:
        more = "less" if found < size else "more"
        raise InputError(
            f"{path} has {more} than the {size:,} bytes of its shape {shape}, {dtype.name}: it is "
            "torn, or no idx file; copy it again"
        )
    if content is None:
        return np.memmap(path, dtype, "r", start, shape)
    return np.frombuffer(memoryview(content).toreadonly(), dtype).reshape(shape)


def _idx_header(path, file):
    """The dtype and the shape that the first bytes give."""
    magic = file.read(4)
    known = len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in IDX_DTYPES
    if not known or not 1 <= magic[3] <= MOST_AXES:
        raise InputError(
            f"{path} begins with the bytes {magic.hex(' ')!r}, and must with 00 00, one of "
            f"{bytes(IDX_DTYPES).hex(' ')}, and the number of its axes: it is no idx file; if it "
            "is packed, its name must end in .gz"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InputError(f"{path} ends within its header: it is torn; copy it again")
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    if 0 in shape:
        raise InputError(f"{path} has the shape {shape}, in which there are no numbers")
    return np.dtype(IDX_DTYPES[magic[2]]), shape


def _read_up_to(file, size):
    """At most this many bytes, in blocks: a header may say more than memory holds."""
    content = bytearray()
    while block := file.read(min(BLOCK, size - len(content))):
        content += block
    return content


def read_npz(path, names):
    """The arrays of these names in an .npz file -> a dict.  They are read into memory.

    Arrays of objects are refused, since to load them is to run what is in the file.
    Raises OSError for what cannot be opened, InputError for what is torn or no .npz file, for a
    name that is not in it, and for arrays of objects.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _npz_arrays(path, archive, names)
        except TORN as error:
            raise InputError(
                f"{path} is torn, or no .npz file ({error}): copy it again, or write it with "
                "np.savez"
            ) from None


def _npz_arrays(path, archive, names):
    found = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if missing := [name for name in names if name not in found]:
        raise InputError(
            f"{path} has no array {missing[0]!r}; it has {found!r:.200}: name one of these"
        )
    return {name: _npz_array(path, archive, name) for name in names}


def _npz_array(path, archive, name):
    with archive.open(f"{name}.npy") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, MemoryError, OverflowError) as error:
            raise InputError(
                f"{path}: the array {name!r} is torn, or holds objects in place of numbers "
                f"({error}): write it anew with np.savez, from an array of numbers"
            ) from None


def _check_images(name, images):
    if images.ndim not in (3, 4) or not images.size:
        raise InputError(
            f"{name} has the shape {images.shape}, and must be (N, H, W) or (N, H, W, C) with none "
            "of them 0: reshape it"
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DtypeError(f"{name} is of {images.dtype}, and must be of uint8 or floats: convert it")


def _check_labels(name, labels):
    if labels.ndim != 1:
        raise InputError(f"{name} has the shape {labels.shape}, and must be (N,): reshape it")
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"{name} is of {labels.dtype}, and must be of integers: convert it")
    wrong = np.flatnonzero((labels < 0) | (labels >= 2**31))
    if wrong.size:
        raise InputError(
            f"{name}[{wrong[0]}] is {labels[wrong[0]]}, and must be a class, counted from 0: "
            "remove it, or number the classes anew"
        )
