import inspect
from functools import partial

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.training.optimizer as accelerated
import accelerated.training.schedule as theirs
import reference.training.optimizer as reference
from reference import tree
from reference.errors import InputError
from reference.training.config import TrainingConfig, rate
from reference.training.optimizer import (
    adam,
    adamw,
    clip_factor,
    debiased,
    global_norm,
    in_blocks,
    momentum,
    moving_average,
    nesterov,
    sgd,
)
from reference.training.schedule import linear
from tests.mirror import assert_close, cast, read_only
from tests.peers import peer

SETTINGS = TrainingConfig(steps=20, warmup=5, clip=2.0, learning_rate=0.1, weight_decay=0.3)
RATE = {"peak": 0.1, "warmup": 5, "steps": 19, "final": 0.02}
# ε so large that it matters where it stands.
ADAM = {"beta1": 0.8, "beta2": 0.95, "epsilon": 0.1}
EVERY = [sgd, momentum, nesterov, adam, adamw]
EACH = pytest.mark.parametrize("optimizer", EVERY)


def random_params(rng):
    return {
        "linear": {"kernel": rng.standard_normal((3, 5)), "bias": rng.standard_normal(5)},
        "table": [{"embedding": rng.standard_normal((7, 2))}, {"scale": rng.standard_normal(2)}],
    }


def problem(seed=0, steps=20):
    """Parameters, and a gradient for each step."""
    rng = np.random.default_rng(seed)
    return random_params(rng), [random_params(rng) for _ in range(steps)]


def memories(optimizer):
    """The names of the trees that an optimizer carries from step to step."""
    found = inspect.signature(optimizer).parameters
    return [name for name in ("velocity", "mean", "square") if name in found]


def needed(optimizer, **given):
    """Of these arguments, those that the optimizer has; and a decay, which has no default."""
    found = inspect.signature(optimizer).parameters
    return {name: a for name, a in ({"decay": 0.9} | given).items() if name in found}


def steps_of(optimizer, params, gradients, **settings):
    """Yield the parameters after each step; gradients: of each step, or functions that give them.

    The rate changes, unless the settings have another.
    """
    memory = [tree.map(np.zeros_like, params) for _ in memories(optimizer)]
    for step, g in enumerate(gradients, 1):
        g = g(params) if callable(g) else g
        step_settings = {"step": step, "learning_rate": linear(step, **RATE)} | settings
        given = needed(optimizer, **step_settings)
        moved = optimizer(*read_only([params, g, *memory]), **given)
        params, *memory = moved if memory else (moved,)
        yield params


def steps_by_optax(transformation, params, gradients):
    """Yield the parameters after each step."""
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    for g in gradients:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        yield params


def assert_same_steps(ours, others):
    ours = list(ours)
    assert len(ours) == 20
    for actual, expected in zip(ours, others, strict=True):
        assert_close(actual, jax.tree.map(np.asarray, expected), 1e-12)


BETAS = {"b1": 0.8, "b2": 0.95, "eps": 0.1}


@pytest.mark.parametrize(
    "optimizer, settings, transformation",
    [
        (sgd, {}, optax.sgd),
        (momentum, {"decay": 0.7}, partial(optax.sgd, momentum=0.7)),
        (nesterov, {"decay": 0.7}, partial(optax.sgd, momentum=0.7, nesterov=True)),
        (adam, ADAM, partial(optax.adam, **BETAS)),
        (adam, {}, optax.adam),
        (adamw, ADAM, partial(accelerated.adamw, **ADAM)),
        (adamw, {}, accelerated.adamw),
        (
            adamw,
            ADAM | {"weight_decay": 0.3},
            partial(
                optax.adamw,
                **BETAS,
                weight_decay=0.3,
                mask={"linear": {"kernel": True, "bias": False}}
                | {"table": [{"embedding": True}, {"scale": False}]},
            ),
        ),
        (
            adamw,
            ADAM | {"weight_decay": 0.3, "bias_correction": False},
            partial(accelerated.adamw, **ADAM, weight_decay=0.3, bias_correction=False),
        ),
        (
            adam,
            {"bias_correction": False},
            partial(accelerated.adamw, beta2=0.999, weight_decay=0.0, bias_correction=False),
        ),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_each_optimizer_equals_optax_over_20_steps(optimizer, settings, transformation):
    """With a rate that changes.  Turns red if the rate goes into the velocity, if ε goes under the
    root or in front of the correction, if biases decay, or if a default is another one.
    """
    params, gradients = problem()
    rate = theirs.linear(**RATE)
    assert_same_steps(
        steps_of(optimizer, params, gradients, **settings),
        steps_by_optax(transformation(rate), params, gradients),
    )


def test_adamw_equals_optax_step_by_step():
    """As a run has it, with clipping and the schedule.  Turns red if ε goes under the root, or
    biases decay.
    """
    rng = np.random.default_rng(0)
    params = random_params(rng)
    mean = square = tree.map(np.zeros_like, params)
    gradients = [tree.map(lambda a: 0.5 * a, random_params(rng)) for _ in range(20)]
    by_optax = steps_by_optax(accelerated.optimizer(SETTINGS), params, gradients)
    for step, (g, expected) in enumerate(zip(gradients, by_optax, strict=True), 1):
        params, mean, square = adamw(
            params,
            g,
            mean,
            square,
            step=step,
            learning_rate=rate(SETTINGS)(step),
            weight_decay=SETTINGS.weight_decay,
            factor=clip_factor(global_norm(g), limit=SETTINGS.clip),
        )
        tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), params, expected)


