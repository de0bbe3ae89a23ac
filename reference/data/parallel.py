"""Pairs of sentences for translation: two files, of which line n of one translates line n."""

from reference.data.rows import STOP, at_least_one, every_line, open_file
from reference.errors import InputError

BLOCK = 2**16  # bytes


def read_parallel(source_path, target_path, *, encoding="utf-8", wrong=STOP):
    """Yield (line, source, target) of two files with the same number of lines.

    Both are read twice: first the lines are counted, since after one that is missing every pair is
    wrong, and no such pair must be learnt from.  One pair is in memory at a time.

    Wrong pairs have a side that is empty or a wrong line of its file; the others stay together.
    Raises InputError for files of different lengths, and where there are no pairs.
    """
    pairs = _pairs(source_path, target_path, encoding, wrong)
    return at_least_one(pairs, source_path, wrong)


def _pairs(source_path, target_path, encoding, wrong):
    numbers = [_number_of_lines(path) for path in (source_path, target_path)]
    if numbers[0] != numbers[1]:
        raise InputError(
            f"{source_path} has {numbers[0]:,} lines and {target_path} {numbers[1]:,}, and each "
            "line must be the other's translation: give two files that belong together"
        )
    sources = every_line(source_path, encoding=encoding, wrong=wrong)
    targets = every_line(target_path, encoding=encoding, wrong=wrong)
    for (line, source), (_, target) in zip(sources, targets, strict=False):
        if source is None or target is None:
            continue
        if source.strip() and target.strip():
            yield line, source, target
        else:
            empty, other = source_path, target_path
            if source.strip():
                empty, other = other, empty
            wrong(empty, line, f"it is empty, and so has no pair in {other}", remedy="correct both")


def _number_of_lines(path):
    """As `lines` counts them; the last may lack its end."""
    number, last = 0, b"\n"
    with open_file(path) as file:
        while block := file.read(BLOCK):
            number += block.count(b"\n")
            last = block[-1:]
    return number + (last != b"\n")
