"""The log of a run: one line of JSON for each thing that happened, to be read by programs.

    {"kind": "step", "step": 250, "loss": 4.52, "learning_rate": 0.001}
    {"kind": "evaluation", "step": 250, "loss": 4.61, "best": true}

`kind` and `step`, the steps done, come first, then what the writer gave, in the writer's order.
JSON has no numbers that are not finite: they are written as the words "NaN", "Infinity" and
"-Infinity", which `float` understands, and come back as floats.

A run that is killed leaves lines that are later than its last checkpoint, and perhaps a half one.
The run that goes on from there writes the same steps again, so these are removed first: then its
log is that of a run that was never stopped.  For this a step's lines are to be written before its
checkpoint is saved, not after.
"""

import json
import math
import os
from contextlib import contextmanager
from pathlib import Path

from reference.errors import DtypeError, InputError

NAME = "log.jsonl"
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
ENCODE = json.JSONEncoder(allow_nan=False).encode


class Log:
    """The open log of a run, which only grows: `with Log(folder) as log: log.write(…)`."""

    def __init__(self, folder, step=0):
        """Go on with the log of a run's folder, or begin it.

        step: of the checkpoint that the run goes on from.  Lines that are later are removed, and a
        torn last one.  Raises InputError for a line that is no record, OSError for a disk that is
        full; the old log is whole then.  A long log is read line by line, not at once.
        """
        self.path = Path(folder) / NAME
        if self.path.exists():
            _cut(self.path, step)
        # Without a buffer: each line is one write, and nothing is left to fail at the end.
        self._file = open(self.path, "ab", buffering=0)
        self._size = self._file.tell()
        _sync_names(self.path.parent)

    def write(self, kind, step, **numbers):
        """Add a line, which is there even if this program is killed, though not after a power cut.

        numbers: or texts, or None; arrays without axes, NumPy's or JAX's.  Raises DtypeError for
        others, OSError with the file's name for a full disk; the lines before stay whole.
        """
        values = {name: _plain(name, value) for name, value in numbers.items()}
        line = (ENCODE({"kind": kind, "step": _plain("step", step)} | values) + "\n").encode()
        rest = line
        with named_errors(self.path):
            try:
                while rest:  # a disk takes what still fits before it fails
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(self._size)
                raise
        self._size += len(line)

    def sync(self):
        """Wait until all lines are on the disk; before a checkpoint, which may not be ahead."""
        with named_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self):
        """End it; twice does nothing."""
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def read_log(folder):
    """All records of a run's log, as dicts in the order they were written.

    A torn last line, of a run that was killed or still goes on, is left out.  Raises InputError
    with file and line for any other that is no record, and where there is no log.
    """
    return list(records(folder))


def records(folder):
    """As `read_log`, one record after another: a log of any length takes no memory."""
    path = Path(folder) / NAME
    if not path.is_file():
        raise InputError(f"{path} is missing: give the folder of a run")
    return (record for _, record in _lines(path))


@contextmanager
def named_errors(path):
    """OSErrors that say which file, which those of writing do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _lines(path):
    """The whole lines of a log, each with its record."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = _record(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    return
                raise InputError(
                    f"{path}, line {number}: {line[:40]!r} is no record of a run ({error}); "
                    "remove the line, or the file: it is not needed to go on"
                ) from None
            yield line.removesuffix(b"\n") + b"\n", record


def _record(line):
    """The record of a line.  Raises ValueError where it is none."""
    record = json.loads(line.decode())
    if not isinstance(record, dict):
        raise ValueError("it has no names")
    if not isinstance(record.get("kind"), str):
        raise ValueError("kind must be a word")
    if type(record.get("step")) is not int or record["step"] < 0:
        raise ValueError("step must be an integer, 0 or more")
    for name, value in record.items():
        if isinstance(value, str) and value in NOT_FINITE:
            record[name] = NOT_FINITE[value]
    return record


def _sync_names(folder):
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut(path, step):
    """Remove the lines of later steps and a torn last one, all at once or not at all."""
    kept = path.with_name(path.name + ".tmp")
    try:
        with named_errors(kept), open(kept, "wb") as file:
            for line, record in _lines(path):
                if record["step"] <= step:
                    file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if kept.stat().st_size != path.stat().st_size:
            os.replace(kept, path)
    finally:
        kept.unlink(missing_ok=True)


def _plain(name, value):
    """A value as JSON has it.  Raises DtypeError where there is none."""
    if getattr(value, "shape", None) == () and not isinstance(value, str):
        value = value.item() if value.dtype.kind in "biuc" else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (float, int, str)):
        return value
    raise DtypeError(f"{name} is {value!r:.80}; a log takes one number or text, such as loss=4.5")
