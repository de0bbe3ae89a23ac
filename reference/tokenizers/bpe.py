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

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush

import regex

from reference.errors import DtypeError, InputError
from reference.tokenizers.checks import check_ids, check_text, special_pieces
from reference.tokenizers.vocabulary_files import BYTE_IDS, BYTES, read_vocabulary, write_vocabulary

END_OF_TEXT = "<|endoftext|>"

PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d"  # English endings that follow an apostrophe
    r"| ?\p{L}+"  # letters
    r"| ?\p{N}+"  # digits and other numerals
    r"| ?[^\s\p{L}\p{N}]+"  # the rest that can be seen
    r"|\s+(?!\S)"  # blanks, but for the last one: a word after it may want it
    r"|\s+"
)

NO_TOKEN = -1  # at the borders of words, and where a token was joined to the one on its left
CACHE_WORDS, CACHE_LENGTH = 65_536, 100


class LinkedTokens:
    """Tokens in a doubly linked list: two neighbours become one, and none of the others moves."""

    def __init__(self, tokens):
        self.tokens = list(tokens)
        self.left = list(range(-1, len(self.tokens) - 1))
        self.right = list(range(1, len(self.tokens) + 1))

    def pair(self, i):
        """The token at place i and the next one."""
        return self.tokens[i], self.tokens[self.right[i]]

    def join(self, i, token):
        """Put `token` where the pair at place i was."""
        j = self.right[i]
        self.tokens[i], self.tokens[j] = token, NO_TOKEN
        self.right[i] = self.right[j]
        self.left[self.right[i]] = i


def learn_merges(words, number):
    """The first `number` merges that words with these counts teach; fewer if no pair is left.

    The pair with the highest count is next and, of equal counts, the lower pair of ids. A word is
    counted as often as it occurs, but stands in the row once. All pairs are counted at the start;
    after that, a merge changes the counts of the pairs it touches, and no others. The heap holds
    every count a pair has had: one that is no longer true is dropped when it comes up.

    words {str: int} -> list of (id, id).
    Source: Sennrich et al. 2016, algorithm 1, which counts all anew for each merge.
    """
    row, weights = [NO_TOKEN], [0]
    for word, count in words.items():
        row += [*word.encode().translate(BYTE_IDS), NO_TOKEN]
        weights += [count] * (len(row) - len(weights))
    linked, counts, places, merges = LinkedTokens(row), Counter(), defaultdict(list), []
    for i, pair in enumerate(zip(row[:-1], row[1:], strict=True)):
        counts[pair] += weights[i]
        places[pair].append(i)  # from left to right, here and below
    heap = [(-count, pair) for pair, count in counts.items() if NO_TOKEN not in pair]
    heapify(heap)

    while heap and len(merges) < number:
        count, pair = heappop(heap)
        if -count != counts[pair]:
            continue
        change = Counter()
        for i in places.pop(pair):
            if linked.pair(i) != pair:  # "aaa" has two pairs, and the first took part of the second
                continue
            before, after, weight = linked.left[i], linked.right[i], weights[i]
            for gone in (pair, linked.pair(before), linked.pair(after)):
                change[gone] -= weight
            linked.join(i, 256 + len(merges))
            for place in (before, i):
                change[linked.pair(place)] += weight
                places[linked.pair(place)].append(place)
        for changed, difference in change.items():
            counts[changed] += difference
            if counts[changed] > 0 and NO_TOKEN not in changed:
                heappush(heap, (-counts[changed], changed))
        merges.append(pair)
    return merges


def is_special(name):
    """Whether this can name a special token: visible ASCII that `PATTERN` cuts into several words.

    A merge stays within one word, so no ordinary token is ever the same.
    """
    shown = isinstance(name, str) and name.isascii() and name.isprintable() and " " not in name
    return shown and len(PATTERN.findall(name)) > 1


