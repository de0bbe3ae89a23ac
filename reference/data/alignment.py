"""Where each token stands in the text: from words and answers to tokens, and back.

A model labels tokens; people mark words and answers, and want to see them in the text as it was.
In between is the tokenizer, which tells of each token the range of characters of the original text
that it was made from (`tokenizers.offsets`).  Everything else follows from these ranges:

  align_words  words  →  tokens, and the word of each;  token_labels and word_tags carry tags over
  token_span   an answer's range of characters  →  its first and last token;  text_span: and back
  windows      a paragraph that is too long  →  parts that overlap, and the answer's place in each
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from reference.errors import InputError
from reference.tokenizers.offsets import offsets

IGNORED = -100  # the label of a token that has none


def align_words(tokenizer, words):
    """The tokens of a sentence of words, a blank between two, and of each token its word.

    -> ids, and the index of each one's word, None for a token of blanks alone; two lists.  A token
    that has characters of several words is the first one's.  A word may have no token.
    Raises what `encode` raises, and InputError for no words, or an empty one.
    """
    if not words or not all(words):
        raise InputError("words is empty, or has an empty word: give at least one, of characters")
    text = " ".join(words)
    ends = [*accumulate(len(word) + 1 for word in words)]  # one past the blank after each
    places = []
    for start, end in offsets(tokenizer, text):
        word = bisect_right(ends, start)
        # Where a word ends and a blank begins: a token of this blank alone has no word.
        places.append(None if start == end or text[start:end] == " " else word)
    return [int(token) for token in tokenizer.encode(text)], places


def token_labels(places, tags, numbers, *, every=False):
    """The labels of tokens, from the tags of words: the first of a word's tokens has its tag's.

    places: each token's word, from `align_words`.  numbers {tag: label}.  The other tokens of a
    word have IGNORED, which no loss counts; with `every` they have the word's too, after B- that of
    I-, if there is one, as they begin no name.
    Raises InputError for a tag that has no number, and for fewer tags than words.
    Source: Devlin et al. 2018, sec. 5.3 (the first of a word's tokens stands for it).
    """
    labels, before = [], None
    for place in places:
        if place is not None and place >= len(tags):
            raise InputError(f"there are {len(tags)} tags, and a token of word {place}: give all")
        if place is None or (place == before and not every):
            labels.append(IGNORED)
        else:
            tag = tags[place]
            inside = f"I-{tag[2:]}" if place == before and tag.startswith("B-") else tag
            labels.append(_number(numbers, inside if inside in numbers else tag))
        before = before if place is None else place
    return labels


def _number(numbers, tag):
    if tag not in numbers:
        raise InputError(f"the tag {tag!r} is none of {list(numbers)}: add it, or correct it")
    return numbers[tag]


def word_tags(places, labels, names, number):
    """The tags of a sentence's words, from the labels of its tokens: that of each one's first.

    labels: one a token.  names: the tags, by label.  number: of words; one that has no token here,
    because a model reads fewer, is O.
    Raises InputError unless there is a label for each token, each has a name, and no word is
    beyond the number.
    """
    if len(places) != len(labels):
        raise InputError(f"there are {len(places)} tokens and {len(labels)} labels: give one each")
    tags = ["O"] * number
    for place, label in reversed(list(zip(places, labels, strict=True))):
        if place is None:
            continue
        if not 0 <= label < len(names) or place >= number:
            raise InputError(
                f"label {label} of word {place} must be in [0, {len(names)}), and the word in "
                f"[0, {number}): give the labels of the model's head"
            )
        tags[place] = names[label]
    return tags


def token_span(ranges, start, end):
    """The first and the last token that have a character of text[start:end]; None if none has.

    ranges: what `offsets` gave.  Raises InputError for an empty span.
    """
    if not 0 <= start < end:
        raise InputError(f"the span is [{start}, {end}), and must have a character")
    touched = [i for i, (first, last) in enumerate(ranges) if first < end and start < last]
    return (touched[0], touched[-1]) if touched else None


def text_span(ranges, first, last):
    """The (start, end) of the characters from one token to another: text[start:end] shows them.

    It has what `token_span` was given, and no more than the rest of the tokens at its two ends.
    Raises InputError unless both are tokens, in this order.
    """
    if not 0 <= first <= last < len(ranges):
        raise InputError(
            f"the tokens are {first} to {last}, and must be in this order, in [0, {len(ranges)})"
        )
    return ranges[first][0], ranges[last][1]


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of a paragraph, and the answer's first and last token, from `start`."""

    start: int
    stop: int
    answer: tuple[int, int] | None  # None where the window does not have all of it


def windows(length, size, *, overlap, answer=None):
    """The windows of at most `size` tokens that cover a paragraph of `length` -> list of Window.

    Each begins size − overlap tokens after the one before, so neighbours share `overlap` (what
    Hugging Face calls the stride): an answer of up to overlap + 1 tokens is whole in one of them.
    answer: its first and last token in the paragraph.
    Raises InputError for a size below 1, an overlap outside [0, size), an answer outside.
    Source: Devlin et al. 2018, released code (run_squad.py).
    """
    if size < 1 or not 0 <= overlap < size:
        raise InputError(
            f"size is {size} and overlap {overlap}; give a size of at least 1, and an overlap in "
            "[0, size): a question as long as the context leaves no room, cut it"
        )
    if answer is not None and not 0 <= answer[0] <= answer[1] < length:
        raise InputError(f"answer is {answer}, and must be two tokens in order, in [0, {length})")
    found, step = [], size - overlap
    for start in range(0, max(length - overlap, 1), step):
        stop = min(start + size, length)
        inside = answer is not None and start <= answer[0] and answer[1] < stop
        place = (answer[0] - start, answer[1] - start) if inside else None
        found.append(Window(start, stop, place))
    return found
