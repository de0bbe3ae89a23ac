"""Rows with named columns: CSV and TSV tables, and JSON Lines."""

import math
import re
from collections import deque
from collections.abc import Mapping
from itertools import count, islice
from json import JSONDecodeError
from pathlib import Path

from reference.data.rows import (
    LONGEST_LINE,
    STOP,
    at_least_one,
    every_line,
    lines,
    strict_json,
)
from reference.errors import DtypeError, InputError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = {str: "text", int: "an integer", float: "a number"}
QUOTES = (
    "a quote is not closed, does not enclose a whole field, or is not doubled inside one; if "
    "quotes are ordinary characters in this file, read it with quote=None"
)


def read_rows(path, *, columns, encoding="utf-8", wrong=STOP):
    """Yield (line, row) of a .csv, .tsv or .jsonl file, each also with .gz after it.

    As `read_table` or `read_json_lines`, by the ending of the name.  Raises InputError for another.
    """
    ending = _ending(path)
    if ending not in (".jsonl", *DELIMITERS):
        raise InputError(
            f"{path} ends in {ending!r}, and must end in .csv, .tsv or .jsonl, or one of these "
            "with .gz: save it in one of these forms"
        )
    read = read_json_lines if ending == ".jsonl" else read_table
    return read(path, columns=columns, encoding=encoding, wrong=wrong)


def read_table(path, *, columns, delimiter=None, quote='"', encoding="utf-8", wrong=STOP):
    """Yield (line, row) of a table that begins with the names of its columns.

    columns: the names that are needed, or a dict of names and types (str, int, float, or a tuple of
    these), by which text becomes a number; without types, and wherever str is allowed, it stays
    text.  A row is a dict of these columns alone; line, from 1, is the one it starts at.
    delimiter: a comma for .csv, a tab for .tsv, or what is given.  A field that quotes enclose may
    hold delimiters, quotes that are doubled, and line ends, which come out as line feeds.  With
    quote=None quotes are ordinary characters, as in many TSV files.

    Wrong rows have another number of fields than the header, quotes that do not match, a NUL byte,
    more than LONGEST_LINE characters, or a value that is not of its type.  After a quote that is
    not closed, reading goes on with the next line.  One row is in memory at a time.
    Raises InputError for an unknown ending, a missing column, a header that is wrong, no rows.

    Source: RFC 4180, sec. 2.  Differs from it: lines may end with a line feed alone, and blank ones
    are passed over.
    """
    kinds = _kinds(columns)
    if delimiter is None and _ending(path) not in DELIMITERS:
        raise InputError(
            f"{path} ends in {_ending(path)!r}, and must end in .csv or .tsv, or these with .gz: "
            "name it by its form, or give the delimiter"
        )
    delimiter = DELIMITERS[_ending(path)] if delimiter is None else delimiter
    for name, value in (("delimiter", delimiter), ("quote", quote)):
        if value is not None and (len(value) != 1 or value in "\r\n"):
            raise InputError(f"{name} is {value!r}, and must be one character")
    if delimiter == quote:
        raise InputError(f"delimiter and quote are both {quote!r}: give two that differ")
    form = {"delimiter": delimiter, "quote": quote, "encoding": encoding}
    return at_least_one(_table(path, kinds, wrong, form), path, wrong)


def read_json_lines(path, *, columns, encoding="utf-8", wrong=STOP):
    """Yield (line, row) of a file with one JSON object a line.

    columns: the names that are needed, whose values must be text, or a dict of names and the types
    they must have: str, int, float, or a tuple of these.  Numbers given for a float become
    floats.  A row is a dict of these columns alone.  Blank lines are passed over.

    Wrong rows are not JSON, not an object, lack a column, have a value of another type or an
    infinite one, a key twice, NaN, half of a surrogate pair, or are wrong lines.  One row is in
    memory at a time.  Raises InputError where there are no rows.
    """
    kinds = _kinds(columns)
    rows = _json_rows(path, kinds, wrong, lines(path, encoding=encoding, wrong=wrong))
    return at_least_one(rows, path, wrong)


def _json_rows(path, kinds, wrong, numbered):
    for line, text in numbered:
        if not text.strip():
            continue
        try:
            row = strict_json(text)
            if not isinstance(row, dict):
                raise ValueError(f"it is {text!r:.40}, and must be an object, as in {{'a': 1}}")
            if missing := [name for name in kinds if name not in row]:
                raise ValueError(f"it has no {missing[0]!r}; it has {_listed(row)}")
            chosen = {name: _checked(name, row[name], kind) for name, kind in kinds.items()}
        except JSONDecodeError as error:
            wrong(path, line, f"it is not JSON ({error.msg} at character {error.colno})")
        except ValueError as error:
            wrong(path, line, str(error))
        else:
            yield line, chosen


