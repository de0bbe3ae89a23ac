import jax
import numpy as np
import pytest
from flax import nnx

import accelerated.layers.activation as twins
from accelerated import functional
from accelerated.layers.feed_forward import FeedForward
from reference.layers.activation import gelu, gelu_tanh
from reference.layers.feed_forward import feed_forward
from tests.mirror import assert_gradient, assert_mirror, random_like


@pytest.mark.parametrize("activation", [gelu, gelu_tanh])
def test_feed_forward_equals_its_twin(activation):
    rng = np.random.default_rng(0)
    apply, init = functional(FeedForward(5, hidden=11, rngs=nnx.Rngs(0)))
    params = random_like(jax.tree.map(lambda a: np.asarray(a, np.float64), init), rng)
    x = rng.standard_normal((2, 3, 5))

    def ours(params, x):
        return feed_forward(params, x, activation=activation)

    def theirs(params, x):
        return apply(params, x, activation=getattr(twins, activation.__name__))

    assert_gradient(ours, params, x, rng=rng)
    assert_mirror(ours, theirs, params, x, rng=rng)


def test_the_default_activation_is_gpt_2_s():
    rng = np.random.default_rng(1)
    shapes = {"up": (5, 11), "down": (11, 5)}
    params = {k: {"kernel": rng.standard_normal(shape)} for k, shape in shapes.items()}
    x = rng.standard_normal((3, 5))
    by_default, named = feed_forward(params, x)[0], feed_forward(params, x, activation=gelu_tanh)[0]
    np.testing.assert_array_equal(by_default, named)
