"""Train a GPT on a text, or go on with a run."""

import os
import shlex
import shutil
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np

from reference import random
from reference.commands.options import train_options as add_options  # noqa: F401 - for the parser
from reference.data.batches import Windows
from reference.data.corpus import opened, prepare
from reference.data.source import TOKENIZERS, Source, source_of
from reference.errors import CheckpointError, InputError
from reference.layers.position import check_length
from reference.models.gpt import PRESETS, parameter_count
from reference.training import checkpoint
from reference.training.config import TrainingConfig, check_count
from reference.training.run import training_of
from reference.training.run_folder import checkpoint_in, claimed
from reference.training.state import keys_of

SIZES = ("layers", "heads", "width", "context", "dropout")


def run(engine, options):
    """Train, or go on; checkpoints on the way, at the end, and where Ctrl-C ends it."""
    for name in ("checkpoint_interval", "keep"):
        check_count(flag(name), getattr(options, name))
    if engine.compilation is not None:
        engine.compilation(**compilation_of(engine, {}, options))  # raises before any work
    try:
        with claimed(options.out, resume=options.resume) as folder:
            training, result = trained(engine, options, folder)
    except (OSError, MemoryError, KeyboardInterrupt) as error:
        add_what_is_kept(error, engine, options)
        raise
    return how_it_ended(engine, options, training, result)


def trained(engine, options, folder):
    """The TrainingConfig and the Result of a run."""
    config, settings, corpus = (resumed if options.resume else begun)(engine, options)
    training, compilation = training_of(settings), compilation_of(engine, settings, options)
    engine.prepare(np.dtype(training.dtype))
    announce(config, corpus)
    more = {"compilation": engine.compilation(**compilation)} if compilation else {}
    result = engine.fit(
        config,
        training,
        windows(corpus.tokens, corpus, training),
        validation=windows(corpus.validation, corpus, training),
        folder=folder,
        tokenizer=corpus.tokenizer,
        settings=settings | compilation,
        resume=options.resume,
        checkpoint_interval=options.checkpoint_interval,
        keep=options.keep,
        quiet=options.quiet,
        **more,
    )
    return training, result


def begun(engine, options):
    """The config, settings and Corpus of a new run, from the options; its tokens are written."""
    given = given_in(options)
    size = given.get("size", "nano")
    config = replace(PRESETS[size], **{name: given[name] for name in SIZES if name in given})
    training = training_from(given, config)
    check_length(training.length, config.context)
    source = Source(**{f.name: given[f.name] for f in fields(Source) if f.name in given})
    print(f"reading {source.name}", flush=True)
    corpus = prepare(
        source, tokens_in(options.out), key=split_key(training), encoder=engine.encoder
    )
    config = replace(config, vocabulary=corpus.tokenizer.vocabulary_size)
    return config, asdict(training) | asdict(source) | {"size": size}, corpus


