"""Measure a language model on text that it has not seen."""

import math
import tempfile
import time

import numpy as np

from reference import random, tree
from reference.commands import model
from reference.commands.train import LONGEST, command, tokens_in
from reference.data.batches import Windows
from reference.data.corpus import VALIDATION, opened, prepare
from reference.data.source import Source, source_of
from reference.errors import InputError
from reference.layers.position import check_length
from reference.training import TrainingConfig
from reference.training.config import check_count


def add_options(parser):
    model.add_options(parser)
    add = parser.add_argument
    add("--data", metavar="FILE", help="one text, or documents (what the run validates on)")
    add("--text-column", metavar="NAME", help="the column of documents (that of the run)")
    add("--encoding", metavar="NAME", default="utf-8", help="such as latin-1 (utf-8)")
    add(
        "--skip-wrong-rows",
        action="store_true",
        help="leave out and count rows that cannot be read (stop at the first)",
    )
    add("--length", type=int, metavar="N", help=f"tokens read at once (the run's, or {LONGEST})")
    add("--batch", type=int, metavar="N", help="such sequences side by side (the run's, or 12)")


def run(engine, options):
    """Measure a run's best checkpoint, or its latest where none was measured; or published weights.

    The loss is in nats a token.  Tokenizers cut differently, so losses compare only within one;
    bits a byte, the loss of the whole text over its bytes, compare with any model.
    """
    found = model.language_model(options)
    engine.prepare(tree.leaves(found.params)[0].dtype)
    with tempfile.TemporaryDirectory() as temporary:
        corpus, tokens = corpus_of(engine, options, found, temporary)
        for line in corpus.report:
            print(line)
        data, size = windows(options, found, corpus, tokens), bytes_of(tokens, corpus)
        begun = time.perf_counter()
        measured = engine.evaluate(found.params, found.config, data)
        seconds = time.perf_counter() - begun
    loss, counted = measured["loss"], measured["counted"]
    if not math.isfinite(loss):
        raise InputError(
            f"the loss is {loss}: the weights in {found.folder} are damaged, or training went "
            "wrong; take an earlier checkpoint"
        )
    print(f"model            {found.name}")
    print(f"text             {counted:,} tokens, {size:,} bytes")
    print(f"loss             {loss:.4f} nats a token")
    print(f"perplexity       {math.exp(min(loss, 700)):.2f}")
    print(f"bits a byte      {loss * counted / size / math.log(2):.4f}")
    print(f"speed            {counted / seconds:,.0f} tokens/s")
    following = command(engine, "generate", *model.named_in(options))
    return 0, f"to see what the model writes:\n    {following}"


def windows(options, found, corpus, tokens):
    """The data set of the tokens: sequences as long as the run's, one after another."""
    default = {"length": min(found.config.context, LONGEST), "batch": TrainingConfig.batch}
    sizes = {}
    for name, size in default.items():
        given = getattr(options, name)
        sizes[name] = found.settings.get(name, size) if given is None else given
        check_count(f"--{name}", sizes[name])
    check_length(sizes["length"], found.config.context)
    return Windows(tokens, **sizes, key=random.key(0), separator=corpus.separator)


def corpus_of(engine, options, found, temporary):
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
    if options.weights is not None:
        raise InputError(f"{found.name} has no text to be measured on; give one by --data")
    tokens = tokens_in(found.folder.resolve().parent)
    if not (tokens / VALIDATION).is_file():
        raise InputError(f"{tokens} has no {VALIDATION}; give a text by --data")
    corpus = opened(source_of(found.settings), tokens, found.tokenizer)
    if corpus.validation is None:
        raise InputError(
            f"the run of {found.folder} kept nothing to validate on; give a text by --data"
        )
    return corpus, corpus.validation


def bytes_of(tokens, corpus, piece=1 << 20):
    """How many bytes of text the tokens but the first stand for; separators are none."""
    sizes = np.array([len(token) for token in corpus.tokenizer.tokens])
    if corpus.separator is not None:
        sizes[corpus.separator] = 0
    return sum(int(sizes[tokens[i : i + piece]].sum()) for i in range(1, len(tokens), piece))
