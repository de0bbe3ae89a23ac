import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import random, tree
from reference.layers.attention import multi_head_attention
from reference.layers.block import transformer_block
from reference.layers.mask import causal
from reference.layers.recompute import recomputed

BLOCK = partial(transformer_block, attention=partial(multi_head_attention, heads=3, mask=causal))


def problem(seed, width=15, hidden=30, shape=(2, 5)):
    rng = np.random.default_rng(seed)

    def linear(inputs, outputs):
        kernel = rng.standard_normal((inputs, outputs)) / inputs**0.5
        return {"kernel": kernel, "bias": rng.standard_normal(outputs)}

    norm = {"scale": rng.standard_normal(width), "bias": rng.standard_normal(width)}
    names = ("query", "key", "value", "out")
    attention = {name: linear(width, width) for name in names}
    feed_forward = {"up": linear(width, hidden), "down": linear(hidden, width)}
    params = {
        "attention": {"norm": norm, "sublayer": attention},
        "feed_forward": {"norm": norm, "sublayer": feed_forward},
    }
    x, dy = rng.standard_normal((2, *shape, width))
    return params, x, dy


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3]))
def test_a_block_that_is_recomputed_has_the_same_value_and_gradients_to_the_last_bit(seed, rate):
    """Turns red if the second forward is without the key, and so without its noise."""
    params, x, dy = problem(seed)
    options = {"rate": rate, "key": random.key(seed % 2**32)}
    y, backward = BLOCK(params, x, **options)
    again, recomputed_backward = recomputed(BLOCK)(params, x, **options)
    np.testing.assert_array_equal(again, y)
    for _ in range(2):
        found = recomputed_backward(dy)
        np.testing.assert_array_equal(found[1], backward(dy)[1])
        tree.map(np.testing.assert_array_equal, found[0], backward(dy)[0])


def test_a_third_value_is_handed_on():
    def routed(params, x, *, frozen):
        return x * frozen, lambda dy: (params, dy * frozen), {"route": x > 0}

    y, backward, aside = recomputed(routed)(3.0, np.array([1.0, -1.0]), frozen=2.0)
    assert y.tolist() == [2, -2] and aside["route"].tolist() == [True, False]
    assert backward(np.ones(2))[1].tolist() == [2, 2]


@pytest.mark.parametrize("blocks", [2, 8])
def test_what_waits_for_the_backward_is_the_inputs_alone(blocks):
    """Turns red if the first forward's backward is kept."""
    params, x, _ = problem(0, width=30, hidden=120, shape=(2, 64))

    def waiting(block):
        tracemalloc.start()
        h, backwards = x, []
        for _ in range(blocks):
            h, backward = block(params, h)
            backwards.append(backward)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    assert waiting(recomputed(BLOCK)) < 1.1 * blocks * x.nbytes + 1e4 < 0.2 * waiting(BLOCK)
