import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.errors import CheckpointError, InputError
from reference.training import run_folder
from reference.training.run_folder import (
    Claimed,
    checkpoint_in,
    checkpoints_in,
    claimed,
    point,
    remove_older,
)
from tests.disk import Disk

# What a run that was killed before its first checkpoint may have left.
BEGINNINGS = {
    "the lock": ["run.lock"],
    "a folder for tokens": ["run.lock", "tokens/"],
    "half of the tokens": ["run.lock", "tokens/train.npy.tmp", "tokens/validation.npy.tmp"],
    "the tokens": ["run.lock", "tokens/train.npy", "tokens/validation.npy"],
    "a log": ["run.lock", "tokens/train.npy", "log.jsonl", "log.jsonl.tmp"],
    "half a checkpoint": ["run.lock", "log.jsonl", "step-5.tmp/merges.txt", "step-5.tmp/.tmpAb"],
    "less of it": ["run.lock", "log.jsonl", "step-5.tmp/"],
    "a curve": ["run.lock", "curve.png", "curve.png.tmp"],
}
# What people may have in a folder, the lock of a run that was killed beside it or not.
THEIRS = {
    "a file": ["letter.txt"],
    "a hidden file": [".git"],
    "an empty folder": ["empty/"],
    "a folder": ["deep/deeper/letter.txt"],
    "tokens of theirs": ["tokens/bus.txt"],
    "a file named tokens": ["tokens"],
    "a folder named log.jsonl": ["log.jsonl/"],
    "a folder named train.npy": ["tokens/train.npy/"],
    "a file named as half a checkpoint": ["step-5.tmp"],
    "something like half a checkpoint": ["step-five.tmp/a"],
    "a lock below": ["below/run.lock"],
    "other endings": ["tokens/train.npy.bak", "run.lock.tmp"],
    "a link": ["to ->"],
    "a link named tokens": ["tokens ->"],
    "a link named as half a checkpoint": ["step-5.tmp ->"],
    "a link named log.jsonl": ["log.jsonl ->"],
    "a checkpoint": ["step-5/checkpoint.json", "latest"],
    "a checkpoint without a name": ["step-5/checkpoint.json"],
}


