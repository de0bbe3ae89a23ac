import errno
import json
import math
import os
import resource

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.errors import DtypeError, InputError
from reference.training.log import NAME, Log, read_log, records

NUMBERS = st.floats() | st.sampled_from([math.inf, -math.inf, math.nan])
VALUES = st.none() | st.booleans() | st.integers() | NUMBERS | st.text("aä\n\\😀\udcff")
NAMES = st.sampled_from(["loss", "learning_rate", "größe", "best"])
LINES = st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.dictionaries(NAMES, VALUES))


def run(folder, steps, done=0):
    """The lines of a run from one step to another; each third step is a checkpoint."""
    with Log(folder, done) as log:
        for step in range(done + 1, steps + 1):
            log.write("step", step, loss=1 / step)
            if step % 3 == 0:
                log.write("evaluation", step, loss=2 / step, best=True)
                log.write("checkpoint", step, folder=f"step-{step}")


def test_the_form_on_disk(tmp_path):
    """What other programs may rely on."""
    with Log(tmp_path) as log:
        log.write("step", 250, loss=4.5, learning_rate=1e-3)
        log.write("evaluation", step=250, loss=math.nan, best=False, text="ü\n")
    assert (tmp_path / "log.jsonl").read_bytes() == (
        b'{"kind": "step", "step": 250, "loss": 4.5, "learning_rate": 0.001}\n'
        b'{"kind": "evaluation", "step": 250, "loss": "NaN", "best": false, "text": "\\u00fc\\n"}\n'
    )


@given(lines=st.lists(LINES))
def test_what_is_written_is_read(tmp_path_factory, lines):
    """Turns red if the words for infinities are exchanged, or a text's line end is not escaped."""
    folder = tmp_path_factory.mktemp("log")
    with Log(folder) as log:
        for kind, step, numbers in lines:
            log.write(kind, step, **numbers)
    expected = [{"kind": kind, "step": step} | numbers for kind, step, numbers in lines]
    assert repr(read_log(folder)) == repr(expected)  # nan is not equal to nan
    for line in (folder / NAME).read_text(encoding="utf-8").split("\n")[:-1]:
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("array", [np.float32, np.float64, jnp.float32, jnp.bfloat16, np.asarray])
def test_arrays_without_axes_are_numbers(tmp_path, array):
    with Log(tmp_path) as log:
        log.write("step", np.int64(3), loss=array(4.5), bad=array(np.inf), best=np.bool_(True))
    (record,) = read_log(tmp_path)
    assert record == {"kind": "step", "step": 3, "loss": 4.5, "bad": math.inf, "best": True}
    assert list(map(type, record.values())) == [str, int, float, float, bool]


@pytest.mark.parametrize("value", [[1], {}, np.ones(2), b"a", 1j, np.complex64(1)])
def test_what_is_no_number_is_refused_and_nothing_written(tmp_path, value):
    with Log(tmp_path) as log, pytest.raises(DtypeError, match="^loss is .* takes one number"):
        log.write("step", 1, loss=value)
    assert read_log(tmp_path) == []


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    with Log(tmp_path) as log:
        log.write("step", 1)
        assert read_log(tmp_path) == [{"kind": "step", "step": 1}]
        log.sync()


@given(data=st.data())
def test_a_run_that_is_killed_and_goes_on_has_the_log_of_one_that_was_not(tmp_path_factory, data):
    """Turns red if the checkpoint's own step is removed, or a torn line is kept."""
    folder = tmp_path_factory.mktemp("log")
    path = folder / NAME
    run(folder, 10)
    whole = path.read_bytes()
    size = data.draw(st.integers(0, len(whole)), label="bytes that the kill leaves")
    path.write_bytes(whole[:size])
    done = [r["step"] for r in read_log(folder) if r["kind"] == "checkpoint"]
    run(folder, 10, done=done[-1] if done else 0)
    assert path.read_bytes() == whole
    assert os.listdir(folder) == [NAME]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(b'{"kind": "step", "step": 1}')
    assert len(read_log(tmp_path)) == 1
    run(tmp_path, 2, done=1)
    assert [r["step"] for r in read_log(tmp_path)] == [1, 2]


