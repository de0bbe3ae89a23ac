import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import tree
from reference.errors import InputError

names = st.text("abc_", min_size=1, max_size=3)
trees = st.recursive(
    st.integers().map(np.array),
    lambda children: (
        st.lists(children, min_size=1, max_size=12)
        | st.dictionaries(names, children, min_size=1, max_size=3)
    ),
    max_leaves=20,
)


@given(trees)
def test_unflatten_undoes_flatten(whole):
    """Turns red if lists of over ten are put in the order of their names: "10" before "2"."""
    again = tree.unflatten(dict(reversed(tree.flatten(whole).items())))
    tree.map(np.testing.assert_array_equal, whole, again)


def test_paths_and_map():
    whole = {"blocks": [{"bias": 1}, {"bias": 2}], "norm": {"scale": 3}}
    assert tree.flatten(whole) == {"blocks.0.bias": 1, "blocks.1.bias": 2, "norm.scale": 3}
    assert tree.leaves(tree.map(lambda a, b: a + 10 * b, whole, whole)) == [11, 22, 33]


@pytest.mark.parametrize("other", [{"a": 1}, {"a": [1], "b": 2}, {"a": [1, 2], "c": 3}])
def test_trees_that_differ_are_refused(other):
    with pytest.raises(InputError, match="trees differ"):
        tree.map(lambda a, b: a, {"a": [1, 2], "b": 3}, other)
