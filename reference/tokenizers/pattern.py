"""The regular expression that cuts a text into words, before merges join what is in each.

Every vocabulary was learnt with one, and gives other ids with another. `PATTERN` is GPT-2's; later
ones keep digits in groups of three and line ends together.

Source: Radford et al. 2019, released code (encoder.py).
"""

import regex

from reference.errors import InputError

PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d"  # English endings that follow an apostrophe
    r"| ?\p{L}+"  # letters
    r"| ?\p{N}+"  # digits and other numerals
    r"| ?[^\s\p{L}\p{N}]+"  # the rest that can be seen
    r"|\s+(?!\S)"  # blanks, but for the last one: a word after it may want it
    r"|\s+"
)


def compiled(pattern):
    """A pattern ready for use.  Raises InputError if it is none, or has a group that captures."""
    try:
        ready = regex.compile(pattern)
    except (regex.error, TypeError) as error:
        raise InputError(
            f"the pattern {pattern!r} is no regular expression ({error}): correct it"
        ) from None
    if ready.groups:
        raise InputError(f"the pattern {pattern!r} has a group that captures: write (?:…) for (…)")
    return ready


def cut(text, pattern):
    """A text cut into words by a compiled pattern; what it does not match is a word too."""
    words = pattern.findall(text)
    if sum(map(len, words)) == len(text):
        return words
    matches = [match.span() for match in pattern.finditer(text)]
    ends = [0, *(end for _, end in matches)]
    starts = [*(start for start, _ in matches), len(text)]
    spans = [*matches, *zip(ends, starts, strict=True)]
    return [text[start:end] for start, end in sorted(spans) if start < end]


def is_special(name, pattern=PATTERN):
    """Whether this can name a special token: visible ASCII that `pattern` cuts into several words.

    A merge stays within one word, so no ordinary token is ever the same.
    """
    shown = isinstance(name, str) and name.isascii() and name.isprintable() and " " not in name
    return shown and len(pattern.findall(name)) > 1
