import jax
import numpy as np
from flax import nnx

from accelerated import functional
from accelerated.layers.block import PreNormBlock
from reference import random
from reference.layers.block import pre_norm_block
from reference.layers.mask import causal
from tests.mirror import assert_gradient, assert_mirror, random_like


def test_pre_norm_block_equals_its_twin():
    rng = np.random.default_rng(0)
    width, heads, hidden = 21, 3, 11
    apply, init = functional(PreNormBlock(width, heads=heads, hidden=hidden, rngs=nnx.Rngs(0)))
    params = random_like(jax.tree.map(lambda a: np.asarray(a, np.float64), init), rng)
    x = rng.standard_normal((2, 5, width))

    def ours(params, x, *, key):
        return pre_norm_block(params, x, heads=heads, mask=causal, rate=0.3, key=key)

    def theirs(params, x, *, key):
        return apply(params, x, mask=causal, rate=0.3, key=key)

    assert_gradient(ours, params, x, key=random.key(1), rng=rng)
    assert_mirror(ours, theirs, params, x, key=random.key(1), rng=rng)


def test_sub_layers_that_write_nothing_leave_the_stream_as_it_was():
    """Turns red if a residual connection starts from the normalized copy."""
    rng = np.random.default_rng(1)
    _, init = functional(PreNormBlock(21, heads=3, hidden=11, rngs=nnx.Rngs(0)))
    params = random_like(jax.tree.map(lambda a: np.asarray(a, np.float64), init), rng)
    for part, last in (("attention", "out"), ("feed_forward", "down")):
        params[part][last] = jax.tree.map(np.zeros_like, params[part][last])
    x = rng.standard_normal((2, 5, 21))
    y, backward = pre_norm_block(params, x, heads=3)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(backward(x)[1], x)
