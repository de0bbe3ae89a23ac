"""The commands of both engines, as a user gives them."""

import errno
import fcntl
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import accelerated.__main__
import reference.__main__
from accelerated.training import Compilation
from reference import random, tree
from reference.commands import main
from reference.data.batches import Windows
from reference.data.tokens import TokenWriter, read_tokens
from reference.models.gpt import GPTConfig
from reference.tokenizers import BPE
from reference.training import TrainingConfig, checkpoint, fit
from reference.training.log import Log
from reference.training.progress import Progress

ENGINES = {
    # Without its `prepare`, which is for the whole process.
    "accelerated": replace(accelerated.__main__.ENGINE, prepare=lambda dtype: None),
    "reference": reference.__main__.ENGINE,
}
TEXT = "".join(f"{a} and {b} are {a + b}.\n" for a in range(30) for b in range(30))
ROWS = [{"id": i, "text": f"Row {i} says: {TEXT[90 * i : 90 * i + 90]}"} for i in range(90)]
MODEL = "--layers 1 --heads 2 --width 8 --context 16 --dropout 0.1 --dtype float64"
# One for all, since what is compiled for one test serves the others.
SHORT = f"{MODEL} --steps 6 --batch 4 --length 8 --vocabulary 280"
each_engine = pytest.mark.parametrize("name", ENGINES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def run(name, line, **changes):
    return main(replace(ENGINES[name], **changes), shlex.split(line))


def following(name, printed):
    """The command line that the last line of the errors' output gives."""
    return re.fullmatch(rf"    python -m {name} (.*)", printed.err.splitlines()[-1])[1]


def environment():
    """That of a new process, in which Python keeps what it prints for a while, as it does."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return ours | {"PYTHONPATH": str(Path(__file__).parent.parent)}


def contents(folder):
    """All that is in a folder: the files with their bytes."""
    return {p: p.read_bytes() if p.is_file() else None for p in Path(folder).rglob("*")}


@contextmanager
def ctrl_c(after):
    """Ctrl-C is pressed in the step after which so many are done."""
    step = Progress.step

    def pressing(self, number, *loss):
        step(self, number, *loss)
        if number == after:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "step", pressing)
        yield


def assert_same_state(ours, theirs, tolerance=0):
    ours, theirs = checkpoint.load(ours), checkpoint.load(theirs)
    assert ours.step == theirs.step and ours.position == theirs.position
    for name in ("params", "mean", "square"):
        for a, b in zip(
            *(tree.leaves(getattr(c.state, name)) for c in (ours, theirs)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


# From a text to texts


@each_engine
def test_a_model_is_trained_measured_and_writes_and_each_line_at_an_end_runs(folder, capsys, name):
    out = shlex.quote("my [bold] runs/a first one")
    assert run(name, f"train --data text.txt --out {out} {SHORT} --evaluation-interval 4") == 0
    printed = capsys.readouterr()
    assert f"reading {folder}/text.txt\n" in printed.out
    assert "3,256 parameters, a vocabulary of 280; 7,045 tokens to train on, 783" in printed.out
    assert re.search(r"step 6: loss \d\.\d{4}, [\d,]+ tokens/s", printed.out)
    kept = {path.name for path in Path("my [bold] runs/a first one").iterdir()}
    assert kept >= {"latest", "best", "step-6", "tokens", "log.jsonl", "curve.png"}

    write = following(name, printed)
    assert run(name, write) == 0  # as many tokens as there is room for
    assert capsys.readouterr().out.startswith("The")
    assert run(name, f"{write} --prompt='-2 a' --tokens 6") == 0
    written = capsys.readouterr()
    assert written.out.startswith("-2 a") and len(written.out) > 8
    assert run(name, f"{write} --prompt='-2 a' --tokens 6") == 0
    assert capsys.readouterr().out == written.out  # one seed, one text
    another = following(name, written)
    assert shlex.split(another)[-4:] == ["--prompt=-2 a", "--tokens=6", "--seed", "1"]
    assert run(name, another) == 0
    assert capsys.readouterr().out != written.out

    assert run(name, f"evaluate --checkpoint {out}") == 0
    measured = capsys.readouterr()
    assert measured_as(measured.out, "loss") in printed.out.partition("best validation loss")[2]
    assert "782 tokens, 1,476 bytes" in measured.out
    bits = float(measured_as(measured.out, "loss")) * 782 / 1476 / math.log(2)
    assert float(measured_as(measured.out, "bits a byte")) == pytest.approx(bits, abs=2e-4)
    assert run(name, following(name, measured)) == 0


def measured_as(printed, name):
    return re.search(rf"^{name} +(\S+)", printed, re.M)[1]


@each_engine
def test_ctrl_c_saves_and_the_line_that_it_prints_goes_on_bit_for_bit(folder, capsys, name):
    begin = f"train --data text.txt {SHORT} --out"
    assert run(name, f"{begin} whole") == 0
    with ctrl_c(after=3):
        assert run(name, f"{begin} parts") == 130
    printed = capsys.readouterr()
    assert "stopped after step 3 of 6" in printed.out and "to go on:" in printed.err
    shutil.copytree("parts", "other")
    go_on = following(name, printed)
    assert run(name, go_on) == 0
    assert_same_state("parts", "whole")
    other = next(n for n in ENGINES if n != name)
    assert run(other, go_on.replace("parts", "other")) == 0
    assert_same_state("other", "whole", tolerance=1e-9)


def test_both_engines_write_the_same_text_from_one_checkpoint(folder, capsys):
    assert run("reference", f"train --data text.txt {SHORT}") == 0
    capsys.readouterr()
    for options in ("--temperature 0", "--top-k 5 --temperature 0.7", "--seed 3"):
        for name in ENGINES:
            assert run(name, f"generate --tokens 12 {options}") == 0
        lines = capsys.readouterr().out
        assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_a_run_that_is_done_stays_as_it_is(folder, capsys):
    assert run("reference", f"train --data text.txt {SHORT}") == 0
    before = contents("runs")
    assert run("reference", "train --resume") == 0
    assert contents("runs") == before
    assert "all steps are done" in capsys.readouterr().out


# To compile one more model takes long, and the encoders are compared in data/test_corpus.py.
reference_first = pytest.mark.parametrize(
    "name", [pytest.param("accelerated", marks=pytest.mark.thorough), "reference"]
)


@reference_first
def test_documents_are_cleaned_with_a_report_and_written_one_at_a_time(folder, capsys, name):
    """Turns red if a separator counts as text, is written as text, or does not begin a text."""
    rows = [json.dumps(row) for row in ROWS]
    rows[5:5] = [rows[2].replace("says", "said"), '{"id": 5, "txt": "no such column"}']
    Path("rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    line = f"train --data rows.jsonl {SHORT} --skip-wrong-rows --duplicates near"
    assert run(name, line) == 0
    printed = capsys.readouterr()
    assert f"1 wrong row skipped\n  {folder}/rows.jsonl, line 7: it has no 'text'" in printed.out
    assert "91 texts: 90 kept, 1 dropped" in printed.out
    assert f"rows.jsonl, line 6 is like {folder}/rows.jsonl, line 3 (0." in printed.out

    given = []

    def generate(params, *, tokens, stop, **options):
        given.append((tokens.tolist(), stop))
        return np.array([*tokenizer.encode(" a"), *stop])

    tokenizer = checkpoint.load("runs/gpt").tokenizer
    for prompt in ("", "--prompt Row"):
        assert run(name, f"generate {prompt}", generate=generate) == 0
    assert capsys.readouterr().out == " a\nRow a\n"
    assert given == [([279], (279,)), ([279, *tokenizer.encode("Row")], (279,))]
    assert run(name, following(name, printed)) == 0
    capsys.readouterr()

    assert run(name, "evaluate") == 0
    tokens = read_tokens("runs/gpt/tokens/validation.npy")
    size = len(tokenizer.decode(tokens).replace("<|endoftext|>", "").encode())
    assert f" {len(tokens) - 1} tokens, {size:,} bytes" in capsys.readouterr().out


def test_a_saved_tokenizer_and_another_file_to_validate_on_are_taken(folder, capsys):
    """A prompt that the model cannot read is none to begin with: here, a T."""
    Path("small.txt").write_text(TEXT[:2000].lower(), encoding="utf-8")
    BPE.train(TEXT, 270).save("tokenizer")
    line = f"train --data text.txt --validation small.txt {SHORT}".replace("--vocabulary 280", "")
    assert run("reference", f"{line} --tokenizer tokenizer --out bpe") == 0
    assert checkpoint.load("bpe").config.vocabulary == 270
    assert run("reference", f"{line} --tokenizer characters --out characters") == 0
    printed = capsys.readouterr()
    assert "15,545 tokens to train on, 2,000 to validate on" in printed.out
    assert run("reference", following("reference", printed)) == 0
    assert capsys.readouterr().out.startswith("\n")
    assert run("reference", "generate --checkpoint characters --prompt Two") == 1
    assert "--prompt: text[0] is 'T' (U+0054)" in capsys.readouterr().err


def test_a_text_is_measured_as_the_run_has_read_its_own(folder, capsys):
    Path("variants.txt").write_text("\u2461\u00a0and ２ are 4.\r\n" * 9, encoding="utf-8")
    line = f"train --data text.txt {SHORT} --tokenizer characters --normalization NFKC"
    assert run("reference", line.replace("--vocabulary 280", "")) == 0
    capsys.readouterr()
    assert run("reference", "evaluate --data variants.txt") == 0
    assert "134 tokens, 134 bytes" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--validation-share 0", "--validation one.txt"])
def test_without_anything_to_validate_on_a_model_is_trained(folder, capsys, option):
    Path("one.txt").write_text("1", encoding="utf-8")
    assert run("reference", f"train --data text.txt {SHORT} {option}") == 0
    assert "none to validate on" in capsys.readouterr().out
    assert run("reference", "evaluate") == 1
    assert "kept nothing to validate on; give a text by --data" in capsys.readouterr().err
    assert run("reference", "evaluate --data one.txt") == 1
    assert "one.txt has too little text" in capsys.readouterr().err
    assert run("reference", "evaluate --data text.txt") == 0


@reference_first
def test_tokens_that_are_lost_are_made_anew(folder, capsys, name):
    """Turns red if the split is drawn by another key, or a text that was changed is taken."""
    Path("rows.csv").write_text(
        "text\n" + "\n".join(f'"{row["text"]}"' for row in ROWS), encoding="utf-8"
    )
    begin = f"train --data rows.csv {SHORT} --out"
    assert run(name, f"{begin} whole") == 0
    with ctrl_c(after=3):
        assert run(name, f"{begin} parts") == 130
    before = contents("parts/tokens")
    os.truncate("parts/tokens/train.npy", 200)
    os.remove("parts/tokens/validation.npy")
    Path("rows.csv").rename("mine.csv")
    Path("rows.csv").write_text("text\n" + "other rows\n" * 900, encoding="utf-8")
    kept = {path: data for path, data in contents("parts").items() if "tokens" not in str(path)}
    assert run(name, "train --out parts --resume") == 1
    assert "rows.csv is not the text that the run was begun on" in capsys.readouterr().err
    assert contents("parts") == kept
    Path("mine.csv").replace("rows.csv")
    assert run(name, "train --out parts --resume") == 0
    assert contents("parts/tokens") == before
    assert_same_state("parts", "whole")


# The command lines themselves


def test_both_engines_have_the_same_flags_and_each_is_explained(capsys):
    flags = {}
    for name in ENGINES:
        for command in ("", "train", "evaluate", "generate"):
            with pytest.raises(SystemExit, match="^0$"):
                run(name, f"{command} --help")
            said = capsys.readouterr().out.partition("options:")[2]
            found = re.findall(r"^  (?:-h, )?(--[a-z0-9-]+)(?: [A-Z]+)?\s+(.)", said, re.M)
            assert found and all(first.isalnum() or first in "\"'." for _, first in found), found
            flags[name, command] = {flag for flag, _ in found}
    own = {"--" + field.name.replace("_", "-") for field in fields(Compilation)}
    for command in ("", "evaluate", "generate"):
        assert flags["accelerated", command] == flags["reference", command]
    assert flags["accelerated", "train"] - flags["reference", "train"] == own
    assert len(flags["reference", "train"]) > 40


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "the following arguments are required: train | evaluate | generate"),
        ("train --steps many", "argument --steps: invalid int value: 'many'"),
        ("train --size tiny", "argument --size: invalid choice: 'tiny'"),
        ("train --validation a --validation-share 0.1", "not allowed with argument"),
        ("generate --no-such-flag", "unrecognized arguments: --no-such-flag"),
    ],
)
def test_a_command_line_that_is_none_ends_with_2(folder, capsys, line, message):
    before = contents(folder)
    with pytest.raises(SystemExit, match="^2$"):
        run("reference", line)
    assert message in capsys.readouterr().err
    assert contents(folder) == before


@each_engine
def test_a_real_command_line_a_real_ctrl_c_and_a_second_run_meanwhile(folder, capsys, name):
    """In a process of its own, in float32."""
    begin = f"train --data text.txt {SHORT} --out run --dtype float32 --dropout 0"
    command = [sys.executable, "-m", name, *shlex.split(begin), "--steps", "100000"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options["env"] = environment()
    with subprocess.Popen([*command, "--checkpoint-interval", "2"], **options) as process:
        deadline = time.monotonic() + 100
        while not Path("run/latest").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        for other in (begin, "train --out run --resume"):
            assert run("reference", other) == 1
            expected = f"process {process.pid} is training into run; wait for it, end it, or give"
            assert expected in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    step = int(re.search(r"stopped after step (\d+) of 100000", printed)[1])
    assert checkpoint.load("run").step == step
    assert printed.endswith(f"to go on:\n    python -m {name} train --out run --resume\n")
    if name == "reference":
        write = [sys.executable, "-m", name, "generate", "--checkpoint", "run"]
        written = subprocess.run(write, check=True, **options).stdout  # both outputs in one
        alone = subprocess.run(write, check=True, **options | {"stderr": subprocess.DEVNULL}).stdout
        assert alone.startswith("The") and alone.endswith("\n")
        assert written.startswith(alone + "for another text:\n    python -m reference generate")


def test_how_a_run_is_compiled_is_kept_with_it_and_either_engine_goes_on(folder, capsys):
    """A stack of layers and a padded table are in no checkpoint."""
    begin = f"train --data text.txt --out run {SHORT} --checkpoint-interval 2"
    begin = begin.replace("float64", "float32") + " --dropout 0 --validation-share 0"
    compiled = "--unroll 1 --vocabulary-multiple 128 --compute-dtype bfloat16"
    with ctrl_c(after=4):
        assert run("accelerated", f"{begin} {compiled}") == 130
    saved = checkpoint.load("run")
    assert saved.step == 4
    assert saved.settings["unroll"] == 1 and saved.settings["compute_dtype"] == "bfloat16"
    assert saved.state.params["token"]["embedding"].shape[0] == saved.config.vocabulary
    capsys.readouterr()
    assert run("accelerated", "train --out run --resume --unroll 2") == 1
    assert "--unroll is 2, but the run in run was begun with 1" in capsys.readouterr().err
    assert run("accelerated", "train --data nowhere.txt --out other --unroll 0") == 1
    assert "unroll is 0; give a positive integer" in capsys.readouterr().err
    assert not Path("other").exists()
    assert run("reference", "train --out run --resume") == 0
    assert "all steps are done" in capsys.readouterr().out


# Bad input


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with files and runs to go wrong with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("done"))
        for name, content in wrong_files().items():
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        os.mkfifo("pipe")
        Path("full").mkdir()
        Path("full/letter.txt").write_text("mine", encoding="utf-8")
        fit(
            GPTConfig(17, 8, layers=1, heads=2, width=8),
            TrainingConfig(1, batch=2, length=8, warmup=0),
            Windows(np.arange(99) % 17, length=8, batch=2, key=random.key(0)),
            folder="by_fit",
            quiet=True,
        )
        with ctrl_c(after=3):
            assert run("reference", f"train --data text.txt --out stopped {SHORT}") == 130
        assert run("reference", "train --data text.txt --out held --quiet " + SHORT) == 0
        for name in ("torn", "foreign", "nan"):
            shutil.copytree("stopped", name)
        os.truncate("torn/step-3/params.safetensors", 1000)
        described = Path("foreign/step-3/checkpoint.json")
        described.write_text(described.read_text().replace('"name": "gpt"', '"name": "mamba"'))
        params = load_file("nan/step-3/params.safetensors")
        params["norm.bias"][3] = np.nan
        save_file(params, "nan/step-3/params.safetensors")
        with open("held/run.lock", "r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(b"4321\n")
            lock.truncate()
            lock.flush()
            yield Path.cwd()


def wrong_files():
    """The names and the contents of files that are right, but for what their names say."""
    latin, long = "Gr\u00fc\u00dfe\n".encode("latin-1"), "x" * 1_000_000
    rows = [json.dumps(row) for row in ROWS]
    return {
        "text.txt": TEXT,
        "other.txt": TEXT[1:],
        "rows.csv": "id,text\n" + "".join(f"{i},row {i}\n" for i in range(90)),
        "blank.txt": " \r\n\t\n" * 50,
        "empty.txt": "",
        "empty.csv": "",
        "header.csv": "id,text\n",
        "one.txt": "1",
        "short.txt": "This is no more than a short text.",
        "one.csv": "text\none\n",
        "mixed.txt": "Gr\u00fc\u00dfe\n".encode() * 3 + latin,
        "mixed.csv": b"text\n" + "Gr\u00fc\u00dfe\n".encode() * 3 + latin,
        "mixed.jsonl": "\n".join(rows[:3]).encode() + b'\n{"text": "' + latin[:-1] + b'"}\n',
        "long.csv": f"text\nshort\n{long}\n",
        "long.jsonl": "\n".join([*rows[:3], json.dumps({"text": long})]),
    }


@each_engine
@pytest.mark.parametrize(
    "line, message",
    [
        # Files
        ("train --data nowhere.txt", "nowhere.txt: No such file or directory"),
        ("train --data nowhere.csv --out new/run", "nowhere.csv: No such file or directory"),
        ("train --data .", " is a folder; give a file with text or documents"),
        ("train --data pipe", "pipe is no file that can be read twice; save what it gives"),
        ("train --data empty.txt", "empty.txt has no text: it is empty, or all blank; give an"),
        ("train --data blank.txt", "blank.txt has no text: it is empty, or all blank; give an"),
        ("train --data empty.csv", "empty.csv is empty: its first line must name the columns"),
        ("train --data header.csv", "header.csv has no rows: give a file that has some"),
        ("train --data rows.csv --text-column story", "no column 'story'; it has 'id', 'text': na"),
        ("train --data mixed.txt", "is not UTF-8: byte 26, in line 4, is 0xfc; save the text as"),
        ("train --data mixed.csv", "line 5: byte 3 of the line is 0xfc, which does not fit utf-8"),
        ("train --data mixed.jsonl", "line 4: byte 13 of the line is 0xfc, which does not fit"),
        ("train --data long.csv", "long.csv, line 3: it has more than 131,072 characters; correct"),
        ("train --data long.jsonl", "long.jsonl, line 4: it has more than 131,072 characters"),
        ("train --data text.txt --encoding utf-9", "encoding is 'utf-9', which Python does not"),
        ("train --data rows.csv --encoding utf-16", "encoding is 'utf-16', and must be one that"),
        # Too little
        ("train --data one.txt", "one.txt has too little text: 1 tokens to train on and 0 to va"),
        ("train --data short.txt", "tokens, too few for a batch of 4 sequences of 8; give 40 at"),
        ("train --data one.csv", "tokens, too few for a batch of 4 sequences of 8; give 40 at"),
        ("train --data rows.csv --shortest 99", "no document that is kept; .*90 dropped"),
        ("train --data text.txt --validation empty.txt", "empty.txt has no text"),
        ("train --data text.txt --validation rows.csv", "rows.csv is documents, and .* one text"),
        # Options that cannot be: said before any file is read
        ("train --data nowhere --heads 3", "3 heads do not divide the width 8; give a divisor"),
        ("train --data nowhere --steps 0", "steps is 0; give a positive integer"),
        ("train --data nowhere --length 17", "has 17 tokens, the model's context only 16; give"),
        ("train --data nowhere --seed -1", "seed is -1"),
        ("train --data nowhere --validation-share 1", "validation_share is 1.0; give at least 0"),
        ("train --data nowhere --duplicates near", "of documents, and a text is but one; give"),
        ("train --data nowhere --checkpoint-interval 0", "--checkpoint-interval is 0; give a pos"),
        ("train --data nowhere --keep 0", "--keep is 0; give a positive integer"),
        ("train --data nowhere --out full", "full is not empty; give another, or --resume"),
        ("train --data nowhere --out text.txt", "text.txt is not empty; give another"),
        ("train --data nowhere --out text.txt/run", "text.txt/run: Not a directory"),
        ("train --data nowhere --out held", "process 4321 is training into held; wait for it"),
        (
            "train --data text.txt --tokenizer nowhere",
            "nowhere has no tokenizer, .*give the folder",
        ),
        ("train --data rows.csv --tokenizer characters --vocabulary 9", "vocabulary is 9, but the"),
        # Runs
        ("train --resume --out nowhere", "nowhere is not there"),
        ("train --resume --out full", "full has no file `latest`"),
        ("train --resume --out held", "process 4321 is training into held; wait for it"),
        ("train --resume --out by_fit", "it was begun by `fit`, and not by `train`; go on with it"),
        ("train --resume --out foreign", "is of the model 'mamba'; give a checkpoint of one of"),
        ("train --resume --out torn", "params.safetensors is torn, or no safetensors file"),
        ("train --resume --out nan", "training has diverged, and this step is not saved"),
        ("train --resume --out stopped --steps 9", "--steps is 9, but .* stopped was begun with 6"),
        ("train --resume --out stopped --layers 2", "--layers is 2, but .* begun with 1; leave"),
        ("train --resume --out stopped --recompute", "--recompute is True, but .* with False"),
        ("train --resume --out stopped --longest 9", "--longest is 9, but .* begun without it"),
        ("train --resume --out stopped --data other.txt", "other.txt, but .* with .*/text.txt;"),
        ("evaluate --checkpoint nowhere", "nowhere is not there"),
        ("evaluate --checkpoint foreign", "is of the model 'mamba'; give a checkpoint of one of"),
        ("evaluate --checkpoint by_fit", "step-1 has no tokenizer; give the folder of a language"),
        ("evaluate --checkpoint nan", "the loss is nan: the weights in nan/step-3 are damaged"),
        ("evaluate --checkpoint stopped --data nowhere.txt", "nowhere.txt: No such file"),
        ("generate --checkpoint nowhere", "nowhere is not there"),
        ("generate --checkpoint torn", "params.safetensors is torn, or no safetensors file"),
        ("generate --checkpoint by_fit", "step-1 has no tokenizer; give the folder of a language"),
        ("generate --checkpoint nan", "the logits of a new token are not finite: the weights are"),
        ("generate --checkpoint stopped --prompt ''", "the prompt has no tokens"),
        ("generate --checkpoint stopped --tokens 99", "the model's context is 16"),
        (f"generate --checkpoint stopped --prompt '{TEXT[:90]}'", "shorten the prompt"),
        ("generate --checkpoint stopped --top-k 0", "top_k is 0; give an integer from 1"),
        ("generate --checkpoint stopped --temperature -1", "temperature is -1.0"),
    ],
)
def test_bad_input_is_said_and_nothing_is_lost(done, monkeypatch, capsys, name, line, message):
    monkeypatch.chdir(done)
    before, command = contents(done), line.split()[0]
    if command == "train" and "--resume" not in line:
        sizes = SHORT.replace("--vocabulary 280", "")
        line = line.replace("train", f"train {sizes}", 1)
    assert run(name, line) == 1
    printed = capsys.readouterr()
    assert re.search(message, printed.err, re.S), printed.err
    assert printed.err.startswith(f"{name} {command}: ")
    assert contents(done) == before


def test_a_text_with_a_line_of_a_million_characters_is_trained_on(folder):
    """A row of that length is refused, as the sign of a broken file; a text may have no lines."""
    Path("long.txt").write_text(TEXT + "ab" * 500_000 + TEXT, encoding="utf-8")
    assert run("accelerated", f"train --data long.txt {SHORT}") == 0
    line = f"train --data long.txt {SHORT} --out other --tokenizer characters"
    assert run("reference", line.replace("--vocabulary 280", "")) == 0


def test_a_model_that_diverged_is_not_saved(folder, capsys):
    with np.errstate(all="ignore"):
        assert run("reference", f"train --data text.txt {SHORT} --learning-rate 1e200") == 1
    assert "training has diverged" in capsys.readouterr().err
    assert not Path("runs").exists()


def full(path):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@each_engine
def test_a_disk_that_is_full_before_the_first_checkpoint_leaves_nothing(
    folder, monkeypatch, capsys, name
):
    before = contents(folder)

    def append(self, ids):
        raise full(self.path)

    monkeypatch.setattr(TokenWriter, "append", append)
    assert run(name, f"train --data text.txt {SHORT}") == 1
    expected = "runs/gpt/tokens/train.npy: No space left on device; make room on that disk, or"
    assert expected in capsys.readouterr().err
    assert contents(folder) == before


@each_engine
@pytest.mark.parametrize("where", ["log.jsonl", "params.safetensors"])
def test_a_disk_that_is_full_later_leaves_a_checkpoint_and_the_line_to_go_on_with(
    folder, monkeypatch, capsys, name, where
):
    """Turns red if an error of the disk is raised without the note of what is kept."""
    begin = f"train --data text.txt {SHORT} --checkpoint-interval 2 --evaluation-interval 4 --out"
    assert run(name, f"{begin} whole") == 0
    write, save = Log.write, checkpoint.save_file
    saved = []

    def write_less(self, kind, step, **numbers):
        if step >= 4:
            raise full(self.path)
        write(self, kind, step, **numbers)

    def save_less(arrays, path):
        saved.append(path)
        if len(saved) > 2:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(arrays, path)

    if where == "log.jsonl":
        monkeypatch.setattr(Log, "write", write_less)
    else:
        monkeypatch.setattr(checkpoint, "save_file", save_less)
    assert run(name, f"{begin} parts") == 1
    monkeypatch.setattr(Log, "write", write)
    monkeypatch.setattr(checkpoint, "save_file", save)
    printed = capsys.readouterr()
    assert re.search(rf"^{name} train: parts/.*{where}.*No space left", printed.err, re.M)
    assert "the checkpoint parts/step-2 is whole; to go on from it:" in printed.err
    assert run(name, following(name, printed)) == 0
    assert_same_state("parts", "whole")


def test_ctrl_c_before_the_first_step_leaves_nothing(folder, monkeypatch, capsys):
    before = contents(folder)

    def append(self, ids):
        raise KeyboardInterrupt

    monkeypatch.setattr(TokenWriter, "append", append)
    assert run("reference", f"train --data text.txt {SHORT}") == 130
    assert capsys.readouterr().err == "\nreference train: stopped at once\n"
    assert contents(folder) == before


def test_memory_that_does_not_suffice_is_said(folder, capsys):
    before = contents(folder)

    def too_large(*arguments, **options):
        return jnp.zeros(2**44)

    too_large = accelerated.__main__.within_memory(too_large)
    assert run("accelerated", f"train --data text.txt {SHORT}", fit=too_large) == 1
    said = capsys.readouterr().err
    assert "the memory does not suffice (RESOURCE_EXHAUSTED" in said and "smaller --batch" in said
    assert contents(folder) == before
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"):
        accelerated.__main__.within_memory(raising)(jax.errors.JaxRuntimeError("another"))


def raising(error):
    raise error


def test_an_output_that_takes_no_more_is_said(folder):
    """In a process of its own: Python writes the output once more when it ends."""
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has a disk that is always full")
    with open("/dev/full", "w") as disk:
        ended = subprocess.run(
            [sys.executable, "-m", "reference", "train", "--data", "text.txt", "--steps", "1"],
            stdout=disk,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
    assert ended.returncode == 1
    assert re.fullmatch("reference train: No space left on device; make room.*\n", ended.stderr)
