"""Train a language model on a text, or go on with a run."""

import os
import shlex
import shutil
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np

from reference import random, tree
from reference.commands import model
from reference.commands.options import SIZES
from reference.commands.options import train_options as add_options  # noqa: F401 - for the parser
from reference.data.batches import Windows
from reference.data.corpus import opened, prepare
from reference.data.source import TOKENIZERS, Source, source_of
from reference.errors import CheckpointError, InputError
from reference.layers.position import check_length
from reference.models import name_of, parameter_count
from reference.training import checkpoint
from reference.training.config import TrainingConfig, check_count
from reference.training.run import training_of
from reference.training.run_folder import checkpoint_in, claimed
from reference.training.state import keys_of

CHANGED = ("layers", "heads", "width", "context", "dropout")  # of a size, where they are given
OWN = (
    "size",
    *CHANGED[:-1],
    "initialization",
    "tokenizer",
    "vocabulary",
)  # what weights bring along
LONGEST = 1024  # tokens in a sequence, where nobody says how many
TUNING = {"learning_rate": 3e-5, "final_learning_rate": 3e-6}  # of weights that have learnt already


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
    config, settings, corpus, params = (resumed if options.resume else begun)(engine, options)
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
        params=params,
        resume=options.resume,
        checkpoint_interval=options.checkpoint_interval,
        keep=options.keep,
        quiet=options.quiet,
        **more,
    )
    return training, result


def begun(engine, options):
    """The config, settings and Corpus of a new run, from the options; its tokens are written.

    And the parameters that it starts from, or None: its initial weights.
    """
    given = given_in(options)
    config, started, params, tokenizer = from_weights(given) or (*from_sizes(given), None, None)
    training = training_from(given, config)
    check_length(training.length, config.context)
    source = Source(**{f.name: given[f.name] for f in fields(Source) if f.name in given})
    print(f"reading {source.name}", flush=True)
    corpus = prepare(
        source,
        tokens_in(options.out),
        key=split_key(training),
        tokenizer=tokenizer,
        encoder=engine.encoder,
    )
    if params is None:
        config = replace(config, vocabulary=corpus.tokenizer.vocabulary_size)
    else:
        params = tree.map(lambda a: a.astype(training.dtype), params)
    return config, asdict(training) | asdict(source) | started, corpus, params


def from_sizes(given):
    """The config of a new model, without its vocabulary, and what names it."""
    size = given.get("size", "nano")
    changes = {name: given[name] for name in CHANGED if name in given}
    if changes.keys() & {"heads", "width"} and hasattr(SIZES[size], "head_width"):
        changes["head_width"] = None  # what the two make of it
    return changed(SIZES[size], **changes), {"size": size, "weights": None}


def changed(config, **changes):
    """A config with some fields replaced.  Raises InputError for one that it does not have."""
    for name in changes:
        if not hasattr(config, name):
            raise InputError(f"{flag(name)} is nothing that a {name_of(config)} has; leave it out")
    return replace(config, **changes)


def from_weights(given):
    """The config of published weights, what names it, and weights and tokenizer; or None."""
    if "weights" not in given:
        return None
    for name in OWN:
        if name in given:
            raise InputError(
                f"{flag(name)} is {given[name]}, but --weights bring their own; leave one out"
            )
    found = model.published(given["weights"])
    config = changed(found.config, **{k: given[k] for k in ("dropout",) if k in given})
    return config, {"size": None, "weights": given["weights"]}, found.params, found.tokenizer


def given_in(options):
    """What a command line gives, by name; paths so that they hold in any folder."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    for name in ("data", "validation", "tokenizer", "weights"):
        path = given.get(name)
        named = name == "tokenizer" and path in TOKENIZERS
        on_the_hub = name == "weights" and path is not None and not Path(path).exists()
        if path is not None and not named and not on_the_hub:
            given[name] = os.path.abspath(path)
    return given


def training_from(given, config):
    """The TrainingConfig of some options."""
    chosen = {f.name: given[f.name] for f in fields(TrainingConfig) if f.name in given}
    default = {"steps": 300, "length": min(config.context, LONGEST)}
    chosen = default | (TUNING if "weights" in given else {}) | chosen
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
    return found.config, found.settings, corpus, None


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
    own = found.settings | {name: getattr(found.config, name, None) for name in CHANGED}
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
