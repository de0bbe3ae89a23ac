"""What is expected here was computed by transformers 4.57's copy of SQuAD 2.0's official script.

transformers 5 has it no more, and no other library has all of it.
"""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.data.squad import Question
from reference.errors import DtypeError, InputError
from reference.metrics.answers import answer_f1, exact_match, normalized_answer, squad_scores


@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [
        ("Rhine’s", ["The Rhine.", "über-Rhine", "İ the"], 0, 0),
        ("Rhine Rhine", ["U.S. Rhine"], 0, 0.5),
        ("the", [], 1, 1),
        ("a river, the Rhine", [], 0, 0),
        ("Rhine", ["the Rhine", "İ the", "theatre"], 1, 1),
        ("an  A the", ["the"], 1, 1),
        ("Rhine", ["İ the", "a river, the Rhine"], 0, 2 / 3),
        ("U.S. Rhine", ["a river, the Rhine", "theatre"], 0, 0.5),
        ("Rhine Rhine", ["1000 KM", "Rhine"], 0, 2 / 3),
        ("", [""], 1, 1),
        ("The Rhine.", ["İ the", "Rhine"], 1, 1),
        ("Rhine", ["the"], 0, 0),
        ("1,000 km", ["1000 KM", "İ the"], 1, 1),
        ("«Rhine»", [], 0, 0),
    ],
)
def test_an_answer_is_scored_as_by_the_official_script(predicted, answers, exact, f1):
    assert exact_match(predicted, answers) == exact
    assert answer_f1(predicted, answers) == pytest.approx(f1, abs=1e-15)


ANSWERS = [
    ["über-Rhine"], [], [], ["Rhine Rhine"], ["1000 KM"], ["the Rhine"], [], ["the Rhine"],
    ["Rhine’s"], ["İ the"], ["1000 KM"], ["Rhine Rhine", "an  A the"],
]  # fmt: skip
PREDICTED = [
    "über-Rhine", "an  A the", "a river, the Rhine", "1,000 km", "1000 KM", "a river, the Rhine",
    "a river, the Rhine", "the Rhine", "a river, the Rhine", "İ the", "über-Rhine", "«Rhine»",
]  # fmt: skip
NO_ANSWER = [0.5, 0.0, 0.25, 0.0, 0.25, 0.25, 0.75, 0.0, 0.75, 0.0, 0.0, 0.0]
OFFICIAL = {
    "exact": 50.0,
    "f1": 55.55555555555555,
    "total": 12,
    "HasAns_exact": 44.44444444444444,
    "HasAns_f1": 51.85185185185185,
    "HasAns_total": 9,
    "NoAns_exact": 66.66666666666667,
    "NoAns_f1": 66.66666666666667,
    "NoAns_total": 3,
    "best_exact": 41.666666666666664,
    "best_exact_thresh": 0.5,
    "best_f1": 47.22222222222223,
    "best_f1_thresh": 0.5,
}


def questions(answers):
    return [
        Question(str(i), "", "", "", tuple((text, 0) for text in marked), not marked)
        for i, marked in enumerate(answers)
    ]


def numbered(values):
    return {str(i): value for i, value in enumerate(values)}


def test_all_scores_are_the_official_scripts():
    """Turns red if a threshold withdraws what equals it, or "the" counts as no answer given."""
    found = squad_scores(
        questions(ANSWERS), numbered(PREDICTED), no_answer=numbered(NO_ANSWER), threshold=0.5
    )
    assert list(found) == list(OFFICIAL)
    assert found == pytest.approx(OFFICIAL)


def test_of_equal_thresholds_the_lowest_is_the_best():
    asked = questions([[], ["Ulm"], ["Ulm"]])
    found = squad_scores(
        asked, numbered(["", "Ulm", "Bonn"]), no_answer=numbered([0.9, 0.25, 0.75])
    )
    assert found["best_exact"] == found["best_f1"] == pytest.approx(200 / 3)
    assert found["best_exact_thresh"] == found["best_f1_thresh"] == 0.25


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_right_answers_have_all_points(has):
    asked = questions([["Ulm"] if answerable else [] for answerable in has])
    found = squad_scores(asked, numbered("ulm" if answerable else "" for answerable in has))
    assert found["exact"] == found["f1"] == 100 and found["total"] == len(has)
    assert found.get("HasAns_total", 0) == sum(has)
    assert ("NoAns_exact" in found) == (not all(has))
    assert "best_f1" not in found


@given(st.text(max_size=20))
def test_normalizing_twice_changes_nothing(text):
    once = normalized_answer(text)
    assert not {*once} & {*string.punctuation} and not {*once.split()} & {"a", "an", "the"}
    assert normalized_answer(once) == once


ASKED = questions([["Ulm"], []])
GOOD = {"0": "Ulm", "1": ""}


@pytest.mark.parametrize(
    ("asked", "predicted", "more", "error", "message"),
    [
        ([], {}, {}, InputError, "no questions"),
        (ASKED, {"0": "Ulm"}, {}, InputError, "predicted has nothing for question '1'"),
        (ASKED, GOOD | {"2": ""}, {}, InputError, "predicted has '2', which is the id of no"),
        (ASKED, GOOD | {"1": None}, {}, DtypeError, r"predicted\['1'\]\[0\] is of type NoneType"),
        (ASKED, GOOD, {"no_answer": {"0": 1}}, InputError, "no_answer has nothing for"),
        (ASKED, GOOD, {"no_answer": {"0": 1, "1": 2}}, InputError, r"no_answer\['1'\] is 2.*sigm"),
        (ASKED, GOOD, {"no_answer": {"0": float("nan"), "1": 1}}, InputError, "is nan"),
    ],
)
def test_bad_input(asked, predicted, more, error, message):
    with pytest.raises(error, match=message):
        squad_scores(asked, predicted, **more)


def test_one_text_is_no_list_of_answers():
    with pytest.raises(DtypeError, match="answers must be a list of str"):
        exact_match("a", "a")
    with pytest.raises(DtypeError, match=r"answers\[0\] is of type int"):
        answer_f1("a", [1])
