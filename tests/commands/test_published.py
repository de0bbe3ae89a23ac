"""The commands with weights that others trained, and what a run's weights become for others."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import accelerated.__main__
import reference.__main__
from reference import random, tree
from reference.commands import main
from reference.inference import beam_generate, generate
from reference.models import model_of
from reference.models.gpt import GPTConfig
from reference.models.llama import LlamaConfig
from reference.pretrained import load, save
from reference.tokenizers import BPE
from reference.training import checkpoint
from reference.training.state import keys_of

ENGINES = {
    # Without its `prepare`, which is for the whole process.
    "accelerated": replace(accelerated.__main__.ENGINE, prepare=lambda dtype: None),
    "reference": reference.__main__.ENGINE,
}
TEXT = "".join(f"{a} and {b} are {a + b}.\n" for a in range(30) for b in range(30))
TOKENIZER = BPE.train(TEXT, 280)
GPT = GPTConfig(TOKENIZER.vocabulary_size, 24, layers=1, heads=2, width=8)
each_engine = pytest.mark.parametrize("name", ENGINES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a text and a GPT-2 of random weights that are large enough to choose by."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    publish("gpt2", GPT, seed=1)
    return tmp_path


def publish(directory, config, *, seed, **settings):
    drawn = model_of(config).initial_params(config, key=random.key(seed), initialization="scaled")
    save(directory, config, tree.map(lambda a: 3 * a, drawn))
    TOKENIZER.save(Path(directory))
    path = Path(directory, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings), encoding="utf-8")


def run(name, line):
    return main(ENGINES[name], shlex.split(line))


def written(name, line, capsys):
    assert run(name, f"generate {line}") == 0
    return capsys.readouterr().out.removesuffix("\n")


@each_engine
def test_published_weights_write_what_generate_does_with_them(folder, capsys, name):
    config, params = load("gpt2")
    prompt = np.array(TOKENIZER.encode("1 and"), np.int32)
    options = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01}
    options |= {"repetition_penalty": 1.2, "key": keys_of(3).sample}
    expected = generate(params, tokens=prompt, steps=9, config=config, **options)
    line = (
        "--weights gpt2 --prompt '1 and' --tokens 9 --temperature 0.9 --top-k 50 --top-p 0.95 "
        "--min-p 0.01 --repetition-penalty 1.2 --seed 3"
    )
    assert run(name, f"generate {line}") == 0
    printed = capsys.readouterr()
    assert printed.out == TOKENIZER.decode([*prompt, *expected]) + "\n"
    again = printed.err.splitlines()[-1].strip().removeprefix(f"python -m {name} ")
    assert again.endswith("--seed 4") and "--top-p=0.95" in again and "--weights gpt2" in again
    assert run(name, again) == 0


@each_engine
def test_several_prompts_are_several_texts_and_each_ends_at_a_stop(folder, capsys, name):
    line = "--weights gpt2 --prompt '1 and 2' --prompt 7 --tokens 8 --temperature 0"
    both = written(name, line, capsys)
    alone = [
        written(name, f"--weights gpt2 --prompt '{p}' --tokens 8 --temperature 0", capsys)
        for p in ("1 and 2", "7")
    ]
    assert both == "\n".join(alone)
    third = TOKENIZER.encode(alone[0].removeprefix("1 and 2"))[2]
    # A token that is no whole letter cannot be given on a command line.
    stop = next(t for t in (TOKENIZER.decode([third]), None) if t is None or "\ufffd" not in t)
    if stop is not None:
        stopped = written(
            name,
            f"--weights gpt2 --prompt '1 and 2' --tokens 8 --temperature 0 "
            f"--stop={shlex.quote(stop)}",
            capsys,
        )
        assert alone[0].startswith(stopped) and stopped.endswith(stop)


@each_engine
def test_a_beam_finds_what_beam_generate_does_and_a_draft_changes_nothing(folder, capsys, name):
    config, params = load("gpt2")
    prompt = np.array(TOKENIZER.encode("1 and"))
    task = {"steps": 6, "config": config, "end": (config.vocabulary - 1,)}
    found = beam_generate(params, tokens=prompt[None], beams=3, alpha=1.0, **task)
    best = found.tokens[0, 0, : found.lengths[0, 0]]
    line = "--weights gpt2 --prompt '1 and' --tokens 6"
    beam = written(name, f"{line} --beams 3 --length-penalty 1", capsys)
    assert beam == TOKENIZER.decode([t for t in (*prompt, *best) if t != config.vocabulary - 1])

    publish("draft", replace(GPT, width=4), seed=2)
    greedy = written(name, f"{line} --temperature 0", capsys)
    assert written(name, f"{line} --temperature 0 --draft draft --guesses 2", capsys) == greedy


@each_engine
def test_published_weights_are_measured_trained_further_and_exported(folder, capsys, name):
    assert run(name, "evaluate --weights gpt2 --data text.txt --batch 8") == 0
    before = loss_in(capsys.readouterr().out)
    train = "train --weights gpt2 --data text.txt --batch 8 --length 24 --out runs/gpt --quiet"
    assert run(name, f"{train} --steps 10 --validation-share 0") == 0
    capsys.readouterr()

    # Its sizes, tokenizer and weights are in the run: the directory is not needed any more.
    shutil.rmtree("gpt2")
    assert run(name, "train --out runs/gpt --resume --quiet") == 0
    assert run(name, "evaluate --data text.txt") == 0
    # It went on from there: ten small steps have lowered the loss a little.
    assert before - 0.02 < loss_in(capsys.readouterr().out) < before

    assert run(name, "export --out theirs") == 0
    following = capsys.readouterr().err.splitlines()[-1].strip()
    assert following == f"python -m {name} generate --weights theirs"
    kept = checkpoint.load("runs/gpt", pointer="best").weights
    assert tree.flatten(load("theirs")[1]).keys() == tree.flatten(kept).keys()
    assert written(name, "--weights theirs --tokens 5", capsys) == written(
        name, "--checkpoint runs/gpt --tokens 5", capsys
    )
    assert run(name, "export --out theirs") == 1
    assert "theirs has a model already" in capsys.readouterr().err


def loss_in(printed):
    return float(re.search(r"^loss +(\S+)", printed, re.M)[1])


def test_a_llama_reads_its_first_token_before_each_prompt_and_stops_at_its_last(folder, capsys):
    config = LlamaConfig(TOKENIZER.vocabulary_size, 24, 1, 2, 1, 8, 12)
    publish("llama", config, seed=4, bos_token_id=270, eos_token_id=[7, 9])
    params = load("llama")[1]
    prompt = np.array([270, *TOKENIZER.encode("1 and")], np.int32)
    options = {"key": keys_of(0).sample, "stop": (7, 9)}
    expected = generate(params, tokens=prompt, steps=15, config=config, **options)
    text = TOKENIZER.decode([t for t in (*prompt[1:], *expected) if t not in (270, 7, 9)])
    assert written("reference", "--weights llama --prompt '1 and' --tokens 15", capsys) == text
    Path("llama/config.json").write_text(
        Path("llama/config.json").read_text().replace("270", "99999"), encoding="utf-8"
    )
    assert run("reference", "generate --weights llama") == 1
    assert "bos_token_id is 99999, and the model has the tokens 0 to" in capsys.readouterr().err


@each_engine
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate --weights gpt2 --beams 2 --top-k 3", "--top-k has no meaning beside --beams"),
        ("generate --weights gpt2 --length-penalty 1", "without --beams"),
        ("generate --weights gpt2 --beams 0", "beams is 0; give a positive integer"),
        ("generate --weights gpt2 --guesses 1", "without --draft"),
        ("generate --weights gpt2 --draft gpt2 --repetition-penalty 2", "beside --draft"),
        ("generate --weights gpt2 --draft gpt2 --guesses 0", "give the number of guesses"),
        ("generate --weights gpt2 --stop 'and and'", "tokens of this model; give a text that is"),
        ("generate --weights gpt2 --top-p 2", "top_p is 2.0; give a number in (0, 1]"),
        ("generate --weights nowhere/at/all", "give that of a model"),
        ("generate --weights text.txt", "text.txt is not there, or no directory"),
        ("evaluate --weights gpt2", "give one by --data"),
        ("evaluate --weights gpt2 --data text.txt --length 25", "context"),
        ("evaluate --weights gpt2 --data text.txt --batch 0", "--batch is 0"),
        ("train --weights gpt2 --data text.txt --width 8", "--weights bring their own"),
        ("train --weights gpt2 --data text.txt --tokenizer bpe", "--weights bring their own"),
        ("train --size llama_micro --data text.txt --dropout 0.1", "nothing that a llama has"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(folder, capsys, name, line, said):
    assert run(name, line) == 1
    printed = capsys.readouterr()
    assert said in printed.err and not printed.out
    assert not Path("runs").exists() or not any(Path("runs/gpt").glob("step*"))


def test_a_directory_that_is_no_language_model_says_what_it_is(folder, capsys):
    settings = json.loads(Path("gpt2/config.json").read_text())
    for changes, said in (
        ({"model_type": "rwkv"}, "model_type is 'rwkv'; give one of"),
        ({"eos_token_id": "the end"}, "eos_token_id is 'the end'"),
    ):
        Path("gpt2/config.json").write_text(json.dumps(settings | changes), encoding="utf-8")
        assert run("reference", "generate --weights gpt2") == 1
        assert said in capsys.readouterr().err
    Path("gpt2/config.json").write_text(json.dumps(settings), encoding="utf-8")
    Path("gpt2/merges.txt").unlink()
    Path("gpt2/vocab.json").unlink()
    assert run("reference", "generate --weights gpt2") == 1
    assert "gpt2 has no tokenizer" in capsys.readouterr().err
    BPE.train(TEXT, 290).save(Path("gpt2"))
    assert run("reference", "generate --weights gpt2") == 1
    printed = capsys.readouterr().err
    assert "290 tokens" in printed and "280" in printed


@each_engine
def test_a_llama_is_trained_by_its_size(folder, capsys, name):
    line = "train --size llama_micro --layers 1 --heads 2 --width 8 --context 16 --data text.txt"
    assert run(name, f"{line} --steps 2 --vocabulary 270 --batch 2 --out run --quiet") == 0
    assert checkpoint.load("run").config.groups == 2
    assert run(name, "generate --checkpoint run --tokens 3") == 0
