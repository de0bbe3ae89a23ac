"""Texts that tokenizers may stumble over: every script, marks, controls, long runs, bent prose."""

import unicodedata
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import regex

from tests.peers import peer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PROSE = "\n".join(topics.values())
RANGES = (
    (0, 0xD800),
    (0xE000, 0x20000),
    (0x2B800, 0x2B940),
    (0x2F800, 0x2FA20),
    (0xE0000, 0xE01F0),
)
CHARACTERS = "".join(chr(code) for first, end in RANGES for code in range(first, end))
SAMPLES = {
    "english": "The cat's toys, and I'll say they're 12 of'em: don't DON'T she'd've.",
    "languages": "Größe naïve — Привет, мир! 日本語のテキスト 한국어 नमस्ते العربية ไทย ½ ² Ⅷ ١٢٣",
    "emoji": "👩‍👩‍👧‍👦 🇩🇪🏳️‍🌈 e\u0301 \u200b\ufeff\u00a0\u3000\u2028x",
    "marks": "cafe\u0301 e\u0323\u0307\u0301x İIıſ ΟΔΟΣ ﬃ Å \u0301a 각\u1100\u1161",
    "code": "def f(x):\n\tif x >= 0x1F:\n\t\treturn {'a': [1, 2.5e-3]}  # ok\r\n\n\n    pass\n",
    "blanks": "  a   b\n\n\n  c \t \n d      ",
    "control": "\x00\x01\x0b\x0c\x1c\x1d\x1e\x1f\x7f\x80\x85\xa0\xad a\ufffdb \ue000",
    "markup": "<s>a</s> <unk>[MASK] ##a </w> ▁b<0x41> <|endoftext|>[SEP]<|startoftext|>",
    "empty": "",
    "blank": " ",
}
BLOCKS = (  # (first, last) of what is drawn more often than chance would
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0xDFF),
    (0x2000, 0x2BFF),
    (0x3000, 0x30FF),
    (0x4E00, 0x4EFF),
    (0xAC00, 0xACFF),
    (0x1F1E6, 0x1F64F),
    (0x0, 0x20),
)
NUMBERS = pytest.mark.parametrize(
    "number", [1_000, pytest.param(100_000, marks=pytest.mark.thorough)]
)
# Characters of one kind in a row, to be encoded within a second for a hundred thousand.
TIMES = pytest.mark.parametrize("times", [100_000, pytest.param(10**6, marks=pytest.mark.thorough)])


def shared(name):
    """A path of the data beside the checkout; without it the test is skipped."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the checkout")
    return path


def drawn_texts(number, without=frozenset(), real=PROSE, seed=0):
    """Texts drawn from any characters, from single blocks, from runs, and from bent prose.

    without: the characters that the two libraries to be compared know differently.
    """
    rng = np.random.default_rng(seed)
    for _ in range(number):
        text = KINDS[rng.integers(len(KINDS))](rng, real)
        yield "".join(character for character in text if character not in without)


def any_characters(rng, real):
    return "".join(CHARACTERS[i] for i in rng.integers(len(CHARACTERS), size=rng.integers(1, 30)))


def block(rng, real):
    first, last = BLOCKS[rng.integers(len(BLOCKS))]
    return "".join(map(chr, rng.integers(first, last, size=rng.integers(1, 40), endpoint=True)))


def runs(rng, real):
    """Few characters, each many times."""
    return "".join(block(rng, real)[:1] * rng.integers(1, 150) for _ in range(rng.integers(1, 4)))


def prose(rng, real):
    start = rng.integers(len(real))
    return real[start : start + rng.integers(1, 200)]


def bent_prose(rng, real):
    """Letters of prose lost, doubled, in the other case, or with something in their place."""
    letters = list(prose(rng, real))
    for i in rng.integers(len(letters), size=rng.integers(1, 8)):
        bent = (letters[i] * 2, "", letters[i].swapcase(), letters[i] + "\u0301", block(rng, real))
        letters[i] = bent[rng.integers(len(bent))]
    return "".join(letters)


KINDS = (any_characters, block, runs, prose, bent_prose)


@cache
def disagreeing():
    """The characters that `regex` and `tokenizers` class, compose or lower differently.

    They follow other versions of Unicode than Python, whose unassigned characters count too.
    """
    tokenizers = peer("tokenizers")
    different = {c for c in CHARACTERS if unicodedata.category(c) == "Cn"}
    for one_class in (r"\p{L}", r"\p{N}", r"\s"):
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(one_class), "removed", invert=True)
        theirs = "".join(piece for piece, _ in split.pre_tokenize_str(CHARACTERS))
        different |= set(theirs) ^ set(regex.findall(one_class, CHARACTERS))
    normalizers = tokenizers.normalizers
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    ours = [unicodedata.normalize("NFC", c).lower() for c in CHARACTERS]
    theirs = [normalizer.normalize_str(c) for c in CHARACTERS]
    different |= {c for c, a, b in zip(CHARACTERS, ours, theirs, strict=True) if a != b}
    return different | ordered_differently()


@cache
def ordered_differently():
    """The marks that the two put in another order beside one of class 1, or of class 230."""
    decomposed = peer("tokenizers").normalizers.NFD().normalize_str
    return {
        mark
        for mark in CHARACTERS
        if unicodedata.category(mark).startswith("M")
        for other in "\u0334\u0301"
        for text in (f"a{mark}{other}", f"a{other}{mark}")
        if decomposed(text) != unicodedata.normalize("NFD", text)
    }
