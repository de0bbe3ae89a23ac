"""Names in tagged sentences: a name counts if its words and its type are all right.

Words are tagged, names are what one wants.  A tag is O, outside, or a letter and a type: B begins a
name, I goes on with it, E ends it, S is a name of one word.  Four ways to use them:

    words    New    York   and  Paris       Alice   (two persons in a row need B in IOB1)
    IOB1     I-loc  I-loc  O    I-loc       I-per   B only where a name follows one of its type
    IOB2     B-loc  I-loc  O    B-loc       B-per   "BIO"
    IOBES    B-loc  E-loc  O    S-loc       S-per

A model may write any tag anywhere, so each row of tags must mean something: I after O begins a
name, and so does a tag of another type than the one before.
"""

import re
from collections import Counter
from dataclasses import dataclass

from reference.errors import InputError
from reference.metrics.checks import pairs

TAG = re.compile("O|[BIES]-(.+)", re.DOTALL)


@dataclass(frozen=True)
class SpanScores:
    """How many names there are, how many were found, and how many of these are right."""

    expected: int
    found: int
    correct: int

    @property
    def precision(self):
        """correct / found, or 0."""
        return self.correct / self.found if self.found else 0.0

    @property
    def recall(self):
        """correct / expected, or 0."""
        return self.correct / self.expected if self.expected else 0.0

    @property
    def f1(self):
        """2 · correct / (expected + found), the harmonic mean of the two, or 0."""
        both = self.expected + self.found
        return 2 * self.correct / both if both else 0.0


def spans_of(tags):
    """The names that a sentence's tags mark -> list of (type, first word, one past the last).

    A name begins at B, at S, at any tag whose type is another than that of the one before, and at
    any after O, E or S; it ends where the next begins, or before O.
    Raises InputError for what is no tag.
    Source: conlleval.pl (Tjong Kim Sang and Buchholz 2000), which seqeval follows by default.
    """
    spans, letter, kind = [], "O", None
    for i, tag in enumerate(tags):
        match = TAG.fullmatch(tag) if isinstance(tag, str) else None
        if match is None:
            raise InputError(
                f"tag {i} is {tag!r:.40}, and must be O, or B-, I-, E- or S- and a type; write U- "
                "as S- and L- as E-"
            )
        begins = tag[0] in "BS" or letter in "OES" or match[1] != kind
        letter, kind = tag[0], match[1]
        if letter == "O":
            continue
        if begins:
            spans.append((kind, i, i + 1))
        else:
            spans[-1] = (kind, spans[-1][1], i + 1)
    return spans


def span_scores(expected, predicted):
    """Compare the names in sentences -> SpanScores of all types together, and {type: SpanScores}.

    expected, predicted: for each sentence the tags of its words.  A name is correct if both have it
    with the same words and type.  Together means that names are counted, not types (micro).
    Raises InputError for no sentences, two lengths, or what is no tag.
    Source: Tjong Kim Sang and De Meulder 2003, sec. 2.4; seqeval (default mode).
    """
    counts = [Counter(), Counter(), Counter()]
    for i, (truth, guess) in enumerate(zip(*pairs(expected, predicted), strict=True)):
        if len(truth) != len(guess):
            raise InputError(
                f"sentence {i} has {len(truth)} tags expected and {len(guess)} predicted: give one "
                "for each word"
            )
        try:
            there, found = spans_of(truth), spans_of(guess)
        except InputError as error:
            raise InputError(f"sentence {i}: {error}") from None
        for count, spans in zip(counts, (there, found, {*there} & {*found}), strict=True):
            count.update(kind for kind, _, _ in spans)
    types = {
        kind: SpanScores(*(count[kind] for count in counts))
        for kind in sorted({*counts[0], *counts[1]})
    }
    return SpanScores(*(count.total() for count in counts)), types
