"""Made corpora as files, in the forms that our readers read: as a user's own would be."""

import csv
import io
import json
from itertools import groupby
from pathlib import Path

from reference.data.grammar.drawing import PARTS
from reference.data.grammar.entities import entities
from reference.data.grammar.questions import TITLE, questions
from reference.data.grammar.reviews import reviews
from reference.data.grammar.stories import stories, summaries
from reference.data.grammar.translation import translation
from reference.errors import InputError

MAKERS = {
    "reviews": reviews,
    "entities": entities,
    "translation": translation,
    "summaries": summaries,
    "questions": questions,
    "stories": stories,
}
ABOUT = "about.txt"


def write_corpus(task, folder, *, train=2000, validation=200, test=200, seed=0, **options):
    """Write the three parts of a made corpus into a folder -> {part: path, or (source, target)}.

    task: reviews (.csv with text and label), entities (.conll), translation (.en and .de),
    summaries (.csv with text and summary), questions (.json in SQuAD 2.0's form), stories (.txt,
    with a blank line between two).  train, validation, test: rows, for questions those; 0 for none.
    options: those of the task's own function, such as labels=3.  about.txt says what the files are.

    The same call writes the same bytes.  Raises InputError for an unknown task, and where a file is
    there that is not what would be written; then nothing is written.
    """
    if task not in MAKERS:
        raise InputError(f"task is {task!r}, and must be one of {list(MAKERS)}")
    folder, paths = Path(folder), {}
    contents = {folder / ABOUT: _about(task, seed)}
    for part, number in zip(PARTS, (train, validation, test), strict=True):
        if number == 0:
            continue
        rows = MAKERS[task](number, part=part, seed=seed, **options)
        written = {folder / (part + end): text for end, text in FORMS[task](rows).items()}
        paths[part] = tuple(written) if len(written) > 1 else next(iter(written))
        contents |= written
    for path, text in contents.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise InputError(
                f"{path} is there, and is something else: give an empty folder, or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in contents.items():
        path.write_bytes(text.encode())
    return paths


def _about(task, seed):
    return (
        f"These files were made by a program, Twinformer's grammar of {task} (seed {seed}).\n"
        "They are not language as people use it: what is reached on them shows that a model can\n"
        "learn the grammar, and nothing about real texts.\n"
    )


def _table(names):
    """What makes a CSV file of rows with these columns."""

    def form(rows):
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator="\n").writerows([names, *rows])
        return {".csv": file.getvalue()}

    return form


def _conll(rows):
    blocks = ("".join(f"{w}\t{t}\n" for w, t in zip(*row, strict=True)) for row in rows)
    return {".conll": "\n".join(blocks)}


def _parallel(rows):
    return {
        end: "".join(f"{row[side]}\n" for row in rows) for side, end in enumerate((".en", ".de"))
    }


def _squad(rows):
    paragraphs = [
        {"context": context, "qas": [_question(row) for row in asked]}
        for context, asked in groupby(rows, lambda row: row.context)
    ]
    document = {"version": "v2.0", "data": [{"title": TITLE, "paragraphs": paragraphs}]}
    return {".json": json.dumps(document, ensure_ascii=False) + "\n"}


def _question(row):
    answers = [{"text": text, "answer_start": start} for text, start in row.answers]
    asked = {"id": row.id, "question": row.question, "answers": answers}
    return asked | {"is_impossible": row.unanswerable}


def _text(rows):
    return {".txt": "\n\n".join(rows) + "\n"}


FORMS = {
    "reviews": _table(["text", "label"]),
    "entities": _conll,
    "translation": _parallel,
    "summaries": _table(["text", "summary"]),
    "questions": _squad,
    "stories": _text,
}
