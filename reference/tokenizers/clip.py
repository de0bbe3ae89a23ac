"""CLIP's byte-pair encoding: BPE whose tokens know where a word ends.

The same idea as `bpe`, with three differences, for captions rather than for any text:

  word ends   The last byte of a word is another symbol than the same byte before it: "a</w>" ends a
              word, "a" does not. So there are 512 symbols to begin with, a token says itself that a
              blank follows, and no blank is encoded. "in</w>" is the word, "in" begins "inside".
  clean-up    Lower case, and every run of blanks is one: what is decoded is not what was encoded.
  words       Each digit is a word. Letters and other signs make words as in GPT-2.

A model reads 77 tokens: <|startoftext|>, the text, <|endoftext|>, and padding; it takes its feature
at the end of the text, so the end must be there.

Differs from the released code, as Hugging Face does: the text is put into Unicode's composed form
(NFC) where OpenAI's mends broken encodings with the library ftfy and undoes HTML's escapes.
Source: Radford et al. 2021, sec. 2.4; released code (simple_tokenizer.py, clip.py).
"""

import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import regex

from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers.bpe import CACHE_LENGTH, CACHE_WORDS
from reference.tokenizers.checks import check_ids, special_pieces
from reference.tokenizers.clip_files import NAMES, RELEASED, read_json_form, read_released
from reference.tokenizers.merging import join_pairs
from reference.tokenizers.pattern import is_special
from reference.tokenizers.tokenizer_json import FILE, read_tokenizer_json
from reference.tokenizers.vocabulary_files import BYTE_IDS, BYTES, read_vocabulary, write_vocabulary

START, END = SPECIAL = ("<|startoftext|>", "<|endoftext|>")
LENGTH = 77

PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d"  # English endings that follow an apostrophe
    r"|\p{L}+"  # letters
    r"|\p{N}"  # one digit, or other numeral
    r"|[^\s\p{L}\p{N}]+"  # the rest that can be seen
)
BLANKS = regex.compile(r"\s+")


