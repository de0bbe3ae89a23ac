"""Byte-pair encoding of characters that falls back to bytes: Llama 1 and 2, Mistral.

It comes from the library SentencePiece, and differs from `bpe` in where it begins:

  blanks      are shown as "▁" and are characters like any other. Nothing cuts words before the
              merges do their work, and a text gets a blank before it, so that its first word is the
              same token as anywhere else.
  characters  The pieces begin as characters, not bytes: all that the training text had often.
  fallback    A character that is not among them becomes its UTF-8 bytes, 256 tokens <0x00> to
              <0xFF> of their own, which no merge touches. So no text is unknown here either.
  merges      Any two pieces that make a piece can be joined, and most pieces can be made in several
              ways; the order of the merges says which is joined first.

No piece but runs of blanks has a blank after another character, as in Llama's, so no merge goes
over the border before a blank: then the text is cut there, and words that recur encoded once. Where
a vocabulary has such a piece the text is encoded as a whole.

Source: Kudo & Richardson 2018; Touvron et al. 2023, sec. 2.1 (bytes, and single digits).
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import regex

from reference.errors import CheckpointError, InputError
from reference.tokenizers.bpe import CACHE_LENGTH, CACHE_WORDS
from reference.tokenizers.byte_fallback_files import (
    BLANK,
    BYTE_NAMES,
    PREFIXES,
    read_byte_fallback,
    read_sentencepiece,
    write_byte_fallback,
)
from reference.tokenizers.checks import check_ids, special_pieces
from reference.tokenizers.merging import join_pairs
from reference.tokenizers.tokenizer_json import read_tokenizer_json

AT_BLANKS = regex.compile(f"{BLANK}*[^{BLANK}]+|{BLANK}+")


@dataclass(frozen=True)
class ByteFallback:
    """A BPE tokenizer in Llama 2's form; it cannot be changed once made.

    vocabulary      the name of each token, by id: pieces, bytes, special tokens
    merges          pairs of ids whose names, joined, are a token's too, in the order learnt
    special_tokens  names that stand for no text; text that happens to spell one is encoded as any
                    other text
    prefix          where a blank is put before: "prepend" before every text and every part of it
                    between special tokens; "always" the same, but where one begins with a blank;
                    "first" as "always" at the beginning of the text only; "never"
    tokens          what follows: the bytes that each token stands for, by id

    Raises InputError if one of the 256 bytes is missing, a name is there twice, or a merge makes
    no token.
    """

    vocabulary: tuple[str, ...] = field(repr=False)
    merges: tuple[tuple[int, int], ...] = field(repr=False)
    special_tokens: tuple[str, ...] = ("<unk>", "<s>", "</s>")
    prefix: str = "prepend"
    _cache: dict[str, list[int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self):
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
        object.__setattr__(self, "merges", tuple(tuple(pair) for pair in self.merges))
        object.__setattr__(self, "special_tokens", tuple(self.special_tokens))
        if self.prefix not in PREFIXES:
            raise InputError(f"prefix is {self.prefix!r}, and must be one of {list(PREFIXES)}")
        for i, name in enumerate(self.vocabulary):
            if not isinstance(name, str) or not name:
                raise InputError(f"vocabulary[{i}] is {name!r}, and must be the name of a token")
        if len(self._ids) < len(self.vocabulary):
            twice = Counter(self.vocabulary).most_common(1)[0][0]
            raise InputError(f"two tokens are {twice!r}: remove one, names must be unique")
        for name in (*BYTE_NAMES, *self.special_tokens):
            if name not in self._ids:
                raise InputError(f"the vocabulary has no {name!r}, and must: add it")
        names, pairs = self.vocabulary, set()
        for n, pair in enumerate(self.merges):
            known = len(pair) == 2 and all(0 <= token < len(names) for token in pair)
            if not known or names[pair[0]] + names[pair[1]] not in self._ids or pair in pairs:
                raise InputError(
                    f"merges[{n}] is {pair}, and must join two of the ids [0, {len(names)}) to a "
                    "name of the vocabulary, each two once"
                )
            pairs.add(pair)

    @classmethod
    def load(cls, folder):
        """Read `tokenizer.json`.  Raises CheckpointError if it is missing, torn or another's."""
        return cls.from_json(*read_tokenizer_json(folder))

    @classmethod
    def from_json(cls, path, found):
        """The tokenizer of a Llama 2's `tokenizer.json`.  Raises CheckpointError for another's."""
        return cls._made(path, read_byte_fallback(path, found))

    @classmethod
    def from_sentencepiece(cls, path):
        """The tokenizer of a SentencePiece file, such as Llama 2's `tokenizer.model`.

        Raises InputError where the library sentencepiece is missing, CheckpointError for a file
        that it cannot read, or whose tokenizer is another than this.
        """
        return cls._made(path, read_sentencepiece(path))

    @classmethod
    def _made(cls, path, arguments):
        try:
            return cls(*arguments)
        except InputError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def save(self, folder):
        """Write `tokenizer.json`, which `load` and Hugging Face read."""
        write_byte_fallback(folder, self)

    @property
    def vocabulary_size(self):
        """V, the number of ids."""
        return len(self.vocabulary)

    @cached_property
    def special_ids(self):
        """The special tokens' ids, by name."""
        return {name: self._ids[name] for name in self.special_tokens}

    @cached_property
    def tokens(self):
        """The bytes that each token stands for, by id; a special token's are its name's."""
        tokens = [name.replace(BLANK, " ").encode() for name in self.vocabulary]
        for byte, name in enumerate(BYTE_NAMES):
            tokens[self._ids[name]] = bytes([byte])
        return tuple(tokens)

    @cached_property
    def _ids(self):
        return {name: i for i, name in enumerate(self.vocabulary)}

    @cached_property
    def _joined(self):
        names, ids = self.vocabulary, self._ids
        return {
            (left, right): (n, ids[names[left] + names[right]])
            for n, (left, right) in enumerate(self.merges)
        }

    @cached_property
    def _byte_ids(self):
        return [self._ids[name] for name in BYTE_NAMES]

    @cached_property
    def _cut_at_blanks(self):
        made = {self.vocabulary[token] for _, token in self._joined.values()}
        return not any(regex.search(f"[^{BLANK}]{BLANK}", name) for name in made)

    def encode(self, text, *, allowed_special=()):
        """Text to a list of ids, without the special tokens of a model's input.

        Special tokens count as such only where their names are given in `allowed_special`, or all
        with "all": text that users wrote must not end a document.
        """
        ids = []
        for n, piece in enumerate(special_pieces(text, self.special_ids, allowed_special)):
            if isinstance(piece, int):
                ids.append(piece)
            elif piece:
                ids += self._encode_ordinary(self._with_prefix(piece, n == 0))
        return ids

    def _with_prefix(self, piece, first):
        shown = piece.replace(" ", BLANK)
        if self.prefix == "never" or (self.prefix == "first" and not first):
            return shown
        return shown if self.prefix != "prepend" and shown[0] == BLANK else BLANK + shown

    def _encode_ordinary(self, text):
        ids, cache = [], self._cache
        for word in AT_BLANKS.findall(text) if self._cut_at_blanks else [text]:
            word_ids = cache.get(word)
            if word_ids is None:
                word_ids = join_pairs(self._characters(word), self._joined)
                if len(cache) < CACHE_WORDS and len(word) < CACHE_LENGTH:
                    cache[word] = word_ids
            ids += word_ids
        return ids

    def _characters(self, word):
        """The id of each character, or of its bytes."""
        ids = []
        for character in word:
            if (known := self._ids.get(character)) is not None:
                ids.append(known)
            else:
                ids += [self._byte_ids[byte] for byte in character.encode()]
        return ids

    def decode_bytes(self, ids):
        """The exact bytes that the ids stand for, with the blank that was put before the text."""
        return b"".join([self.tokens[token] for token in check_ids(ids, self.vocabulary_size)])

    def decode(self, ids):
        """The text that the ids stand for, with U+FFFD where their bytes are not UTF-8.

        One blank at the beginning goes, where encoding puts one there.
        """
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text if self.prefix == "never" else text.removeprefix(" ")
