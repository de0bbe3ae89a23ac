"""Questions on paragraphs, whose answers are parts of the paragraph: SQuAD's form."""

from dataclasses import dataclass
from json import JSONDecodeError

from reference.data.rows import STOP, at_least_one, open_file, strict_json
from reference.errors import InputError

NAMES = {str: "text", list: "a list", int: "an integer", bool: "true or false"}


@dataclass(frozen=True)
class Question:
    """A question, the paragraph it is asked on, and the answers that people marked in it."""

    id: str
    title: str  # of the article
    context: str  # the paragraph
    question: str
    answers: tuple[tuple[str, int], ...]  # each one's text, and the character it starts at
    unanswerable: bool  # as SQuAD 2.0 has some; then there are no answers


def read_squad(path, *, wrong=STOP):
    """Yield the Questions of a SQuAD 1.1 or 2.0 file, which may be packed as .gz.

    The file is one JSON document, so all of it is read into memory.

    Wrong, and left out where `wrong` skips, are articles, paragraphs and questions that lack
    something or have it of another type, an id that was there before, an answer whose text is not
    where it says, a question without answers that is not marked as impossible, and one with both.
    Raises OSError for what cannot be opened, InputError for what is not UTF-8, JSON or in this
    form, and where there are no questions.

    Source: Rajpurkar et al. 2016 (1.1); Rajpurkar, Jia and Liang 2018 (2.0); their released files.
    """
    return at_least_one(_questions(path, wrong), path, wrong)


def _questions(path, wrong):
    ids = set()
    for a, article in enumerate(_articles(path)):
        here = f"article {a + 1}"
        for p, paragraph in enumerate(_parts(path, here, article, "paragraphs", wrong)):
            there = f"{here}, paragraph {p + 1}"
            for q, asked in enumerate(_parts(path, there, paragraph, "qas", wrong)):
                name = f"{there}, question {q + 1}"
                try:
                    question = _question(article, paragraph, asked)
                    if question.id in ids:
                        raise ValueError("a question before it has the same id")
                except ValueError as error:
                    known = asked.get("id") if isinstance(asked, dict) else None
                    wrong(path, None, f"{name} (id {known!r:.40}): {error}")
                else:
                    ids.add(question.id)
                    yield question


def _articles(path):
    """What is under "data".  Raises InputError for another file."""
    with open_file(path) as file:
        content = file.read()
    try:
        document = strict_json(content.decode("utf-8-sig"))
        return _get(document, "data", list)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file "
            "as UTF-8"
        ) from None
    except JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}: it is not JSON ({error.msg} at character {error.colno});"
            " if it is cut short, copy it again"
        ) from None
    except ValueError as error:
        raise InputError(
            f'{path}: {error}; give a file in SQuAD\'s form, {{"data": [{{"title": …, "paragraphs":'
            ' [{"context": …, "qas": […]}]}]}'
        ) from None


def _parts(path, name, whole, key, wrong):
    """The list under a key, empty where there is none."""
    try:
        return _get(whole, key, list)
    except ValueError as error:
        wrong(path, None, f"{name}: {error}")
        return []


def _question(article, paragraph, asked):
    """One Question.  Raises ValueError for what is missing or does not fit."""
    identity, question = _get(asked, "id", str), _get(asked, "question", str)
    title, context = _get(article, "title", str), _get(paragraph, "context", str)
    unanswerable = "is_impossible" in asked and _get(asked, "is_impossible", bool)
    answers = tuple(_answer(answer, context) for answer in _get(asked, "answers", list))
    if unanswerable and answers:
        raise ValueError("it is_impossible, and has answers")
    if not unanswerable and not answers:
        raise ValueError("it has no answers, and does not say that it is_impossible")
    return Question(identity, title, context, question, answers, unanswerable)


def _answer(answer, context):
    text, start = _get(answer, "text", str), _get(answer, "answer_start", int)
    if not text:
        raise ValueError("an answer is empty")
    if start < 0 or not context.startswith(text, start):
        found = context.find(text)
        place = "nowhere in its paragraph" if found < 0 else f"at character {found} instead"
        raise ValueError(
            f"the answer {text!r:.60} is not at its answer_start, {start}: it is {place}"
        )
    return text, start


def _get(part, key, kind):
    """part[key], if it is there and of this type."""
    if not isinstance(part, dict):
        raise ValueError(f"{part!r:.40} must be an object with {key!r}")
    if key not in part:
        raise ValueError(f"there is no {key!r}")
    if type(part[key]) is not kind:
        raise ValueError(f"{key!r} is {part[key]!r:.40}, and must be {NAMES[kind]}")
    return part[key]
