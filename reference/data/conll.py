"""Sentences of tagged words, for named entities and the like: a word and its tag on each line."""

import re

from reference.data.rows import LONGEST_LINE, STOP, at_least_one, every_line
from reference.errors import InputError

TAG = re.compile("O|[BI]-.+")
DOCUMENT = "-DOCSTART-"  # the line that CoNLL-2003 begins each document with


def read_conll(path, *, word=0, tag=-1, encoding="utf-8", wrong=STOP):
    """Yield (words, tags), two lists of the same length, for each sentence of a file.

    A line is a word's, in columns divided by tabs or, where it has no tab, by blanks; `word` and
    `tag` number the two columns that are read, from 0, or from -1 at the end.  A line of blanks or
    tabs alone ends a sentence, as does one that begins with -DOCSTART-.  Tags are O, or B- or I-
    and a type.  Each type's first word should have B-; where it has I-, as in the original files of
    CoNLL-2003, the tags come out as they are.

    Wrong are lines with too few columns, an empty word, another tag, or bytes that do not fit the
    encoding, and sentences of more than LONGEST_LINE characters.  Where `wrong` skips, the whole
    sentence is left out.  One sentence is in memory at a time.
    Raises InputError where there are no sentences.

    Source: Tjong Kim Sang and De Meulder 2003, sec. 2, which writes tags in the older form,
    where B- only stands between two names of one type.
    """
    if word == tag:
        raise InputError(f"word and tag are both column {word}: give two that differ")
    return at_least_one(_sentences(path, word, tag, encoding, wrong), path, wrong)


def _sentences(path, word, tag, encoding, wrong):
    words, tags, broken, length = [], [], False, 0
    for line, text in every_line(path, encoding=encoding, wrong=wrong):
        if text is not None and (not text.strip() or text.startswith(DOCUMENT)):
            if words and not broken:
                yield words, tags
            words, tags, broken, length = [], [], False, 0
        elif text is None:
            broken = True
        elif not broken:
            length += len(text)
            try:
                if length > LONGEST_LINE:
                    raise ValueError(
                        f"the sentence has more than {LONGEST_LINE:,} characters: are there no "
                        "blank lines between sentences?"
                    )
                pair = _word_and_tag(text, word, tag)
            except ValueError as error:
                wrong(path, line, str(error))
                broken = True
            else:
                words.append(pair[0])
                tags.append(pair[1])
    if words and not broken:
        yield words, tags


def _word_and_tag(text, word, tag):
    if "\t" in text:
        columns = [column.strip(" ") for column in text.split("\t")]
    else:
        columns = [column for column in text.split(" ") if column]
    n = len(columns)
    if not (-n <= word < n and -n <= tag < n) or word % n == tag % n:
        raise ValueError(
            f"{text!r:.40} has too few columns for a word in column {word} and a tag in {tag}"
        )
    if not columns[word]:
        raise ValueError(f"the word is empty: {text!r:.40}")
    if not TAG.fullmatch(columns[tag]):
        raise ValueError(f"the tag is {columns[tag]!r:.40}, and must be O, or B- or I- and a type")
    return columns[word], columns[tag]
