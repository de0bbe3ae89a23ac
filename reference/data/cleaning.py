"""Texts made fit to train on: one form for each character, no fragments, no copies.

A model sees numbers: "é" as one character and "é" as an e with an accent after it look the same to
people and have nothing in common for it.  Each text goes through these steps, of which any may be
left out:

  normalization  Line endings, control characters, and the Unicode form.
  length         What is too short or too long is dropped.
  duplicates     What repeats a text that came before is dropped; the first stays.

What was dropped, and why, is counted, with a few examples by name: a filter that nobody checks
throws away what it should not.  Texts come and go one at a time; what stays in memory is said in
`duplicates`.
"""

import re
import unicodedata
from dataclasses import dataclass, field

from reference.data.duplicates import ExactDuplicates, NearDuplicates, check_similarity
from reference.errors import InputError
from reference.tokenizers.checks import check_text

FORMS = ("NFC", "NFKC", "NFD", "NFKD")
EXAMPLES = 5  # named for each reason

# All that ends a line: carriage return, vertical tab, form feed, NEL and Unicode's two separators.
LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# The rest of Unicode's category Cc, but for tab and newline.
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")


@dataclass(frozen=True)
class Cleaning:
    """What is done to each text.  The defaults do nothing.  Raises InputError for what cannot be.

    normalization  "NFC" writes each character in its shortest way; "NFD" takes it apart; "NFKC"
                   and "NFKD" also replace variants: "ﬁ" by "fi", "２" by "2", "²" by "2".  With any
                   of them line endings become a newline and control characters but tab and newline
                   are removed.  None leaves every character as it is.
    shortest       the fewest characters a text may have: 1 drops empty ones
    longest        the most it may have
    duplicates     "exact" drops copies, character by character; "near" those that differ a little
                   as well
    similarity     for "near": the share of pieces that two texts have in common from which on they
                   are copies, in [0.5, 1]

    Source: Unicode Standard Annex 15 (forms); The Unicode Standard, sec. 5.8 (line endings).
    """

    normalization: str | None = None
    shortest: int = 0
    longest: int | None = None
    duplicates: str | None = None
    similarity: float = 0.8

    def __post_init__(self):
        if self.normalization not in (None, *FORMS):
            raise InputError(
                f"normalization is {self.normalization!r}; give {', '.join(FORMS)} or None"
            )
        for name in ("shortest", "longest"):
            value = getattr(self, name)
            missing = name == "longest" and value is None
            if not missing and (type(value) is not int or value < 0):
                raise InputError(f"{name} is {value!r}; give a number of characters, 0 or more")
        if self.longest is not None and self.longest < self.shortest:
            raise InputError(
                f"longest is {self.longest}, less than shortest, {self.shortest}: no text can be "
                "kept; give a larger longest"
            )
        if self.duplicates not in (None, "exact", "near"):
            raise InputError(f"duplicates is {self.duplicates!r}; give 'exact', 'near' or None")
        check_similarity(self.similarity)


@dataclass
class Report:
    """What became of the texts so far: `came` = `kept` + all that were dropped, by reason."""

    came: int = 0
    kept: int = 0
    changed: int = 0  # by normalization, dropped later or not
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)  # the first few of each reason

    def drop(self, reason, example):
        """Count a text that is dropped, and keep the example, its name and more, of the first."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        named = self.examples.setdefault(reason, [])
        if len(named) < EXAMPLES:
            named.append(example)

    def as_dict(self):
        """The report in plain values, for JSON: each reason with its count and examples."""
        dropped = {
            reason: {"count": count, "examples": list(self.examples[reason])}
            for reason, count in self.dropped.items()
        }
        counts = {"came": self.came, "kept": self.kept, "changed": self.changed}
        return counts | {"dropped": dropped}

    def __str__(self):
        """A few lines for people: the counts, then each reason with its examples."""
        lines = [
            f"{self.came:,} texts: {self.kept:,} kept, {self.came - self.kept:,} dropped, "
            f"{self.changed:,} changed by normalization"
        ]
        for reason, count in self.dropped.items():
            lines.append(f"  {reason}: {count:,}")
            lines += [f"    {example}" for example in self.examples[reason]]
            if count > len(self.examples[reason]):
                lines.append(f"    and {count - len(self.examples[reason]):,} more")
        return "\n".join(lines)


def normalize(text, form):
    """A text with "\\n" for every line ending, no control characters, in a Unicode form.

    A second time changes nothing: controls go first, for between a letter and its accent one would
    hide that they belong together.
    """
    return unicodedata.normalize(form, CONTROL.sub("", LINE_END.sub("\n", text)))


def cleaner(cleaning, report):
    """A function of a text's name and the text -> the cleaned text, or None if it is dropped.

    For rows that hold more than a text.  The name says where it came from, such as
    "reviews.csv, line 7".  The function counts in the report and remembers the texts it kept:
    take one for all that must not repeat each other.
    It raises DtypeError for what is no str, and InputError for half of a surrogate pair, which
    JSON's escapes can bring.
    """
    exact = ExactDuplicates() if cleaning.duplicates else None
    near = NearDuplicates(cleaning.similarity) if cleaning.duplicates == "near" else None
    names = []  # of the texts that `near` numbers

    def clean_one(name, text):
        _check(name, text)
        report.came += 1
        cleaned = normalize(text, cleaning.normalization) if cleaning.normalization else text
        report.changed += cleaned != text
        characters = len(cleaned)
        if characters < cleaning.shortest:
            return report.drop("too short", f"{name} ({characters:,} characters)")
        if cleaning.longest is not None and characters > cleaning.longest:
            return report.drop("too long", f"{name} ({characters:,} characters)")
        if exact and exact.seen(cleaned):
            return report.drop("exact duplicate", f"{name}")
        if near:
            if found := near.seen(cleaned):
                number, similarity = found
                example = f"{name} is like {names[number]} ({similarity:.2f})"
                return report.drop("near duplicate", example)
            names.append(str(name))
        report.kept += 1
        return cleaned

    return clean_one


def clean(documents, cleaning, report):
    """Yield the name and the cleaned text of each document that is kept, and fill the report.

    documents yields (name, text) and is read only as far as is asked for.  Raises as `cleaner`.
    """
    clean_one = cleaner(cleaning, report)
    for name, text in documents:
        cleaned = clean_one(name, text)
        if cleaned is not None:
            yield name, cleaned


def _check(name, text):
    try:
        check_text(text)
    except InputError as error:
        raise type(error)(f"{name}: {error}") from None
