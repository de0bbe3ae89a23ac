import numpy as np
import pytest

import accelerated.layers.dropout as twins
from reference import random
from reference.errors import InputError
from reference.layers.dropout import dropout
from tests.mirror import assert_gradient, assert_mirror

KEY = random.key(7)


@pytest.mark.parametrize("shape", [(101,), (5, 3, 7)])
def test_dropout_equals_its_twin(shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    assert_gradient(dropout, x, rate=0.3, key=KEY, rng=rng)
    assert_mirror(dropout, twins.dropout, x, rate=0.3, key=KEY, rng=rng)


@pytest.mark.parametrize("rate, key", [(0.5, None), (0.0, KEY)])
def test_without_a_key_or_a_rate_nothing_is_dropped(rate, key):
    x = np.arange(5.0)
    for result in (dropout(x, rate=rate, key=key)[0], twins.dropout(x, rate=rate, key=key)):
        np.testing.assert_array_equal(result, x)


def test_a_share_of_rate_is_dropped_and_the_mean_stays():
    """Turns red if what is kept is not scaled by 1 / (1 - rate)."""
    n, rate = 1_000_000, 0.3
    y, _ = dropout(np.ones(n), rate=rate, key=KEY)
    assert set(np.unique(y)) == {0, 1 / 0.7}
    assert abs((y == 0).mean() - rate) < 5 * (rate * (1 - rate) / n) ** 0.5


def test_every_precision_drops_the_same_elements():
    """Turns red if the uniforms are drawn in the precision of x."""
    for engine in (lambda x: dropout(x, rate=0.4, key=KEY)[0], twin):
        kept = [np.asarray(engine(np.ones(999, dtype))) != 0 for dtype in ("f4", "f8")]
        np.testing.assert_array_equal(*kept)


def twin(x):
    return twins.dropout(x, rate=0.4, key=KEY)


@pytest.mark.parametrize("engine", [dropout, twins.dropout])
@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_rate_that_is_no_share_is_refused(engine, rate):
    with pytest.raises(InputError, match=r"the dropout rate is .*; give a number in \[0, 1\)"):
        engine(np.ones(3), rate=rate, key=KEY)
