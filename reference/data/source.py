"""Where a text is that a language model learns from, and how it is read.

A file is one long text or, by its name, a table or JSON Lines with a document in each row.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from reference.data.cleaning import Cleaning
from reference.errors import InputError
from reference.tokenizers.bpe import END_OF_TEXT

ENDINGS = (".csv", ".tsv", ".jsonl")  # of files with rows
TOKENIZERS = ("bpe", "characters")


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
        if self.validation and is_table(self.validation) != self.has_documents:
            kinds = "one text", "documents"
            raise InputError(
                f"{self.validation} is {kinds[is_table(self.validation)]}, and what is trained on "
                f"is {kinds[self.has_documents]}; give both as documents ({', '.join(ENDINGS)}), "
                "or both as texts"
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

    @property
    def name(self):
        """What to call the data in a message."""
        return "the documentation of Python" if self.data is None else self.data

    def separator(self, tokenizer):
        """The token that begins each document; None where the data are one text.

        Raises InputError for a tokenizer that has none.
        """
        if not self.has_documents:
            return None
        if END_OF_TEXT not in tokenizer.special_ids:
            raise InputError(
                f"{self.data} has documents, and the tokenizer no {END_OF_TEXT} to keep them "
                "apart: it was made for one text; give one that was made for documents"
            )
        return tokenizer.special_ids[END_OF_TEXT]


def is_table(path):
    """Whether a file has rows, by its name."""
    return path is not None and Path(str(path).lower().removesuffix(".gz")).suffix in ENDINGS


def check_file(path):
    """Raise InputError for what cannot be read, and read again."""
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; give a file with text or documents")
    if Path(path).exists() and not Path(path).is_file():
        raise InputError(f"{path} is no file that can be read twice; save what it gives as one")


def source_of(settings):
    """The Source among a run's settings.  Raises InputError where there is none."""
    names = asdict(Source())
    if missing := [name for name in names if name not in settings]:
        raise InputError(
            f"the run does not say where its text is (it has no {missing[0]}): it was begun by "
            "`fit`, and not by `train`; go on with it by `fit`, with the same data"
        )
    return Source(**{name: settings[name] for name in names})
