"""A text as tokens in a file, of which training reads only what it needs.

A text is encoded once, piece by piece, and each piece is forgotten when its tokens are written.  To
train, the file is mapped into memory: it looks like an array, and the system fetches the parts that
are touched.  So neither the text nor its tokens need to fit into memory, and a batch costs what it
costs from an array.

    with TokenWriter("train.npy", tokenizer.vocabulary_size) as writer:
        for piece in text_pieces("book.txt"):
            writer.append(tokenizer.encode(piece))
    tokens = read_tokens("train.npy")
    tokens[:-1000], tokens[-1000:]  # to train and to validate on: views, and nothing is copied

Documents can go to one of several writers, or to none, as each of them comes by.

The file is NumPy's own .npy, one row of the smallest unsigned integers that hold the vocabulary, in
little-endian order: two bytes a token for GPT-2, one for characters.  It is written under another
name, ending in .tmp, and gets its own when all of it is on the disk: what has the name is whole.

Source: the .npy format, NumPy Enhancement Proposal 1 (2007).
"""

import hashlib
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from reference.errors import CheckpointError, InputError
from reference.layers.embedding import check_ids

DTYPES = tuple(np.dtype(name) for name in ("|u1", "<u2", "<u4"))

# NumPy's own reader evaluates a header, and a damaged one can fail in it in any way.
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00.."  # version 1.0, and the length of what follows
    rb"\{'descr': '(\|u1|<u2|<u4)', 'fortran_order': False, 'shape': \(([0-9]{1,19}),\), \} *\n",
    re.DOTALL,
)


def token_dtype(vocabulary):
    """The smallest of uint8, uint16 and uint32 that holds every id of a vocabulary of this size."""
    for dtype in DTYPES:
        if 1 <= vocabulary <= np.iinfo(dtype).max + 1:
            return dtype
    raise InputError(f"vocabulary is {vocabulary}, and must be from 1 to 2**32")


class TokenWriter:
    """Writes tokens to a file, as they come; for a `with` block, at whose end the file is there.

    A file that has the name already is replaced at the end, not before.  If the block is left by an
    exception, nothing of it stays, and what was there is there still.  A program that is killed
    leaves `<path>.tmp`, which the next one writes over.  Memory: that of the ids in one `append`.

    count   tokens so far
    sha256  what tells them from others: the hash of the tokens as they stand in the file, without
            its header; hashlib.sha256(read_tokens(path)).hexdigest() is the same

    Raises OSError, which names the file, where it cannot be written or the disk is full.
    """

    def __init__(self, path, vocabulary):
        self.path, self.vocabulary = Path(path), vocabulary
        self.dtype = token_dtype(vocabulary)
        self.count, self._hash = 0, hashlib.sha256()
        self._unfinished = self.path.with_name(self.path.name + ".tmp")

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._unfinished, "wb")
        try:
            self._write_header()
        except BaseException:
            self._remove()
            raise
        return self

    def append(self, ids):
        """Write more tokens: ids (n,), integers in [0, vocabulary), as an array or a list.

        Raises DtypeError for what is not integers, InputError for an id outside the vocabulary.
        """
        ids = np.asarray(ids)
        if ids.shape == (0,):  # an empty list is one of floats, to NumPy
            return
        if ids.ndim != 1:
            raise InputError(f"ids has shape {ids.shape}, and must be one row of ids, (n,)")
        check_ids(ids, self.vocabulary)
        data = ids.astype(self.dtype, copy=False).tobytes()
        with _named(self._unfinished):
            self._file.write(data)
        self._hash.update(data)
        self.count += len(ids)

    @property
    def sha256(self):
        """In hexadecimal."""
        return self._hash.hexdigest()

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self._finish()
        finally:
            self._remove()

    def _write_header(self):
        """NumPy leaves room for any count in it, so it is as long at the end as at the start."""
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count,)}
        with _named(self._unfinished):
            np.lib.format.write_array_header_1_0(self._file, header)

    def _finish(self):
        with _named(self._unfinished):
            self._file.seek(0)
            self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._unfinished, self.path)

    def _remove(self):
        """Leave no unfinished file; of a finished one, nothing is left to remove."""
        with suppress(OSError):  # on a full disk, closing fails as the writing did
            self._file.close()
        self._unfinished.unlink(missing_ok=True)


@contextmanager
def _named(path):
    """A write to a full disk does not say to which file: the error is given its name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_tokens(path, texts, encode, *, vocabulary, separator=None):
    """Encode texts one by one into a file of tokens, as `TokenWriter` does -> count, sha256.

    texts: the pieces of one text, as `text_pieces` gives them, or documents, each of which begins
    with the id `separator`, so that a model can tell where another one starts.
    encode(text) -> ids, such as a tokenizer's method.
    Memory: that of one text and its ids.
    """
    with TokenWriter(path, vocabulary) as writer:
        for text in texts:
            if separator is not None:
                writer.append([separator])
            writer.append(encode(text))
    return writer.count, writer.sha256


def read_tokens(path, *, vocabulary=None):
    """The tokens of a file, (n,), as a read-only array that is mapped into memory.

    Only what is looked at is read.  Their dtype is unsigned and small: convert a batch before
    calculating with it, not the whole.
    Raises OSError for what cannot be opened; CheckpointError for a file that is torn or of
    something else or, where `vocabulary` is given, of a dtype that a tokenizer of this size does
    not write.
    """
    with open(path, "rb") as file:
        header, size = HEADER.match(file.read(1024)), os.fstat(file.fileno()).st_size
    if header:
        dtype, count, start = np.dtype(header[1].decode()), int(header[2]), header.end()
    if not header or start + count * dtype.itemsize != size:
        came = f"has {size} bytes for {count} tokens of {dtype}" if header else "has another header"
        raise CheckpointError(
            f"{path} {came}, and must be .npy with one row of {', '.join(map(str, DTYPES))}: it is "
            "torn, or no file of tokens; write it again with `write_tokens`"
        )
    if vocabulary is not None and dtype != token_dtype(vocabulary):
        raise CheckpointError(
            f"{path} has tokens of {dtype}, and a vocabulary of {vocabulary} is written as "
            f"{token_dtype(vocabulary)}: it is another tokenizer's; write it again with this one"
        )
    return np.memmap(path, dtype, "r", start, count)
