"""Measure a trained GPT on text that it has not seen."""

import math
import tempfile
import time
from pathlib import Path

import numpy as np

from reference import tree
from reference.commands.train import command, tokens_in, windows
from reference.data.corpus import VALIDATION, opened, prepare
from reference.data.source import Source, source_of
from reference.errors import InputError
from reference.training import checkpoint
from reference.training.run import training_of
from reference.training.run_folder import checkpoint_in


def add_options(parser):
    add = parser.add_argument
    add("--checkpoint", metavar="FOLDER", default="runs/gpt", help="a run's folder (runs/gpt)")
    add("--data", metavar="FILE", help="one text, or documents (what the run validates on)")
    add("--text-column", metavar="NAME", help="the column of documents (that of the run)")
    add("--encoding", metavar="NAME", default="utf-8", help="such as latin-1 (utf-8)")
    add(
        "--skip-wrong-rows",
        action="store_true",
        help="leave out and count rows that cannot be read (stop at the first)",
    )


def run(engine, options):
    """Measure a run's best checkpoint, or its latest where none was measured.

    The loss is in nats a token.  Tokenizers cut differently, so losses compare only within one;
    bits a byte, the loss of the whole text over its bytes, compare with any model.
    """
    folder, found = language_model(options.checkpoint)
    engine.prepare(tree.leaves(found.weights)[0].dtype)
    with tempfile.TemporaryDirectory() as temporary:
        corpus, tokens = corpus_of(engine, options, folder, found, temporary)
        for line in corpus.report:
            print(line)
        data, size = windows(tokens, corpus, training_of(found.settings)), bytes_of(tokens, corpus)
        begun = time.perf_counter()
        measured = engine.evaluate(found.weights, found.config, data)
        seconds = time.perf_counter() - begun
    loss, counted = measured["loss"], measured["counted"]
    if not math.isfinite(loss):
        raise InputError(
            f"the loss is {loss}: the weights in {folder} are damaged, or training went wrong; "
            "take an earlier checkpoint"
        )
    print(f"checkpoint       {folder}, {found.step} steps")
    print(f"text             {counted:,} tokens, {size:,} bytes")
    print(f"loss             {loss:.4f} nats a token")
    print(f"perplexity       {math.exp(min(loss, 700)):.2f}")
    print(f"bits a byte      {loss * counted / size / math.log(2):.4f}")
    print(f"speed            {counted / seconds:,.0f} tokens/s")
    following = command(engine, "generate", "--checkpoint", options.checkpoint)
    return 0, f"to see what the model writes:\n    {following}"


def language_model(folder):
    """The folder and the Checkpoint of the best one of a run, or of its latest."""
    best = checkpoint_in(folder, "best")
    found = checkpoint.load(best)
    if found.tokenizer is None:
        raise InputError(f"{best} has no tokenizer; give the folder of a language model")
    return best, found


def corpus_of(engine, options, folder, found, temporary):
    """A Corpus, and the tokens in it to be measured: the file's, or what the run validates on."""
    if options.data is not None:
        source = Source(
            options.data,
            validation_share=0,
            text_column=options.text_column or found.settings.get("text_column", "text"),
            encoding=options.encoding,
            skip_wrong_rows=options.skip_wrong_rows,
            normalization=found.settings.get("normalization"),
        )
        made = {"tokenizer": found.tokenizer, "encoder": engine.encoder}
        corpus = prepare(source, temporary, key=None, **made)
        return corpus, corpus.tokens
    tokens = tokens_in(Path(folder).resolve().parent)
    if not (tokens / VALIDATION).is_file():
        raise InputError(f"{tokens} has no {VALIDATION}; give a text by --data")
    corpus = opened(source_of(found.settings), tokens, found.tokenizer)
    if corpus.validation is None:
        raise InputError(f"the run of {folder} kept nothing to validate on; give a text by --data")
    return corpus, corpus.validation


def bytes_of(tokens, corpus, piece=1 << 20):
    """How many bytes of text the tokens but the first stand for; separators are none."""
    sizes = np.array([len(token) for token in corpus.tokenizer.tokens])
    if corpus.separator is not None:
        sizes[corpus.separator] = 0
    return sum(int(sizes[tokens[i : i + piece]].sum()) for i in range(1, len(tokens), piece))
