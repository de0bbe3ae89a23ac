import inspect
import math

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.training.schedule as accelerated
import reference.training.schedule as reference
from reference.errors import InputError
from reference.training.config import TrainingConfig, rate
from reference.training.schedule import (
    constant,
    inverse_square_root,
    linear,
    warmup_cosine,
    warmup_stable_decay,
)
from tests.peers import peer

EVERY = [constant, linear, warmup_cosine, inverse_square_root, warmup_stable_decay]
RUN = {"peak": 0.3, "warmup": 7, "steps": 20}
SHAPES = ["linear", "cosine", "1-sqrt"]


def rates(schedule, last=24, **settings):
    """Those of the steps 1, 2, …"""
    return [schedule(step, **settings) for step in range(1, last + 1)]


def by_optax(schedule, last=24):
    """Those of the counts 0, 1, …, compiled, for counts of int32 as optax's own."""
    return jax.jit(jax.vmap(schedule))(np.arange(last, dtype=np.int32))


def name_of(value):
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(
    "schedule, settings",
    [
        (constant, {"peak": 0.3}),
        (constant, {"peak": 0.3, "warmup": 7}),
        (linear, RUN),
        (linear, RUN | {"final": 0.1, "warmup": 0}),
        (linear, RUN | {"final": 0.1, "start": 0}),
        (linear, RUN | {"warmup": 1, "start": 1}),
        (warmup_cosine, RUN),
        (warmup_cosine, RUN | {"final": 0.1, "warmup": 0}),
        (inverse_square_root, {"width": 11, "warmup": 7}),
        (inverse_square_root, {"width": 11, "warmup": 1, "factor": 2.0}),
        *[(warmup_stable_decay, RUN | {"decay": 5, "final": 0.1, "shape": s}) for s in SHAPES],
        *[(warmup_stable_decay, RUN | {"decay": 13, "shape": shape}) for shape in SHAPES],
        (warmup_stable_decay, RUN | {"decay": 1, "warmup": 0}),
    ],
    ids=name_of,
)
def test_each_schedule_equals_its_twin(schedule, settings):
    """Counted from 1 here and from 0 there; beyond the end, too.  Turns red if the twin forgets to
    add 1, or computes in float32.
    """
    twin = getattr(accelerated, schedule.__name__)(**settings)
    np.testing.assert_allclose(rates(schedule, **settings), by_optax(twin), rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(float(twin(3)), schedule(4, **settings), rtol=1e-12)


RISE = optax.linear_schedule(0.0, 0.3, 7)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (
            lambda step: constant(step, peak=0.3, warmup=7),
            optax.warmup_constant_schedule(0, 0.3, 7),
        ),
        (
            lambda step: linear(step, **RUN, final=0.1),
            optax.join_schedules([RISE, optax.linear_schedule(0.3, 0.1, 13)], [7]),
        ),
        (
            lambda step: linear(step, **RUN, start=0),
            optax.join_schedules([RISE, optax.linear_schedule(0.3 * 13 / 20, 0.0, 13)], [7]),
        ),
        (
            lambda step: warmup_cosine(step, **RUN, final=0.1),
            optax.warmup_cosine_decay_schedule(0.0, 0.3, 7, 20, 0.1),
        ),
        (
            lambda step: warmup_stable_decay(step, **RUN, decay=5, final=0.1),
            optax.join_schedules(
                [RISE, optax.constant_schedule(0.3), optax.linear_schedule(0.3, 0.1, 5)], [7, 15]
            ),
        ),
        (
            lambda step: warmup_stable_decay(step, **RUN, decay=5, shape="cosine"),
            optax.join_schedules(
                [RISE, optax.constant_schedule(0.3), optax.cosine_decay_schedule(0.3, 5)], [7, 15]
            ),
        ),
    ],
    ids=["constant", "linear", "linear-bert", "warmup_cosine", "stable-linear", "stable-cosine"],
)
def test_each_schedule_equals_optax_s_own_at_a_count_of_one_more(ours, theirs):
    """optax's rate of the count 0, which it uses first, is 0.  Turns red if ours counts from 0."""
    np.testing.assert_allclose(
        [0, *map(ours, range(1, 24))],
        [theirs(np.int64(count)) for count in range(24)],
        rtol=1e-12,
        atol=1e-16,
    )


