"""Rows drawn from a grammar, and to which part each of their sentences belongs.

A sentence's own hash says whether it is for training, validation or test, before any is drawn.  So
parts cannot share one, and need not know of each other.
"""

from hashlib import blake2b

from reference import random
from reference.errors import InputError

PARTS = ("train", "validation", "test")
SHARE = 8  # one of so many sentences is for validation, and one for the test
TRIES = 10_000
BLOCK = 4096  # random words made at a time


def part_of(sentence):
    """The part to which a sentence, or a name, belongs."""
    number = int.from_bytes(blake2b(sentence.encode(), digest_size=4).digest(), "little") % SHARE
    return {0: "validation", 1: "test"}.get(number, "train")


class Draw:
    """Random choices for one part, one after another."""

    def __init__(self, part, seed):
        if part not in PARTS:
            raise InputError(f"part is {part!r}, and must be one of {list(PARTS)}")
        self.part = part
        self._words = self._stream(random.fold_in(random.key(seed), PARTS.index(part)))

    @staticmethod
    def _stream(key):
        block = 0
        while True:
            yield from random.bits(random.fold_in(key, block), (BLOCK,)).tolist()
            block += 1

    def below(self, number):
        """An integer of [0, number): ⌊word · number / 2³²⌋."""
        return next(self._words) * number >> 32

    def choice(self, options):
        """One of a sequence."""
        return options[self.below(len(options))]

    def percent(self, chance):
        """True so often of a hundred."""
        return self.below(100) < chance

    def several(self, options, number):
        """Different ones of a sequence, in random order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(number)]

    def own(self, make, text=lambda made: made):
        """What `make()` makes, again and again until its text is of this part."""
        for _ in range(TRIES):
            if part_of(text(made := make())) == self.part:
                return made
        raise InputError(f"the grammar has no sentence for {self.part}: give it more words")


def check_number(number):
    """Raise unless this can be a number of rows."""
    if isinstance(number, bool) or not hasattr(number, "__index__") or number < 1:
        raise InputError(f"number is {number!r}, and must be an integer of at least 1")


def capitalized(text):
    """With its first letter in upper case, and the others as they are."""
    return text[0].upper() + text[1:]


def distinct(make, number):
    """So many different rows that `make()` makes; None from it, or a row that was, is no row.

    Raises InputError where there are no more.
    """
    check_number(number)
    rows, left = {}, TRIES
    while len(rows) < number:
        row = make()
        left = TRIES if row is not None and row not in rows else left - 1
        if not left:
            raise InputError(f"the grammar has no more than {len(rows):,} rows: ask for fewer")
        if row is not None:
            rows.setdefault(row)
    return list(rows)


BEGIN = "Bal Bren Cor Dal Der Esk Fal Gor Hal Hest Jor Kal Kren Lor Mar Mel Nar Nor Or Pel Quin"
BEGIN = (BEGIN + " Ral Ros Sel Sor Tal Tor Ul Val Ver Wil Yar Zel").split()
MIDDLE = "a e i o u an en in on ar er or".split()
END = "dan del dor fen gar len lin mar mor nes rin ros sen tan tis vek ver vin wick zan".split()


def made_name(draw):
    """A name that nobody has: 7,920 of them."""
    return draw.choice(BEGIN) + draw.choice(MIDDLE) + draw.choice(END)


FIRST = {
    "he": "Adam Ben Carl David Emil Felix George Hugo Ivan Jonas Leo Max Noah Oscar Paul",
    "she": "Anna Bella Clara Dora Eva Frida Greta Hanna Ida Julia Lena Maria Nina Olga Rosa",
}
FIRST = {who: names.split() for who, names in FIRST.items()}
