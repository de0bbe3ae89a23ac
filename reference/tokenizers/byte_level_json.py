"""A byte-level BPE in Hugging Face's `tokenizer.json`: GPT-2's, and Llama 3's with its own pattern.

The file says which pattern cuts words, GPT-2's by the name ByteLevel, or any other beside it, and
shows bytes as the characters of `vocabulary_files`.

Source: Hugging Face tokenizers, released code (ByteLevel).
"""

from reference.errors import CheckpointError
from reference.tokenizers.tokenizer_json import (
    ABSENT,
    check_options,
    check_part,
    ids_of_pairs,
    pairs_of,
    steps,
    vocabulary_of,
    write_tokenizer_json,
)
from reference.tokenizers.vocabulary_files import BYTES, SYMBOLS, shown

CHARACTER_BYTES = {symbol: byte for symbol, byte in zip(SYMBOLS, BYTES, strict=True)}
WORDS = {"type": "ByteLevel", "add_prefix_space": False}


def is_byte_level(found):
    """Whether a tokenizer.json shows bytes as characters."""
    return any(step.get("type") == "ByteLevel" for step in steps(found.get("pre_tokenizer")))


def read_byte_level(path, found):
    """Merges, special tokens, pattern, whole words or not, and the bytes of ordinary tokens.

    Raises CheckpointError, with the path, for what another kind of tokenizer does.
    """
    model = found["model"]
    check_options(
        path,
        model,
        dropout=ABSENT,
        continuing_subword_prefix=ABSENT,
        end_of_word_suffix=ABSENT,
        byte_fallback=ABSENT,
    )
    check_part(path, "normalizer", found.get("normalizer"), [None])
    names, special = vocabulary_of(path, found)
    ordinary = names[: len(names) - len(special)]
    if names[len(ordinary) :] != special:
        raise CheckpointError(
            f"{path}: the added tokens {special!r:.100} must have the last ids of all: encode with "
            "the library tokenizers instead"
        )
    ids = {name: i for i, name in enumerate(ordinary)}
    merges = [merge[:2] for merge in ids_of_pairs(path, pairs_of(path, model), ids)]
    vocabulary = [bytes_of(path, name) for name in ordinary]
    return merges, special, pattern_of(path, found), bool(model.get("ignore_merges")), vocabulary


def bytes_of(path, name):
    """The bytes that a token's name shows."""
    try:
        return bytes(CHARACTER_BYTES[character] for character in name)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: the token {name!r} has {error}, which shows no byte: it is no byte-level "
            "vocabulary; copy the file again"
        ) from None


def pattern_of(path, found):
    """The regular expression that cuts words, None for GPT-2's."""
    part = found.get("pre_tokenizer")
    split, bytes_only = split_by("…"), WORDS | {"use_regex": False}
    known = [
        WORDS | {"use_regex": True},
        {"type": "Sequence", "pretokenizers": [split, bytes_only]},
    ]
    for step in steps(part)[:1]:
        given = step.get("pattern")
        if step.get("type") == "Split" and isinstance(given, dict) and "Regex" in given:
            split["pattern"] = given
            check_part(path, "pre_tokenizer", part, known)
            return given["Regex"]
    check_part(path, "pre_tokenizer", part, [WORDS, *known])
    return None


def split_by(pattern):
    """The part that cuts a text where a pattern matches."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def write_byte_level(folder, tokenizer):
    """Write a BPE as tokenizer.json, which `tokenizers` and `read_byte_level` read."""
    names = [shown(token) for token in tokenizer.tokens]
    ordinary = names[: len(names) - len(tokenizer.special_tokens)]
    words = WORDS | {"trim_offsets": True, "use_regex": False}
    cut = {"type": "Sequence", "pretokenizers": [split_by(tokenizer.pattern), words]}
    model = {
        "type": "BPE",
        "ignore_merges": tokenizer.whole_words,
        "vocab": {name: i for i, name in enumerate(ordinary)},
        "merges": [[names[left], names[right]] for left, right in tokenizer.merges],
    }
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    write_tokenizer_json(folder, model, tokenizer.special_ids, pre_tokenizer=cut, decoder=decoder)
