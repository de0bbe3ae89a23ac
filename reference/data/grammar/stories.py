"""Short texts about people: as they are, for a model to go on with, or each with its summary.

A summary says who bought what, where and for whom.  The place is in one sentence and the thing in
another, which has "he" or "she" only; between them other people do something else.  So neither the
first sentence nor the words that are frequent make a summary.
"""

from operator import itemgetter

from reference.data.grammar.drawing import FIRST, Draw, capitalized, distinct

PLACES = """market harbour station library museum school park mill bakery castle theatre garden
    bridge square river forest village farm church beach""".split()
THINGS = """apples pears books lamps letters maps shoes hats flowers cakes candles chairs baskets
    bottles brushes cups keys ropes shirts spoons stones toys""".split()
KINDS = "red blue green old new small large cheap heavy fine white round".split()
NUMBERS = "two three four five six seven eight nine ten".split()
WHEN = """on Monday, on Tuesday, on Friday, on Sunday, in the morning, in the evening, after lunch,
    before noon, in spring, last week"""
WHEN = [time.strip() for time in WHEN.split(",")]
MOODS = "happy sad tired proud quiet cheerful angry calm curious worried".split()
GIVE = ("gave them to", "sent them to", "took them home for")
WEATHER = "sunny rainy windy cold warm foggy cloudy stormy".split()
DOES = """read a book, sang a song, fed the birds, wrote a letter, slept, cleaned the windows,
    played the piano, painted a wall, waited for a friend, looked for a key, told a tale, swam"""
DOES = [deed.strip() for deed in DOES.split(",")]


def summaries(number, *, part="train", seed=0):
    """Texts of four to seven sentences with a summary of one -> list of (text, summary).

    Raises InputError for an unknown part, or more texts than there are.
    """
    draw = Draw(part, seed)
    return distinct(lambda: draw.own(lambda: _errand(draw), lambda row: row[1]), number)


def stories(number, *, part="train", seed=0):
    """Texts of four to six sentences about one person -> list of str.

    Raises InputError for an unknown part, or more texts than there are.
    """
    draw = Draw(part, seed)
    return distinct(lambda: _story(draw), number)


def _errand(draw):
    who, name = _person(draw)
    friend = draw.choice(FIRST[draw.choice(tuple(FIRST))])
    if friend == name:
        return _errand(draw)
    went, place = draw.own(lambda: _went(draw, name), itemgetter(0))
    bought, goods = draw.own(lambda: _bought(draw, who), itemgetter(0))
    gave = draw.own(
        lambda: (
            f"{capitalized(draw.choice(WHEN))} {who} {draw.choice(GIVE)} {friend}, "
            f"who was {draw.choice(MOODS)}."
        )
    )
    others = [_other(draw, name) for _ in range(1 + draw.below(4))]
    between = draw.below(len(others) + 1)
    text = [went, *others[:between], bought, gave, *others[between:]]
    if draw.percent(50) and between < len(others):
        text = [others[-1], *text[:-1]]
    return " ".join(text), f"{name} bought {goods} at the {place} for {friend}."


def _went(draw, name):
    place = draw.choice(PLACES)
    return f"{name} went to the {place} {draw.choice(WHEN)}.", place


def _bought(draw, who):
    goods = f"{draw.choice(NUMBERS)} {draw.choice(KINDS)} {draw.choice(THINGS)}"
    return f"There {who} bought {goods} and {draw.choice(DOES)}.", goods


def _person(draw):
    """A pronoun and a first name."""
    who = draw.choice(tuple(FIRST))
    return who, draw.choice(FIRST[who])


def _other(draw, name):
    """A sentence about someone or something else."""

    def make():
        _, other = _person(draw)
        if other == name or draw.percent(20):
            return (
                f"It was {draw.choice(WEATHER)} at the {draw.choice(PLACES)} {draw.choice(WHEN)}."
            )
        if draw.percent(50):
            return (
                f"{other} saw {draw.choice(NUMBERS)} {draw.choice(KINDS)} {draw.choice(THINGS)} at "
                f"the {draw.choice(PLACES)}."
            )
        return f"{other} {draw.choice(DOES)} near the {draw.choice(PLACES)}."

    return draw.own(make)


def _story(draw):
    who, name = _person(draw)
    his, him = {"he": ("his", "him"), "she": ("her", "her")}[who]
    first = draw.own(
        lambda: (
            f"{capitalized(draw.choice(WHEN))} {name} was {draw.choice(MOODS)} and "
            f"{draw.choice(DOES)}."
        )
    )
    middle = [draw.own(lambda: _event(draw, who, his, him)) for _ in range(2 + draw.below(3))]
    last = draw.own(
        lambda: (
            f"In the end {name} went back to the {draw.choice(PLACES)} with {his} "
            f"{draw.choice(KINDS)} {draw.choice(THINGS)}."
        )
    )
    return " ".join([first, *middle, last])


def _event(draw, who, his, him):
    place, thing = draw.choice(PLACES), f"{draw.choice(KINDS)} {draw.choice(THINGS)}"
    return draw.choice(
        (
            f"At the {place} {who} found {draw.choice(NUMBERS)} {thing}.",
            f"Then {who} {draw.choice(DOES)} in the {draw.choice(WEATHER)} {place}.",
            f"{who.capitalize()} lost {his} {thing} near the {place}.",
            f"A friend from the {place} gave {him} {thing}.",
        )
    )
