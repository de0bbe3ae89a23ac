"""Where in its text each token stands, for every tokenizer: what was made from which characters.

Tokens are not the text: accents were stripped, case folded, a blank put in front, one character cut
into bytes, a whole word made one [UNK].  But what a name or an answer is must be shown in the text
as it was written.

  bytes      BPE, ByteFallback and CLIP cut the bytes of a text, or of what they made of it; where
             it is known which character each byte is of, a token has the characters of its bytes
  pieces     Unigram says itself where each piece begins, as the length of an unknown one is open
  letters    WordPiece keeps the place of each letter
"""

import unicodedata
from collections import deque
from itertools import accumulate, pairwise

from reference.errors import DtypeError
from reference.tokenizers.bert_words import RAW_WORD
from reference.tokenizers.bpe import BPE
from reference.tokenizers.byte_fallback import ByteFallback
from reference.tokenizers.byte_fallback_files import BLANK, BYTE_NAMES
from reference.tokenizers.characters import Characters
from reference.tokenizers.checks import check_text
from reference.tokenizers.clip import CLIP, PATTERN
from reference.tokenizers.unigram import WORD, Unigram, with_blanks
from reference.tokenizers.wordpiece import WordPiece

BYTES = frozenset(BYTE_NAMES)


def offsets(tokenizer, text):
    """The (start, end) of each token's characters in the text, one for each of encode(text).

    Ranges ascend, and together have every character that is not blank, but for words of nothing
    that the tokenizer reads (control characters alone).  Blanks at a token's ends are left out; a
    token of blanks alone keeps them, and one that stands for no character, such as the blank put
    before a text, is empty.  What the tokenizer drops, accents among it, belongs to the token
    before it in its word.  Ranges do not overlap, with one exception: where one character (or what
    Unicode composes to one) is in several tokens, as its bytes may be, each of them has all of it.

    Raises what `encode` raises, and DtypeError for another tokenizer.
    """
    check_text(text)
    for kind, ranges in RANGES.items():
        if isinstance(tokenizer, kind):
            return [_trimmed(text, start, end) for start, end in ranges(tokenizer, text)]
    raise DtypeError(
        f"tokenizer is of type {type(tokenizer).__name__}, and must be one of "
        f"{[kind.__name__ for kind in RANGES]}"
    )


def _trimmed(text, start, end):
    """Without the blanks at its ends, unless there is nothing else."""
    part = text[start:end]
    if not (left := len(part) - len(part.lstrip())) < len(part):
        return start, end
    return start + left, end - (len(part) - len(part.rstrip()))


def _of_characters(tokenizer, text):
    return [(i, i + 1) for i in range(len(tokenizer.encode(text)))]


def _of_bpe(tokenizer, text):
    places = [(i, i + 1) for i, character in enumerate(text) for _ in character.encode()]
    return _of_bytes(places, [len(tokenizer.tokens[token]) for token in tokenizer.encode(text)])


def _of_byte_fallback(tokenizer, text):
    """The bytes of the text with its blanks shown; those that are too many are of one before it."""
    names = [tokenizer.vocabulary[token] for token in tokenizer.encode(text)]
    sizes = [1 if name in BYTES else len(name.encode()) for name in names]
    shown = text.replace(" ", BLANK)
    places = [(i, i + 1) for i, character in enumerate(shown) for _ in character.encode()]
    return _of_bytes([(0, 0)] * (sum(sizes) - len(places)) + places, sizes)


def _of_bytes(places, sizes):
    """The ranges of tokens of so many bytes each, where each byte has a range."""
    ends = accumulate(sizes, initial=0)
    return [(places[start][0], places[end - 1][1]) for start, end in pairwise(ends)]


def _of_unigram(tokenizer, text):
    shown = with_blanks(text)
    before = len(shown) - len(text)
    return [
        (max(match.start() + start - before, 0), match.start() + end - before)
        for match in WORD.finditer(shown)
        for _, start, end in tokenizer.pieces_of(match.group())
    ]


def _of_wordpiece(tokenizer, text):
    """Between two blanks, a token reaches to where the next begins, with what is dropped."""
    left, ranges = deque(tokenizer.encode_with_offsets(text)[1]), []
    for word in RAW_WORD.finditer(text):
        tokens = []
        while left and left[0][0] < word.end():
            tokens.append(left.popleft())
        # Marks may have changed places when they were put in order; ranges must not.
        starts = [*accumulate((start for start, _ in tokens), max), word.end()]
        starts[: len(tokens[:1])] = [word.start()] * len(tokens[:1])
        for (_, end), (start, after) in zip(tokens, pairwise(starts), strict=True):
            shared = end > after or start == after
            ranges.append((start, after + shared))
    return ranges


def _of_clip(tokenizer, text):
    """As BPE, over the composed text, each of whose characters has a range of the original's."""
    letters, places = [], []
    for composed, start, end in _composed(text):
        exact = composed == text[start:end]
        for i, character in enumerate(composed):
            here = (start + i, start + i + 1) if exact else (start, end)
            for letter in character.lower():
                letters.append(letter)
                places.append(here)
    of_bytes = [
        places[match.start() + i]
        for match in PATTERN.finditer("".join(letters))
        for i, letter in enumerate(match.group())
        for _ in letter.encode()
    ]
    tokens = [tokenizer.tokens[token] for token in tokenizer.encode(text)]
    return _of_bytes(of_bytes, [len(token.removesuffix(b" ")) for token in tokens])


def _composed(text):
    """The parts of a text that compose (NFC) by themselves -> (composed, start, end) of each."""
    parts, start = [], 0
    for i, character in enumerate(text):
        if i and (character < "\u0300" or _begins(text[start:i], character)):
            parts.append((unicodedata.normalize("NFC", text[start:i]), start, i))
            start = i
    return [*parts, (unicodedata.normalize("NFC", text[start:]), start, len(text))]


def _begins(before, character):
    """Whether composing goes on as if nothing stood before this character."""
    if unicodedata.combining(unicodedata.normalize("NFD", character)[0]):
        return False
    alone = [unicodedata.normalize("NFC", part) for part in (before, character)]
    return unicodedata.normalize("NFC", before + character) == "".join(alone)


RANGES = {
    Characters: _of_characters,
    BPE: _of_bpe,
    ByteFallback: _of_byte_fallback,
    Unigram: _of_unigram,
    WordPiece: _of_wordpiece,
    CLIP: _of_clip,
}
