import numpy as np
import pytest
from flax import nnx

from accelerated import functional
from accelerated.layers.embedding import Embed
from reference.errors import DtypeError, InputError
from reference.layers.embedding import embed, unembed
from tests.mirror import assert_gradient, assert_mirror

TABLE = {"embedding": np.random.default_rng(0).standard_normal((11, 5))}
TWIN = Embed(11, 5, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_embed_equals_its_twin(shape):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 11, shape)
    ids[..., -1] = ids[..., 0]  # used twice: its gradients add
    apply, _ = functional(TWIN)
    assert_gradient(embed, TABLE, ids=ids, rng=rng)
    assert_mirror(embed, apply, TABLE, ids=ids, rng=rng)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_unembed_equals_its_twin(shape):
    rng = np.random.default_rng(1)
    apply, _ = functional(TWIN, Embed.unembed)
    x = rng.standard_normal(shape)
    assert_gradient(unembed, TABLE, x, rng=rng)
    assert_mirror(unembed, apply, TABLE, x, rng=rng)


def test_a_row_used_ten_times_gets_ten_gradients():
    """Turns red if the backward writes `dtable[ids] = dy`."""
    _, backward = embed(TABLE, ids=np.full(10, 3))
    expected = np.zeros((11, 5))
    expected[3] = 10
    np.testing.assert_array_equal(backward(np.ones((10, 5)))["embedding"], expected)


@pytest.mark.parametrize("engine", ["reference", "accelerated"])
@pytest.mark.parametrize(
    "ids, error, message",
    [
        (
            np.array([[1, 2], [3, 11]]),
            InputError,
            r"ids\[1, 1\] is 11, outside the vocab.*\[0, 11\)",
        ),
        (np.array([0, -1]), InputError, r"ids\[1\] is -1, outside"),
        (np.array([2**33 + 5]), InputError, r"ids\[0\] is 8589934597, outside"),
        (np.array([1.0]), DtypeError, "ids is of float64; give an array of integers"),
        ([1, 2], DtypeError, "ids is a list; give an array of integers"),
    ],
)
def test_ids_that_are_no_rows_are_named(engine, ids, error, message):
    apply, _ = functional(TWIN)
    call = {"reference": embed, "accelerated": apply}[engine]
    with pytest.raises(error, match=message):
        call(TABLE, ids=ids)