def given_in(options):
    """What a command line gives, by name; paths so that they hold in any folder."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    for name in ("data", "validation", "tokenizer"):
        if name in given and not (name == "tokenizer" and given[name] in TOKENIZERS):
            given[name] = os.path.abspath(given[name])
    return given


def training_from(given, config):
    """The TrainingConfig of some options."""
    chosen = {f.name: given[f.name] for f in fields(TrainingConfig) if f.name in given}
    chosen = {"steps": 300, "length": config.context} | chosen
    return TrainingConfig(**{"warmup": min(chosen["steps"] // 10, 100)} | chosen)


def resumed(engine, options):
    """The same of a run that goes on.  Raises InputError where options differ from its own."""
    found = checkpoint.load(options.out)
    source, tokens = source_of(found.settings), tokens_in(options.out)
    check_same(options, found)
    try:
        corpus = opened(source, tokens, found.tokenizer)
    except (FileNotFoundError, CheckpointError):  # they are all in the text still
        corpus = prepared_again(engine, found, source, tokens)
    return found.config, found.settings, corpus


def prepared_again(engine, found, source, tokens):
    """The Corpus of a run whose tokens are lost.  Raises InputError where it is another now."""
    print(f"reading {source.name}", flush=True)
    training = training_of(found.settings)
    made = {"tokenizer": found.tokenizer, "encoder": engine.encoder}
    corpus = prepare(source, tokens, key=split_key(training), **made)
    for name, part in (("fingerprint", corpus.tokens), ("validation", corpus.validation)):
        data = windows(part, corpus, training)
        if found.position.get(name) != (data and data.fingerprint):
            shutil.rmtree(tokens)
            raise InputError(
                f"{source.name} is not the text that the run was begun on, for it makes other "
                "tokens; bring that text back, or begin a new run in another --out"
            )
    return corpus


def check_same(options, found):
    """Raise InputError for an option that the run, a Checkpoint, was begun without."""
    own = found.settings | {name: getattr(found.config, name) for name in SIZES}
    for name, value in given_in(options).items():
        if name in own and value != own[name]:
            begun = "without it" if own[name] is None else f"with {own[name]}"
            raise InputError(
                f"{flag(name)} is {value}, but the run in {options.out} was begun {begun}; leave "
                "it out, or begin a new run in another --out"
            )


def tokens_in(folder):
    """Where a run has its tokens."""
    return Path(folder) / "tokens"


def split_key(training):
    """The key by which documents are chosen for validation: of the data's, one no epoch has."""
    return random.fold_in(keys_of(training.seed).data, 2**31)


def windows(tokens, corpus, training):
    """The data set of some tokens of a Corpus; of None it is None."""
    if tokens is None:
        return None
    sizes = {"length": training.length, "batch": training.batch}
    key = keys_of(training.seed).data
    return Windows(tokens, **sizes, key=key, separator=corpus.separator)


def compilation_of(engine, settings, options):
    """An engine's own settings: those that a run was begun with, else the options."""
    names = [] if engine.compilation is None else [f.name for f in fields(engine.compilation)]
    chosen = {name: settings.get(name, getattr(options, name)) for name in names}
    return {name: value for name, value in chosen.items() if value is not None}


def announce(config, corpus):
    """What is trained on what."""
    for line in corpus.report:
        print(line)
    held = "none" if corpus.validation is None else f"{len(corpus.validation):,}"
    print(
        f"{parameter_count(config):,} parameters, a vocabulary of {config.vocabulary:,}; "
        f"{len(corpus.tokens):,} tokens to train on, {held} to validate on",
        flush=True,
    )


def add_what_is_kept(error, engine, options):
    """Let an error say what is there still, and how to go on with it."""
    with suppress(InputError, OSError):  # where there is none
        error.add_note(f"the checkpoint {checkpoint_in(options.out)} is whole; to go on from it:")
        error.add_note(f"    {command(engine, 'train', '--out', options.out)} --resume")


def how_it_ended(engine, options, training, result):
    """Print the last lines -> the exit status, and what to run next."""
    step, found = result.state.step, result.evaluation
    if result.folder is not None:
        print(f"saved {result.folder}")
    if found:
        print(f"best validation loss {found['best_loss']:.4f}, at step {found['best_step']}")
    if result.ended == "stopped":
        print(f"stopped after step {step} of {training.steps}")
        again = command(engine, "train", "--out", options.out)
        return 130, f"to go on:\n    {again} --resume"
    if result.ended == "early":
        print(f"ended early, after step {step} of {training.steps}: no better for a while")
    else:
        print("all steps are done")
    following = command(engine, "generate", "--checkpoint", options.out)
    return 0, f"to see what the model writes:\n    {following}"


def flag(name):
    """An option as it is given."""
    return "--" + name.replace("_", "-")


def command(engine, *words):
    """A command line as one types it."""
    return f"python -m {engine.name} {shlex.join(map(str, words))}"
