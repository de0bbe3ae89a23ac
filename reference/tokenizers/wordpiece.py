"""WordPiece: words in pieces, the longest that fit, as BERT reads them.

A word that is in the vocabulary is one token. Any other is cut into pieces, greedily: the longest
piece that begins the word, then the longest that begins what is left, and so on. Pieces that do not
begin a word have "##" before them, so that "bed" and the end of "embed" are different tokens:

    unaffable  →  un ##aff ##able

If what is left begins with no piece, the whole word becomes [UNK], unknown; so does one of more
than 100 characters. In return for that loss, encoding needs no merges, only the list of pieces.

What a word is, `bert_words` says: BERT ignores case and accents (its uncased vocabularies), so the
text does not come back as it was. `encode_with_offsets` tells where in the text each token stands.

A model's input has five special tokens: [CLS] a [SEP] b [SEP], with segment 0 up to the first [SEP]
and 1 after it; [PAD] fills a batch and [MASK] hides what is to be guessed.

Source: Devlin et al. 2018, released code (tokenization.py); Wu et al. 2016, sec. 4.1.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers.bert_words import RAW_WORD, normalize, words_of
from reference.tokenizers.checks import check_ids, check_text, special_pieces
from reference.tokenizers.tokenizer_json import FILE, read_tokenizer_json
from reference.tokenizers.wordpiece_files import read_vocabulary, read_wordpiece, write_vocabulary
from reference.tokenizers.wordpiece_training import CONTINUES, LEARNERS, alphabet_of

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100
CACHE_WORDS, CACHE_LENGTH = 65_536, 100


@dataclass(frozen=True)
class WordPiece:
    """A WordPiece tokenizer in BERT's form; it cannot be changed once made.

    vocabulary      the pieces, by id, and among them the special tokens
    lower           ignore case, as the uncased vocabularies do
    strip_accents   ignore accents; None for what `lower` says
    split_cjk       each Chinese character is a word
    special_tokens  the five above, and more if a model has them; text that happens to spell one is
                    encoded as any other text
    tokens          what follows: the name of each token in UTF-8, by id

    Raises InputError if a piece is there twice, or a special token is missing.
    """

    vocabulary: tuple[str, ...] = field(repr=False)
    lower: bool = True
    strip_accents: bool | None = None
    split_cjk: bool = True
    special_tokens: tuple[str, ...] = SPECIAL
    _cache: dict[str, list] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
        object.__setattr__(self, "special_tokens", tuple(self.special_tokens))
        for i, piece in enumerate(self.vocabulary):
            if not isinstance(piece, str) or not piece:
                raise InputError(f"vocabulary[{i}] is {piece!r}, and must be a piece of text")
        if len(self._ids) < len(self.vocabulary):
            twice = Counter(self.vocabulary).most_common(1)[0][0]
            raise InputError(f"the piece {twice!r} is there twice: remove one, ids must be unique")
        for name in (*SPECIAL, *self.special_tokens):
            if name not in self._ids or name not in self.special_tokens:
                raise InputError(
                    f"the special token {name!r} is not among the pieces, or not among the special "
                    "tokens: it must be in both"
                )
            if not name.isascii() or not name.isprintable() or " " in name or name.isalnum():
                raise InputError(
                    f"the special token {name!r} could be a word, or is not visible ASCII: write "
                    "it in the way of '[NAME]'"
                )

    @classmethod
    def train(
        cls, text, vocabulary=None, *, learner="frequency", lower=True, strip_accents=None,
        split_cjk=True, special_tokens=SPECIAL,
    ):  # fmt: skip
        """Learn a vocabulary of this size, special tokens and characters included, from a text.

        learner: "frequency" joins the two pieces that occur together most often, as the library
        `tokenizers` does; "likelihood" those that do for how often each occurs, as described for
        BERT's (see `wordpiece_training`, also for why the first is taken by default).
        None stands for 1,024, or as many as the text can teach. Raises InputError for a vocabulary
        that is too small for the text's characters, or that the text is too short for.
        """
        check_text(text)
        if learner not in LEARNERS:
            raise InputError(f"learner is {learner!r}, and must be one of {list(LEARNERS)}")
        asked, vocabulary = vocabulary, 1024 if vocabulary is None else vocabulary
        if not hasattr(vocabulary, "__index__"):
            raise DtypeError(f"vocabulary is {vocabulary!r}, and must be an integer")
        rules = (lower, strip_accents, split_cjk, special_tokens)
        words = Counter(cls(special_tokens, *rules).words(text))
        first = [*special_tokens, *alphabet_of(words)]
        if vocabulary < len(first):
            raise InputError(
                f"vocabulary is {vocabulary}, and must be at least {len(first)}: the text's "
                f"characters, and {len(special_tokens)} special tokens"
            )
        pieces = LEARNERS[learner](words, first, vocabulary)
        if asked is not None and len(pieces) < asked:
            raise InputError(
                f"vocabulary is {asked}, but this text of {len(text)} characters can only fill "
                f"{len(pieces)}: ask for no more than that, or give more text"
            )
        return cls(pieces, *rules)

    @classmethod
    def load(cls, folder):
        """Read `vocab.txt` and, if it is there, `tokenizer_config.json`; or `tokenizer.json`.

        Without either of the two that say so, case is ignored, as in the original release.
        Raises CheckpointError if a file is missing, torn or of something else.
        """
        if Path(folder, FILE).is_file():
            return cls.from_json(*read_tokenizer_json(folder))
        return cls._made(Path(folder, "vocab.txt"), *read_vocabulary(folder))

    @classmethod
    def from_json(cls, path, found):
        """The tokenizer of a BERT's `tokenizer.json`.  Raises CheckpointError for another's."""
        return cls._made(path, *read_wordpiece(path, found))

    @classmethod
    def _made(cls, path, pieces, rules, special):
        try:
            more = [name for name in special if name not in SPECIAL]
            return cls(pieces, **rules, special_tokens=(*SPECIAL, *more))
        except InputError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def save(self, folder):
        """Write `vocab.txt` and `tokenizer_config.json`, which `load` and Hugging Face read.

        Raises InputError where a `tokenizer.json` is, as that would be read in their place.
        """
        write_vocabulary(folder, self)

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
        """The name of each token in UTF-8, by id."""
        return tuple(piece.encode() for piece in self.vocabulary)

    @cached_property
    def _ids(self):
        return {piece: i for i, piece in enumerate(self.vocabulary)}

    @cached_property
    def _longest(self):
        return max(map(len, self.vocabulary))

    def words(self, text):
        """A text cut into normalized words."""
        for match in RAW_WORD.finditer(text):
            for word in words_of(self._normalized(match.group())):
                yield "".join(letter for letter, _ in word)

    def _normalized(self, text):
        accents = self.lower if self.strip_accents is None else self.strip_accents
        return normalize(text, self.lower, accents, self.split_cjk)

    def encode(self, text, *, allowed_special=()):
        """Text to a list of ids, without the special tokens of a model's input.

        Special tokens count as such only where their names are given in `allowed_special`, or all
        with "all": text that users wrote must not end a segment.
        """
        return self.encode_with_offsets(text, allowed_special=allowed_special)[0]

    def encode_with_offsets(self, text, *, allowed_special=()):
        """Text to a list of ids, and for each the (start, end) of its characters in the text.

        text[start:end], normalized, is the token's text, or [UNK]'s word. Where one character gives
        several letters that fall to different tokens (a Korean syllable), each has all of it.
        """
        ids, offsets, place = [], [], 0
        pieces = special_pieces(text, self.special_ids, allowed_special)
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
                offsets.append((place, place + len(self.vocabulary[piece])))
                place = offsets[-1][1]
                continue
            for match in RAW_WORD.finditer(piece):
                start = place + match.start()
                for token, first, last in self._encode_raw(match.group()):
                    ids.append(token)
                    offsets.append((start + first, start + last))
            place += len(piece)
        return ids, offsets

    def encode_pair(self, text, second=None):
        """One text, or two, as a model reads them -> ids and segments, two lists of one length.

        [CLS] text [SEP] second [SEP]; the segment is 0 up to the first [SEP], 1 after it.
        Source: Devlin et al. 2018, fig. 2.
        """
        cls, sep = self.special_ids[CLS], self.special_ids[SEP]
        ids = [cls, *self.encode(text), sep]
        segments = [0] * len(ids)
        if second is not None:
            ids += [*self.encode(second), sep]
            segments += [1] * (len(ids) - len(segments))
        return ids, segments

    def _encode_raw(self, raw):
        """What stands between two blanks -> (id, start, end) of each token; words recur."""
        tokens = self._cache.get(raw)
        if tokens is None:
            words = words_of(self._normalized(raw))
            tokens = [token for word in words for token in self._encode_word(word)]
            if len(self._cache) < CACHE_WORDS and len(raw) < CACHE_LENGTH:
                self._cache[raw] = tokens
        return tokens

    def _encode_word(self, word):
        """The longest piece that fits, again and again; [UNK] for the word if once none does."""
        places = [i for _, i in word]
        unknown = [(self._ids[UNKNOWN], places[0], places[-1] + 1)]
        if len(word) > LONGEST_WORD:
            return unknown
        letters, tokens, start = "".join(letter for letter, _ in word), [], 0
        while start < len(letters):
            before = CONTINUES if start else ""
            end = min(len(letters), start + self._longest)
            while end > start and before + letters[start:end] not in self._ids:
                end -= 1
            if end == start:
                return unknown
            piece = self._ids[before + letters[start:end]]
            tokens.append((piece, places[start], places[end - 1] + 1))
            start = end
        return tokens

    def decode(self, ids):
        """The words that the ids stand for, a blank between two; ## pieces join what is before.

        Case, accents and blanks of the encoded text are lost.
        """
        pieces = [self.vocabulary[token] for token in check_ids(ids, self.vocabulary_size)]
        return " ".join(pieces).replace(" " + CONTINUES, "")
