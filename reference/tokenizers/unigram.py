"""The unigram language model: of all ways to cut a word into pieces, the most probable.

BPE and WordPiece are greedy: they join or take what looks best now. Here every piece has a
probability, a row of pieces has the product of theirs, as if each were drawn without a look at the
others, and a word is cut in the way whose product is largest:

    "▁unable" = "▁un" "able" if p(▁un) p(able) > p(▁una) p(ble), and so on for all ways

A word of n characters can be cut in 2ⁿ⁻¹ ways, but the best way to its first m characters is the
best way to fewer of them and one piece more. So one pass from left to right finds it, as Viterbi
did in 1967: for each place the best score up to there, and where the last piece began.

The probabilities, and which pieces there are, `unigram_training` learns; scores are logarithms.

As in `byte_fallback`, blanks are shown as "▁", one is put before the text, and a word begins with
it. A character that no piece has is unknown: where several follow each other in a word, they are
one token together.

Source: Kudo 2018, sec. 3.2; SentencePiece and Hugging Face tokenizers, released code.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite

import regex

from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers.bpe import CACHE_LENGTH, CACHE_WORDS
from reference.tokenizers.checks import check_ids, check_text, special_pieces
from reference.tokenizers.tokenizer_json import (
    ABSENT,
    PLAIN,
    check_options,
    check_part,
    read_tokenizer_json,
    write_tokenizer_json,
)
from reference.tokenizers.unigram_training import learn_pieces, tree_of

UNKNOWN = "<unk>"
BLANK = "▁"
WORD = regex.compile(f"{BLANK}[^{BLANK}]*|[^{BLANK}]+")
UNKNOWN_PENALTY = 10.0  # an unknown character scores so much less than the least probable piece
METASPACE = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "always"}


@dataclass(frozen=True)
class Unigram:
    """A tokenizer by a unigram language model; it cannot be changed once made.

    vocabulary      the name of each token, by id: special tokens and pieces
    scores          the logarithm of each one's probability; a special token's counts for nothing
    special_tokens  names that stand for no text, the first of them for what is unknown; text that
                    happens to spell one is encoded as any other text
    tokens          what follows: the bytes that each token stands for, by id

    Raises InputError if a name is there twice, or a score is missing or not a finite number.
    """

    vocabulary: tuple[str, ...] = field(repr=False)
    scores: tuple[float, ...] = field(repr=False)
    special_tokens: tuple[str, ...] = (UNKNOWN,)
    _cache: dict[str, list[int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self):
        for name in ("vocabulary", "scores", "special_tokens"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.scores) != len(self.vocabulary):
            raise InputError(
                f"there are {len(self.scores)} scores and {len(self.vocabulary)} tokens: give one "
                "for each"
            )
        for i, (name, score) in enumerate(zip(self.vocabulary, self.scores, strict=True)):
            if not isinstance(name, str) or not name:
                raise InputError(f"vocabulary[{i}] is {name!r}, and must be the name of a token")
            if type(score) not in (int, float) or not isfinite(score):
                raise InputError(f"scores[{i}] is {score!r}, and must be a finite number")
        if len(self._ids) < len(self.vocabulary):
            twice = Counter(self.vocabulary).most_common(1)[0][0]
            raise InputError(f"two tokens are {twice!r}: remove one, names must be unique")
        if not self.special_tokens or not set(self.special_tokens) <= set(self._ids):
            raise InputError(
                f"the special tokens {self.special_tokens} must be of the vocabulary, and the "
                f"first stands for what is unknown: give ({UNKNOWN!r},) and put it there"
            )

    @classmethod
    def train(cls, text, vocabulary=None, *, special_tokens=(UNKNOWN,)):
        """Learn a vocabulary of this size, special tokens and characters included, from a text.

        None stands for 1,024, or as many as the text can teach. Raises InputError for a vocabulary
        that is too small for the text's characters, or that the text is too short for.
        """
        check_text(text)
        asked, vocabulary = vocabulary, 1024 if vocabulary is None else vocabulary
        if not hasattr(vocabulary, "__index__"):
            raise DtypeError(f"vocabulary is {vocabulary!r}, and must be an integer")
        words = Counter(WORD.findall(with_blanks(text)))
        smallest = len(special_tokens) + len(set().union(*words))
        if vocabulary < smallest:
            raise InputError(
                f"vocabulary is {vocabulary}, and must be at least {smallest}: the text's "
                f"characters, and {len(special_tokens)} special tokens"
            )
        learnt = learn_pieces(words, vocabulary - len(special_tokens))
        if asked is not None and len(special_tokens) + len(learnt) < asked:
            raise InputError(
                f"vocabulary is {asked}, but this text of {len(text)} characters can only fill "
                f"{len(special_tokens) + len(learnt)}: ask for no more, or give more text"
            )
        names, scores = [*special_tokens, *learnt], [0.0] * len(special_tokens)
        return cls(names, [*scores, *learnt.values()], special_tokens)

    @classmethod
    def load(cls, folder):
        """Read `tokenizer.json`.  Raises CheckpointError if it is missing, torn or another's."""
        return cls.from_json(*read_tokenizer_json(folder))

    @classmethod
    def from_json(cls, path, found):
        """The tokenizer of a Unigram's `tokenizer.json`.  Raises CheckpointError for another's."""
        model = found["model"]
        check_options(path, model, byte_fallback=ABSENT)
        check_part(path, "normalizer", found.get("normalizer"), [None])
        cuts = [METASPACE, METASPACE | {"split": True}]
        check_part(path, "pre_tokenizer", found.get("pre_tokenizer"), cuts)
        entries, unknown = model["vocab"], model.get("unk_id")
        known = isinstance(entries, list) and all(
            isinstance(entry, list) and len(entry) == 2 for entry in entries
        )
        if not known or type(unknown) is not int or not 0 <= unknown < len(entries):
            raise CheckpointError(
                f"{path}: model.vocab must be a list of pieces with their scores, and model.unk_id "
                "one of its ids: copy the file again"
            )
        special = [entries[unknown][0]]
        for entry in found.get("added_tokens") or []:
            check_part(path, "an added token", {k: entry.get(k, False) for k in PLAIN}, [PLAIN])
            if not 0 <= entry["id"] < len(entries) or entries[entry["id"]][0] != entry["content"]:
                raise CheckpointError(
                    f"{path}: the added token {entry['content']!r} is not the vocabulary's "
                    f"{entry['id']}: encode with the library tokenizers instead"
                )
            special += [entry["content"]] * (entry["content"] not in special)
        try:
            return cls(*zip(*entries, strict=True), special)
        except InputError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def save(self, folder):
        """Write `tokenizer.json`, which `load` and Hugging Face read."""
        entries = [list(entry) for entry in zip(self.vocabulary, self.scores, strict=True)]
        unknown = self._ids[self.special_tokens[0]]
        model = {"type": "Unigram", "unk_id": unknown, "vocab": entries, "byte_fallback": False}
        cut = METASPACE | {"split": True}
        write_tokenizer_json(folder, model, self.special_ids, pre_tokenizer=cut, decoder=cut)

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
        return tuple(name.replace(BLANK, " ").encode() for name in self.vocabulary)

    @cached_property
    def _ids(self):
        return {name: i for i, name in enumerate(self.vocabulary)}

    @cached_property
    def _tree(self):
        return tree_of({n: i for n, i in self._ids.items() if n not in self.special_tokens})

    def encode(self, text, *, allowed_special=()):
        """Text to a list of ids.

        Special tokens count as such only where their names are given in `allowed_special`, or all
        with "all": text that users wrote must not end a document.
        """
        ids, cache = [], self._cache
        for piece in special_pieces(text, self.special_ids, allowed_special):
            if isinstance(piece, int):
                ids.append(piece)
                continue
            for word in WORD.findall(with_blanks(piece)):
                word_ids = cache.get(word)
                if word_ids is None:
                    word_ids = self._encode_word(word)
                    if len(cache) < CACHE_WORDS and len(word) < CACHE_LENGTH:
                        cache[word] = word_ids
                ids += word_ids
        return ids

    def _encode_word(self, word):
        return [token for token, _, _ in self.pieces_of(word)]

    def pieces_of(self, word):
        """(id, start, end) of each piece of a word whose blank is shown.

        The way whose pieces have the highest sum of scores; of equals, the longest last piece.

        best[m]: the score of the best way to the first m characters; last[m]: the beginning and the
        id of its last piece.
        """
        scores, unknown = self.scores, self._ids[self.special_tokens[0]]
        worst = min(scores) - UNKNOWN_PENALTY
        best, last = [0.0] + [-inf] * len(word), [None] * (len(word) + 1)
        for start in range(len(word)):
            here, node, single = best[start], self._tree, False
            for end in range(start + 1, len(word) + 1):
                node = node.get(word[end - 1])
                if node is None:
                    break
                token = node.get("")
                if token is not None:
                    single = single or end == start + 1
                    if scores[token] + here > best[end]:
                        best[end], last[end] = scores[token] + here, (start, token)
            if not single and worst + here > best[start + 1]:
                best[start + 1], last[start + 1] = worst + here, (start, unknown)
        pieces, start = [], len(word)
        while start:
            end, (start, token) = start, last[start]
            if token == unknown and pieces and pieces[-1][0] == unknown:
                end = pieces.pop()[2]
            pieces.append((token, start, end))
        return pieces[::-1]

    def decode_bytes(self, ids):
        """The bytes that the ids stand for, with the blank that was put before the text."""
        return b"".join([self.tokens[token] for token in check_ids(ids, self.vocabulary_size)])

    def decode(self, ids):
        """The text that the ids stand for, without the blank that was put before it."""
        return self.decode_bytes(ids).decode("utf-8").removeprefix(" ")


def with_blanks(text):
    """A text with its blanks shown, and one before it if it does not begin with one."""
    shown = text.replace(" ", BLANK)
    return shown if not shown or shown[0] == BLANK else BLANK + shown