def _table(path, kinds, wrong, form):
    header = []

    def report(path, line, problem, *, remedy="correct it"):
        """Without its header the rest of a file means nothing, so that one is never skipped."""
        if not header:
            raise InputError(f"{path}, line {line}, the header: {problem}; {remedy}")
        wrong(path, line, problem, remedy=remedy)

    rows = _all_rows(path, report, **form)
    header.extend(next(rows, (1, []))[1])
    if not header:
        raise InputError(f"{path} is empty: its first line must name the columns")
    places = {name: _place(path, header, name) for name in kinds}
    for line, fields in rows:
        if len(fields) != len(header):
            wrong(path, line, f"it has {len(fields)} fields, and the header {len(header)}")
            continue
        try:
            row = {name: _value(name, fields[places[name]], kind) for name, kind in kinds.items()}
        except ValueError as error:
            wrong(path, line, str(error))
        else:
            yield line, row


def _place(path, header, name):
    """Where the column of this name stands."""
    if header.count(name) != 1:
        found = "twice the" if name in header else "no"
        raise InputError(
            f"{path} has {found} column {name!r}; it has {_listed(header)}: name one of these, or "
            "correct the header"
        )
    return header.index(name)


def _all_rows(path, report, *, delimiter, quote, encoding):
    """The line and the fields of every row, the header among them."""
    source = every_line(path, encoding=encoding, wrong=report)
    field = quote and _quoted_field(re.escape(delimiter), re.escape(quote))
    ahead = deque()  # lines that are read, but not yet part of a row
    while ahead or _read_one(ahead, source):
        line, text = ahead[0]
        if text is None or not text.strip(" "):
            ahead.popleft()
            continue
        if quote is None or quote not in text:
            fields, size = None if "\r" in text else text.split(delimiter), 1
        else:
            fields, size = _quoted_row(ahead, source, delimiter, quote, field)
        for _ in range(size):
            ahead.popleft()
        if fields is None:
            lone = "a carriage return stands without a line feed; save it with usual line ends"
            report(path, line, lone if "\r" in text else QUOTES)
        elif any("\0" in value for value in fields):
            report(path, line, "it has a NUL byte, which no text has")
        else:
            yield line, fields


def _read_one(ahead, source):
    """Whether there was one more line to read."""
    before = len(ahead)
    ahead.extend(islice(source, 1))
    return len(ahead) > before


def _quoted_field(delimiter, quote):
    """The pattern of a field and the delimiter before it; "*+" never goes back, and so is fast."""
    return f"{delimiter}({quote}(?:[^{quote}]|{quote}{quote})*+{quote}|[^{delimiter}{quote}\r\n]*+)"


def _quoted_row(ahead, source, delimiter, quote, field):
    """The fields of the row at the front, and its number of lines.

    (None, 1) where its quotes do not match: the lines after the first are then rows of their own.
    """
    row, quotes = "", 0
    for size in count(1):
        if size > len(ahead) and not _read_one(ahead, source):
            break
        _, text = ahead[size - 1]
        if text is None or len(row) + len(text) > LONGEST_LINE:
            break
        row += ("\n" if size > 1 else delimiter) + text
        quotes += text.count(quote)
        if quotes % 2 == 0:  # all that were opened are closed
            if not re.fullmatch(f"(?:{field})+", row):
                break
            return [_unquoted(value, quote) for value in re.findall(field, row)], size
    return None, 1


def _unquoted(field, quote):
    return field[1:-1].replace(2 * quote, quote) if field.startswith(quote) else field


def _kinds(columns):
    """The types that each column may have, as a tuple."""
    if isinstance(columns, str):
        raise DtypeError(f"columns is {columns!r}, and must be a list of names, or a dict of types")
    types = columns if isinstance(columns, Mapping) else dict.fromkeys(columns, str)
    return {n: kind if isinstance(kind, tuple) else (kind,) for n, kind in types.items()}


def _value(name, text, kinds):
    """What a field of a table says."""
    if str in kinds:
        return text
    value = text
    for kind in (float, int):
        try:
            value = kind(text) if "_" not in text else text
        except ValueError:
            pass
    return _checked(name, value, kinds)


def _checked(name, value, kinds):
    """The value, if it is of one of these types; Python counts True as a number, data do not."""
    if type(value) in kinds and (type(value) is not float or math.isfinite(value)):
        return value
    if type(value) is int and float in kinds and abs(value) < 1e308:
        return float(value)
    allowed = " or ".join(KINDS[kind] for kind in kinds)
    raise ValueError(f"{name!r} is {value!r:.40}, and must be {allowed}")


def _ending(path):
    """The ending of a name, without .gz."""
    return Path(str(path).lower().removesuffix(".gz")).suffix


def _listed(names):
    """The names, as many as a message holds."""
    return f"{', '.join(map(repr, names)):.200}"
