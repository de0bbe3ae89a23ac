import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerated.training.optimizer import optimizer
from accelerated.training.optimizer import warmup_cosine as theirs
from reference import tree
from reference.errors import InputError
from reference.training.loop import TrainingConfig, learning_rate
from reference.training.optimizer import adamw, clip_factor, global_norm, in_blocks
from reference.training.schedule import warmup_cosine

SETTINGS = TrainingConfig(steps=20, warmup=5, clip=2.0, learning_rate=0.1, weight_decay=0.3)


def random_params(rng):
    return {
        "linear": {"kernel": rng.standard_normal((3, 5)), "bias": rng.standard_normal(5)},
        "table": [{"embedding": rng.standard_normal((7, 2))}, {"scale": rng.standard_normal(2)}],
    }


def test_adamw_equals_optax_step_by_step():
    """With clipping and the schedule.  Turns red if ε goes under the root, or biases decay."""
    rng = np.random.default_rng(0)
    params = random_params(rng)
    mean = square = tree.map(np.zeros_like, params)
    by_optax, state = params, optimizer(SETTINGS).init(params)
    state = optax.tree_utils.tree_set(state, count=np.int64(0))  # an int32 makes float32 rates
    update = jax.jit(optimizer(SETTINGS).update)
    for step in range(1, 21):
        gradients = tree.map(lambda a: 0.5 * a, random_params(rng))
        params, mean, square = adamw(
            params,
            gradients,
            mean,
            square,
            step=step,
            learning_rate=learning_rate(step, SETTINGS),
            weight_decay=SETTINGS.weight_decay,
            factor=clip_factor(global_norm(gradients), limit=SETTINGS.clip),
        )
        updates, state = update(gradients, state, by_optax)
        by_optax = optax.apply_updates(by_optax, updates)
        tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), params, by_optax)


def test_adamw_keeps_float32():
    params = tree.map(np.float32, random_params(np.random.default_rng(1)))
    moved = adamw(params, params, params, tree.map(abs, params), step=3, learning_rate=0.1)
    for result in moved:
        tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), result, params)


@given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
def test_the_first_step_is_the_rate_whatever_the_gradient_s_size(seed, scale):
    """In closed form: -rate (sign g + decay p).  Turns red without the corrections 1 - βᵗ."""
    rng = np.random.default_rng(seed)
    params, gradients = random_params(rng), random_params(rng)
    zeros = tree.map(np.zeros_like, params)
    big = tree.map(lambda g: np.copysign(scale * (0.1 + np.abs(g)), g), gradients)
    moved, _, _ = adamw(params, big, zeros, zeros, step=1, learning_rate=0.01, weight_decay=0.5)
    for path, p in tree.flatten(params).items():
        decay = 0.5 * p if path.endswith(("kernel", "embedding")) else 0
        expected = p - 0.01 * (np.sign(tree.flatten(big)[path]) + decay)
        np.testing.assert_allclose(tree.flatten(moved)[path], expected, rtol=0, atol=1e-5)


@given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
def test_clipping_shortens_to_the_limit_and_never_lengthens(seed, limit):
    """Turns red if each array is clipped by itself."""
    gradients = random_params(np.random.default_rng(seed))
    flat = np.concatenate([g.ravel() for g in tree.leaves(gradients)])
    norm = global_norm(gradients)
    np.testing.assert_allclose(norm, np.linalg.norm(flat), rtol=1e-13)
    clipped = clip_factor(norm, limit=limit) * flat
    np.testing.assert_allclose(np.linalg.norm(clipped), min(norm, limit), rtol=1e-12)
    assert norm > limit or (clipped == flat).all()


def test_no_gradient_is_not_lengthened_and_none_that_is_nan_is_hidden():
    assert clip_factor(0.0, limit=2.0) == 1
    assert np.isnan(clip_factor(float("nan"), limit=2.0))


def test_blocks_make_up_the_whole():
    """Whatever the layout of an array.  Turns red if a block is written into a copy."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 5, 7)).swapaxes(1, 2)
    both = in_blocks(lambda x, y: (x + y, x - y), a, b, outputs=2, size=4)
    np.testing.assert_array_equal(both, [a + b, a - b])


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_schedule_equals_optax_s(warmup):
    """Turns red if steps are counted from 0."""
    settings = TrainingConfig(steps=20, warmup=warmup, learning_rate=0.3)
    ours = [learning_rate(step, settings) for step in range(1, 25)]
    np.testing.assert_allclose(ours, [theirs(s, settings) for s in range(1, 25)], rtol=1e-6)
    assert max(ours) == 0.3 if warmup else max(ours) < 0.3
    assert ours[19] == ours[-1] == settings.final_learning_rate


@pytest.mark.parametrize("warmup, steps", [(5, 5), (-1, 5), (6, 5)])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup, steps):
    with pytest.raises(InputError, match=f"warmup is {warmup} of {steps} steps"):
        warmup_cosine(1, peak=1, warmup=warmup, steps=steps)
