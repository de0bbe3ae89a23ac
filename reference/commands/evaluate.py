"""Measure a trained GPT on text that it has not seen."""

import math
import shlex
import sys
import tempfile
import time
from pathlib import Path

from reference import tree
from reference.commands.train import data_sets, tokens_in
from reference.data.corpus import Source, opened, prepare, source_of
from reference.errors import InputError
from reference.training import checkpoint
from reference.training.run import training_of
from reference.training.run_folder import checkpoint_in


def add_options(parser):
    add = parser.add_argument
    add("--checkpoint", metavar="FOLDER", default="runs/gpt", help="a run's folder (runs/gpt)")
    add("--data", metavar="FILE", help="a text, or documents (what the run validates on)")
    add("--text-column", metavar="NAME", default="text", help='of documents ("text")')
    add("--encoding", metavar="NAME", default="utf-8", help="such as latin-1 (utf-8)")
    add("--skip-wrong-rows", action="store_true", help="and count them (stop at the first)")


def run(engine, options):
    """Measure a run's best checkpoint, or its latest where none was measured.

    The loss is in nats a token.  Tokenizers cut differently, so losses compare only within one;
    bits a byte, the loss of the whole text over its bytes, compare with any model.
    """
    folder = checkpoint_in(options.checkpoint, "best")
    found = checkpoint.load(folder)
    if found.tokenizer is None:
        raise InputError(f"{options.checkpoint} has no tokenizer; give a language model's folder")
    engine.prepare(tree.leaves(found.weights)[0].dtype)
    training = training_of(found.settings)
    with tempfile.TemporaryDirectory() as temporary:
        corpus = corpus_of(engine, options, folder, found, temporary)
        for line in corpus.report:
            print(line)
        data, _ = data_sets(corpus, training)
        begun = time.perf_counter()
        measured = engine.evaluate(found.weights, found.config, data)
        seconds = time.perf_counter() - begun
        size = bytes_of(corpus, found.tokenizer)
    loss, counted = measured["loss"], measured["counted"]
    print(f"checkpoint       {folder}, {found.step} steps")
    print(f"text             {counted:,} tokens, {size:,} bytes")
    print(f"loss             {loss:.4f} nats a token")
    print(f"perplexity       {math.exp(min(loss, 700)):.2f}")
    print(f"bits a byte      {loss * counted / size / math.log(2):.4f}")
    print(f"speed            {counted / seconds:,.0f} tokens/s")
    print(
        f"to see what the model writes:\n    python -m {engine.name} generate --checkpoint "
        f"{shlex.quote(str(options.checkpoint))}",
        file=sys.stderr,
    )
    return 0


def corpus_of(engine, options, folder, found, temporary):
    """The Corpus whose `tokens` are to be measured: the file's, or those the run validates on."""
    if options.data is not None:
        source = Source(
            options.data,
            validation_share=0,
            text_column=options.text_column,
            encoding=options.encoding,
            skip_wrong_rows=options.skip_wrong_rows,
        )
        return prepare(
            source, temporary, key=None, tokenizer=found.tokenizer, encoder=engine.encoder
        )
    tokens = tokens_in(Path(folder).resolve().parent)
    if not (tokens / "validation.npy").is_file():
        raise InputError(f"{tokens} has no validation.npy; give a text by --data")
    corpus = opened(source_of(found.settings), tokens, found.tokenizer)
    if corpus.validation is None:
        raise InputError(f"the run of {folder} kept nothing to validate on; give a text by --data")
    corpus.tokens = corpus.validation
    return corpus


def bytes_of(corpus, tokenizer, piece=1 << 20):
    """How many bytes of text the tokens but the first stand for."""
    tokens = corpus.tokens
    return sum(
        len(tokenizer.decode_bytes(tokens[i : i + piece].tolist()))
        for i in range(1, len(tokens), piece)
    )
