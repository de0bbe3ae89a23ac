"""The folder of a run: which checkpoints are in it, and who may write to it.

    runs/mine/
        latest         "step-300": the checkpoint to go on from
        best           "step-250": the one with the lowest validation loss
        step-250/      see `checkpoint`
        step-300/
        tokens/        what it is trained and evaluated on, as numbers
        log.jsonl      a line for each thing that happened
        curve.png      its losses
        run.lock       held by the process that writes here, if there is one

A program may be killed between any two writes, and another may be started meanwhile.  So names are
given to what is whole, each in one go; and one process at a time has the lock, which the system
takes back from it however it ends.
"""

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from reference.errors import CheckpointError, InputError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed by another: see `_lock`
    fcntl = None

STEP_FOLDER = re.compile(r"step-[0-9]+")
UNFINISHED = re.compile(r"step-[0-9]+\.tmp")
POINTERS = ("latest", "best")
LOCK = "run.lock"
TOKENS = ("tokens/train.npy", "tokens/validation.npy")
LOG, CURVE = "log.jsonl", "curve.png"
# What a run makes before its first checkpoint.
BEGINNINGS = {name + end for name in (LOCK, *TOKENS, LOG, CURVE) for end in ("", ".tmp")}


class Claimed(NamedTuple):
    """A run's folder that this process holds."""

    path: Path


@contextmanager
def claimed(folder, *, resume=False):
    """Hold a run's folder against other processes -> Claimed; a new run's is made.

    folder: its path, or what an outer call has given, which holds it already.

    Raises InputError where another process trains into it, or where a new run would find anything
    in it; CheckpointError where a run to go on with is not there.  What a killed run left before
    its first checkpoint counts as nothing.  A new run that ends before its first checkpoint leaves
    nothing behind.
    """
    if isinstance(folder, Claimed):
        yield folder
        return
    folder = Path(folder)
    if resume:
        checkpoint_in(folder)
    else:
        check_new(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if not resume:
            check_new(folder)  # again: another run may have ended in between
            _clear(folder)
        try:
            yield Claimed(folder)
        finally:
            if not resume and not (folder / "latest").exists():
                _clear(folder)
                (folder / LOCK).unlink()
    for path in made:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def check_new(folder):
    """Raise InputError where a new run would find anything that a killed one has not left."""
    folder = Path(folder)
    if not folder.exists():
        return
    begun = folder.is_dir() and (folder / LOCK).is_file()
    if not folder.is_dir() or not all(begun and _beginning(p, folder) for p in _files(folder)):
        raise InputError(f"{folder} is not empty; give another, or --resume to go on with it")


def point(folder, pointer, name):
    """Make `latest` or `best` name a checkpoint: replaced in one go, and on the disk after."""
    temporary = folder / f"{pointer}.tmp"
    temporary.write_text(name + "\n", encoding="utf-8")
    sync(temporary)
    os.replace(temporary, folder / pointer)
    sync(folder)


def pointed(folder, pointer):
    """The folder of the checkpoint that `latest` or `best` names.  Raises CheckpointError."""
    file = Path(folder) / pointer
    name = file.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
    if not STEP_FOLDER.fullmatch(name) or not (file.parent / name).is_dir():
        raise CheckpointError(
            f"{file} names {name!r:.40}, which is no checkpoint beside it: "
            "write the name of one into it, such as step-100"
        )
    return file.parent / name


def checkpoint_in(folder, pointer="latest"):
    """The folder of a checkpoint: the one given, or of a run's folder what the pointer names.

    A run without a `best` has its latest for it.  Raises CheckpointError where there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not there, or no folder: give that of a run")
    if not (folder / "latest").is_file():
        if STEP_FOLDER.fullmatch(folder.resolve().name):
            return folder
        raise CheckpointError(
            f"{folder} has no file `latest`, so no checkpoint was finished in it: "
            "give another run's folder, or one of its folders step-N"
        )
    return pointed(folder, pointer if (folder / pointer).is_file() else "latest")


def remove_older(folder, keep):
    """Remove all checkpoints but the last `keep`, and those that `latest` and `best` name."""
    steps = sorted(
        (path for path in folder.iterdir() if STEP_FOLDER.fullmatch(path.name)),
        key=lambda path: (int(path.name.removeprefix("step-")), len(path.name)),
    )
    named = {pointed(folder, pointer) for pointer in POINTERS if (folder / pointer).is_file()}
    for path in steps[: max(len(steps) - keep, 0)]:
        if path not in named:
            unnamed = path.with_name(f"{path.name}.tmp")  # half a checkpoint must not have its name
            if unnamed.exists():
                shutil.rmtree(unnamed)
            os.rename(path, unnamed)
            shutil.rmtree(unnamed)


def sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(folder):
    """Hold a file that one process at a time can hold; the system takes it back at the end."""
    path = folder / LOCK
    with open(path, "a+", encoding="utf-8") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                raise FileNotFoundError  # removed by the run that had it
        except OSError:
            file.seek(0)
            raise InputError(
                f"process {file.read().strip() or 'unknown'} is training into {folder}; wait for "
                "it, end it, or give another folder"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _files(folder):
    """All files in a folder, and the empty folders."""
    return [p for p in folder.rglob("*") if not p.is_dir() or not any(p.iterdir())]


def _beginning(path, folder):
    """Whether a run makes this before its first checkpoint."""
    inside = path.relative_to(folder)
    return bool(UNFINISHED.fullmatch(inside.parts[0])) or inside.as_posix() in BEGINNINGS


def _clear(folder):
    """Remove what a run makes before its first checkpoint, the lock aside."""
    for path in _files(folder):
        if _beginning(path, folder) and path.name != LOCK:
            path.rmdir() if path.is_dir() else path.unlink()
    for path in folder.iterdir():
        if path.is_dir() and not _files(path):
            shutil.rmtree(path)
