"""A disk that fails, and what it is asked to do: for tests of what a full one leaves behind."""

import builtins
import errno
import functools
import io
import os
from pathlib import Path

from safetensors import SafetensorError

from reference.training import checkpoint

WRITES = ("write", "save_file")


class Disk:
    """Sees every call that changes the disk, in order, as (name, path): see `calls`.

    fault: the number of the call that fails, from 0 on, as on a full disk; for_good: so do all
    later ones; half: it has done a part of its work.  seen(name, path, to) is called before each;
    `to` is the new name of what is renamed.
    """

    def __init__(self, monkeypatch, fault=None, *, half=False, for_good=False, seen=None):
        self.calls, self.fault, self.half, self.for_good = [], fault, half, for_good
        self.seen = seen or (lambda name, path, to: None)
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "chmod", "fsync"):
            monkeypatch.setattr(os, name, self.of_a_path(name, getattr(os, name)))
        for module in (builtins, io):  # the second is pathlib's
            monkeypatch.setattr(module, "open", self.opening(io.open))
        monkeypatch.setattr(checkpoint, "save_file", self.saving(checkpoint.save_file))

    @property
    def failed(self):
        """The name and path of the call that failed, or None."""
        fault = self.fault
        return self.calls[fault] if fault is not None and fault < len(self.calls) else None

    def fails(self, name, path, to=None):
        """Note a call -> whether it is to fail."""
        self.seen(name, path, to)
        self.calls.append((name, path))
        number = len(self.calls) - 1
        return number == self.fault or (
            self.for_good and self.fault is not None and number > self.fault
        )

    def of_a_path(self, name, function):
        @functools.wraps(function)
        def call(path, *args, **kwargs):
            is_open = isinstance(path, int)  # then the error does not tell its name
            named = path_of(path) if is_open else Path(path)
            if kwargs.get("dir_fd") is not None:
                named = path_of(kwargs["dir_fd"]) / named
            to = Path(args[0]) if name in ("rename", "replace") else None
            if name == "mkdir" and named.is_dir() or name == "unlink" and not named.exists():
                return function(path, *args, **kwargs)  # which changes nothing
            if self.fails(name, named, to):
                raise full(*([] if is_open else [str(path)]))
            return function(path, *args, **kwargs)

        return call

    def opening(self, function):
        @functools.wraps(function)
        def call(path, mode="r", *args, **kwargs):
            if not set(mode) & set("wax+"):
                return function(path, mode, *args, **kwargs)
            if self.fails("open", Path(path)):
                raise full(str(path))
            file = function(path, mode, *args, **kwargs)
            file.write = self.writing(file, file.write, Path(path))
            return file

        return call

    def writing(self, file, function, path):
        def write(data):
            if self.fails("write", path):
                if self.half:
                    function(data[: len(data) // 2])
                raise full()
            return function(data)

        return write

    def saving(self, function):
        def save_file(arrays, path):
            if self.fails("save_file", path):
                if self.half:
                    path.with_name(".tmpAbCdEf").write_bytes(b"half")
                raise SafetensorError("I/O error: No space left on device (os error 28)")
            return function(arrays, path)

        return save_file


def path_of(descriptor):
    """The path of an open file or folder."""
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def full(*path):
    """The error of a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *path)
