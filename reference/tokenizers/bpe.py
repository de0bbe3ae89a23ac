"""Byte-level byte-pair encoding (BPE): how GPT-2 turns text into token ids, and learns to.

A model reads numbers below a fixed V. Whole words never fit, for there is always one more;
characters fit, but make long sequences of tokens that mean little. BPE lies between:

  bytes   Every text is a row of UTF-8 bytes, and the first 256 tokens are the bytes. So no text is
          ever unknown, and decoding gives back exactly what was encoded.
  merges  Find the pair of neighbouring tokens that occurs most often, make it a new token, join
          the pair wherever it stands, and repeat. "t h" becomes "th", later "th e" becomes "the":
          frequent words end as one token, rare ones as a few, and the list of merges in the order
          they were learnt is all there is to keep. Token 256 + n is what merge n makes.
  words   Both happen inside the words that `PATTERN` cuts, never across, or the vocabulary would
          fill with "dog.", "dog!" and "of the". A word takes along the one space before it.

To encode a text, cut it into words, and join the pairs of each in the order they were learnt.

Source: Sennrich et al. 2016, sec. 3.2 (after Gage 1994); Radford et al. 2019, sec. 2.2 (bytes).
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers.byte_level_json import read_byte_level, write_byte_level
from reference.tokenizers.checks import check_ids, check_text, special_pieces
from reference.tokenizers.merging import join_pairs, learn_pairs
from reference.tokenizers.pattern import PATTERN, compiled, cut, is_special
from reference.tokenizers.tokenizer_json import FILE, read_tokenizer_json
from reference.tokenizers.vocabulary_files import (
    BYTE_IDS,
    BYTES,
    read_vocabulary,
    shown,
    write_vocabulary,
)

END_OF_TEXT = "<|endoftext|>"

CACHE_WORDS, CACHE_LENGTH = 65_536, 100


def learn_merges(words, number):
    """The first `number` merges that words with these counts teach; fewer if no pair is left.

    words {str: int} -> list of (id, id).
    """
    counted = [(word.encode().translate(BYTE_IDS), count) for word, count in words.items()]
    return learn_pairs(counted, number, 256)


@dataclass(frozen=True)
class BPE:
    """A byte-level BPE tokenizer in GPT-2's form; it cannot be changed once made.

    merges          pairs of ids, in the order learnt; merge n makes token 256 + n
    special_tokens  names that stand for no text, such as the border of two documents; their ids
                    come last, and text that happens to spell one is encoded as any other text
    pattern         the regular expression that cuts words, GPT-2's or a later one's
    whole_words     a word that is a token is that token, though merges may not lead there (Llama 3)
    vocabulary      the bytes of the ordinary tokens, where merges are not all: a merge then makes
                    the token of the joined bytes, which another merge may make too (Llama 3)
    tokens          what follows: the bytes of each token, by id

    Raises InputError if a merge joins what is not there yet, if two tokens would be the same, or if
    the pattern is none.
    """

    merges: tuple[tuple[int, int], ...] = field(repr=False)
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)
    pattern: str = field(default=PATTERN.pattern, repr=False)
    whole_words: bool = field(default=False, repr=False)
    vocabulary: tuple[bytes, ...] | None = field(default=None, repr=False)
    tokens: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _cache: dict[str, list[int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self):
        object.__setattr__(self, "merges", tuple(tuple(pair) for pair in self.merges))
        object.__setattr__(self, "special_tokens", tuple(self.special_tokens))
        if self.vocabulary is None:
            tokens = tokens_of(self.merges)
        else:
            object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
            check_merges(self.merges, self.vocabulary)
            tokens = list(self.vocabulary)
        for name in self.special_tokens:
            if not is_special(name, self._pattern):
                raise InputError(
                    f"the special token {name!r} could be an ordinary word, or is not visible "
                    "ASCII: write it in the way of '<|name|>'"
                )
            tokens.append(name.encode())
        if len(set(tokens)) < len(tokens):
            twice = Counter(tokens).most_common(1)[0][0]
            raise InputError(
                f"two tokens are {twice!r}: remove one of the merges or special tokens"
            )
        object.__setattr__(self, "tokens", tuple(tokens))

    @classmethod
    def train(
        cls, text, vocabulary=None, *, special_tokens=(END_OF_TEXT,), pattern=PATTERN.pattern
    ):
        """Learn a vocabulary of this size, special tokens and the 256 bytes included, from a text.

        None stands for 1,024, or as many as the text can teach. A smaller vocabulary is the
        beginning of a larger one. Raises InputError for a text that is too short for the size that
        is asked for, and says how many it can teach.
        """
        check_text(text)
        asked, vocabulary = vocabulary, 1024 if vocabulary is None else vocabulary
        untaught = cls((), special_tokens, pattern)
        smallest = untaught.vocabulary_size
        if not hasattr(vocabulary, "__index__"):
            raise DtypeError(f"vocabulary is {vocabulary!r}, and must be an integer")
        if vocabulary < smallest:
            raise InputError(
                f"vocabulary is {vocabulary}, and must be at least {smallest}: "
                f"the 256 bytes and {smallest - 256} special tokens"
            )
        merges = learn_merges(Counter(untaught.words(text)), vocabulary - smallest)
        tokenizer = cls(merges, special_tokens, pattern)
        if asked is not None and tokenizer.vocabulary_size < asked:
            raise InputError(
                f"vocabulary is {vocabulary}, but this text of {len(text)} characters can only "
                f"fill {tokenizer.vocabulary_size}: ask for no more than that, or give more text"
            )
        return tokenizer

    @classmethod
    def load(cls, folder):
        """Read `merges.txt` and `vocab.json`, GPT-2's `vocab.bpe` and `encoder.json`, or, where it
        is there, `tokenizer.json`.

        Raises CheckpointError if one is missing, torn or not the other's.
        """
        if Path(folder, FILE).is_file():
            return cls.from_json(*read_tokenizer_json(folder))
        return cls(*read_vocabulary(folder, is_special))

    @classmethod
    def from_json(cls, path, found):
        """The tokenizer of a byte-level `tokenizer.json`, such as Llama 3's.

        Raises CheckpointError, with the path, for what this class does not do.
        """
        merges, special, pattern, whole_words, vocabulary = read_byte_level(path, found)
        try:
            made = cls(merges, special, pattern or PATTERN.pattern, whole_words, vocabulary)
            plain = [pair for n, pair in enumerate(merges) if made._joined[pair] == (n, 256 + n)]
            all_of_them = len(plain) == len(merges) == len(vocabulary) - 256
            return replace(made, vocabulary=None) if all_of_them else made
        except InputError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def save(self, folder):
        """Write `merges.txt` and `vocab.json`, Hugging Face's form, which `load` reads.

        What these two cannot say (another pattern, whole words, another vocabulary) is written as
        `tokenizer.json`.  Raises InputError for the two where the other is, as it would be read.
        """
        if (self.pattern, self.whole_words, self.vocabulary) == (PATTERN.pattern, False, None):
            write_vocabulary(folder, [shown(token) for token in self.tokens], self.merges)
        else:
            write_byte_level(folder, self)

    @property
    def vocabulary_size(self):
        """V, the number of ids: bytes, merges and special tokens."""
        return len(self.tokens)

    @cached_property
    def special_ids(self):
        """The special tokens' ids, by name."""
        first = self.vocabulary_size - len(self.special_tokens)
        return {name: first + n for n, name in enumerate(self.special_tokens)}

    @cached_property
    def _pattern(self):
        return compiled(self.pattern)

    @cached_property
    def _ids(self):
        """The id of each ordinary token, by its bytes."""
        ordinary = self.tokens[: self.vocabulary_size - len(self.special_tokens)]
        return {token: i for i, token in enumerate(ordinary)}

    @cached_property
    def _joined(self):
        """When each pair is joined, the lower the sooner, and the id that it becomes."""
        tokens, ids = self.tokens, self._ids
        return {
            (left, right): (n, ids[tokens[left] + tokens[right]])
            for n, (left, right) in enumerate(self.merges)
        }

    def words(self, text):
        """A text cut into words; what the pattern does not match is a word too."""
        return cut(text, self._pattern)

    def encode(self, text, *, allowed_special=()):
        """Text to a list of ids.

        Special tokens count as such only where their names are given in `allowed_special`, or all
        with "all": text that users wrote must not end a document.
        """
        ids = []
        for piece in special_pieces(text, self.special_ids, allowed_special):
            ids += [piece] if isinstance(piece, int) else self._encode_ordinary(piece)
        return ids

    def _encode_ordinary(self, text):
        """Words recur, so each is encoded once, as long as there is room to remember it."""
        ids, cache = [], self._cache
        for word in self.words(text):
            word_ids = cache.get(word)
            if word_ids is None:
                word_ids = self._encode_word(word.encode())
                if len(cache) < CACHE_WORDS and len(word) < CACHE_LENGTH:
                    cache[word] = word_ids
            ids += word_ids
        return ids

    def _encode_word(self, word):
        if self.whole_words and word in self._ids:
            return [self._ids[word]]
        return join_pairs(word.translate(BYTE_IDS), self._joined)

    def decode_bytes(self, ids):
        """The exact bytes that the ids stand for; a token may hold a part of a character only."""
        return b"".join([self.tokens[token] for token in check_ids(ids, self.vocabulary_size)])

    def decode(self, ids):
        """The text that the ids stand for, with U+FFFD where their bytes are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def tokens_of(merges):
    """The bytes of each token: the 256 bytes, and what merge n makes as token 256 + n."""
    tokens = [bytes([byte]) for byte in BYTES]
    for n, pair in enumerate(merges):
        if not all(0 <= token < len(tokens) for token in pair):
            raise InputError(f"merges[{n}] is {pair}, and must join two of the ids [0, {256 + n})")
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return tokens


def check_merges(merges, vocabulary):
    """Raise unless each merge makes a token of the vocabulary, which begins with the 256 bytes."""
    if b"".join(vocabulary[:256]) != BYTES or len(vocabulary) < 256:
        raise InputError(
            "the vocabulary must begin with the 256 bytes, numbered as GPT-2's: '!' is token 0"
        )
    known = set(vocabulary)
    for n, pair in enumerate(merges):
        if not all(0 <= token < len(vocabulary) for token in pair):
            raise InputError(
                f"merges[{n}] is {pair}, and must join two of the ids [0, {len(vocabulary)})"
            )
        if (made := vocabulary[pair[0]] + vocabulary[pair[1]]) not in known:
            raise InputError(f"merges[{n}] makes {made!r}, which is not in the vocabulary")
    if len(set(merges)) < len(merges):
        raise InputError("the merges join one pair twice: remove the later of the two")
