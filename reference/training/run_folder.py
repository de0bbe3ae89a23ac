"""The folder of a run: which checkpoints are in it, and who may write to it.

    runs/mine/
        latest         "step-300": the checkpoint to go on from
        best           "step-250": the one with the lowest validation loss
        step-250/      see `checkpoint`
        step-300/
        tokens/        what it is trained and evaluated on, as numbers
        log.jsonl      a line for each thing that happened
        curve.png      its losses
        run.lock       the number of the process that writes here, and held by it

A program may be killed between any two writes, and another may be started meanwhile.  So names are
given to what is whole, each in one go; and one process at a time has the lock, which the system
takes back from it however it ends.
"""

import os
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from reference.errors import CheckpointError, InputError
from reference.training.log import NAME as LOG
from reference.training.log import named_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STEP_FOLDER = re.compile(r"step-[0-9]+")
UNFINISHED = re.compile(r"step-[0-9]+\.tmp")
POINTERS = ("latest", "best")
CURVE, LOCK, TOKENS = "curve.png", "run.lock", "tokens"
IN_LOCK = re.compile(rb"[0-9]{0,12}\n?")
# What a run makes before its first checkpoint, beside an unfinished one.
FILES = (LOG, CURVE, f"{TOKENS}/train.npy", f"{TOKENS}/validation.npy")
BEGINNINGS = {LOCK, TOKENS, *FILES, *(f"{name}.tmp" for name in FILES)}


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
    if not (folder / LOCK).is_file():  # where it is, a run may be at work, which is to be said
        check_free(folder, resume=resume)
    made = missing_folders(folder)
    try:
        make_folder(folder)
        with _lock(folder) as file:
            check_free(folder, resume=resume, locked=file is not None)
            try:
                _begin(folder, file, resume)
                yield Claimed(folder)
            finally:
                with suppress(OSError):  # of a failing disk: what ended the run is to be said
                    if not resume and not checkpoints_in(folder):
                        _clear(folder)
                        (folder / LOCK).unlink(missing_ok=True)
    finally:
        for path in made:
            with suppress(OSError):  # where there is something in it
                path.rmdir()


def check_free(folder, *, resume, locked=False):
    """Raise InputError where a new run would find anything, or one that goes on would find nothing.

    locked: nobody else is at work there, so what is like a run's beginning is of a killed one.
    """
    if resume:
        if checkpoint_in(folder) == folder:
            raise CheckpointError(f"{folder} is one checkpoint; give the folder of its run")
    elif folder.exists():
        inside = folder.rglob("*")
        begun = (_is_beginning(p, folder) if locked else p.name == LOCK for p in inside)
        if not folder.is_dir() or not all(begun):
            raise InputError(f"{folder} is not empty; give another, or --resume to go on with it")


def point(folder, pointer, name):
    """Make `latest` or `best` name a checkpoint: replaced in one go, and on the disk after."""
    unfinished = folder / f"{pointer}.tmp"
    with named_errors(unfinished):
        unfinished.write_bytes(f"{name}\n".encode())
    sync(unfinished)
    os.replace(unfinished, folder / pointer)
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

    A run without a `best` has its latest for it.  One without a `latest` was killed when its first
    checkpoint was whole and not yet named there: the last one is it.  Raises CheckpointError where
    there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not there, or no folder: give that of a run")
    for name in (pointer, "latest"):
        if (folder / name).is_file():
            return pointed(folder, name)
    if found := checkpoints_in(folder):
        return found[-1]
    if STEP_FOLDER.fullmatch(folder.resolve().name):
        return folder
    raise CheckpointError(
        f"{folder} has no file `latest` and no folder step-N, so no checkpoint was finished in it: "
        "give the folder of another run"
    )


def checkpoints_in(folder):
    """The checkpoints of a run, by their steps; of the same step, in the order they were saved."""
    found = [p for p in folder.iterdir() if STEP_FOLDER.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: (int(p.name.removeprefix("step-")), len(p.name)))


def remove_older(folder, keep):
    """Remove all checkpoints but the last `keep`, and those that `latest` and `best` name."""
    steps = checkpoints_in(folder)
    named = {pointed(folder, pointer) for pointer in POINTERS if (folder / pointer).is_file()}
    remove_unfinished(folder)
    for path in steps[: max(len(steps) - keep, 0)]:
        if path not in named and not path.is_symlink():
            os.rename(path, path.with_name(f"{path.name}.tmp"))  # none must have its name half
    remove_unfinished(folder)


def remove_unfinished(folder):
    """Remove the half checkpoints and names of a program that was killed."""
    for path in folder.iterdir():
        if UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            try:
                shutil.rmtree(path)
            except OSError as error:  # which has only the last of the names
                raise OSError(error.errno, error.strerror, str(path)) from error
    for pointer in POINTERS:
        (folder / f"{pointer}.tmp").unlink(missing_ok=True)


def missing_folders(folder):
    """Of a folder and those around it, the ones that are not there, from the inside out."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def make_folder(folder):
    """Make a folder, and those around it, unless they are there; on the disk after."""
    made = missing_folders(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in made:
        sync(path.parent)


def sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with named_errors(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(folder):
    """Hold a file that one process at a time can hold -> it; None where there are no locks.

    Until its holder writes into it, nothing is changed but that it is there.
    """
    if fcntl is None:
        yield None
        return
    path = folder / LOCK
    with open(path, "a+b", buffering=0) as file:
        held = _hold(file)
        file.seek(0)
        content = file.read(20)
        if held is False:
            number = content.decode().strip() if IN_LOCK.fullmatch(content) else ""
            raise InputError(
                f"process {number or 'unknown'} is training into {folder}; wait for it, end it, or "
                "give another folder"
            )
        if not IN_LOCK.fullmatch(content):
            raise InputError(f"{path} is not a run's: move it, or give another folder")
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise InputError(f"a run in {folder} has ended just now: begin again")
        yield file if held else None


def _hold(file):
    """Lock an open file -> True; False where another process has it, None where nobody can."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some disks in a network have no locks
        return None
    return True


def _begin(folder, file, resume):
    """Remove what a killed run left, and say who is at work here now."""
    if not resume:
        _clear(folder)
    if file is not None:
        with named_errors(folder / LOCK):
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())


def _is_beginning(path, folder):
    """Whether a run makes this before its first checkpoint."""
    inside = path.relative_to(folder)
    if path.is_symlink():
        return False
    if UNFINISHED.fullmatch(inside.parts[0]):
        return len(inside.parts) > 1 or path.is_dir()
    return inside.as_posix() in BEGINNINGS and path.is_dir() == (inside.as_posix() == TOKENS)


def _clear(folder):
    """Remove what a run makes before its first checkpoint, the lock aside, and nothing else."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        if not _is_beginning(path, folder) or path.name == LOCK:
            continue
        if not path.is_dir():
            path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()
