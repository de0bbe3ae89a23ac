"""Reviews of films with their sentiment, where words alone do not tell it.

"The plot is not dull, but the cast is weak" has words of both kinds, and so has its opposite:
negation turns what it stands before, and of two clauses it is the one after "but", or the one
without "although", that counts.
"""

from reference.data.grammar.drawing import Draw, capitalized, distinct
from reference.errors import InputError

LABELS = ("negative", "positive", "mixed")
THINGS = "acting cast story plot music ending dialogue pace humour camera sound script hero villain"
THINGS = THINGS.split()
ADJECTIVES = {
    "positive": "good great brilliant moving funny clever charming superb fresh strong".split(),
    "negative": "bad dull weak boring silly clumsy tired awful bland poor".split(),
}
SURE = ("is", "is really", "is quite", "is truly", "seems", "was", "was very")
NOT = ("is not", "is never", "was not", "is hardly", "is far from", "was anything but")
START = ("", "", "", "to me, ", "in short, ", "honestly, ", "after all, ", "on the whole, ")
OPPOSITE = {"positive": "negative", "negative": "positive"}


def reviews(number, *, part="train", seed=0, labels=2):
    """Sentences with their sentiment -> list of (text, label), as many of each label by chance.

    labels: 2, negative and positive, or 3, with mixed: one clause of each, joined by "and".
    Half of them have one clause, the others two that contradict each other; a quarter of the
    clauses is negated.
    Raises InputError for another number of labels, an unknown part, or more rows than there are.
    """
    if labels not in (2, 3):
        raise InputError(f"labels is {labels!r}, and must be 2, or 3 to have mixed ones too")
    draw = Draw(part, seed)

    def make():
        label = LABELS[draw.below(labels)]
        return draw.own(lambda: _review(draw, label)), label

    return distinct(make, number)


def _review(draw, label):
    """One sentence of this sentiment."""
    main = draw.choice(LABELS[:2]) if label == "mixed" else label
    first, second = draw.several(THINGS, 2)
    said, other = _clause(draw, first, main), _clause(draw, second, OPPOSITE[main])
    start = draw.choice(START)
    if label == "mixed":
        text = f"{start}{said}, and {other}"
    elif draw.percent(50):
        text = start + said
    else:
        forms = (f"{other}, but {said}", f"although {other}, {said}", f"{said}, although {other}")
        text = start + draw.choice(forms)
    return capitalized(text) + "."


def _clause(draw, thing, sentiment):
    """What is said of one thing, a quarter of the time by the opposite, negated."""
    if draw.percent(75):
        return f"the {thing} {draw.choice(SURE)} {draw.choice(ADJECTIVES[sentiment])}"
    return f"the {thing} {draw.choice(NOT)} {draw.choice(ADJECTIVES[OPPOSITE[sentiment]])}"
