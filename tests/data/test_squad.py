import copy
import gzip
import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.data.rows import WrongRows
from reference.data.squad import Question, read_squad
from reference.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
CONTEXT = "Die Brücke 😀 of Ulm: the bridge of Ulm."
ASKED = {"id": "q", "question": "Where?", "answers": [{"text": "Ulm", "answer_start": 16}]}


def document(*asked, context=CONTEXT, title="Bridges"):
    return {"data": [{"title": title, "paragraphs": [{"context": context, "qas": list(asked)}]}]}


def written(folder, value):
    path = folder / "questions.json"
    content = value if isinstance(value, (bytes, str)) else json.dumps(value)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, message):
    with pytest.raises(InputError, match=message) as raised:
        list(read_squad(path))
    assert str(path) in str(raised.value)


def test_both_versions_are_read(tmp_path):
    answers = [{"text": "Ulm", "answer_start": 16}, {"text": "of Ulm", "answer_start": 32}]
    old = ASKED | {"answers": answers}
    new = {"id": "r", "question": "When?", "answers": [], "is_impossible": True}
    plausible = new | {"id": "s", "plausible_answers": answers}
    both = old | {"id": "t", "is_impossible": False}
    path = written(tmp_path, {"version": "v2.0"} | document(old, new, plausible, both))
    marked = (("Ulm", 16), ("of Ulm", 32))
    assert list(read_squad(path)) == [
        Question("q", "Bridges", CONTEXT, "Where?", marked, False),
        Question("r", "Bridges", CONTEXT, "When?", (), True),
        Question("s", "Bridges", CONTEXT, "When?", (), True),
        Question("t", "Bridges", CONTEXT, "Where?", marked, False),
    ]


def test_a_question_cannot_be_changed(tmp_path):
    question = next(read_squad(written(tmp_path, document(ASKED))))
    with pytest.raises(FrozenInstanceError):
        question.context = ""
    assert hash(question)


def test_packed_files_and_byte_order_marks_are_read(tmp_path):
    content = ("\ufeff" + json.dumps(document(ASKED), ensure_ascii=False)).encode()
    path = tmp_path / "q.json.gz"
    path.write_bytes(gzip.compress(content))
    assert list(read_squad(path)) == list(read_squad(written(tmp_path, content)))


@FOLDER
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), st.data())
def test_an_answer_must_be_where_it_says(tmp_path, context, data):
    """Turns red if a start below 0 counts from the end, or bytes are counted for characters."""
    length = data.draw(st.integers(1, len(context)))
    start = data.draw(st.integers(-len(context) - 1, len(context) + 1))
    real = data.draw(st.integers(0, len(context) - length))
    text = context[real : real + length]
    asked = ASKED | {"answers": [{"text": text, "answer_start": start}]}
    path = written(tmp_path, document(asked, context=context))
    if start >= 0 and context[start : start + length] == text:
        assert next(read_squad(path)).answers == ((text, start),)
    else:
        refused(path, f"not at its answer_start, {start}: it is at character {context.find(text)} ")


def changed(part, **values):
    """A document with one thing in it changed, or taken out where it is None."""
    value = copy.deepcopy(document(ASKED))
    article = value["data"][0]
    paragraph = article["paragraphs"][0]
    question = paragraph["qas"][0]
    parts = {"article": article, "paragraph": paragraph, "question": question}
    chosen = (parts | {"answer": question["answers"][0]})[part]
    chosen.update(values)
    for name in [name for name, v in values.items() if v is None]:
        del chosen[name]
    return value


