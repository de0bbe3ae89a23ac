"""Paragraphs about people with questions, some of which they do not answer.

A paragraph tells two or three things of each of three people, with the name once and then "he" or
"she".  What is asked of one is told of another too, so the kind of answer does not find it.  A
question has no answer where this was not told of this person, or the person is not there.
"""

import re
from operator import itemgetter

from reference.data.grammar.drawing import FIRST, Draw, check_number, made_name, part_of
from reference.data.squad import Question

WORDS = {
    "job": """baker teacher sailor doctor gardener painter tailor farmer driver miller smith clerk
        nurse printer barber weaver""".split(),
    "animals": "cats dogs goats hens geese horses rabbits ducks sheep bees".split(),
    "food": "soup bread fish rice cheese cake beans eggs noodles salad".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "game": "chess football tennis cards golf hockey rugby cricket dominoes billiards".split(),
}
# What is told, and what is asked of it, with the answer; {name} may be a pronoun in the first.
FACTS = (
    (
        "{name} lives in {town} with {number} {animals}.",
        (("Where does {name} live?", "town"), ("What animals does {name} have?", "animals")),
    ),
    (
        "{name} has worked as a {job} for {number} years.",
        (
            ("What is the job of {name}?", "job"),
            ("How many years has {name} worked?", "number"),
        ),
    ),
    (
        "{name} was born in {town} in {year}.",
        (("When was {name} born?", "year"), ("Where was {name} born?", "town")),
    ),
    (
        "{name} eats {food} on {day} and plays {game}.",
        (("What does {name} eat?", "food"), ("What does {name} play?", "game")),
    ),
)
PEOPLE, MOST = 3, 4  # people told of; questions on one paragraph
SLOT = re.compile(r"{(\w+)}")
TITLE = "Made by a grammar"


def questions(number, *, part="train", seed=0):
    """So many questions on paragraphs -> list of `reference.data.squad.Question`.

    Up to four follow each other on one paragraph; about a third has no answer.  An answer is where
    it says: context[start : start + len(text)].
    Raises InputError for an unknown part.
    """
    check_number(number)
    draw, found, contexts = Draw(part, seed), [], set()
    while len(found) < number:
        context, asked = _paragraph(draw)
        if context not in contexts:
            contexts.add(context)
            for question, answers in asked[: number - len(found)]:
                name = f"{part}-{seed}-{len(found)}"
                found.append(Question(name, TITLE, context, question, answers, not answers))
    return found


def _paragraph(draw):
    """A context, and questions on it that are of this part, perhaps none."""
    people = [_person(draw) for _ in range(PEOPLE)]
    if len({name for _, name in people}) < PEOPLE:
        return _paragraph(draw)  # of two with one name, neither could be asked about
    sentences, length, pools = [], 0, ([], [])
    for who, name in people:
        facts = draw.several(FACTS, len(FACTS))
        told = 2 + draw.below(2)
        for n, (form, asked) in enumerate(facts[:told]):
            subject = who.capitalize() if n else name
            text, slots = draw.own(lambda f=form, s=subject: _filled(draw, f, s), itemgetter(0))
            for question, slot in asked:
                answer, start = slots[slot]
                pools[0].append((question.format(name=name), ((answer, length + start),)))
            sentences.append(text)
            length += len(text) + 1
        pools[1].extend((q.format(name=name), ()) for _, asked in facts[told:] for q, _ in asked)
    stranger = _person(draw)[1]
    if stranger not in (name for _, name in people):
        pools[1].append((draw.choice(draw.choice(FACTS)[1])[0].format(name=stranger), ()))
    with_answer, without = ([q for q in pool if part_of(q[0]) == draw.part] for pool in pools)
    chosen = []
    for _ in range(MOST):
        pool = without if draw.percent(33) else with_answer
        if pool:
            chosen.append(pool.pop(draw.below(len(pool))))
    return " ".join(sentences), chosen


def _person(draw):
    """A pronoun and a name."""
    who = draw.choice(tuple(FIRST))
    return who, f"{draw.choice(FIRST[who])} {made_name(draw)}"


def _filled(draw, form, subject):
    """A sentence, and {slot: (what fills it, where that starts)}."""
    text, slots, after = "", {}, 0
    for match in SLOT.finditer(form):
        text += form[after : match.start()]
        value = subject if match[1] == "name" else _value(draw, match[1])
        slots[match[1]] = value, len(text)
        text, after = text + value, match.end()
    return text + form[after:], slots


def _value(draw, slot):
    if slot == "town":
        return made_name(draw)
    if slot == "number":
        return str(2 + draw.below(60))
    if slot == "year":
        return str(1900 + draw.below(100))
    return draw.choice(WORDS[slot])
