import numpy as np
import pytest
from flax import nnx

from accelerated import functional
from accelerated.layers.linear import Linear
from reference.layers.linear import linear
from tests.mirror import assert_gradient, assert_mirror


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_linear_equals_its_twin(bias, leading):
    rng = np.random.default_rng(0)
    apply, _ = functional(Linear(5, 7, use_bias=bias, rngs=nnx.Rngs(0)))
    params = {"kernel": rng.standard_normal((5, 7)) / 5**0.5}
    if bias:
        params["bias"] = rng.standard_normal(7)
    x = rng.standard_normal((*leading, 5))
    assert_gradient(linear, params, x, rng=rng)
    assert_mirror(linear, apply, params, x, rng=rng)
