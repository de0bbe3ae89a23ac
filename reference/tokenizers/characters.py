"""Characters as tokens: the smallest vocabulary a text can have, and nothing to learn for it.

The vocabulary is the set of characters that a text has, numbered in the order of their code points:
65 for Shakespeare's plays.  Sequences are long, four times those of byte-pair encoding in English,
and the model has to find out by itself that "t", "h", "e" is a word.  In return its tables are
small, any text can be cut anywhere, and what a model writes can be read from the first step on.
That suits small models and first experiments; what it cannot do is read a character that the text
it was made from does not have.  `BPE` knows every text.

To encode, a text is laid out as its code points, four bytes each, and a table that has a place for
each of them is looked up once for all: no loop over characters.

Source: Karpathy 2015, char-rnn (released code).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from reference.errors import CheckpointError, InputError
from reference.tokenizers.checks import check_ids, check_text, special_pieces
from reference.tokenizers.pattern import is_special
from reference.tokenizers.vocabulary_files import write_file

FILE = "characters.json"
FORMAT = {"format": "twinformer characters", "version": 1}
UNKNOWN = -1
AROUND = 10  # characters shown to the left and right of an unknown one


@dataclass(frozen=True)
class Characters:
    """A tokenizer of single characters; it cannot be changed once made.

    characters      those it knows, in the order of their code points; their ids count from 0
    special_tokens  names that stand for no text, such as the border of two documents; their ids
                    come last, and text that happens to spell one is encoded as any other text

    Raises InputError for characters that are not in order or occur twice, and for special tokens
    that are not visible ASCII of several characters.
    """

    characters: str = field(repr=False)
    special_tokens: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "special_tokens", tuple(self.special_tokens))
        check_text(self.characters)
        if "".join(sorted(set(self.characters))) != self.characters:
            raise InputError(
                "characters must be in the order of their code points, and each there once: make "
                "the tokenizer with Characters.train"
            )
        for name in self.special_tokens:
            if not is_special(name) or self.special_tokens.count(name) > 1:
                raise InputError(
                    f"the special token {name!r} is there twice, could be an ordinary word, or is "
                    "not visible ASCII: write each once, in the way of '<|name|>'"
                )

    @classmethod
    def train(cls, text, *, special_tokens=()):
        """The characters of a text, or of an iterator of texts such as `text_pieces` gives.

        Memory: that of one piece.  Raises InputError if there is no character.
        """
        one = isinstance(text, (str, bytes)) or not isinstance(text, Iterable)
        seen = np.zeros(0x110000, bool)
        for piece in [text] if one else text:
            seen[code_points(piece)] = True
        if not seen.any():
            raise InputError("the text is empty: give one that has all the characters to know")
        return cls("".join(map(chr, np.flatnonzero(seen).tolist())), special_tokens)

    @classmethod
    def load(cls, folder):
        """Read `characters.json`.  Raises CheckpointError if it is missing, torn or foreign."""
        path = Path(folder, FILE)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} is missing: give the folder of a saved tokenizer"
            ) from None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not JSON ({error}): copy it again") from None
        try:
            tokenizer = cls(found["characters"], found["special_tokens"])
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} has no tokenizer of characters ({error!r:.200}): copy it again, or give "
                "the folder of another"
            ) from None
        if found != tokenizer._described():
            raise CheckpointError(
                f"{path} is torn, or of another version: it must have {FORMAT} and a vocabulary of "
                f"{tokenizer.vocabulary_size}; copy it again"
            )
        return tokenizer

    def save(self, folder):
        """Write `characters.json`, which `load` reads, under another name first.

        The same tokenizer gives the same bytes on every machine.
        """
        path = Path(folder, FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(self._described(), ensure_ascii=False, indent=2))

    def _described(self):
        tokens = {"characters": self.characters, "special_tokens": list(self.special_tokens)}
        return FORMAT | {"vocabulary": self.vocabulary_size} | tokens

    @property
    def vocabulary_size(self):
        """V, the number of ids: characters and special tokens."""
        return len(self.characters) + len(self.special_tokens)

    @cached_property
    def special_ids(self):
        """The special tokens' ids, by name."""
        return {name: len(self.characters) + n for n, name in enumerate(self.special_tokens)}

    @cached_property
    def tokens(self):
        """The bytes of each token, by id."""
        return tuple(name.encode() for name in (*self.characters, *self.special_tokens))

    @cached_property
    def _table(self):
        """The id of each code point up to the highest that is known, and one that is not."""
        known = code_points(self.characters)
        table = np.full(int(known.max(initial=0)) + 2, UNKNOWN, np.int32)
        table[known] = np.arange(len(known))
        return table

    def encode(self, text, *, allowed_special=()):
        """Text to an array of ids, (n,) of int32: where BPE gives a list, which would be slow here.

        Special tokens count as such only where their names are given in `allowed_special`, or all
        with "all": text that users wrote must not end a document.
        Raises InputError for a character that is not in the vocabulary.
        """
        pieces = special_pieces(text, self.special_ids, allowed_special)
        if len(pieces) == 1:
            return self._encode_ordinary(text)
        return np.concatenate(
            [
                np.array([piece], np.int32)
                if isinstance(piece, int)
                else self._encode_ordinary(piece)
                for piece in pieces
            ]
        )

    def _encode_ordinary(self, text):
        """A code point beyond the table is clipped to its last place, which is UNKNOWN."""
        ids = np.take(self._table, code_points(text), mode="clip")
        if ids.min(initial=0) < 0:
            i = int(np.argmin(ids))
            raise InputError(
                f"text[{i}] is {text[i]!r} (U+{ord(text[i]):04X}), in "
                f"{text[max(i - AROUND, 0) : i + AROUND + 1]!r}, and none of the "
                f"{len(self.characters)} characters of this vocabulary: replace it, or make the "
                "vocabulary from a text that has it"
            )
        return ids

    def decode_bytes(self, ids):
        """The exact bytes that the ids stand for."""
        return b"".join([self.tokens[token] for token in check_ids(ids, self.vocabulary_size)])

    def decode(self, ids):
        """The text that the ids stand for; a special token shows as its name."""
        return self.decode_bytes(ids).decode("utf-8")


def code_points(text):
    """The code points of a text's characters, (n,) of uint32."""
    check_text(text)
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
