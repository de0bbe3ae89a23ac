"""Lines of text files, and what becomes of those that cannot be used: what all readers share.

A file is read as its lines are asked for, never whole, so that it may be larger than memory.
"""

import codecs
import gzip
import json
import re
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from reference.errors import InputError

LONGEST_LINE = 2**17  # characters; a longer one is the sign of a broken file
LONGEST_BYTES = 4 * LONGEST_LINE + 2 + 1  # one more than it can take, with an end of two
FEW = 5  # messages in one report
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass
class WrongRows:
    """What to do with rows that cannot be used: stop at the first, or skip and count them.

    A reader calls it with each such row.  Raises InputError, or returns where `skip` is true, and
    `str` of it then tells how many were skipped, and shows the first few with file and line.
    """

    skip: bool = False
    count: int = 0
    first: list[str] = field(default_factory=list)

    def __call__(self, path, line, problem, *, remedy="correct it"):
        """line: its number from 1, or None where the file is not read by lines."""
        message = f"{path}: {problem}" if line is None else f"{path}, line {line}: {problem}"
        if not self.skip:
            raise InputError(f"{message}; {remedy}, or give --skip-wrong-rows")
        self.count += 1
        if len(self.first) < FEW:
            self.first.append(message)

    def __str__(self):
        if not self.count:
            return "no wrong rows"
        more = [f"and {self.count - FEW:,} more"] if self.count > FEW else []
        rows = "wrong row" if self.count == 1 else "wrong rows"
        return "\n  ".join([f"{self.count:,} {rows} skipped", *self.first, *more])


STOP = WrongRows()


def lines(path, *, encoding="utf-8", wrong=STOP):
    """Yield the number, from 1, and the text of each line, without its end.

    A line ends with a line feed, or a carriage return and a line feed.  Other characters that some
    programs break lines at, such as U+2028, belong to the text.  A byte-order mark at the start is
    dropped, and a file with a name in .gz is unpacked.  One line is in memory at a time.

    Wrong, and left out where `wrong` skips, are lines with bytes that do not fit the encoding, most
    often because the file is of two encodings, and those of more than LONGEST_LINE characters.
    Raises OSError for what cannot be opened, InputError for an unknown encoding or a torn .gz.
    """
    every = every_line(path, encoding=encoding, wrong=wrong)
    return ((number, text) for number, text in every if text is not None)


def every_line(path, *, encoding="utf-8", wrong=STOP):
    """As `lines`, with None in the place of a line that is skipped.

    For readers to which a line has neighbours: in a sentence, a quotation, or another file.
    """
    _check_encoding(encoding)
    return _every_line(path, encoding, wrong)


def _every_line(path, encoding, wrong):
    with open_file(path) as file:
        if file.peek(3).startswith(codecs.BOM_UTF8):
            file.read(3)
        for number in count(1):
            content = file.readline(LONGEST_BYTES)
            if not content:
                return
            yield number, _text(path, number, content, encoding, wrong)
            while len(content) == LONGEST_BYTES and not content.endswith(b"\n"):
                content = file.readline(LONGEST_BYTES)  # the rest of a line that is too long


def _text(path, number, content, encoding, wrong):
    """The text of a line's bytes, or None where they are too many or do not fit the encoding."""
    if len(content) < LONGEST_BYTES:
        if content.endswith(b"\n"):
            content = content[:-1].removesuffix(b"\r")
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            _wrong_byte(path, number, error, encoding, wrong)
            return None
        if len(text) <= LONGEST_LINE:
            return text
    wrong(path, number, f"it has more than {LONGEST_LINE:,} characters")
    return None


def _wrong_byte(path, number, error, encoding, wrong):
    byte, other = error.object[error.start], "latin-1"
    if codecs.lookup(encoding).name != "utf-8":
        other = "utf-8"
    wrong(
        path,
        number,
        f"byte {error.start + 1} of the line is 0x{byte:02x}, which does not fit {encoding}",
        remedy=f"save all of the file as UTF-8, give --encoding {other} or what else it is in",
    )


def _check_encoding(encoding):
    """Raise InputError unless lines can be told apart before they are decoded."""
    try:
        fits = "a\n".encode(encoding) == b"a\n"
    except (LookupError, UnicodeError):
        fits = False
    if not fits:
        raise InputError(
            f"encoding is {encoding!r}, and must be one that Python knows and in which ASCII is "
            "itself, such as utf-8, latin-1 or cp1252; save files in UTF-16 or others as UTF-8"
        )


@contextmanager
def open_file(path):
    """A file to read bytes from, unpacked if its name ends in .gz.

    Raises OSError for what cannot be opened, InputError for what cannot be unpacked.
    """
    packed = str(path).lower().endswith(".gz")
    with gzip.open(path, "rb") if packed else open(path, "rb") as file:
        try:
            yield file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(
                f"{path} cannot be unpacked ({error}): it is torn, or no gzip file; copy it again, "
                "or take .gz from its name"
            ) from None


def at_least_one(rows, path, wrong):
    """Hand on the rows of an iterator.  Raises InputError where it has none, or wrong ones only."""
    skipped = wrong.count
    for row in rows:
        yield row
        yield from rows
        return
    if wrong.count > skipped:
        raise InputError(f"{path} has no row that can be used: correct it; {wrong}")
    raise InputError(f"{path} has no rows: give a file that has some")


def strict_json(text):
    """The value of a JSON text in which nothing is left to chance.

    Raises ValueError (JSONDecodeError where it can say the place) for what is not JSON, and for
    what programs read in different ways: a key given twice, NaN and infinities, half of a
    surrogate pair.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(
                f"it has {half}, half of a surrogate pair, which is no character"
            ) from None
    return value


def _object(pairs):
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {twice!r} twice")
    return value


def _refuse_constant(name):
    raise ValueError(f"it has {name}, which JSON does not have")
