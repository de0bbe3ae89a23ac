"""BERT's basic tokenizer: from a text to words, each letter knowing where it came from.

What a reader takes for the same word should be the same word here, however it is written:

  clean up     control and format characters go, and every kind of blank is one
  accents      where case is ignored, é is split into e and its accent, and the accent goes
  lower case   where case is ignored
  CJK          each Chinese character is a word: Chinese has no blanks, and characters have meaning
  punctuation  each is a word, and so are $, + and the other ASCII symbols, whatever Unicode says

Each letter keeps the place of the character it came from, because an answer or a name that a model
finds in the tokens must be shown in the original text, where "é" may be one character or two.

Differs from the released code, as Hugging Face does: a capital sigma at the end of a word becomes
σ, not ς; characters of private use go.  Source: Devlin et al. 2018, released code
(tokenization.py, BasicTokenizer).
"""

import unicodedata
from functools import lru_cache
from itertools import groupby

import regex

RAW_WORD = regex.compile(r"[^ \t\n\r\p{Z}]+")
GONE = ("Cc", "Cf", "Co")  # control, format and private use
REPLACEMENT = "\ufffd"
CHARACTERS = 65_536  # so many are remembered
CJK = (  # the blocks of Chinese characters; Korean, Japanese syllables and Vietnamese have blanks
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


def normalize(text, lower=True, strip_accents=True, split_cjk=True):
    """The letters that BERT reads of a text -> (letter, place of its character) of each."""
    letters = [
        (letter, i)
        for i, character in enumerate(text)
        for letter in letters_of(character, lower, strip_accents, split_cjk)
    ]
    if strip_accents and not text.isascii():
        ordered = in_canonical_order(letters)
        letters = [pair for pair in ordered if unicodedata.category(pair[0]) != "Mn"]
    return letters


@lru_cache(CHARACTERS)
def letters_of(character, lower, strip_accents, split_cjk):
    """What is read of one character, accents still there, as letters of their own."""
    blank = character in "\t\n\r"
    if not blank and unicodedata.category(character) in GONE or character == REPLACEMENT:
        return ""
    shown = unicodedata.normalize("NFD", character) if strip_accents else character
    shown = "".join(letter.lower() for letter in shown) if lower else shown
    return f" {shown} " if split_cjk and is_cjk(character) else shown


def in_canonical_order(letters):
    """Marks that follow one letter, in the order of their class, as a decomposed text has them."""
    ordered = []
    for is_mark, run in groupby(letters, lambda pair: unicodedata.combining(pair[0]) > 0):
        found = list(run)
        if is_mark:
            found.sort(key=lambda pair: unicodedata.combining(pair[0]))
        ordered += found
    return ordered


def words_of(letters):
    """Letters cut into words -> a list of lists: at blanks, and punctuation apart."""
    words, word = [], []
    for pair in letters:
        apart = is_punctuation(pair[0])
        if (apart or pair[0].isspace()) and word:
            words.append(word)
            word = []
        if apart:
            words.append([pair])
        elif not pair[0].isspace():
            word.append(pair)
    return [*words, word] if word else words


@lru_cache(CHARACTERS)
def is_punctuation(letter):
    """BERT's own: every ASCII character that is no letter, digit or blank, and Unicode's P."""
    if letter.isascii():
        return "!" <= letter <= "~" and not letter.isalnum()
    return unicodedata.category(letter).startswith("P")


def is_cjk(character):
    """Whether this is a Chinese character, by its block."""
    code = ord(character)
    return code >= CJK[0][0] and any(first <= code <= last for first, last in CJK)