@pytest.mark.parametrize("torn", [b'{"kind": "st', b"\0\0\0\0", b"\xff", b'{"kind": "\xc3'])
def test_a_torn_last_line_is_left_out(tmp_path, torn):
    run(tmp_path, 2)
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole + torn)
    assert [r["step"] for r in read_log(tmp_path)] == [1, 2]
    Log(tmp_path, 2).close()
    assert (tmp_path / NAME).read_bytes() == whole


@pytest.mark.parametrize(
    "line, word",
    [
        (b"", "Expecting value"),
        (b"[1]", "no names"),
        (b'{"step": 1}', "kind must be a word"),
        (b'{"kind": [], "step": 1}', "kind must be a word"),
        (b'{"kind": "step"}', "step must be an integer"),
        (b'{"kind": "step", "step": true}', "step must be an integer"),
        (b'{"kind": "step", "step": -1}', "step must be an integer"),
        (b'{"kind": "step", "step": "NaN"}', "step must be an integer"),
        (b'{"kind": "st', "Invalid control character"),
        (b"\xff\xfe", "utf-8"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_line_that_is_no_record_is_named_and_nothing_is_lost(tmp_path, line, word):
    run(tmp_path, 2)
    path = tmp_path / NAME
    damaged = path.read_bytes() + line + b'\n{"kind": "step", "step": 3}\n'
    path.write_bytes(damaged)
    for action in (read_log, Log):
        with pytest.raises(InputError) as raised:
            action(tmp_path)
        assert str(raised.value).startswith(f"{path}, line 3: ") and word in str(raised.value)
        assert "remove the line" in str(raised.value)
    assert path.read_bytes() == damaged and os.listdir(tmp_path) == [NAME]


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(InputError, match="log.jsonl is missing: give the folder of a run"):
        read_log(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Log(tmp_path / "nowhere")


def test_a_log_is_read_one_line_after_another(tmp_path):
    run(tmp_path, 2)
    with open(tmp_path / NAME, "ab") as file:
        file.write(b"damaged\n")
    assert next(records(tmp_path))["step"] == 1


@pytest.fixture
def small_disk():
    """No file may become longer than this; what still fits is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_the_lines_before_stay_whole(tmp_path, small_disk):
    """Turns red if the part of a line that still fitted is left: the next would be glued to it."""
    with Log(tmp_path) as log:
        log.write("step", 1, loss=0.5)
        small_disk(60)
        with pytest.raises(OSError, match="log.jsonl") as raised:
            log.write("step", 2, loss=0.25)
        small_disk(resource.RLIM_INFINITY)
        assert raised.value.errno == errno.EFBIG and raised.value.filename == str(log.path)
        log.write("step", 3, loss=0.125)
    assert [r["step"] for r in read_log(tmp_path)] == [1, 3]


def test_a_disk_that_is_full_when_a_run_goes_on_leaves_the_old_log(tmp_path, small_disk):
    run(tmp_path, 9)
    whole = (tmp_path / NAME).read_bytes()
    small_disk(60)
    with pytest.raises(OSError, match="log.jsonl.tmp"):
        Log(tmp_path, 6)
    small_disk(resource.RLIM_INFINITY)
    assert (tmp_path / NAME).read_bytes() == whole and os.listdir(tmp_path) == [NAME]


def test_the_new_log_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    run(tmp_path, 9)
    events = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, followed(getattr(os, name), events))
    Log(tmp_path, 6).close()
    assert events == ["fsync", "replace", "fsync"]


def followed(function, events):
    def call(*args):
        events.append(function.__name__)
        return function(*args)

    return call