def by_transformers(name, last=24, peak=0.3, **settings):
    """The rates of the steps 0, 1, … of a schedule of Hugging Face's."""
    optimization, torch = peer("transformers.optimization"), peer("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = getattr(optimization, f"get_{name}")(optimizer, **settings)
    found = []
    for _ in range(last):
        found += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return found


THEIRS = {"num_warmup_steps": 7, "num_training_steps": 20}


@pytest.mark.parametrize(
    "schedule, settings, name, there",
    [
        (
            constant,
            {"peak": 0.3, "warmup": 7},
            "constant_schedule_with_warmup",
            {"num_warmup_steps": 7},
        ),
        (linear, RUN, "linear_schedule_with_warmup", THEIRS),
        (
            linear,
            RUN | {"final": 0.1},
            "polynomial_decay_schedule_with_warmup",
            THEIRS | {"lr_end": 0.1, "power": 1.0},
        ),
        (warmup_cosine, RUN, "cosine_schedule_with_warmup", THEIRS),
        (
            warmup_cosine,
            RUN | {"final": 0.1},
            "cosine_with_min_lr_schedule_with_warmup",
            THEIRS | {"min_lr": 0.1},
        ),
        *[
            (
                warmup_stable_decay,
                RUN | {"decay": 5, "shape": shape},
                "wsd_schedule",
                THEIRS | {"num_decay_steps": 5, "decay_type": shape},
            )
            for shape in SHAPES
        ],
    ],
    ids=name_of,
)
def test_each_schedule_equals_hugging_face_s(schedule, settings, name, there):
    """Which counts from 0, and so begins with a rate of 0.  Turns red if ours counts from 0.

    Its cosine has no end: it rises again after the last step, where ours stays.
    """
    last = 21 if "cosine" in name else 24
    theirs = by_transformers(name, last, **there)
    ours = [0, *rates(schedule, last - 1, **settings)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-16)


def test_the_inverse_square_root_equals_hugging_face_s_given_its_peak():
    """Hugging Face asks for the peak, where the paper has it follow from width and warm-up.
    Turns red with another power of the width or of the warm-up.
    """
    peak = (11 * 7) ** -0.5
    theirs = by_transformers("inverse_sqrt_schedule", peak=peak, num_warmup_steps=7)
    ours = rates(inverse_square_root, 23, width=11, warmup=7)
    np.testing.assert_allclose([0, *ours], theirs, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("shape", SHAPES)
def test_hugging_face_s_stable_schedule_also_begins_at_the_final_rate(shape):
    """So its warm-up differs from ours, and nothing after it.  Turns red if f falls to 0."""
    settings = {"num_decay_steps": 5, "decay_type": shape, "min_lr_ratio": 0.25}
    theirs = by_transformers("wsd_schedule", **THEIRS, **settings)
    final = {"final": 0.25 * 0.3}
    ours = [0, *rates(warmup_stable_decay, 23, **RUN, decay=5, shape=shape, **final)]
    np.testing.assert_allclose(ours[7:], theirs[7:], rtol=1e-12)
    rise = np.arange(7) / 7
    np.testing.assert_allclose(theirs[:7], final["final"] + (0.3 - final["final"]) * rise)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_rates_of_a_run_are_those_of_its_twin(warmup):
    """Turns red if steps are counted from 0."""
    settings = TrainingConfig(steps=20, warmup=warmup, learning_rate=0.3)
    ours = [rate(settings)(step) for step in range(1, 25)]
    theirs = optax.warmup_cosine_decay_schedule(0, 0.3, warmup, 20, settings.final_learning_rate)
    np.testing.assert_allclose(ours, [theirs(s) for s in range(1, 25)], rtol=1e-6)
    assert max(ours) == 0.3 if warmup else max(ours) < 0.3
    assert ours[19] == ours[-1] == settings.final_learning_rate


@st.composite
def runs(draw):
    """A schedule, its settings, and the largest step between two rates that it may have."""
    schedule = draw(st.sampled_from(EVERY))
    steps = draw(st.integers(2, 60))
    warmup = draw(st.integers(0, steps - 1))
    peak = draw(st.floats(1e-6, 10))
    final = peak * draw(st.floats(0, 1))
    if schedule is inverse_square_root:
        settings = {"width": draw(st.integers(1, 999)), "warmup": max(warmup, 1)}
        return schedule, settings, inverse_square_root(max(warmup, 1), **settings) / max(warmup, 1)
    rise = peak / max(warmup, 1)
    if schedule is constant:
        return schedule, {"peak": peak, "warmup": warmup}, rise
    settings = {"peak": peak, "warmup": warmup, "steps": steps, "final": final}
    fall, steepest = steps - warmup, 1
    if schedule is warmup_cosine:
        steepest = math.pi / 2
    if schedule is warmup_stable_decay:
        fall = draw(st.integers(1, steps - warmup))
        shape = draw(st.sampled_from(SHAPES))
        # The root is the steepest where it begins: it falls to 1 - √(1 / decay) in one step.
        steepest = {"linear": 1, "cosine": math.pi / 2, "1-sqrt": math.sqrt(fall)}[shape]
        settings |= {"decay": fall, "shape": shape}
    return schedule, settings, max(rise, steepest * (peak - final) / fall)


@given(runs())
def test_no_rate_is_above_the_peak_and_none_jumps(run):
    """From one step to the next at most what the slope allows.  Turns red if the warm-up ends one
    step early or late, or the fall starts from another rate.
    """
    schedule, settings, slope = run
    found = np.array(rates(schedule, 70, **settings))
    peak = settings.get("peak") or (settings["width"] * settings["warmup"]) ** -0.5
    assert found.max() <= peak * (1 + 1e-15) and found.min() >= 0
    assert np.abs(np.diff(found)).max() <= slope + 1e-14 * peak
    warmup = settings["warmup"]
    assert (np.diff(found)[max(warmup - 1, 0) :] <= 1e-15 * peak).all()  # once down, never up
    if warmup:
        np.testing.assert_allclose(found[warmup - 1], peak, rtol=1e-15)
        rise = peak * np.arange(1, warmup + 1) / warmup
        np.testing.assert_allclose(found[:warmup], rise, rtol=1e-14)


@given(runs())
def test_a_run_ends_at_its_final_rate(run):
    """Turns red if the fall takes one step more or less than it should."""
    schedule, settings, _ = run
    if "final" in settings:
        steps, final = settings["steps"], settings["final"]
        assert schedule(steps, **settings) == schedule(steps + 9, **settings) == final
        before = schedule(steps - 1, **settings)
        assert before > final or final >= settings["peak"] * (1 - 1e-9) or steps == 2


@given(st.integers(1, 9999), st.integers(1, 9999), st.integers(1, 10**6))
def test_the_inverse_square_root_peaks_at_the_end_of_the_warm_up(width, warmup, step):
    """At (width · warmup)^-½; after it, four times the steps have half the rate.
    Turns red with a power of -1 of the step, even if it meets the peak, or without the width.
    """
    settings = {"width": width, "warmup": warmup}
    top = inverse_square_root(warmup, **settings)
    np.testing.assert_allclose(top, (width * warmup) ** -0.5, rtol=1e-13)
    assert inverse_square_root(step, **settings) <= top * (1 + 1e-13)
    assert inverse_square_root(warmup + 1, **settings) < top
    after = max(step, warmup)
    quarter = inverse_square_root(4 * after, **settings)
    np.testing.assert_allclose(2 * quarter, inverse_square_root(after, **settings), rtol=1e-13)
    doubled = inverse_square_root(step, **settings, factor=2.0)
    assert doubled == 2 * inverse_square_root(step, **settings)


@given(st.integers(0, 20), st.integers(1, 20), st.integers(0, 20), st.sampled_from(SHAPES))
def test_a_stable_schedule_is_flat_between_rise_and_fall(warmup, decay, stable, shape):
    """And falls at once after it.  Turns red if `decay` is counted from the start."""
    steps = warmup + stable + decay
    settings = {"peak": 0.3, "warmup": warmup, "steps": steps, "decay": decay, "shape": shape}
    found = rates(warmup_stable_decay, steps, **settings)
    assert found[max(warmup - 1, 0) : warmup + stable] == [0.3] * (stable + (warmup > 0))
    assert found[warmup + stable] < 0.3 and found[-1] == 0


def test_the_first_rate_of_each_is_not_0():
    """Turns red if steps are counted from 0."""
    assert all(rates(schedule, 1, **given_to(schedule))[0] > 0 for schedule in EVERY)


@pytest.mark.parametrize("schedule", EVERY)
def test_a_rate_is_a_python_number(schedule):
    """Which leaves float32 parameters in float32; NumPy's float64 would not."""
    assert all(type(rate) is float for rate in rates(schedule, **given_to(schedule)))


def given_to(schedule, **changes):
    """Settings for any schedule, less those that it does not have."""
    found = inspect.signature(schedule).parameters
    settings = RUN | {"final": 0.1, "width": 11, "decay": 5} | changes
    return {name: value for name, value in settings.items() if name in found}


def test_each_schedule_has_a_twin_with_the_same_arguments_but_the_step():
    own = [
        function
        for _, function in inspect.getmembers(reference, inspect.isfunction)
        if "Source:" in function.__doc__
    ]
    assert sorted(own, key=name_of) == sorted(EVERY, key=name_of)
    for schedule in own:
        ours = dict(inspect.signature(schedule).parameters)
        assert list(ours)[0] == "step"
        del ours["step"]
        twin = getattr(accelerated, schedule.__name__)
        assert ours == dict(inspect.signature(twin).parameters)


@pytest.mark.parametrize("warmup, steps", [(5, 5), (-1, 5), (6, 5)])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup, steps):
    with pytest.raises(InputError, match=f"warmup is {warmup} of {steps} steps"):
        warmup_cosine(1, peak=1, warmup=warmup, steps=steps)


BAD = [
    ({"peak": -0.1}, "peak is -0.1; give a number of at least 0"),
    ({"peak": math.nan}, "peak is nan; give a number"),
    ({"final": -1}, "final is -1; give a number of at least 0"),
    ({"final": math.inf}, "final is inf; give a number"),
    ({"factor": -2}, "factor is -2; give a number of at least 0"),
    ({"warmup": -1}, "warmup is -1( of 20 steps)?; give (at least 0|1 or more)"),
    ({"steps": 7}, "warmup is 7 of 7 steps; give at least 0 and less than all"),
    ({"start": 8}, "start is 8, with a warmup of 7; give at least 0 and at most the warmup"),
    ({"start": -1}, "start is -1, with a warmup of 7"),
    ({"width": 0}, "width is 0; give 1 or more"),
    ({"decay": 0}, "decay is 0 of 20 steps, 7 of which are the warmup; give at least 1"),
    ({"decay": 14}, "decay is 14 of 20 steps, 7 of which are the warmup; .* at most the rest"),
    ({"shape": "cubic"}, "shape is 'cubic'; give one of linear, cosine, 1-sqrt"),
]


@pytest.mark.parametrize("change, message", BAD)
def test_what_cannot_be_is_refused_by_both_engines(change, message):
    (name,) = change
    takers = [f for f in EVERY if name in inspect.signature(f).parameters]
    assert takers
    for schedule in takers:
        settings = given_to(schedule, **change)
        with pytest.raises(InputError, match=message):
            schedule(1, **settings)
        with pytest.raises(InputError, match=message):
            getattr(accelerated, schedule.__name__)(**settings)


@pytest.mark.parametrize("schedule", EVERY)
@pytest.mark.parametrize("step", [0, -3, math.nan])
def test_a_step_before_the_first_is_refused(schedule, step):
    with pytest.raises(InputError, match=f"step is {step}; steps count from 1: give 1 or more"):
        schedule(step, **given_to(schedule))


def test_the_inverse_square_root_needs_a_warm_up():
    with pytest.raises(InputError, match="warmup is 0; give 1 or more"):
        inverse_square_root(1, width=11, warmup=0)