@pytest.mark.parametrize(
    "optimizer, name, settings, there",
    [
        (sgd, "SGD", {}, {}),
        (momentum, "SGD", {"decay": 0.7}, {"momentum": 0.7}),
        (nesterov, "SGD", {"decay": 0.7}, {"momentum": 0.7, "nesterov": True}),
        (adam, "Adam", ADAM, {"betas": (0.8, 0.95), "eps": 0.1}),
        (adamw, "AdamW", ADAM | {"weight_decay": 0.3}, {"betas": (0.8, 0.95), "eps": 0.1}),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_each_optimizer_equals_pytorch_over_20_steps(optimizer, name, settings, there):
    """PyTorch's velocity starts as the first gradient: the same.  It is told by groups what decays.
    Turns red if the rate goes into the velocity, or ε under the root.
    """
    torch = peer("torch")
    params, gradients = problem()
    tensors = tree.map(torch.tensor, params)
    decays = {"weight_decay": settings.get("weight_decay", 0.0)}
    groups = [
        {"params": [tensors["linear"]["kernel"], tensors["table"][0]["embedding"]]} | decays,
        {"params": [tensors["linear"]["bias"], tensors["table"][1]["scale"]], "weight_decay": 0.0},
    ]
    by_torch = getattr(torch.optim, name)(groups, lr=1.0, **there)

    def steps():
        for step, g in enumerate(gradients, 1):
            for tensor, leaf in zip(tree.leaves(tensors), tree.leaves(g), strict=True):
                tensor.grad = torch.tensor(leaf)
            for group in by_torch.param_groups:
                group["lr"] = linear(step, **RATE)
            by_torch.step()
            yield tree.map(lambda a: a.numpy(), tensors)

    assert_same_steps(steps_of(optimizer, params, gradients, **settings), steps())


def test_adam_without_bias_correction_is_made_of_optax_s_averages():
    """BERT's, of parts that optax has: m / (√s + ε) as ema(g) · rms-scaled(g) / g.
    Turns red if only one of the two corrections is left out.
    """
    params, gradients = problem()
    mean = optax.ema(ADAM["beta1"], debias=False)
    scaled = optax.scale_by_rms(ADAM["beta2"], ADAM["epsilon"], eps_in_sqrt=False)

    def steps(params):
        states = mean.init(params), scaled.init(params)
        for step, g in enumerate(gradients, 1):
            m, mean_state = mean.update(g, states[0])
            r, scaled_state = scaled.update(g, states[1])
            states = mean_state, scaled_state
            direction = tree.map(lambda g, m, r: m * (r / g), g, m, r)
            yield (params := sgd(params, direction, learning_rate=linear(step, **RATE)))

    ours = steps_of(adam, params, gradients, **ADAM, bias_correction=False)
    assert_same_steps(ours, steps(params))


@given(st.integers(0, 2**32), st.floats(1e-8, 1e2))
def test_the_paper_s_faster_adam_is_a_matter_of_rate_and_epsilon(seed, epsilon):
    """Kingma & Ba, end of sec. 2, as in TensorFlow: √s + ε̂ before any correction of s.
    Turns red if ε is added before the correction, or inside the root.
    """
    params, (g, m, s) = problem(seed, 3)
    step, beta1, beta2 = 3, 0.9, 0.99
    root = (1 - beta2**step) ** 0.5
    trees = params, g, m, tree.map(np.square, s)
    given = {"step": step, "beta1": beta1, "beta2": beta2}
    ours = adam(*trees, **given, learning_rate=0.1, epsilon=epsilon / root)
    rate = 0.1 * root / (1 - beta1**step)
    bare = {"learning_rate": rate, "epsilon": epsilon, "bias_correction": False}
    assert_close(ours, adam(*trees, **given, **bare), 1e-12)


@given(st.integers(0, 2**32))
def test_adam_is_adamw_without_decay(seed):
    """Turns red if `adam` leaves the decay at AdamW's default, or has β₂ of 0.95."""
    params, gradients = problem(seed, 5)
    settings = {"weight_decay": 0.0, "beta2": 0.999}
    for ours, others in zip(
        steps_of(adam, params, gradients),
        steps_of(adamw, params, gradients, **settings),
        strict=True,
    ):
        tree.map(np.testing.assert_array_equal, ours, others)


@pytest.mark.parametrize("optimizer", [momentum, nesterov])
@given(st.integers(0, 2**32))
def test_without_a_past_only_the_gradient_is_followed(optimizer, seed):
    """A decay of 0.  Turns red if Nesterov's step has the gradient twice."""
    params, gradients = problem(seed, 5)
    ours = steps_of(optimizer, params, gradients, decay=0.0)
    for actual, expected in zip(ours, steps_of(sgd, params, gradients), strict=True):
        assert_close(actual, expected, 1e-14)


@given(st.integers(0, 2**32), st.floats(0, 0.99))
def test_a_constant_gradient_drives_momentum_to_its_limit(seed, decay):
    """In closed form: v = g (1 - decayⁿ) / (1 - decay), which tends to g / (1 - decay).
    Turns red if the gradient is scaled by 1 - decay, or the step is taken before v grows.
    """
    params, (g,) = problem(seed, 1)
    *_, last = steps_of(momentum, params, [g] * 20, learning_rate=0.1, decay=decay)
    sums = sum((1 - decay**n) / (1 - decay) for n in range(1, 21))
    assert_close(last, tree.map(lambda p, g: p - 0.1 * sums * g, params, g), 1e-12)
    limit = tree.map(lambda g: g / (1 - decay), g)
    _, v = momentum(params, g, limit, learning_rate=0.1, decay=decay)
    assert_close(v, limit, 1e-13)


@given(st.integers(0, 2**32), st.floats(0, 0.99))
def test_nesterov_s_gradient_is_that_of_the_point_ahead(seed, decay):
    """The two sequences of Sutskever et al. 2013, eq. 3 and 4, on ½ xᵀ A x: ours is x + decay · u.
    Turns red without the look-ahead (momentum), or with it at the old velocity.
    """
    rng = np.random.default_rng(seed)
    a, x = rng.standard_normal((5, 5)), rng.standard_normal(5)
    a = a @ a.T / 20
    u = np.zeros(5)
    for ours in steps_of(nesterov, x, [lambda p: a @ p] * 20, learning_rate=0.1, decay=decay):
        u = decay * u - 0.1 * (a @ (x + decay * u))
        x = x + u
        assert_close(ours, x + decay * u, 1e-12)


@EACH
@given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
def test_a_factor_is_one_of_the_gradient(optimizer, seed, factor):
    """Turns red if one of Nesterov's two gradients lacks it, or s has it only once."""
    params, gradients = problem(seed, 5)
    scaled = [tree.map(lambda a: factor * a, g) for g in gradients]
    ours = steps_of(optimizer, params, gradients, factor=factor)
    for actual, expected in zip(ours, steps_of(optimizer, params, scaled), strict=True):
        assert_close(actual, expected, 1e-11)


@given(st.integers(0, 2**32), st.floats(1e-6, 1e6), st.booleans())
def test_adam_ignores_the_gradients_unit(seed, unit, bias_correction):
    """Without ε.  Turns red if s is the running mean of |g|."""
    params, gradients = problem(seed, 5)
    scaled = [tree.map(lambda a: unit * a, g) for g in gradients]
    settings = {"epsilon": 0.0, "bias_correction": bias_correction}
    ours = steps_of(adam, params, gradients, **settings)
    for actual, expected in zip(ours, steps_of(adam, params, scaled, **settings), strict=True):
        assert_close(actual, expected, 1e-11)


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


@given(st.integers(0, 2**32), st.floats(0, 0.999), st.integers(1, 50))
def test_the_average_of_a_constant_is_that_constant(seed, decay, steps):
    """Once debiased, or started at it.  Turns red if the weights do not sum to 1 - decayᵗ."""
    params = random_params(np.random.default_rng(seed))
    average, started = tree.map(np.zeros_like, params), params
    for _ in range(steps):
        average = moving_average(average, params, decay=decay)
        started = moving_average(started, params, decay=decay)
    assert_close(debiased(average, decay=decay, step=steps), params, 1e-12)
    assert_close(started, params, 1e-12)


def test_averages_equal_optax_over_20_steps():
    """Turns red if decay and 1 - decay change places, or the correction lags one step."""
    start, sequence = problem()
    zeros = tree.map(np.zeros_like, start)
    ema = optax.ema(0.9)
    average, by_optax, plain, state = start, start, zeros, ema.init(zeros)
    for step, params in enumerate(sequence, 1):
        average = moving_average(average, params, decay=0.9)
        by_optax = optax.incremental_update(params, by_optax, 0.1)
        assert_close(average, jax.tree.map(np.asarray, by_optax), 1e-12)
        plain = moving_average(plain, params, decay=0.9)
        expected, state = ema.update(params, state)
        ours = debiased(plain, decay=0.9, step=step)
        assert_close(ours, jax.tree.map(np.asarray, expected), 1e-12)


@given(st.integers(0, 2**32), st.integers(1, 9))
def test_with_a_decay_of_1_less_1_over_t_the_average_is_the_mean(seed, count):
    """Turns red if decay and 1 - decay change places."""
    sets = [random_params(np.random.default_rng([seed, i])) for i in range(count)]
    average = tree.map(np.zeros_like, sets[0])
    for t, params in enumerate(sets, 1):
        average = moving_average(average, params, decay=1 - 1 / t)
    assert_close(average, tree.map(lambda *arrays: np.mean(arrays, axis=0), *sets), 1e-12)


@given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
def test_clipping_shortens_to_the_limit_and_never_lengthens(seed, limit):
    """Turns red if each array is clipped by itself."""
    gradients = random_params(np.random.default_rng(seed))
    flat = np.concatenate([g.ravel() for g in tree.leaves(gradients)])
    norm = global_norm(gradients)
    np.testing.assert_allclose(norm, np.linalg.norm(flat), rtol=1e-13)
    np.testing.assert_allclose(norm, optax.tree.norm(gradients), rtol=1e-13)
    clipped = clip_factor(norm, limit=limit) * flat
    np.testing.assert_allclose(np.linalg.norm(clipped), min(norm, limit), rtol=1e-12)
    assert norm > limit or (clipped == flat).all()


def test_no_gradient_is_not_lengthened_and_none_that_is_nan_is_hidden():
    assert clip_factor(0.0, limit=2.0) == 1
    assert np.isnan(clip_factor(float("nan"), limit=2.0))


@EACH
def test_float32_stays_float32(optimizer):
    params, gradients = problem()
    narrow = cast(params, np.float32), [cast(g, np.float32) for g in gradients]
    for moved in steps_of(optimizer, *narrow):
        assert {a.dtype for a in tree.leaves(moved)} == {np.dtype(np.float32)}
    memory = [cast(tree.map(np.abs, params), np.float32) for _ in memories(optimizer)]
    given = needed(optimizer, step=3, learning_rate=0.1, factor=0.5)
    results = optimizer(narrow[0], narrow[1][0], *memory, **given)
    assert {a.dtype for a in jax.tree.leaves(results)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("bias_correction", [True, False])
def test_float32_stays_float32_in_the_twin(bias_correction):
    """Though its rate is of float64 here."""
    params, gradients = problem(steps=3)
    narrow = cast(params, np.float32), [cast(g, np.float32) for g in gradients]
    twin = accelerated.adamw(theirs.linear(**RATE), bias_correction=bias_correction)
    for moved in steps_by_optax(twin, *narrow):
        assert {a.dtype for a in jax.tree.leaves(moved)} == {np.dtype(np.float32)}


def test_averages_keep_float32():
    params = cast(problem()[0], np.float32)
    average = moving_average(params, params, decay=0.9)
    for a in tree.leaves([average, debiased(average, decay=0.9, step=3)]):
        assert a.dtype == np.float32


def test_blocks_make_up_the_whole():
    """Whatever the layout of an array.  Turns red if a block is written into a copy."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 5, 7)).swapaxes(1, 2)
    both = in_blocks(lambda x, y: (x + y, x - y), a, b, outputs=2, size=4)
    np.testing.assert_array_equal(both, [a + b, a - b])


@pytest.mark.parametrize(
    "params", [np.ones(3), [np.ones(3), np.ones(2)], {"kernel": [np.ones(3)], "bias": np.ones(2)}]
)
def test_what_decays_is_told_alike_in_any_tree(params):
    """An array in a list has a number for its name.  Turns red if the twin asks it for a key."""
    zeros = tree.map(np.zeros_like, params)
    moved, _, _ = adamw(params, zeros, zeros, zeros, step=1, learning_rate=1.0)
    told = jax.tree.map(lambda a: bool((a != 1).any()), moved)
    assert accelerated.decayed(params) == told


def test_every_optimizer_is_in_the_twin_s_table():
    rows = [line.split() for line in accelerated.__doc__.splitlines() if line.startswith("    ")]
    named = {word.strip(",") for row in rows for word in row}
    functions = inspect.getmembers(reference, inspect.isfunction)
    sourced = {name for name, function in functions if "Source:" in (function.__doc__ or "")}
    assert {"sgd", "adamw", "debiased", "clip_factor"} <= sourced <= named


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t["linear"].update(kernel=np.zeros((5, 3))),
            r"kernel is \(3, 5\) .* \(5, 3\) in",
        ),
        (lambda t: t["linear"].pop("bias"), r"linear.bias is \(5,\) in params and missing in"),
        (lambda t: t.update(more=np.zeros(2)), r"more is missing in params and \(2,\) in"),
    ],
    ids=["transposed", "missing", "more"],
)
@EACH
def test_trees_that_differ_are_refused(optimizer, change, message):
    """A gradient that is transposed has as many numbers.  Turns red if only sizes are compared."""
    params, _ = problem()
    names = ["gradients", *memories(optimizer)]
    for name in names:
        trees = {n: tree.map(np.zeros_like, params) for n in names}
        change(trees[name])
        with pytest.raises(InputError, match=f"{message} {name}; give trees with the same names"):
            optimizer(params, *trees.values(), **needed(optimizer, step=1, learning_rate=0.1))


def test_averages_of_trees_that_differ_are_refused():
    params, _ = problem()
    with pytest.raises(InputError, match="table.1.scale is missing in average"):
        moving_average(params | {"table": params["table"][:1]}, params, decay=0.5)


NUMBERS = [
    ({"learning_rate": -0.1}, "learning_rate is -0.1; give a number of at least 0"),
    ({"learning_rate": float("nan")}, "learning_rate is nan; give a number"),
    ({"weight_decay": float("inf")}, "weight_decay is inf; give a number"),
    ({"epsilon": -1e-8}, "epsilon is -1e-08; give a number of at least 0"),
    ({"beta1": 1.0}, "beta1 is 1.0; give at least 0 and less than 1"),
    ({"beta2": -0.5}, "beta2 is -0.5; give at least 0 and less than 1"),
]


@pytest.mark.parametrize(
    "change, message",
    [
        *NUMBERS,
        ({"decay": 1}, "decay is 1; give at least 0 and less than 1"),
        ({"step": 0}, "step is 0; steps count from 1: give 1 or more"),
    ],
)
def test_numbers_that_no_optimizer_can_have_are_refused(change, message):
    (name,) = change
    takers = [f for f in EVERY if name in inspect.signature(f).parameters]
    assert takers
    for optimizer in takers:
        params, _ = problem()
        given = needed(optimizer, **{"step": 1, "learning_rate": 0.1} | change)
        with pytest.raises(InputError, match=message):
            optimizer(params, params, *[params] * len(memories(optimizer)), **given)


@pytest.mark.parametrize("change, message", NUMBERS)
def test_the_twin_refuses_them_in_the_same_words(change, message):
    with pytest.raises(InputError, match=message):
        accelerated.adamw(**{"learning_rate": 0.1} | change)


def test_an_average_of_nothing_is_refused():
    params, _ = problem()
    with pytest.raises(InputError, match="step is 0; steps count from 1"):
        debiased(params, decay=0.9, step=0)
    for average in (partial(debiased, step=1), partial(moving_average, params)):
        with pytest.raises(InputError, match="decay is 1.0; give at least 0 and less than 1"):
            average(params, decay=1.0)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_would_turn_the_step_around_is_refused(limit):
    with pytest.raises(InputError, match="limit is .*; give the length to shorten to"):
        clip_factor(5.0, limit=limit)
