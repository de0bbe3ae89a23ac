"""Sentences with named entities: persons, places and organizations that the context tells apart.

All names are made of the same syllables, and those of the three parts differ: a model that learnt
names by heart finds none in the test.  "Mr Baladan" is a person and "in Baladan" a place.
"""

from reference.data.grammar.drawing import Draw, capitalized, distinct, made_name

TYPES = ("per", "loc", "org")
TAGS = ("O", *(f"{letter}-{kind}" for kind in TYPES for letter in "BI"))
CLAUSES = (
    "{title} {per} lives in {loc}",
    "{title} {per} works for {org}",
    "the {firm} {org} has an office in {loc}",
    "the mayor of {loc} met {title} {per}",
    "{title} {per} , who was born in {loc} , left {org} {time}",
    "the {firm} {org} hired {title} {per} {time}",
    "many people moved from {loc} to {loc} {time}",
    "shares of {org} fell {time}",
    "{title} {per} and {title} {per} wrote a letter to {org}",
    "it rained in {loc} {time}",
    "the road to {loc} was closed {time}",
    "nobody in {loc} knew {title} {per}",
    "the {firm} {org} sold its office {time}",
    "the train from {loc} was late {time}",
    "the meeting was moved {time}",
)
LINKS = ("and", "but", "while")
WORDS = {
    "title": "Mr Mrs Dr Captain Professor".split(),
    "firm": "bank company newspaper club firm".split(),
    "time": ["yesterday", "in May", "last year", "on Monday", "two weeks ago", "in the spring"],
}


def entities(number, *, part="train", seed=0):
    """Sentences of tagged words -> list of (words, tags), two tuples, with tags in IOB2.

    The types are per, loc and org.  Raises InputError for an unknown part.
    """
    draw = Draw(part, seed)

    def make():
        return draw.own(lambda: _sentence(draw), lambda row: " ".join(row[0]))

    return distinct(make, number)


def _sentence(draw):
    clauses = [draw.choice(CLAUSES)]
    if draw.percent(40):
        clauses += [draw.choice(LINKS), draw.choice(CLAUSES)]
    words, tags = [], []
    for slot in " ".join(clauses).split():
        kind = slot.strip("{}")
        found = _name(draw, kind) if kind in TYPES else draw.choice(WORDS.get(kind, [slot])).split()
        words += found
        tags += [f"{'I' if i else 'B'}-{kind}" if kind in TYPES else "O" for i in range(len(found))]
    words[0] = capitalized(words[0])
    return (*words, "."), (*tags, "O")


def _name(draw, kind):
    """The words of a name; those that are made are of this part alone."""
    name = draw.own(lambda: made_name(draw))
    if kind == "per":
        return [name, draw.own(lambda: made_name(draw))] if draw.percent(40) else [name]
    if kind == "loc":
        return draw.choice(([name], [name], ["New", name], [name, "Bay"]))
    return draw.choice(([name], [name], [name, "Works"], [name, "&", "Sons"]))