HERE = "article 1, paragraph 1, question 1"


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (
            "answer",
            {"answer_start": 15},
            f"{HERE} .id 'q'.: the answer 'Ulm' .*, 15: .* 16 instead",
        ),
        ("answer", {"text": "Bonn"}, "the answer 'Bonn' is not .*: it is nowhere in its paragraph"),
        ("answer", {"text": ""}, "an answer is empty"),
        ("answer", {"text": None}, "there is no 'text'"),
        ("answer", {"answer_start": None}, "there is no 'answer_start'"),
        ("answer", {"answer_start": "16"}, "'answer_start' is '16', and must be an integer"),
        ("answer", {"answer_start": True}, "'answer_start' is True, and must be an integer"),
        ("question", {"id": None}, rf"{HERE} \(id None\): there is no 'id'"),
        ("question", {"id": 7}, "'id' is 7, and must be text"),
        ("question", {"question": None}, "there is no 'question'"),
        ("question", {"answers": None}, "there is no 'answers'"),
        ("question", {"answers": {}}, "'answers' is {}, and must be a list"),
        ("question", {"answers": ["Ulm"]}, "'Ulm' must be an object with 'text'"),
        ("question", {"answers": []}, "no answers, and does not say that it is_impossible"),
        ("question", {"is_impossible": True}, "it is_impossible, and has answers"),
        ("question", {"is_impossible": 1}, "'is_impossible' is 1, and must be true or false"),
        ("paragraph", {"context": None}, f"{HERE} .*: there is no 'context'"),
        ("paragraph", {"qas": None}, "article 1, paragraph 1: there is no 'qas'"),
        ("paragraph", {"qas": [3]}, "3 must be an object with 'id'"),
        ("article", {"title": None}, "there is no 'title'"),
        ("article", {"paragraphs": None}, "article 1: there is no 'paragraphs'"),
        ("article", {"paragraphs": [[]]}, r"article 1, paragraph 1: \[\] must be an object"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path, part, values, message):
    value = changed(part, **values)
    path = written(tmp_path, value)
    refused(path, f"{message}.*correct it, or give --skip-wrong-rows")
    value["data"] += document(ASKED | {"id": "good"})["data"]
    wrong = WrongRows(skip=True)
    found = list(read_squad(written(tmp_path, value), wrong=wrong))
    assert [question.id for question in found] == ["good"] and wrong.count == 1


def test_an_id_comes_once(tmp_path):
    path = written(tmp_path, document(ASKED, ASKED | {"id": "r"}, ASKED))
    refused(path, "question 3 .id 'q'.: a question before it has the same id")
    found = read_squad(path, wrong=WrongRows(skip=True))
    assert [question.id for question in found] == ["q", "r"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [\n{"title":]}', r"line 2: it is not JSON \(Expecting value at character 10\)"),
        ("", "line 1: it is not JSON"),
        ("[]", "must be an object with 'data'; give a file in SQuAD's form"),
        ('{"questions": []}', "there is no 'data'; give a file in SQuAD's form"),
        ('{"data": {}}', "'data' is {}, and must be a list; give"),
        ('{"data": [], "data": []}', "it has the key 'data' twice"),
        (r'{"data": ["\ud83d"]}', "half of a surrogate pair"),
        (b'{"data":\n"\xfc"}', "line 2: byte 0xfc is not UTF-8; save the file"),
        ('{"data": []}', "has no rows"),
        (json.dumps(document()), "has no rows"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = written(tmp_path, content)
    refused(path, message)
    with pytest.raises(InputError, match=message):
        list(read_squad(path, wrong=WrongRows(skip=True)))


def test_a_file_cut_short_is_refused(tmp_path):
    whole = json.dumps(document(ASKED)).encode()
    for length in range(0, len(whole), 7):
        refused(written(tmp_path, whole[:length]), "it is not JSON .*cut short, copy it again")


def test_nothing_but_wrong_questions_is_an_error(tmp_path):
    path = written(tmp_path, changed("answer", text="Bonn"))
    with pytest.raises(InputError, match="has no row that can be used(.|\n)*nowhere"):
        list(read_squad(path, wrong=WrongRows(skip=True)))


def test_the_questions_of_squad_are_read():
    path = SHARED / "squad2_dev_half" / "dev-v2.0.json"
    if not path.exists():
        pytest.skip("squad2_dev_half is not beside the checkout")
    questions = list(read_squad(path))
    assert len(questions) == len({q.id for q in questions}) == 6078
    assert sum(q.unanswerable for q in questions) == 3168
    for q in questions:
        assert q.unanswerable == (not q.answers)
        assert all(q.context[start : start + len(text)] == text for text, start in q.answers)