@dataclass(frozen=True)
class BPE:
    """A byte-level BPE tokenizer in GPT-2's form; it cannot be changed once made.

    merges          pairs of ids, in the order learnt; merge n makes token 256 + n
    special_tokens  names that stand for no text, such as the border of two documents; their ids
                    come last, and text that happens to spell one is encoded as any other text
    tokens          what follows: the bytes of each token, by id

    Raises InputError if a merge joins what is not there yet, or if two tokens would be the same.
    """

    merges: tuple[tuple[int, int], ...] = field(repr=False)
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)
    tokens: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _cache: dict[str, list[int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self):
        object.__setattr__(self, "merges", tuple(tuple(pair) for pair in self.merges))
        object.__setattr__(self, "special_tokens", tuple(self.special_tokens))
        tokens = [bytes([byte]) for byte in BYTES]
        for n, pair in enumerate(self.merges):
            if not all(0 <= token < len(tokens) for token in pair):
                raise InputError(
                    f"merges[{n}] is {pair}, and must join two of the ids [0, {256 + n})"
                )
            tokens.append(tokens[pair[0]] + tokens[pair[1]])
        for name in self.special_tokens:
            if not is_special(name):
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
    def train(cls, text, vocabulary=None, *, special_tokens=(END_OF_TEXT,)):
        """Learn a vocabulary of this size, special tokens and the 256 bytes included, from a text.

        None stands for 1,024, or as many as the text can teach. A smaller vocabulary is the
        beginning of a larger one. Raises InputError for a text that is too short for the size that
        is asked for, and says how many it can teach.
        """
        check_text(text)
        asked, vocabulary = vocabulary, 1024 if vocabulary is None else vocabulary
        smallest = cls((), special_tokens).vocabulary_size
        if not hasattr(vocabulary, "__index__"):
            raise DtypeError(f"vocabulary is {vocabulary!r}, and must be an integer")
        if vocabulary < smallest:
            raise InputError(
                f"vocabulary is {vocabulary}, and must be at least {smallest}: "
                f"the 256 bytes and {smallest - 256} special tokens"
            )
        words = Counter(match.group() for match in PATTERN.finditer(text))
        tokenizer = cls(learn_merges(words, vocabulary - smallest), special_tokens)
        if asked is not None and tokenizer.vocabulary_size < asked:
            raise InputError(
                f"vocabulary is {vocabulary}, but this text of {len(text)} characters can only "
                f"fill {tokenizer.vocabulary_size}: ask for no more than that, or give more text"
            )
        return tokenizer

    @classmethod
    def load(cls, folder):
        """Read `merges.txt` and `vocab.json`, or GPT-2's `vocab.bpe` and `encoder.json`.

        Raises CheckpointError if one is missing, torn or not the other's.
        """
        return cls(*read_vocabulary(folder, is_special))

    def save(self, folder):
        """Write `merges.txt` and `vocab.json`, Hugging Face's form, which `load` reads."""
        write_vocabulary(folder, self.tokens, self.merges)

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
    def _joined(self):
        """The id that each pair becomes: the lower, the sooner it is joined."""
        return {pair: 256 + n for n, pair in enumerate(self.merges)}

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
        for word in PATTERN.findall(text):
            word_ids = cache.get(word)
            if word_ids is None:
                word_ids = self._encode_word(word)
                if len(cache) < CACHE_WORDS and len(word) < CACHE_LENGTH:
                    cache[word] = word_ids
            ids += word_ids
        return ids

    def _encode_word(self, word):
        """Join the pair that was learnt first, at its leftmost place, until none can be joined."""
        row = [NO_TOKEN, *word.encode().translate(BYTE_IDS), NO_TOKEN]
        linked, joined = LinkedTokens(row), self._joined
        pairs = enumerate(zip(row[:-1], row[1:], strict=True))
        heap = [(joined[pair], i) for i, pair in pairs if pair in joined]
        heapify(heap)
        while heap:
            token, i = heappop(heap)
            if joined.get(linked.pair(i)) != token:  # one of the two has been joined with another
                continue
            linked.join(i, token)
            for place in (linked.left[i], i):
                if (pair := linked.pair(place)) in joined:
                    heappush(heap, (joined[pair], place))
        return [token for token in linked.tokens if token != NO_TOKEN]

    def decode_bytes(self, ids):
        """The exact bytes that the ids stand for; a token may hold a part of a character only."""
        return b"".join([self.tokens[token] for token in check_ids(ids, self.vocabulary_size)])

    def decode(self, ids):
        """The text that the ids stand for, with U+FFFD where their bytes are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")
