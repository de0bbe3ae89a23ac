import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.errors import DtypeError, InputError
from reference.metrics.spans import SpanScores, span_scores, spans_of
from tests.peers import peer

TAGS = st.sampled_from(
    ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("per", "loc", "creative-work"))]
)
SENTENCES = st.lists(
    st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=9), min_size=1, max_size=5
)


@given(SENTENCES)
def test_any_tags_count_as_seqeval_counts_them(sentences):
    """Turns red if I after O, or of another type than the tag before, begins no name."""
    theirs = peer("seqeval.metrics")
    entities = peer("seqeval.metrics.sequence_labeling").get_entities
    expected = [[a for a, _ in sentence] for sentence in sentences]
    predicted = [[b for _, b in sentence] for sentence in sentences]
    for tags in expected:
        assert spans_of(tags) == [(kind, first, last + 1) for kind, first, last in entities(tags)]
    together, types = span_scores(expected, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is 0 for want of names
        report = (
            theirs.classification_report(expected, predicted, output_dict=True, zero_division=0)
            if types
            else {}
        )
        assert together.f1 == pytest.approx(theirs.f1_score(expected, predicted))
        assert together.precision == pytest.approx(theirs.precision_score(expected, predicted))
        assert together.recall == pytest.approx(theirs.recall_score(expected, predicted))
    assert {*types} == {*report} - {"micro avg", "macro avg", "weighted avg"}
    for kind, scores in types.items():
        row = report[kind]
        assert scores.precision == pytest.approx(row["precision"])
        assert scores.recall == pytest.approx(row["recall"])
        assert scores.f1 == pytest.approx(row["f1-score"])
        assert scores.expected == row["support"]


@pytest.mark.parametrize(
    "tags",
    [
        "I-loc I-loc O I-loc B-loc I-per",  # IOB1
        "B-loc I-loc O B-loc B-loc B-per",  # IOB2
        "B-loc E-loc O S-loc S-loc S-per",  # IOBES
    ],
)
def test_three_ways_to_tag_the_same(tags):
    names = [("loc", 0, 2), ("loc", 3, 4), ("loc", 4, 5), ("per", 5, 6)]
    assert spans_of(tags.split()) == names


def test_names_of_two_sentences_do_not_join():
    """Turns red if sentences are counted as one row of tags."""
    expected = [["B-per"], ["I-per", "O"]]
    together, types = span_scores(expected, [["B-per"], ["O", "O"]])
    assert together == types["per"] == SpanScores(2, 1, 1)
    assert span_scores([["O"]], [["O"]]) == (SpanScores(0, 0, 0), {})


@pytest.mark.parametrize(
    ("expected", "predicted", "error", "message"),
    [
        ([["O"]], [["O"], ["O"]], InputError, "expected has 1 rows and predicted 2"),
        ([["O"], ["O"]], [["O"], ["O", "O"]], InputError, "sentence 1 has 1 tags expected and 2"),
        ([], [], InputError, "no rows"),
        ([["O"]], [["U-per"]], InputError, "sentence 0: tag 0 is 'U-per', .* write U- as S-"),
        ([["B-"]], [["O"]], InputError, "tag 0 is 'B-'"),
        ([["per"]], [["O"]], InputError, "tag 0 is 'per'"),
        ([[3]], [["O"]], InputError, "tag 0 is 3"),
        ("O", "O", DtypeError, "expected is of type str"),
    ],
)
def test_bad_input(expected, predicted, error, message):
    with pytest.raises(error, match=message):
        span_scores(expected, predicted)
