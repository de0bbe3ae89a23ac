"""GPT-2's two vocabulary files, which other tools read and write too.

merges.txt  (vocab.bpe)     a line for each merge, in the order learnt: the two tokens it joins
vocab.json  (encoder.json)  the id of every token: the 256 bytes, the merges, the special tokens

The names are Hugging Face's, with OpenAI's in brackets. The second file follows from the first but
for the special tokens; it is there because readers want it, and it shows if either is cut short.

Source: Radford et al. 2019, released code (encoder.py).
"""

import json
import os
from pathlib import Path

from reference.errors import CheckpointError, InputError

# Text files must show every byte as a character that can be seen. The bytes that Latin-1 shows
# stand for themselves and come first; the k-th of the others is shown as character 256 + k, which
# makes the space "Ġ". Ids follow this order: "!" is token 0.
_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
BYTES = bytes(_SHOWN) + bytes(byte for byte in range(256) if byte not in _SHOWN)
SYMBOLS = "".join(map(chr, [*_SHOWN, *range(256, 512 - len(_SHOWN))]))
BYTE_IDS = bytes.maketrans(BYTES, bytes(range(256)))
FIRST_LINE = "#version: 0.2"


def shown(token):
    """The name of a token in these files: its bytes, each as a character that can be seen."""
    return "".join(SYMBOLS[i] for i in token.translate(BYTE_IDS))


def write_vocabulary(folder, names, merges):
    """Write both files, each under another name first, so that no old file is lost half-way.

    names: of each token, by id.  merges: pairs of ids.  The same tokenizer gives the same bytes on
    every machine.
    """
    check_not_hidden(folder)
    lines = [FIRST_LINE, *(f"{names[left]} {names[right]}" for left, right in merges)]
    vocabulary = {name: i for i, name in enumerate(names)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_file(Path(folder, "merges.txt"), "\n".join(lines))
    write_file(Path(folder, "vocab.json"), json.dumps(vocabulary, ensure_ascii=False))


def check_not_hidden(folder):
    """Raise where a tokenizer.json is, which readers prefer to the files about to be written."""
    if Path(folder, "tokenizer.json").exists():
        raise InputError(
            f"{folder} has a tokenizer.json, which would be read in place of what is saved: remove "
            "it, or give another folder"
        )


def write_file(path, text):
    """Write a text and a line end, under another name first: an old file is whole until then."""
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def read_vocabulary(folder, is_special, symbols=SYMBOLS):
    """The merges, and the names of the special tokens that `is_special` accepts, of a folder.

    symbols: the names that the merges start from, by id.

    Raises CheckpointError if a file is missing or torn, or if the two do not belong together.
    """
    merges_path, merges_text = _read(folder, "merges.txt", "vocab.bpe")
    vocabulary_path, vocabulary_text = _read(folder, "vocab.json", "encoder.json")
    merges, ids = parse_merges(merges_path, merges_text, symbols)
    vocabulary = _parse_vocabulary(vocabulary_path, vocabulary_text)
    special = sorted((name for name in vocabulary if name not in ids), key=vocabulary.get)
    for name in special:
        if not is_special(name):
            raise CheckpointError(
                f"{vocabulary_path} has the token {name!r}, which no line of {merges_path} makes: "
                "one of them is cut short or another tokenizer's; copy both again"
            )
    for i, name in enumerate([*ids, *special]):
        if vocabulary.get(name) != i:
            found = f"the id {vocabulary[name]}" if name in vocabulary else "no id"
            raise CheckpointError(
                f"{vocabulary_path} gives the token {name!r} {found}, and {merges_path} makes it "
                f"{i}: they must be of one tokenizer, numbered as GPT-2's (bytes, merges, special "
                "tokens); copy both again"
            )
    return merges, special


def read_text(path):
    """The text of a file.  Raises CheckpointError if it is missing or not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: give the folder of a saved tokenizer") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not UTF-8 at byte {error.start}: copy it again, as binary"
        ) from None


def read_json(path):
    """What a JSON file holds.  Raises CheckpointError if it is missing or torn."""
    return _parse_json(path, read_text(path))


def _parse_json(path, text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not JSON ({error}): it is cut short; copy it again"
        ) from None


def _read(folder, *names):
    """The path and the text of the first of these files that is there."""
    for path in (Path(folder, name) for name in names):
        if path.is_file():
            return path, read_text(path)
    raise CheckpointError(
        f"{folder} has neither {names[0]} nor {names[1]}: give the folder of a saved tokenizer"
    )


def parse_merges(path, text, symbols=SYMBOLS):
    """The pairs of ids, and the id of every token's name in order."""
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    lines = text.splitlines()
    first = 1 if "#version" in text[:50] else 0
    merges = []
    for number, line in enumerate(lines[first:], start=first + 1):
        pair = line.split(" ")
        if len(pair) != 2 or any(name not in ids for name in pair) or "".join(pair) in ids:
            raise CheckpointError(
                f"{path}, line {number} is {line!r}, and must be two tokens that the lines before "
                "it make, joined for the first time: the file is torn; copy it again"
            )
        merges.append((ids[pair[0]], ids[pair[1]]))
        ids["".join(pair)] = len(ids)
    return merges, ids


def _parse_vocabulary(path, text):
    vocabulary = _parse_json(path, text)
    if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()):
        raise CheckpointError(
            f"{path} must map each token to its id, an integer: give a folder in GPT-2's form"
        )
    return vocabulary
