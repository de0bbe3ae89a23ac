"""Train a GPT on a text, or go on with a run."""

import shlex
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np

from reference import random
from reference.data.batches import Windows
from reference.data.corpus import TOKENIZERS, Source, opened, prepare, source_of
from reference.errors import InputError
from reference.models.gpt import PRESETS, parameter_count
from reference.training import checkpoint
from reference.training.config import SCHEDULES, TrainingConfig
from reference.training.run import training_of
from reference.training.run_folder import claimed
from reference.training.state import keys_of

SIZES = ("layers", "heads", "width", "context", "dropout")


def add_options(parser):
    """What describes a run has no default here, so that one that is resumed keeps its own."""
    add = parser.add_argument
    add("--out", metavar="FOLDER", default="runs/gpt", help="the run's folder (runs/gpt)")
    add("--resume", action="store_true", help="go on from the folder's latest checkpoint")
    add("--checkpoint-interval", type=int, default=100, metavar="N", help="in steps (100)")
    add("--keep", type=int, default=1, metavar="N", help="checkpoints, beside the best (1)")
    add("--quiet", action="store_true", help="show no progress")
    data_options(parser.add_argument_group("what it learns from").add_argument)
    model_options(parser.add_argument_group("the model").add_argument)
    training_options(parser.add_argument_group("how it learns").add_argument)


def data_options(add):
    add(
        "--data",
        metavar="FILE",
        help="a text, or documents: .csv, .tsv, .jsonl; .gz too (the documentation of Python)",
    )
    add("--validation", metavar="FILE", help="to validate on (a share of the data)")
    add("--validation-share", type=float, metavar="SHARE", help="of the data, or 0 (0.1)")
    add("--text-column", metavar="NAME", help='of documents ("text")')
    add("--encoding", metavar="NAME", help="such as latin-1 (utf-8)")
    add(
        "--skip-wrong-rows",
        action="store_const",
        const=True,
        help="and count them (stop at the first)",
    )
    forms = ["NFC", "NFKC", "NFD", "NFKD"]
    add("--normalization", choices=forms, metavar="FORM", help=f"{', '.join(forms)} (none)")
    add("--shortest", type=int, metavar="N", help="characters of a document that is kept (0)")
    add("--longest", type=int, metavar="N", help="characters of a document that is kept (any)")
    kinds = ["exact", "near"]
    add("--duplicates", choices=kinds, metavar="KIND", help="drop exact or near ones (none)")
    add("--similarity", type=float, metavar="SHARE", help="of near duplicates (0.8)")
    add(
        "--tokenizer",
        metavar="KIND",
        help=f"{' or '.join(TOKENIZERS)}, made for the text, or the folder of a saved one (bpe)",
    )
    add("--vocabulary", type=int, metavar="N", help="tokens of a bpe made for it (at most 1024)")


def model_options(add):
    sizes = ", ".join(PRESETS)
    add("--size", choices=PRESETS, metavar="SIZE", help=f"one of {sizes} (nano)")
    for name in ("layers", "heads", "width", "context"):
        add(f"--{name}", type=int, metavar="N", help="in place of the size's")
    add("--dropout", type=float, metavar="RATE", help="share of activations dropped (the size's)")


def training_options(add):
    add("--steps", type=int, metavar="N", help="length of the run (300)")
    add("--batch", type=int, metavar="N", help="sequences in a step (12)")
    add("--length", type=int, metavar="N", help="tokens in a sequence (the model's context)")
    add("--accumulation", type=int, metavar="N", help="parts that a batch is computed in (1)")
    add(
        "--recompute",
        action="store_const",
        const=True,
        help="what blocks computed, to save memory (keep it)",
    )
    add("--schedule", choices=SCHEDULES, metavar="NAME", help=f"{', '.join(SCHEDULES)} (cosine)")
    add("--learning-rate", type=float, metavar="RATE", help="at its peak (1e-3)")
    add("--final-learning-rate", type=float, metavar="RATE", help="at the end (1e-4)")
    add("--warmup", type=int, metavar="N", help="steps up to the peak (a tenth, at most 100)")
    add("--decay", type=int, metavar="N", help="last steps of warmup_stable_decay (a fifth)")
    add("--weight-decay", type=float, metavar="RATE", help="of kernels and embeddings (0.1)")
    add("--beta1", type=float, metavar="B", help="AdamW's decay of the mean gradient (0.9)")
    add("--beta2", type=float, metavar="B", help="and of its square (0.95)")
    add("--clip", type=float, metavar="NORM", help="longest gradient (1)")
    add("--average", type=float, metavar="DECAY", help="average the weights, as by 0.999 (no)")
    add("--evaluation-interval", type=int, metavar="N", help="in steps (250)")
    add("--evaluation-batches", type=int, metavar="N", help="of the validation data (200)")
    add("--patience", type=int, metavar="N", help="evaluations without a new best (no end)")
    add("--dtype", choices=["float32", "float64"], help="precision of the weights (float32)")
    add("--seed", type=int, metavar="N", help="decides all that is random (0)")


