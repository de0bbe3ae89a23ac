import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.errors import DtypeError, InputError
from reference.metrics.classification import accuracy, classification
from tests.peers import peer

KINDS = st.sampled_from(
    [[0, 1], [-3, 5, 11, 2], ["good", "bad", "so-so"], ["a", "B", "é", "z", ""]]
)


@st.composite
def rows(draw):
    labels = st.sampled_from(draw(KINDS))
    pairs = draw(st.lists(st.tuples(labels, labels), min_size=1, max_size=20))
    return [a for a, _ in pairs], [b for _, b in pairs]


@given(rows(), st.data())
def test_all_equals_scikit_learn(both, data):
    """Turns red if precision and recall are exchanged, or macro F1 is that of the two means."""
    metrics = peer("sklearn.metrics")
    labels = sorted({*both[0], *both[1]})
    if data.draw(st.booleans()):  # classes that do not occur, in another order
        more = [label for label in (7, 70) if isinstance(labels[0], int)]
        labels = data.draw(st.permutations([*labels, *(more or ["y", "yy"])]))
        found = classification(*both, labels=labels)
    else:
        found = classification(*map(np.array, both))
    assert list(found.labels) == labels
    theirs = {"labels": labels, "zero_division": 0}
    precision, recall, f1, support = metrics.precision_recall_fscore_support(*both, **theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is but one class
        matrix = metrics.confusion_matrix(*both, labels=labels)
    np.testing.assert_array_equal(found.confusion, matrix)
    np.testing.assert_array_equal(found.support, support)
    for ours, their in ((found.precision, precision), (found.recall, recall), (found.f1, f1)):
        np.testing.assert_allclose(ours, their, rtol=1e-12)
    macro = metrics.f1_score(*both, average="macro", **theirs)
    assert found.macro_f1 == pytest.approx(macro, rel=1e-12)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(*both), rel=1e-12)
    assert accuracy(*both) == found.accuracy


def test_a_matrix_read_by_hand():
    found = classification(["a", "a", "a", "b"], ["a", "b", "a", "c"])
    assert found.labels == ("a", "b", "c")
    assert found.confusion.tolist() == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert found.accuracy == 0.5
    assert found.macro_f1 == pytest.approx(0.8 / 3)


@pytest.mark.parametrize(
    ("expected", "predicted", "labels", "error", "message"),
    [
        ([1, 0], [1], None, InputError, "expected has 2 rows and predicted 1"),
        ([], [], None, InputError, "no rows"),
        ("abc", ["a"], None, DtypeError, "expected is of type str"),
        ([1], 1, None, DtypeError, "predicted is of type int"),
        ([1, 0.5], [1, 1], None, DtypeError, r"expected\[1\] is of type float.*argmax"),
        ([1], [True], None, DtypeError, r"predicted\[0\] is of type bool"),
        ([1], ["1"], None, DtypeError, "some labels are integers and some are str"),
        (["a"], ["b"], ["a"], InputError, r"predicted\[0\] is 'b', and must be one of \['a'\]"),
        (["c"], ["a"], ["a"], InputError, r"expected\[0\] is 'c'"),
        (["a"], ["a"], ["a", "a"], InputError, "'a' twice"),
    ],
)
def test_bad_input(expected, predicted, labels, error, message):
    with pytest.raises(error, match=message):
        classification(expected, predicted, labels=labels)
