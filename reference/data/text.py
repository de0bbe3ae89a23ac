"""Text to train on."""

import pydoc_data.topics
from pathlib import Path

from reference.errors import InputError


def read_text(path):
    """The text of a UTF-8 file, without its byte-order mark.

    Raises OSError for what cannot be opened, InputError for bytes that are not UTF-8.
    """
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} is not UTF-8: byte {error.start}, in line {line}, is "
            f"0x{content[error.start]:02x}; save the text as UTF-8"
        ) from error


def python_documentation():
    """The reference manual that every CPython carries for its `help()`: English and code."""
    return "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
