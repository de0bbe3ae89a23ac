"""From a file of text to what a language model is trained on: read, clean, split, tokenize.

    your.txt                  one long text: its end is for validation
    your.csv .tsv .jsonl      documents, one a row: each is for training or for validation by chance

Nothing is ever held whole: texts come and go one at a time, and their tokens go to two files, which
are mapped into memory.  Documents are kept apart by the end-of-text token, which begins each.
"""

from dataclasses import dataclass, field
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import numpy as np

from reference.data.cleaning import Report, cleaner, normalize
from reference.data.rows import WrongRows
from reference.data.source import TOKENIZERS, Source, check_file, is_table
from reference.data.split import cut, in_validation
from reference.data.tables import read_rows
from reference.data.text import python_documentation, text_pieces
from reference.data.tokens import TokenWriter, read_tokens
from reference.errors import InputError
from reference.tokenizers import BPE, Characters, load_tokenizer
from reference.tokenizers.bpe import END_OF_TEXT

__all__ = ["Corpus", "Source", "opened", "prepare"]

LEARNT_FROM = 1 << 25  # characters that a BPE is learnt from, the first: more change little
TRAIN, VALIDATION = "train.npy", "validation.npy"
DRAWN = 4096  # documents that chance is asked about at once


@dataclass
class Corpus:
    """The tokens of a text, for training and validation, as arrays that are mapped into memory."""

    tokens: Any  # (n,)
    validation: Any  # (m,), or None
    tokenizer: Any
    separator: int | None  # the token that begins each document, where there are documents
    report: list[str] = field(default_factory=list)  # what was left out, in words


def prepare(source, folder, *, key, tokenizer=None, encoder=lambda tokenizer: tokenizer.encode):
    """Tokenize a Source into two files of a folder -> Corpus.

    key: decides which documents are for validation.  tokenizer: in place of the Source's.  encoder:
    makes of a tokenizer what encodes.
    Memory: one document, or a few times a piece of 4 MB; while a BPE is learnt, the first 32
    million characters; for duplicates, what `duplicates` says.
    Raises InputError for wrong rows, bytes, columns and texts, OSError for files.
    """
    folder, files = Path(folder), [path for path in (source.data, source.validation) if path]
    for path in files:
        check_file(path)
    tokenizer = tokenizer or tokenizer_of(source)
    encode, size = encoder(tokenizer), tokenizer.vocabulary_size
    separator = source.separator(tokenizer)
    wrong, report = WrongRows(skip=source.skip_wrong_rows), Report()
    texts = reader(source, wrong, report)
    with (
        TokenWriter(folder / TRAIN, size) as train,
        TokenWriter(folder / VALIDATION, size) as validation,
    ):
        apart = validated(source, key)
        for (name, text), chosen in zip(texts(source.data), apart, strict=False):
            append(validation if chosen else train, name, text, encode, separator)
        for name, text in texts(source.validation) if source.validation else ():
            append(validation, name, text, encode, separator)
    said = [str(wrong)] if wrong.count else []
    said += [str(report)] if report.came != report.kept or report.changed else []
    return opened(source, folder, tokenizer, said)


def opened(source, folder, tokenizer, report=()):
    """The Corpus whose tokens lie in a folder already.

    Raises OSError or CheckpointError for files that are not there or torn, InputError where there
    is too little to learn from.  What is too little to validate on is none.
    """
    tokens, validation = (
        read_tokens(Path(folder) / name, vocabulary=tokenizer.vocabulary_size)
        for name in (TRAIN, VALIDATION)
    )
    one = not source.has_documents and not source.validation
    if one and source.validation_share and len(tokens) > 1:
        begins = cut(len(tokens), source.validation_share)
        tokens, validation = tokens[:begins], tokens[begins:]
    if len(tokens) < 2:
        raise InputError(
            f"{source.name} has too little text: {len(tokens)} tokens to train on and "
            f"{len(validation)} to validate on; give more"
        )
    validation = validation if len(validation) > 1 else None
    return Corpus(tokens, validation, tokenizer, source.separator(tokenizer), list(report))


def validated(source, key):
    """Yield for one text of the data after another whether it is for validation, without end."""
    if not source.has_documents or source.validation or not source.validation_share:
        yield from repeat(False)
    for first in count(step=DRAWN):
        numbers = np.arange(first, first + DRAWN)
        yield from in_validation(numbers, source.validation_share, key=key).tolist()


def append(writer, name, text, encode, separator):
    """Write a text's tokens, after the separator that begins it."""
    try:
        ids = encode(text)
    except InputError as error:
        raise type(error)(f"{name}: {error}") from None
    if separator is not None:
        writer.append([separator])
    writer.append(ids)


def reader(source, wrong, report):
    """A function of a path that yields the names and the texts in it: documents, or pieces of one.

    One for all files whose documents must not repeat each other.  Where a file has documents, and
    none is kept, InputError is raised.
    """
    cleaned = cleaner(source.cleaning, report)

    def texts(path):
        if not is_table(path):
            yield from pieces(path, source)
            return
        rows = read_rows(path, columns=[source.text_column], encoding=source.encoding, wrong=wrong)
        kept_before = report.kept
        for line, row in rows:
            name = f"{path}, line {line}"
            text = cleaned(name, row[source.text_column])
            if text is not None:
                yield name, text
        if report.kept == kept_before:
            raise InputError(f"{path} has no document that is kept; ask for less: {report}")

    return texts


def pieces(path, source):
    """Yield the name and the text of each piece of one long text."""
    form, begun, name = source.normalization, 0, path or source.name
    read = text_pieces(path, encoding=source.encoding) if path else [python_documentation()]
    for piece in read:
        yield name, normalize(piece, form) if form else piece
        begun += len(piece)
        name = f"{path}, from character {begun:,} on"


def tokenizer_of(source):
    """The tokenizer of a Source: a saved one, or a new one learnt from its text."""
    if source.tokenizer not in TOKENIZERS:
        return load_tokenizer(source.tokenizer)
    # It is all read again to be encoded, and what is left out is told then.
    texts = reader(source, WrongRows(skip=source.skip_wrong_rows), Report())
    if source.tokenizer == "bpe":
        # The last word of a document and the first of the next are two.
        between = "\n" if source.has_documents else ""
        return BPE.train(between.join(beginning(texts(source.data))), source.vocabulary)
    files = [source.data, source.validation] if source.validation else [source.data]
    everything = (text for _, text in chain.from_iterable(map(texts, files)))
    special = (END_OF_TEXT,) if source.has_documents else ()
    return Characters.train(everything, special_tokens=special)


def beginning(texts):
    """The first LEARNT_FROM characters of texts with names."""
    left = LEARNT_FROM
    for _, text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return