def run(engine, options):
    """Train, or go on; checkpoints on the way, at the end, and where Ctrl-C ends it."""
    if engine.compilation is not None:
        engine.compilation(**compilation_of(engine, {}, options))  # raises before any work
    with claimed(options.out, resume=options.resume) as folder:
        config, settings, corpus = (resumed if options.resume else begun)(engine, options)
        training, compilation = training_of(settings), compilation_of(engine, settings, options)
        engine.prepare(np.dtype(training.dtype))
        data, validation = data_sets(corpus, training)
        announce(config, corpus)
        more = {"compilation": engine.compilation(**compilation)} if compilation else {}
        try:
            result = engine.fit(
                config,
                training,
                data,
                validation=validation,
                folder=folder,
                tokenizer=corpus.tokenizer,
                settings=settings | compilation,
                resume=options.resume,
                checkpoint_interval=options.checkpoint_interval,
                keep=options.keep,
                quiet=options.quiet,
                **more,
            )
        except (InputError, OSError):
            say_what_is_kept(engine, options)
            raise
    return say_how_it_ended(engine, options, training, result)


def begun(engine, options):
    """The config, settings and Corpus of a new run, from the options; its tokens are written."""
    size = options.size or "nano"
    given = {name: value for name, value in vars(options).items() if value is not None}
    sizes = {name: given[name] for name in SIZES if name in given}
    config = replace(PRESETS[size], **sizes)
    training = training_from(given, config)
    if options.data is not None:
        given["data"] = str(Path(options.data).resolve())
    source = Source(**{f.name: given[f.name] for f in fields(Source) if f.name in given})
    corpus = prepare(
        source, tokens_in(options.out), key=split_key(training), encoder=engine.encoder
    )
    config = replace(config, vocabulary=corpus.tokenizer.vocabulary_size)
    return config, asdict(training) | asdict(source) | {"size": size}, corpus


def training_from(given, config):
    """The TrainingConfig of some options."""
    chosen = {f.name: given[f.name] for f in fields(TrainingConfig) if f.name in given}
    chosen = {"steps": 300, "length": config.context} | chosen
    return TrainingConfig(**{"warmup": min(chosen["steps"] // 10, 100)} | chosen)


def resumed(engine, options):
    """The same of a run that goes on.  Raises InputError where options differ from its own."""
    found = checkpoint.load(options.out)
    own = found.settings | {name: getattr(found.config, name) for name in SIZES}
    for name, value in vars(options).items():
        if value is None or name not in own or name == "data":
            continue
        if value != own[name]:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{flag} is {value}, but the run in {options.out} was begun with {own[name]}; "
                "leave it out, or begin a new run in another --out"
            )
    if options.data is not None and str(Path(options.data).resolve()) != own["data"]:
        begun_on = own["data"] or "the documentation of Python"
        raise InputError(
            f"the run in {options.out} was begun on {begun_on}; leave out --data: it has the tokens"
        )
    source, tokens = source_of(found.settings), tokens_in(options.out)
    if (tokens / "train.npy").is_file() and (tokens / "validation.npy").is_file():
        return found.config, found.settings, opened(source, tokens, found.tokenizer)
    key = split_key(training_of(found.settings))
    corpus = prepare(source, tokens, key=key, tokenizer=found.tokenizer, encoder=engine.encoder)
    return found.config, found.settings, corpus


def tokens_in(folder):
    """Where a run has its tokens."""
    return Path(folder) / "tokens"


def split_key(training):
    """The key by which documents are chosen for validation: of the data's, one no epoch has."""
    return random.fold_in(keys_of(training.seed).data, 2**31)


def data_sets(corpus, training):
    """What is trained on, and what is validated on or None."""
    options = {"length": training.length, "batch": training.batch, "separator": corpus.separator}
    options["key"] = keys_of(training.seed).data
    data = Windows(corpus.tokens, **options)
    return data, None if corpus.validation is None else Windows(corpus.validation, **options)


def compilation_of(engine, settings, options):
    """An engine's own settings: those that a run was begun with, else the options."""
    names = [] if engine.compilation is None else [f.name for f in fields(engine.compilation)]
    chosen = {name: settings.get(name, getattr(options, name)) for name in names}
    return {name: value for name, value in chosen.items() if value is not None}


def announce(config, corpus):
    """What is trained on what."""
    for line in corpus.report:
        print(line)
    held = 0 if corpus.validation is None else len(corpus.validation)
    print(
        f"{parameter_count(config):,} parameters; {len(corpus.tokens):,} tokens to train on, "
        f"{held:,} to validate on, {config.vocabulary:,} different ones"
    )


def say_what_is_kept(engine, options):
    """After an error: what is there still."""
    if (Path(options.out) / "latest").is_file():
        latest = (Path(options.out) / "latest").read_text(encoding="utf-8").strip()
        print(
            f"the checkpoint {Path(options.out) / latest} is whole; to go on from it:\n"
            f"    {go_on(engine, options)}",
            file=sys.stderr,
        )


def say_how_it_ended(engine, options, training, result):
    """The last lines, and the exit status."""
    out, step = shlex.quote(str(options.out)), result.state.step
    if result.folder is not None:
        print(f"saved {result.folder}")
    if result.evaluation:
        found = result.evaluation
        print(f"best validation loss {found['best_loss']:.4f}, at step {found['best_step']}")
    if result.ended == "stopped":
        print(f"stopped after step {step} of {training.steps}; to go on:")
        print(f"    {go_on(engine, options)}")
        return 130
    if result.ended == "early":
        print(f"ended early, after step {step} of {training.steps}: no better for a while")
    else:
        print("all steps are done")
    print(f"to see what the model writes:\n    python -m {engine.name} generate --checkpoint {out}")
    return 0


def go_on(engine, options):
    """The command that goes on with a run."""
    return f"python -m {engine.name} train --out {shlex.quote(str(options.out))} --resume"
