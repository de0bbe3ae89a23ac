"""Arrays in files that are mapped into memory: read a little, keep nothing, tell one from another.

What is read of a mapped file counts as the program's memory until it is let go.
"""

import hashlib
import mmap

import numpy as np

READ = 32  # windows or rows of a file that are read at a time
PIECE = 2**24  # bytes that are read at a time where all are


def taken(array, places):
    """array[places], read a few at a time, so that a mapped file never takes much memory."""
    parts = []
    for first in range(0, len(places), READ):
        parts.append(array[places[first : first + READ]])
        let_go(array)
    return np.concatenate(parts)


def let_go(array):
    """Let go of the memory that holds what was read of a mapped file, if that is what array is.

    It counts as the program's, and in the end it would be all of the file.  Another read finds it
    in the file again; but what was written in the mode "c" is nowhere else, and so stays.
    """
    mode = None
    while isinstance(array, np.ndarray):
        mode = getattr(array, "mode", mode)
        array = array.base
    if isinstance(array, mmap.mmap) and mode in ("r", "r+", "w+") and hasattr(array, "madvise"):
        array.madvise(mmap.MADV_DONTNEED)


def fingerprint(named):
    """The sha256 of pairs of a name and an array: of names, dtypes, shapes and content."""
    digest = hashlib.sha256()
    for name, array in named:
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        rows = np.atleast_1d(array)
        step = max(1, PIECE * len(rows) // max(1, rows.nbytes))
        for first in range(0, len(rows), step):
            piece = rows[first : first + step]
            digest.update(piece.astype(piece.dtype.newbyteorder("<"), copy=False).tobytes())
            let_go(array)
    return digest.hexdigest()
