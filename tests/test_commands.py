"""The commands of both engines, as a user gives them."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import accelerated.__main__
import reference.__main__
from reference import tree
from reference.commands import main
from reference.training import checkpoint

ENGINES = {
    # Without its `prepare`, which is for the whole process.
    "accelerated": replace(accelerated.__main__.ENGINE, prepare=lambda dtype: None),
    "reference": reference.__main__.ENGINE,
}
TEXT = "".join(f"{a} and {b} are {a + b}.\n" for a in range(30) for b in range(30))
SHORT = "--steps 6 --batch 4 --length 8 --accumulation 2 --vocabulary 280 --dropout 0.1"
each_engine = pytest.mark.parametrize("name", ENGINES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def run(name, line, **changes):
    return main(replace(ENGINES[name], **changes), shlex.split(line))


def stopping(train, after):
    """A `train` in which Ctrl-C is pressed during a step."""

    def stopped(*args, **kwargs):
        for state, loss in train(*args, **kwargs):
            if state.step == after:
                signal.raise_signal(signal.SIGINT)
            yield state, loss

    return stopped


@each_engine
def test_a_model_is_trained_and_writes(folder, capsys, name):
    assert run(name, f"train --data text.txt --out new/run {SHORT} --checkpoint-interval 4") == 0
    printed = capsys.readouterr().out
    assert re.search(r"step 6: loss \d\.\d{4}, [\d,]+ tokens/s", printed)
    assert {path.name for path in Path("new/run").iterdir()} == {"latest", "step-4", "step-6"}
    next_command = re.search(rf"python -m {name} (generate .*)", printed)[1]
    assert run(name, next_command + " --prompt '2 and' --tokens 5") == 0
    written = capsys.readouterr().out
    assert written.startswith("2 and") and len(written) > 8
    assert run(name, next_command + " --prompt '2 and' --tokens 5") == 0
    assert capsys.readouterr().out == written  # one seed, one text


@each_engine
def test_ctrl_c_saves_and_the_line_that_it_prints_goes_on_bit_for_bit(folder, capsys, name):
    begin = f"train --data text.txt {SHORT} --dtype float64 --out"
    assert run(name, f"{begin} whole") == 0
    train = ENGINES[name].train
    assert run(name, f"{begin} parts", train=stopping(train, after=3)) == 130
    printed = capsys.readouterr().out
    assert "stopped after step 3 of 6" in printed
    go_on = re.search(rf"python -m {name} (train .*)", printed)[1]
    for run_folder in ("parts", "other"):
        if run_folder == "other":
            Path("parts").rename("other")
            Path("other/latest").write_text("step-3\n", encoding="utf-8")
        engine = name if run_folder == "parts" else next(n for n in ENGINES if n != name)
        assert run(engine, go_on.replace("parts", run_folder)) == 0
        whole, parts = checkpoint.load("whole"), checkpoint.load(run_folder)
        assert (parts.step, parts.training) == (6, whole.training)
        for ours, theirs in ((whole.params, parts.params), (whole.optimizer, parts.optimizer)):
            close = {"rtol": 0, "atol": 0 if engine == name else 1e-9}
            tree.map(lambda a, b, c=close: np.testing.assert_allclose(a, b, **c), ours, theirs)


def test_both_engines_write_the_same_text_from_one_checkpoint(folder, capsys):
    assert run("reference", f"train --data text.txt {SHORT} --dtype float64") == 0
    capsys.readouterr()
    for options in ("--temperature 0", "--top-k 5 --temperature 0.7", "--seed 3"):
        for name in ENGINES:
            assert run(name, f"generate --tokens 20 {options}") == 0
        lines = capsys.readouterr().out
        assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_a_run_that_is_done_stays_as_it_is(folder, capsys):
    assert run("reference", f"train --data text.txt {SHORT}") == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    assert run("reference", "train --resume") == 0
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before
    assert "all steps are done" in capsys.readouterr().out


def test_a_saved_tokenizer_is_taken(folder):
    from reference.tokenizers import BPE

    BPE.train(TEXT, 270).save("tokenizer")
    line = f"train --data text.txt {SHORT} --tokenizer tokenizer"
    assert run("reference", line.replace("--vocabulary 280", "")) == 0
    assert checkpoint.load("runs/gpt").config.vocabulary == 270


@each_engine
@pytest.mark.parametrize(
    "line, message",
    [
        ("train --data nowhere.txt", "No such file or directory: 'nowhere.txt'"),
        ("train --data .", "Is a directory"),
        ("train --data latin.txt", "latin.txt is not UTF-8: byte 4, in line 1, is 0xfc"),
        ("train --data short.txt", "tokens, too few for a batch of 12 sequences"),
        ("train --data empty.txt", "too few"),
        ("train --data text.txt --out full", "full is not empty; give another, or --resume"),
        ("train --data text.txt --steps 0", "steps is 0; give a positive integer"),
        ("train --data text.txt --length 65", "the sequence has 65 tokens, .* context only 64"),
        ("train --data text.txt --seed -1", "seed is -1"),
        ("train --data text.txt --checkpoint-interval 0", "--checkpoint-interval is 0"),
        ("train --resume --out nowhere", "nowhere is not there"),
        ("train --resume --out full", "full has no file `latest`"),
        ("train --resume --out done --steps 9", "--steps is 9, but the run in done was begun with"),
        ("train --resume --out done --data other.txt", "done was begun on another text"),
        ("generate --checkpoint nowhere", "nowhere is not there"),
        ("generate --checkpoint done --prompt ''", "the prompt has no tokens"),
        ("generate --checkpoint done --tokens 99", "the model's context is 64"),
        ("generate --checkpoint done --top-k 0", "top_k is 0; give an integer from 1"),
        ("generate --checkpoint done --temperature -1", "temperature is -1.0"),
        ("generate --checkpoint torn", "params.safetensors is torn, or no safetensors file"),
    ],
)
def test_bad_input_is_said_and_nothing_is_lost(done, capsys, name, line, message):
    before = contents(done)
    assert run(name, line) == 1
    printed = capsys.readouterr()
    assert re.search(message, printed.err), printed.err
    assert printed.err.startswith(f"{name} {line.split()[0]}: ")
    assert contents(done) == before


@pytest.fixture
def done(folder):
    """A folder with files to go wrong with."""
    Path("latin.txt").write_bytes("Gr\u00fc\u00dfe".encode("latin-1").replace(b"Gr", b"Gr  "))
    Path("short.txt").write_text("too short", encoding="utf-8")
    Path("empty.txt").touch()
    Path("other.txt").write_text(TEXT[1:], encoding="utf-8")
    Path("full").mkdir()
    Path("full/letter.txt").write_text("mine", encoding="utf-8")
    assert run("reference", f"train --data text.txt --out done {SHORT}") == 0
    assert run("reference", f"train --data text.txt --out torn {SHORT}") == 0
    os.truncate("torn/step-6/params.safetensors", 1000)
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_that_diverged_is_not_saved(folder, capsys):
    with np.errstate(all="ignore"):
        assert run("reference", f"train --data text.txt {SHORT} --learning-rate 1e200") == 1
    assert "training has diverged" in capsys.readouterr().err
    assert not list(Path("runs/gpt").iterdir())


@each_engine
def test_a_real_ctrl_c_and_a_real_command_line(folder, name):
    """In a process of its own, in float32."""
    command = [sys.executable, "-m", name, "train", "--data", "text.txt", "--steps", "100000"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*command, "--checkpoint-interval", "2"], env=environment, **options)
    deadline = time.monotonic() + 100
    while not Path("runs/gpt/latest").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    step = int(re.search(r"stopped after step (\d+) of 100000", printed)[1])
    assert checkpoint.load("runs/gpt").step == step
    assert f"python -m {name} train --out runs/gpt --resume" in printed
    jax.clear_caches()


def test_how_a_run_is_compiled_is_kept_with_it_and_either_engine_goes_on(folder, capsys):
    """A stack of layers and a padded table are in no checkpoint."""
    begin = f"train --data text.txt --out run {SHORT} --checkpoint-interval 2"
    compiled = "--unroll 1 --steps-per-call 2 --vocabulary-multiple 128 --compute-dtype bfloat16"
    train = ENGINES["accelerated"].train
    line = f"{begin} {compiled} --recompute nothing_saveable"
    assert run("accelerated", line, train=stopping(train, after=4)) == 130
    assert {path.name for path in Path("run").iterdir()} == {"latest", "step-2", "step-4"}
    saved = checkpoint.load("run")
    assert saved.training["unroll"] == 1 and saved.training["compute_dtype"] == "bfloat16"
    assert saved.params["token"]["embedding"].shape[0] == saved.config.vocabulary
    capsys.readouterr()
    assert run("accelerated", "train --out run --resume --unroll 2") == 1
    assert "--unroll is 2, but the run in run was begun with 1" in capsys.readouterr().err
    assert run("accelerated", "train --data text.txt --out other --unroll 0") == 1
    assert "unroll is 0; give a positive integer" in capsys.readouterr().err
    assert not Path("other").exists()
    assert run("reference", "train --out run --resume") == 0
    assert "all steps are done" in capsys.readouterr().out