@dataclass(frozen=True)
class CLIP:
    """A BPE tokenizer in CLIP's form; it cannot be changed once made.

    merges          pairs of ids, in the order learnt; merge n makes token 512 + n
    special_tokens  names that stand for no text, the start and the end; their ids come last, and
                    text that happens to spell one is encoded as any other text
    tokens          what follows: the bytes of each token, by id, with a blank at the end of a word

    Raises InputError if a merge joins what is not there yet, or goes over the end of a word.
    """

    merges: tuple[tuple[int, int], ...] = field(repr=False)
    special_tokens: tuple[str, ...] = SPECIAL
    tokens: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _cache: dict[str, list[int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self):
        object.__setattr__(self, "merges", tuple(tuple(pair) for pair in self.merges))
        object.__setattr__(self, "special_tokens", tuple(self.special_tokens))
        tokens = [bytes([byte]) for byte in BYTES]
        tokens += [token + b" " for token in tokens]
        ends = [False] * 256 + [True] * 256
        for n, (left, right) in enumerate(self.merges):
            if not (0 <= left < len(tokens) and 0 <= right < len(tokens)) or ends[left]:
                raise InputError(
                    f"merges[{n}] is {(left, right)}, and must join two of the ids [0, {512 + n}), "
                    "the first of which does not end a word"
                )
            tokens.append(tokens[left] + tokens[right])
            ends.append(ends[right])
        if len(set(zip(tokens, ends, strict=True))) < len(tokens) or len(set(self.merges)) < len(
            self.merges
        ):
            raise InputError("two merges make one token: remove the later of the two")
        names = self.special_tokens
        for name in (*SPECIAL, *names):
            if not is_special(name) or names.count(name) != 1:
                raise InputError(
                    f"the special token {name!r} is missing, there twice, could be a word, or is "
                    f"not visible ASCII: give {SPECIAL}, and more in that way"
                )
        tokens += [name.encode() for name in names]
        object.__setattr__(self, "tokens", tuple(tokens))

    @classmethod
    def load(cls, folder):
        """Read `tokenizer.json`, `vocab.json` and `merges.txt`, or OpenAI's
        `bpe_simple_vocab_16e6.txt`, which may be gzipped.

        Raises CheckpointError if none is there, or one is torn or another tokenizer's.
        """
        if Path(folder, FILE).is_file():
            return cls.from_json(*read_tokenizer_json(folder))
        for path in (Path(folder, name) for name in RELEASED):
            if path.is_file():
                return cls(read_released(path))
        merges, special = read_vocabulary(folder, is_special, NAMES)
        return cls._made(folder, merges, special)

    @classmethod
    def from_json(cls, path, found):
        """The tokenizer of a CLIP's `tokenizer.json`.  Raises CheckpointError for another's."""
        return cls._made(path, *read_json_form(path, found))

    @classmethod
    def _made(cls, path, merges, special):
        try:
            return cls(merges, special)
        except InputError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def save(self, folder):
        """Write `vocab.json` and `merges.txt`, Hugging Face's form, which `load` reads.

        Raises InputError where a `tokenizer.json` is, as that would be read in their place.
        """
        write_vocabulary(folder, self.names, self.merges)

    @property
    def vocabulary_size(self):
        """V, the number of ids: 512 symbols, merges and special tokens."""
        return len(self.tokens)

    @cached_property
    def special_ids(self):
        """The special tokens' ids, by name."""
        first = self.vocabulary_size - len(self.special_tokens)
        return {name: first + n for n, name in enumerate(self.special_tokens)}

    @cached_property
    def names(self):
        """The name of each token in files, by id: bytes shown as characters, and </w>."""
        names = list(NAMES)
        for left, right in self.merges:
            names.append(names[left] + names[right])
        return [*names, *self.special_tokens]

    @cached_property
    def _joined(self):
        return {pair: (n, 512 + n) for n, pair in enumerate(self.merges)}

    def encode(self, text, *, allowed_special=()):
        """Text to a list of ids, without the start and the end.

        Special tokens count as such only where their names are given in `allowed_special`, or all
        with "all": text that users wrote must not end a caption.
        """
        ids = []
        for piece in special_pieces(text, self.special_ids, allowed_special):
            ids += [piece] if isinstance(piece, int) else self._encode_ordinary(piece)
        return ids

    def _encode_ordinary(self, text):
        """Words recur, so each is encoded once, as long as there is room to remember it."""
        ids, cache = [], self._cache
        for word in PATTERN.findall(clean(text)):
            word_ids = cache.get(word)
            if word_ids is None:
                row = [*word.encode().translate(BYTE_IDS)]
                row[-1] += 256
                word_ids = join_pairs(row, self._joined)
                if len(cache) < CACHE_WORDS and len(word) < CACHE_LENGTH:
                    cache[word] = word_ids
            ids += word_ids
        return ids

    def encode_padded(self, texts, length=LENGTH, *, truncate=False, padding=0):
        """Texts as a model reads them, each with start and end -> (B, length) of int32.

        padding: the id that fills a row; 0 in the released code, the end's in Hugging Face's.
        Raises InputError for a text that is too long, unless it may be truncated: the end stays.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DtypeError("texts must be a list of str: put a single text in brackets")
        rows = np.full((len(texts), length), padding, np.int32)
        start, end = (self.special_ids[name] for name in SPECIAL)
        for i, text in enumerate(texts):
            ids = [start, *self.encode(text), end]
            if len(ids) > length and not truncate:
                raise InputError(
                    f"texts[{i}] has {len(ids)} tokens with start and end, and the model reads "
                    f"{length}: shorten it, or give truncate=True"
                )
            ids[length - 1 :] = [end] * (len(ids) >= length)
            rows[i, : len(ids)] = ids
        return rows

    def decode_bytes(self, ids):
        """The bytes that the ids stand for, a blank after each word."""
        return b"".join([self.tokens[token] for token in check_ids(ids, self.vocabulary_size)])

    def decode(self, ids):
        """The text that the ids stand for, in lower case, words and signs a blank apart."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace").removesuffix(" ")


def clean(text):
    """Composed characters, single blanks, lower case: what CLIP reads of a text."""
    return "".join(map(str.lower, BLANKS.sub(" ", unicodedata.normalize("NFC", text))))
