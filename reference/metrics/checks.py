"""What every metric asks of what it compares: as many predictions as truths, and at least one."""

from collections.abc import Iterable

from reference.errors import DtypeError, InputError


def pairs(first, second, *, names=("expected", "predicted")):
    """Both as lists.  Raises unless they are sequences of one length that is not 0."""
    both = []
    for name, rows in zip(names, (first, second), strict=True):
        if isinstance(rows, (str, bytes, dict)) or not isinstance(rows, Iterable):
            raise DtypeError(
                f"{name} is of type {type(rows).__name__}, and must be a sequence with one entry "
                "for each row"
            )
        both.append(rows.tolist() if hasattr(rows, "tolist") else list(rows))
    if len(both[0]) != len(both[1]):
        raise InputError(
            f"{names[0]} has {len(both[0]):,} rows and {names[1]} {len(both[1]):,}: give one for "
            "each row in both"
        )
    if not both[0]:
        raise InputError(f"there are no rows in {names[0]}: give at least one")
    return both


def check_texts(name, texts):
    """Raise unless each is a str."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DtypeError(f"{name}[{i}] is of type {type(text).__name__}, and must be str")


def missing_library(library, metric):
    """The InputError that says what to install."""
    return InputError(
        f"{library} is not installed, and {metric} is computed by it, to be the number that others "
        f"report: pip install {library}"
    )
