"""From a file of text to what a language model is trained on: read, clean, split, tokenize.

    your.txt                  one long text: its end is for validation
    your.csv .tsv .jsonl      documents, one a row: each is for training or for validation by chance

Nothing is ever held whole: texts come and go one at a time, and their tokens go to two files, which
are mapped into memory.  Documents are kept apart by the end-of-text token, which begins each.
"""

from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from reference.data.cleaning import Cleaning, Report, clean, normalize
from reference.data.rows import WrongRows
from reference.data.split import cut, in_validation
from reference.data.tables import read_rows
from reference.data.text import python_documentation, text_pieces
from reference.data.tokens import TokenWriter, read_tokens
from reference.errors import InputError
from reference.tokenizers import BPE, Characters, load_tokenizer
from reference.tokenizers.bpe import END_OF_TEXT

ENDINGS = (".csv", ".tsv", ".jsonl")  # of files with rows
TOKENIZERS = ("bpe", "characters")
LEARNT_FROM = 1 << 25  # characters that a BPE is learnt from, the first: more change little


@dataclass(frozen=True)
class Source:
    """Where a text is, and how it is read.  Raises InputError for what cannot be."""

    data: str | None = None  # a file; None: the documentation that Python carries
    validation: str | None = None  # another file to validate on, in place of a share
    validation_share: float = 0.1  # of the data; 0: none
    text_column: str = "text"  # of tables and JSON Lines
    encoding: str = "utf-8"
    skip_wrong_rows: bool = False  # and count them; else the first one stops
    normalization: str | None = None  # this and the next four: see Cleaning
    shortest: int = 0
    longest: int | None = None
    duplicates: str | None = None
    similarity: float = 0.8
    tokenizer: str = "bpe"  # or "characters", or the folder of a saved one
    vocabulary: int | None = None  # of a new BPE; None: 1024 or what the text can teach

    def __post_init__(self):
        if not 0 <= self.validation_share < 1:
            raise InputError(
                f"validation_share is {self.validation_share!r}; give at least 0 and less than 1"
            )
        if self.vocabulary is not None and self.tokenizer != "bpe":
            raise InputError(
                f"vocabulary is {self.vocabulary}, but the tokenizer {self.tokenizer!r} has its "
                "own; leave it out"
            )
        if not self.has_documents and (
            self.duplicates or self.shortest or self.longest is not None
        ):
            raise InputError(
                "shortest, longest and duplicates are of documents, and a text is but one; give "
                f"them in a file of {', '.join(ENDINGS)}"
            )
        self.cleaning  # noqa: B018 - for its errors

    @property
    def cleaning(self):
        """The Cleaning that is asked for."""
        return Cleaning(
            self.normalization, self.shortest, self.longest, self.duplicates, self.similarity
        )

    @property
    def has_documents(self):
        """Whether the data are rows, each a document, and not one long text."""
        return is_table(self.data)


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
    Memory: one document, or a piece of 4 MB; while a BPE is learnt, the first 32 million
    characters; for duplicates, what `duplicates` says.
    Raises InputError for wrong rows, bytes, columns and texts, OSError for files.
    """
    folder = Path(folder)
    tokenizer = tokenizer or tokenizer_of(source)
    separator = tokenizer.special_ids[END_OF_TEXT] if source.has_documents else None
    encode, size = encoder(tokenizer), tokenizer.vocabulary_size
    wrong, report = WrongRows(skip=source.skip_wrong_rows), Report()
    apart = source.has_documents and not source.validation and source.validation_share
    with (
        TokenWriter(folder / "train.npy", size) as train,
        TokenWriter(folder / "validation.npy", size) as validation,
    ):
        for number, text in enumerate(texts(source.data, source, wrong, report)):
            chosen = apart and in_validation([number], source.validation_share, key=key)[0]
            append(validation if chosen else train, text, encode, separator)
        if source.validation:
            for text in texts(source.validation, source, wrong, report):
                append(validation, text, encode, separator)
    said = [str(wrong)] if wrong.count else []
    said += [str(report)] if report.came != report.kept or report.changed else []
    return opened(source, folder, tokenizer, said)


def opened(source, folder, tokenizer, report=()):
    """The Corpus whose tokens lie in a folder already."""
    size, separator = tokenizer.vocabulary_size, None
    tokens = read_tokens(Path(folder) / "train.npy", vocabulary=size)
    validation = read_tokens(Path(folder) / "validation.npy", vocabulary=size)
    if source.has_documents:
        separator = tokenizer.special_ids[END_OF_TEXT]
    elif not source.validation and source.validation_share:
        begins = cut(len(tokens), source.validation_share)
        tokens, validation = tokens[:begins], tokens[begins:]
    validation = validation if len(validation) > 1 else None
    return Corpus(tokens, validation, tokenizer, separator, list(report))


def append(writer, text, encode, separator):
    """Write a text's tokens, after the separator that begins it."""
    if separator is not None:
        writer.append([separator])
    writer.append(encode(text))


def texts(path, source, wrong, report):
    """Yield the texts of a file one at a time: documents, or the pieces of one long text."""
    if is_table(path):
        rows = read_rows(path, columns=[source.text_column], encoding=source.encoding, wrong=wrong)
        named = ((f"{path}, line {line}", row[source.text_column]) for line, row in rows)
        for _, text in clean(named, source.cleaning, report):
            yield text
        return
    pieces = (
        [python_documentation()] if path is None else text_pieces(path, encoding=source.encoding)
    )
    for piece in pieces:
        yield normalize(piece, source.normalization) if source.normalization else piece


def tokenizer_of(source):
    """The tokenizer of a Source: a saved one, or a new one learnt from its text."""
    if source.tokenizer not in TOKENIZERS:
        return load_tokenizer(source.tokenizer)
    special = (END_OF_TEXT,) if source.has_documents else ()
    quietly = (
        WrongRows(skip=source.skip_wrong_rows),
        Report(),
    )  # it is all read again, and told then
    read = texts(source.data, source, *quietly)
    if source.tokenizer == "characters":
        if source.validation:
            read = chain(read, texts(source.validation, source, *quietly))
        return Characters.train(read, special_tokens=special)
    return BPE.train("".join(beginning(read)), source.vocabulary)


def beginning(read):
    """The first LEARNT_FROM characters of texts."""
    left = LEARNT_FROM
    for text in read:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def is_table(path):
    """Whether a file has rows, by its name."""
    return path is not None and Path(str(path).lower().removesuffix(".gz")).suffix in ENDINGS


def source_of(settings):
    """The Source among a run's settings."""
    return Source(**{name: settings[name] for name in asdict(Source())})