@pytest.fixture(autouse=True)
def not_waited_for(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def fill(folder, names, lock="4711\n"):
    """Make files, folders where a name ends in a stroke, and links to a folder with a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / name.removesuffix("/").removesuffix(" ->")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif name.endswith(" ->"):
            elsewhere = folder.parent / "elsewhere"
            fill(elsewhere, ["train.npy", "deep/train.npy"])
            path.symlink_to(elsewhere)
        else:
            path.write_text(lock if path.name == "run.lock" else name, encoding="utf-8")


def contents(folder):
    """All that is in a folder, at any depth, with the bytes and times of files."""
    return {
        str(path.relative_to(folder)): (
            os.readlink(path) if path.is_symlink() else None,
            (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None,
        )
        for path in folder.rglob("*")
    }


def begin(folder, names=BEGINNINGS["a log"]):
    """What a run does before its first checkpoint, in a folder that it holds."""
    fill(folder, [name for name in names if name != "run.lock"])


def refused(error, words, folder, **options):
    """`claimed` raises this, and nothing is changed."""
    before = contents(folder.parent)
    with pytest.raises(error, match=words):
        with claimed(folder, **options):
            pytest.fail("it was claimed")
    assert contents(folder.parent) == before


def test_a_new_run_is_held_and_stays_once_it_has_a_checkpoint(tmp_path):
    with claimed(str(tmp_path / "a" / "b")) as held:
        assert held == Claimed(tmp_path / "a" / "b")
        assert os.listdir(held.path) == ["run.lock"]
        assert (held.path / "run.lock").read_text(encoding="utf-8") == f"{os.getpid()}\n"
        begin(held.path)
        fill(held.path, ["step-5/checkpoint.json"])
        point(held.path, "latest", "step-5")
    names = ["latest", "log.jsonl", "log.jsonl.tmp", "run.lock", "step-5", "tokens"]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == names


def test_an_empty_folder_will_do_for_a_new_run(tmp_path):
    with claimed(tmp_path) as held:
        assert held.path == tmp_path


def test_who_holds_a_folder_may_claim_it_again(tmp_path):
    """Turns red if the inner block ends the hold, or clears the folder."""
    with claimed(tmp_path / "run") as outer:
        begin(outer.path)
        before = contents(tmp_path)
        for resume in (False, True):
            with claimed(outer, resume=resume) as inner:
                assert inner is outer
            assert contents(tmp_path) == before
        refused(InputError, f"process {os.getpid()} is training into", outer.path)


@pytest.mark.parametrize("names", BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_new_run_that_fails_early_leaves_nothing_behind(tmp_path, names):
    """Folders that it made are gone, too; those that were there stay.

    Turns red if they are removed only where no error came.
    """
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "new" / "run", tmp_path / "old", tmp_path / "old" / "run"):
        for error in (ValueError, KeyboardInterrupt, None):
            with ExitStack() as stack:
                if error is not None:
                    stack.enter_context(pytest.raises(error))
                with claimed(folder) as held:
                    begin(held.path, names)
                    if error is not None:
                        raise error
            assert sorted(os.listdir(tmp_path)) == ["old"] and not os.listdir(tmp_path / "old")


def test_a_run_that_fails_after_a_checkpoint_keeps_all(tmp_path):
    """Also one whose first checkpoint is whole, but not yet named by `latest`."""
    for names in (["step-5/a", "latest"], ["step-5/a"]):
        folder = tmp_path / str(len(names))
        with pytest.raises(ValueError):
            with claimed(folder):
                begin(folder)
                fill(folder, names)
                before = contents(folder)
                raise ValueError
        assert contents(folder) == before


def test_a_folder_that_is_gone_does_not_hide_what_ended_the_run(tmp_path):
    with pytest.raises(ValueError):
        with claimed(tmp_path / "a" / "run") as held:
            shutil.rmtree(held.path)
            raise ValueError
    assert not os.listdir(tmp_path)


def test_what_a_user_puts_beside_it_stays(tmp_path):
    theirs = ["letter.txt", "tokens/bus.txt", "empty/", "to ->"]
    with claimed(tmp_path / "run") as held:
        begin(held.path, BEGINNINGS["the tokens"] + BEGINNINGS["a log"][2:])
        fill(held.path, theirs)
    assert sorted(contents(tmp_path / "run")) == [
        "empty",
        "letter.txt",
        "to",
        "tokens",
        "tokens/bus.txt",
    ]


@pytest.mark.parametrize("lock", [[], ["run.lock"]], ids=["alone", "beside a lock"])
@pytest.mark.parametrize("names", THEIRS.values(), ids=THEIRS)
def test_what_is_not_of_a_run_makes_a_folder_not_empty(tmp_path, names, lock):
    """Turns red if links, empty folders or kinds are not looked at, or names alone are."""
    fill(tmp_path / "run", [*names, *lock])
    refused(InputError, "run is not empty; give another, or --resume", tmp_path / "run")


@pytest.mark.parametrize("names", BEGINNINGS.values(), ids=BEGINNINGS)
def test_without_the_lock_of_a_run_nothing_is_taken_for_a_beginning(tmp_path, names):
    """Turns red if a user's own tokens, or log, count as nothing."""
    left = [name for name in names if name != "run.lock"]
    if left:
        fill(tmp_path / "run", left)
        refused(InputError, "run is not empty; give another", tmp_path / "run")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    refused(InputError, "run is not empty; give another", tmp_path / "run")
    refused(CheckpointError, "run is not there, or no folder", tmp_path / "run", resume=True)


@pytest.mark.parametrize("text", ["notes", "12\n13\n", "4711 \n", "\n\n", "\0", "1" * 30, "ü"])
def test_a_file_of_something_else_named_as_the_lock_is_left_alone(tmp_path, text):
    """Turns red if only the name counts: then it is written over, and removed."""
    fill(tmp_path / "run", ["run.lock"], lock=text)
    refused(InputError, "run.lock is not a run's: move it, or give another", tmp_path / "run")
    fill(tmp_path / "run", ["step-5/a", "run.lock"], lock=text)
    refused(InputError, "run.lock is not a run's", tmp_path / "run", resume=True)


@pytest.mark.parametrize("lock", ["", "4711\n", "12"])
@pytest.mark.parametrize("names", BEGINNINGS.values(), ids=BEGINNINGS)
def test_what_a_killed_run_left_before_its_first_checkpoint_counts_as_nothing(
    tmp_path, names, lock
):
    """Turns red if any of it is taken for the user's, or stays."""
    fill(tmp_path / "run", names, lock)
    with claimed(tmp_path / "run") as held:
        assert list(contents(held.path)) == ["run.lock"]
        begin(held.path)
    assert list(contents(tmp_path)) == ["run"]


@pytest.mark.parametrize("names", [[], *BEGINNINGS.values()], ids=["nothing", *BEGINNINGS])
def test_a_run_without_a_checkpoint_cannot_be_gone_on_with(tmp_path, names):
    fill(tmp_path / "run", names)
    words = "run has no file `latest` and no folder step-N, so no checkpoint was finished in it"
    refused(CheckpointError, words, tmp_path / "run", resume=True)
    refused(CheckpointError, "none is not there", tmp_path / "none", resume=True)


def test_a_single_checkpoint_is_not_a_run_to_go_on_with(tmp_path):
    """Turns red if a run goes on within it: nothing that has its name is written to again."""
    fill(tmp_path / "step-5", ["checkpoint.json"])
    refused(CheckpointError, "step-5 is one checkpoint", tmp_path / "step-5", resume=True)


def test_a_run_that_is_gone_on_with_keeps_all(tmp_path):
    names = ["step-5/a", "latest", "tokens/train.npy", "tokens/bus.txt", "letter.txt", "run.lock"]
    fill(tmp_path / "run", names)
    (tmp_path / "run" / "latest").write_text("step-5\n", encoding="utf-8")
    before = {n: c for n, c in contents(tmp_path / "run").items() if n != "run.lock"}
    for error in (None, ValueError):
        with ExitStack() as stack:
            if error is not None:
                stack.enter_context(pytest.raises(error))
            with claimed(tmp_path / "run", resume=True) as held:
                pid = (held.path / "run.lock").read_text(encoding="utf-8")
                assert pid == f"{os.getpid()}\n"
                if error is not None:
                    raise error
        after = contents(tmp_path / "run")
        assert after.pop("run.lock") and after == before


HOLDER = """
import sys
from pathlib import Path
from reference.training.run_folder import claimed, point

with claimed(sys.argv[1], resume=len(sys.argv) > 2) as held:
    (held.path / "tokens").mkdir(exist_ok=True)
    (held.path / "tokens" / "train.npy.tmp").write_bytes(b"half")
    (held.path / "log.jsonl").write_bytes(b"{}")
    print("held", flush=True)
    sys.stdin.readline()
    (held.path / "step-5").mkdir()
    point(held.path, "latest", "step-5")
    print("saved", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_cannot_train_into_one_folder_and_a_killed_one_holds_it_no_longer(tmp_path):
    """Turns red if the second clears, writes its number or removes the lock before it has it, or
    if it says that the folder is not empty, which is true and no help.
    """
    run = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, run]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as holder:
        try:
            words = re.escape(f"process {holder.pid} is training into {run}; wait for it, end it")
            for moment in ("held", "saved"):
                assert holder.stdout.readline() == f"{moment}\n"
                for resume in (False, True):
                    refused(InputError, words, run, resume=resume)
                if moment == "held":
                    holder.stdin.write("\n")
                    holder.stdin.flush()
        finally:
            holder.send_signal(signal.SIGKILL)
    assert (run / "run.lock").read_text(encoding="utf-8") == f"{holder.pid}\n"
    with claimed(run, resume=True):
        refused(InputError, f"process {os.getpid()} is training into", run)
    refused(InputError, "run is not empty; give another, or --resume", run)


def test_a_holder_that_has_not_written_its_number_yet_is_unknown(tmp_path):
    for text in ("", "notes"):
        fill(tmp_path / "run", ["run.lock"], lock=text)
        with open(tmp_path / "run" / "run.lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            refused(InputError, "process unknown is training into", tmp_path / "run")


@pytest.mark.parametrize("again", [False, True])
def test_the_lock_of_a_run_that_ends_meanwhile_is_not_taken_for_its_own(
    tmp_path, monkeypatch, again
):
    """Its file is removed, and perhaps another run's is there, after it was opened here.

    Turns red if the file that is held is not compared with the one that has the name.
    """
    flock = fcntl.flock

    def ended(file, how):
        (tmp_path / "run.lock").unlink()
        if again:
            fill(tmp_path, ["run.lock"])
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", ended)
    with pytest.raises(InputError, match="a run in .* has ended just now: begin again"):
        with claimed(tmp_path):
            pytest.fail("it was claimed")
    assert os.listdir(tmp_path) == ["run.lock"] * again


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("system", ["without", "of a disk"])
def test_where_there_are_no_locks_runs_go_and_nothing_that_is_there_is_removed(
    tmp_path, monkeypatch, system
):
    """On Windows, and on some disks in networks.  Another run may be at work: none can tell.

    Turns red if a run's beginning counts as nothing there.
    """
    if system == "without":
        monkeypatch.setattr(run_folder, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(2):
        with claimed(tmp_path / "a" / "run") as held:
            begin(held.path)
        assert not os.listdir(tmp_path)
    with claimed(tmp_path / "run") as held:
        begin(held.path)
        refused(InputError, "run is not empty", held.path)
        fill(held.path, ["step-5/a"])
    with claimed(tmp_path / "run", resume=True) as held:
        assert "step-5" in os.listdir(held.path)


@pytest.mark.parametrize("there", [False, True], ids=["new", "beside a killed one's"])
@pytest.mark.parametrize("half", [False, True], ids=["at once", "half"])
def test_a_disk_that_fails_while_a_run_begins_is_said_and_leaves_nothing(
    tmp_path, monkeypatch, half, there
):
    """A fault in each call, one after another; of one at the end nothing is said.

    Turns red if an error does not say where, or if one at the end hides what ended the run.
    """

    def started(name):
        if there:
            fill(tmp_path / name / "run", BEGINNINGS["half of the tokens"])
        return tmp_path / name / "run"

    folder = started("unharmed")
    with monkeypatch.context() as patch:
        whole = Disk(patch)
        with claimed(folder):
            begun = len(whole.calls)
    assert begun >= 3 and len(whole.calls) > begun
    for fault in range(len(whole.calls)):
        folder = started(str(fault))
        with monkeypatch.context() as patch, ExitStack() as stack:
            if fault < begun:
                full = stack.enter_context(pytest.raises(OSError, match="No space left on device"))
            Disk(patch, fault, half=half)
            stack.enter_context(claimed(folder))
        if fault < begun:
            assert str(tmp_path) in str(full.value)
            assert there or not folder.exists()
        with claimed(folder):
            assert os.listdir(folder) == ["run.lock"]


def steps(folder, *names):
    """Checkpoints of two files each."""
    fill(folder, [f"{name}/{file}" for name in names for file in ("a", "b")])


@given(
    names=st.sets(st.from_regex(r"step-0{0,2}(0|[1-9][0-9]?)", fullmatch=True), min_size=1),
    keep=st.integers(1, 4),
    data=st.data(),
)
@settings(max_examples=40)
def test_the_last_ones_are_kept_and_those_with_a_name(tmp_path_factory, names, keep, data):
    """Turns red if they are ordered as words, or if the latest or the best one is removed."""
    folder = tmp_path_factory.mktemp("run")
    steps(folder, *names)
    pointers = {
        pointer: data.draw(st.none() | st.sampled_from(sorted(names)), label=pointer)
        for pointer in ("latest", "best")
    }
    for pointer, name in pointers.items():
        if name is not None:
            point(folder, pointer, name)
    theirs = ["step-1.bak/a", "step-x/a", "step-", "letter.txt", "step-99.txt"]
    fill(folder, theirs)
    remove_older(folder, keep)
    last = sorted(names, key=lambda name: (int(name[5:]), len(name)))[-keep:]
    expected = {*last, *pointers.values()} - {None}
    assert {path.name for path in checkpoints_in(folder)} == expected
    left = {path.split("/")[0] for path in theirs} | {p for p, n in pointers.items() if n}
    assert set(os.listdir(folder)) == expected | left
    assert all(sorted(os.listdir(folder / name)) == ["a", "b"] for name in expected)
    shutil.rmtree(folder)


def test_a_kill_while_older_ones_are_removed_leaves_no_half_one_under_its_name(
    tmp_path, monkeypatch
):
    """Turns red if they are removed where they are.  What is left is removed the next time."""
    names = [f"step-{n}" for n in (5, 10, 15)]
    steps(tmp_path, *names)
    point(tmp_path, "latest", "step-15")

    def seen(*call):
        assert all(len(os.listdir(path)) == 2 for path in checkpoints_in(tmp_path))

    with monkeypatch.context() as patch:
        disk = Disk(patch, seen=seen)
        remove_older(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-15"]
    for fault in range(len(disk.calls)):
        folder = tmp_path / str(fault)
        steps(folder, *names)
        point(folder, "latest", "step-15")
        with monkeypatch.context() as patch:
            Disk(patch, fault, for_good=True)
            with pytest.raises(OSError) as raised:
                remove_older(folder, 1)
        assert re.search(r"No space left on device: '.*/step-(5|10)(\.tmp)?'", str(raised.value))
        remove_older(folder, 1)
        assert sorted(os.listdir(folder)) == ["latest", "step-15"]


def test_what_is_not_a_runs_own_is_not_removed_with_the_older_ones(tmp_path):
    """A checkpoint that was moved to another disk, and a file and a link like half a one."""
    fill(tmp_path / "run", ["step-1 ->", "step-2.tmp", "step-3.tmp ->", "step-4", "step-5/a"])
    steps(tmp_path / "run", "step-6")
    point(tmp_path / "run", "latest", "step-6")
    elsewhere = contents(tmp_path / "elsewhere")
    remove_older(tmp_path / "run", 1)
    names = ["latest", "step-1", "step-2.tmp", "step-3.tmp", "step-4", "step-6"]
    assert sorted(os.listdir(tmp_path / "run")) == names
    assert contents(tmp_path / "elsewhere") == elsewhere


def test_a_name_that_names_nothing_stops_the_removal(tmp_path):
    """Turns red if that one is removed which a torn `best` may have named."""
    steps(tmp_path, "step-5", "step-10")
    point(tmp_path, "latest", "step-10")
    (tmp_path / "best").write_text("step", encoding="utf-8")
    with pytest.raises(CheckpointError, match="best names 'step'"):
        remove_older(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["best", "latest", "step-10", "step-5"]


def test_where_the_checkpoint_of_a_folder_is(tmp_path):
    """Turns red if a run that was killed between a checkpoint and its name cannot go on."""
    steps(tmp_path, "step-100", "step-20", "step-020", "step-3")
    assert checkpoint_in(tmp_path) == tmp_path / "step-100"
    with claimed(tmp_path, resume=True) as held:
        assert held.path == tmp_path
    point(tmp_path, "latest", "step-020")
    for pointer in ("latest", "best"):
        assert checkpoint_in(str(tmp_path), pointer) == tmp_path / "step-020"
    point(tmp_path, "best", "step-3")
    assert checkpoint_in(tmp_path) == tmp_path / "step-020"
    assert checkpoint_in(tmp_path, "best") == tmp_path / "step-3"
    assert checkpoint_in(tmp_path / "step-20", "best") == tmp_path / "step-20"


def test_a_folder_without_a_checkpoint_has_none(tmp_path):
    fill(tmp_path / "run", ["step-5.tmp/a", "step-6", "letter.txt"])
    for folder, words in (
        (tmp_path / "none", "none is not there, or no folder: give that of a run"),
        (tmp_path / "run" / "letter.txt", "letter.txt is not there, or no folder"),
        (tmp_path / "run", "run has no file `latest` and no folder step-N"),
        (tmp_path / "run" / "step-5.tmp", "step-5.tmp has no file `latest`"),
    ):
        with pytest.raises(CheckpointError, match=words):
            checkpoint_in(folder)


@pytest.mark.parametrize("pointer", ["latest", "best"])
@pytest.mark.parametrize(
    "text",
    ["", "step-12", "step-", "step-x", "../run/step-11", "step-11/../step-11", "step-11\n\n"]
    + ["step-11.tmp", " step-11", "step-١١", "/step-11", "step-11\nstep-2\n", "\udcff", "step-4"],
)
def test_a_file_that_names_no_checkpoint_is_refused(tmp_path, pointer, text):
    run = tmp_path / "run"
    steps(run, "step-11", "step-2", "step-11.tmp")
    fill(run, ["step-4"])
    point(run, "latest", "step-11")
    (run / pointer).write_bytes(text.encode(errors="surrogateescape"))
    words = f"{re.escape(str(run / pointer))} names .*such as step-100"
    with pytest.raises(CheckpointError, match=words):
        checkpoint_in(run, pointer)


@pytest.mark.parametrize("text", ["step-11", "step-11\n", "step-11\r\n"])
def test_a_file_that_an_editor_wrote_names_a_checkpoint(tmp_path, text):
    steps(tmp_path, "step-11", "step-12")
    (tmp_path / "latest").write_bytes(text.encode())
    assert checkpoint_in(tmp_path) == tmp_path / "step-11"
