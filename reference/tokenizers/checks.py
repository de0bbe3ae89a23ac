"""What a tokenizer can take: text that UTF-8 can hold, special tokens in it, and known ids; and
which model can take the tokenizer."""

from collections.abc import Iterable

import regex

from reference.errors import CheckpointError, DtypeError, InputError


def check_text(text):
    """Raise unless text is a str that UTF-8 can hold."""
    if not isinstance(text, str):
        raise DtypeError(
            f"text is of type {type(text).__name__}, and must be str: "
            "read files in text mode, or decode bytes with .decode('utf-8')"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text[{error.start}] is U+{ord(text[error.start]):04X}, half of a surrogate pair, "
            "which UTF-8 cannot hold: replace it, as in text.encode('utf-8', 'replace').decode()"
        ) from None


def special_pieces(text, special_ids, allowed_special):
    """A text cut at the special tokens that it may have -> their ids, and the texts between them.

    special_ids {name: id}.  allowed_special: the names that count, or "all"; any other is ordinary
    text.  Where two names fit, the longer is meant.  Raises for what is no text, and InputError for
    a name that is not a special token.
    """
    check_text(text)
    names = tuple(special_ids) if allowed_special == "all" else tuple(allowed_special)
    if unknown := [name for name in names if name not in special_ids]:
        raise InputError(
            f"allowed_special has {unknown[0]!r}, and may have {list(special_ids)}: "
            "give a collection of these names, or 'all'"
        )
    if not names:
        return [text]
    longest_first = sorted(names, key=len, reverse=True)
    pieces = regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)
    return [special_ids[piece] if i % 2 else piece for i, piece in enumerate(pieces)]


def check_ids(ids, vocabulary_size):
    """`ids` as a list; raise unless each is an integer of the vocabulary."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise DtypeError(f"ids is of type {type(ids).__name__}, and must be a sequence of integers")
    listed = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    for position, token in enumerate(listed):
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise DtypeError(
                f"ids[{position}] is of type {type(token).__name__}, and must be an integer: "
                "give one sequence of ids at a time"
            )
        if not 0 <= token < vocabulary_size:
            raise InputError(
                f"ids[{position}] is {token}, outside the vocabulary [0, {vocabulary_size}): "
                "use the tokenizer that made these ids"
            )
    return listed


def check_tokenizer(config, tokenizer, *, source):
    """Raise CheckpointError for a tokenizer that has more tokens than the model has rows for.

    source: what both are of, for the message.  Fewer tokens are well: the tables of many published
    models are filled up to a round number.
    """
    vocabulary = getattr(config, "vocabulary", None)
    if vocabulary is None:
        raise CheckpointError(
            f"{source}: there is a tokenizer, and a {type(config).__name__} reads no tokens; give "
            "it to another model"
        )
    if tokenizer.vocabulary_size > vocabulary:
        raise CheckpointError(
            f"{source}: the tokenizer has {tokenizer.vocabulary_size} tokens, the model only "
            f"{vocabulary}; give the tokenizer that it was trained with"
        )
