import os

import pytest

import benchmarks.__main__
from benchmarks import demo


@pytest.fixture
def command(monkeypatch):
    """The command line, with the threads of the tests left as they are."""
    monkeypatch.setattr(benchmarks.__main__, "pin_threads", lambda number: None)
    return benchmarks.__main__.main


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("nowhere.txt", None, "No such file"),
        ("latin.txt", b"\xe4\xf6\xfc", "latin.txt is not UTF-8: byte 0"),
        ("short.txt", b"too short", "too few for a batch"),
        ("empty.txt", b"", "too few for a batch"),
    ],
)
@pytest.mark.parametrize("name_of_command", [[], ["demo"]])
def test_a_text_that_cannot_be_used_is_named(
    tmp_path, capsys, command, name_of_command, name, content, message
):
    path, out = tmp_path / name, tmp_path / "out"
    if content is not None:
        path.write_bytes(content)
    assert command([*name_of_command, "--data", str(path), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("benchmarks demo: ")
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "6"], "steps is 6; give 7 or more"),
        (["--seed", "-1"], "seed is -1"),
        (["training", "--rounds", "5"], "rounds is 5; give 6 or more"),
    ],
)
def test_numbers_that_cannot_be_used_are_named(tmp_path, capsys, command, arguments, message):
    out = tmp_path / "out"
    assert command([*arguments, "--out", str(out)]) == 1
    assert message in capsys.readouterr().err and not out.exists()


def test_a_file_in_the_folder_s_place_is_left_as_it_is(tmp_path, capsys, command):
    taken = tmp_path / "out"
    taken.write_text("mine")
    assert command(["training", "--out", str(taken)]) == 1
    assert "out" in capsys.readouterr().err and taken.read_text() == "mine"


def test_threads_that_are_not_there_are_refused(capsys, command):
    with pytest.raises(SystemExit, match="2"):
        command(["--threads", "0"])
    assert "--threads: invalid choice: 0" in capsys.readouterr().err


def test_ctrl_c_ends_quietly(monkeypatch, capsys, command):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert command([]) == 130
    assert capsys.readouterr().err == "\nbenchmarks demo: stopped\n"


def test_a_mismatch_is_exit_status_1(monkeypatch, capsys, command):
    def parted(*args, **kwargs):
        raise demo.Mismatch("the engines part at step 3")

    monkeypatch.setattr(demo, "run", parted)
    assert command(["demo"]) == 1
    assert "benchmarks demo: the engines part at step 3" in capsys.readouterr().err


def test_threads_are_one_policy_for_all(monkeypatch):
    for name in (*benchmarks.__main__.THREADS, "OPENBLAS_THREAD_TIMEOUT"):
        monkeypatch.setenv(name, "unset")
    given = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda _, cores: given.append(cores), raising=False
    )
    benchmarks.__main__.pin_threads(2)
    assert given == [[3, 5]]
    assert {os.environ[name] for name in benchmarks.__main__.THREADS} == {"2"}
    assert os.environ["OPENBLAS_THREAD_TIMEOUT"] == "4"
