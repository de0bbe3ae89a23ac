import tracemalloc
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accelerated.training.loop as accelerated
import reference.training.loop as reference
from accelerated.training.compilation import Compilation
from accelerated.training.scaling import PATIENCE, initial_scaling, next_scaling
from reference import random, tree
from reference.data.batches import Windows
from reference.errors import DtypeError, InputError
from reference.models import MODELS, bert
from reference.models.bert import BertConfig
from reference.models.gpt import GPTConfig, initial_params
from reference.training.config import SCHEDULES, TrainingConfig, rate
from reference.training.optimizer import moving_average
from reference.training.state import TREES, State, initial_state, keys_of, over_trees, weights
from tests.mirror import MODEL, assert_close

CONFIG = GPTConfig(vocabulary=17, context=7, layers=2, heads=3, width=15, dropout=0.1)
TRAINING = TrainingConfig(
    steps=200, batch=6, length=5, accumulation=3, warmup=20, dtype="float64", clip=0.5
)
ENGINES = [reference, accelerated]
each_engine = pytest.mark.parametrize("engine", ENGINES, ids=["reference", "accelerated"])


def text(seed=0):
    """Tokens with something to learn: each is the last one plus 0, 1 or 2."""
    steps = np.random.default_rng(seed).integers(0, 3, 2000)
    return (steps.cumsum() % CONFIG.vocabulary).astype(np.int32)


def windows(seed=0, **changes):
    size = {"length": TRAINING.length, "batch": TRAINING.batch}
    return Windows(text(), **size | changes, key=keys_of(seed).data)


def losses_of(engine, training, data=None, config=CONFIG, **options):
    data = data or windows(training.seed)
    steps = engine.train(config, training, data, **options)
    return np.concatenate([np.ravel(figures["loss"]) for _, figures in steps])


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_200_steps_of_both_engines_in_float64_have_the_same_losses(seed):
    """With AdamW, clipping, dropout and accumulation."""
    training = replace(TRAINING, seed=seed)
    runs = (engine.train(CONFIG, training, windows(seed)) for engine in ENGINES)
    found = np.array(
        [
            [(float(figures["loss"]), float(figures["gradient_norm"])) for _, figures in both]
            for both in zip(*runs, strict=True)
        ]
    )
    assert found.shape == (200, 2, 2)
    assert np.abs(found[:, 0] - found[:, 1]).max() <= 1e-9
    assert found[-1, :, 0].max() < found[0, :, 0].min() - 0.5  # something was learnt


THOROUGH = [pytest.mark.thorough]
COMPILED = [
    pytest.param(name, marks=[] if name == "warmup_stable_decay" else THOROUGH)
    for name in SCHEDULES
]


@pytest.mark.parametrize("schedule", COMPILED)
def test_every_schedule_average_and_packed_documents_are_the_same_in_both_engines(schedule):
    """Turns red if the average starts elsewhere, or documents reach one engine only."""
    changes = {"schedule": schedule, "average": 0.9, "steps": 12, "warmup": 3, "recompute": True}
    training = replace(TRAINING, **changes)
    data, states = windows(separator=3), []
    for engine in ENGINES:
        for state, figures in engine.train(CONFIG, training, data):  # noqa: B007
            pass
        states.append(state if engine is reference else engine.portable(state, CONFIG))
    for name in TREES:
        assert_close(getattr(states[1], name), getattr(states[0], name), MODEL)
    apart = losses_of(reference, training, windows())
    assert abs(apart[-1] - float(figures["loss"])) > 1e-6  # documents do matter


def test_the_rate_of_a_schedule_is_that_of_the_run():
    training = TrainingConfig(steps=100, warmup=10, learning_rate=0.5, final_learning_rate=0.1)
    rates = {name: rate(replace(training, schedule=name)) for name in SCHEDULES}
    assert {name: rates[name](10) for name in SCHEDULES} == pytest.approx(
        dict.fromkeys(SCHEDULES, 0.5)
    )
    assert {name: rates[name](5) for name in SCHEDULES} == pytest.approx(
        dict.fromkeys(SCHEDULES, 0.25)
    )
    ends = {"cosine": 0.1, "linear": 0.1, "constant": 0.5, "warmup_stable_decay": 0.1}
    ends["inverse_square_root"] = 0.5 * (10 / 100) ** 0.5
    assert {name: rates[name](100) for name in SCHEDULES} == pytest.approx(ends)
    assert rates["warmup_stable_decay"](80) == 0.5  # the last fifth falls
    assert rate(replace(training, schedule="warmup_stable_decay", decay=50))(75) == pytest.approx(
        0.3
    )


@each_engine
def test_a_run_that_was_stopped_goes_on_bit_for_bit(engine):
    training = replace(TRAINING, steps=12, warmup=2, average=0.9)
    whole = losses_of(engine, training)
    run = engine.train(CONFIG, training, windows())
    for _ in range(5):
        state, _ = next(run)
    stopped = state if engine is reference else engine.portable(state, CONFIG)
    kept = tree.map(np.copy, stopped.params)
    np.testing.assert_array_equal(losses_of(engine, training, state=stopped), whole[5:])
    tree.map(np.testing.assert_array_equal, stopped.params, kept)  # nothing of it was overwritten
    other = ENGINES[1 - ENGINES.index(engine)]
    theirs = losses_of(other, training, state=stopped)
    np.testing.assert_allclose(theirs, whole[5:], rtol=0, atol=1e-9)


@each_engine
def test_one_seed_is_one_run(engine):
    short = replace(TRAINING, steps=3, warmup=1)
    first, again, other = (losses_of(engine, replace(short, seed=seed)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).all()


def problem(seed, rows=6, dtype=np.float64):
    rng = np.random.default_rng(seed)
    tokens, labels = rng.integers(0, CONFIG.vocabulary, (2, rows, 5))
    labels[rng.random((rows, 5)) < 0.4] = -100
    labels[:2] = -100  # a part that keeps nothing
    params = initial_params(CONFIG, key=random.key(seed % 2**32), dtype=dtype)
    return params, {"tokens": tokens, "labels": labels}, {"config": replace(CONFIG, dropout=0.0)}


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(3, 8), st.integers(2, 5))
def test_accumulation_equals_the_big_batch(seed, rows, parts):
    """Also where the last part is not full, or empty.

    Turns red with the mean of the parts' means: they keep different numbers of tokens.
    """
    params, batch, options = problem(seed, rows)
    whole = reference.loss_and_gradients(params, batch, **options)
    accumulated = reference.loss_and_gradients(params, batch, **options, accumulation=parts)
    assert_close(accumulated, whole, 1e-12)


@pytest.mark.parametrize("rows, parts", [(6, 1), (6, 3), (7, 3), (5, 4)])
def test_accumulation_of_the_twin_equals_the_big_batch(rows, parts):
    params, batch, options = problem(0, rows)
    whole = reference.loss_and_gradients(params, batch, **options)
    theirs = accelerated.loss_and_gradients(params, batch, **options, accumulation=parts)
    assert_close(theirs, whole, 1e-12)


@pytest.mark.parametrize("engine", ENGINES, ids=["reference", "accelerated"])
def test_accumulation_of_answers_that_not_every_text_has_equals_the_big_batch(engine):
    """Turns red if rows are counted in place of answers, or a row that fills up has one."""
    config = BertConfig(17, 7, 1, 1, 6, 8, dropout=0.0, head="question_answering")
    params = bert.initial_params(config, key=random.key(0), dtype=np.float64)
    tokens = np.random.default_rng(0).integers(0, 17, (4, 7))
    batch = {"tokens": tokens, "starts": np.array([2, -100, -100, 0])}
    batch["ends"] = np.where(batch["starts"] < 0, -100, batch["starts"] + 2)
    whole = reference.loss_and_gradients(params, batch, config=config)
    parts = engine.loss_and_gradients(params, batch, config=config, accumulation=3)
    assert_close(parts, whole, 1e-12)


def test_the_dropout_of_a_part_that_is_not_full_is_the_same_in_both_engines():
    """Turns red if one engine fills up with another number of rows: the noise is of the shape."""
    params, batch, _ = problem(1, rows=7)
    options = {"config": CONFIG, "key": random.key(3), "accumulation": 3}
    ours, theirs = (engine.loss_and_gradients(params, batch, **options) for engine in ENGINES)
    assert_close(theirs, ours, 1e-12)


@each_engine
def test_recomputation_changes_no_gradient(engine):
    """In NumPy not a bit of it.  Turns red if a block draws other noise the second time."""
    params, batch, _ = problem(2)
    options = {"config": CONFIG, "key": random.key(5)}
    kept = engine.loss_and_gradients(params, batch, **options)
    again = engine.loss_and_gradients(params, batch, **options, recompute=True)
    assert_close(again, kept, 0 if engine is reference else 1e-12)


def test_recomputation_needs_less_memory():
    """Of 12 blocks and their inputs, the inputs and one block.  Turns red if a block keeps all."""
    config = GPTConfig(17, 64, layers=12, heads=2, width=32)
    params = initial_params(config, key=random.key(0))
    tokens = np.random.default_rng(0).integers(0, 17, (4, 64))
    batch = {"tokens": tokens, "labels": tokens}

    def peak(recompute):
        tracemalloc.start()
        reference.loss_and_gradients(params, batch, config=config, recompute=recompute)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(True) < 0.3 * peak(False)

    def compiled(recompute):
        state = initial_state(config, TrainingConfig(steps=9, warmup=1, recompute=recompute))
        choice = Compilation(unroll=1)
        stacked = {name: array[None] for name, array in batch.items()}
        arguments = jax.eval_shape(lambda: (accelerated.packed(state, choice), stacked))
        static = {"config": config, "compilation": choice}
        static["training"] = TrainingConfig(steps=9, warmup=1, recompute=recompute)
        step = accelerated.train_call.lower(*arguments, random.key(0), **static).compile()
        return step.memory_analysis().temp_size_in_bytes

    assert compiled(True) < 0.5 * compiled(False)


@each_engine
def test_float32_stays_float32(engine):
    training = replace(TRAINING, steps=2, warmup=1, dtype="float32", average=0.5)
    for state, figures in engine.train(CONFIG, training, windows()):
        assert figures["loss"].dtype == np.float32
        trees = [getattr(state, name) for name in TREES]
        assert {a.dtype for t in trees for a in tree.leaves(t)} == {np.dtype(np.float32)}


def test_the_averaged_weights_are_the_mean_of_those_of_all_steps():
    """Each with the weight decayᵗ⁻ⁱ.  Turns red if the zeros at the start count."""
    training = replace(TRAINING, steps=4, warmup=1, average=0.7)
    states = [state for state, _ in reference.train(CONFIG, training, windows())]
    shares = np.array([0.7**3, 0.7**2, 0.7, 1])
    shares /= shares.sum()
    mean = tree.map(
        lambda *p: sum(s * a for s, a in zip(shares, p, strict=True)), *[s.params for s in states]
    )
    assert_close(weights(states[-1], 0.7), mean, 1e-12)
    assert weights(initial_state(CONFIG, training), 0.7)["norm"]["scale"].max() == 1


@each_engine
def test_evaluation_is_the_mean_over_all_labels(engine):
    """Turns red if the last batch, which is half empty, counts as much as another."""
    params = initial_params(CONFIG, key=random.key(1), dtype=np.float64)
    data = Windows(text()[:98], length=5, batch=6, key=random.key(0))
    found = engine.evaluate(params, replace(CONFIG, dropout=0.5), data)
    tokens, labels = text()[:95].reshape(-1, 5), text()[1:96].reshape(-1, 5)
    ends = text()[None, 95:97], text()[None, 96:98]
    total = 0.0
    for inputs, outputs in ((tokens, labels), ends):
        batch = {"tokens": inputs, "labels": outputs}
        loss, _ = reference.loss_and_gradients(params, batch, config=replace(CONFIG, dropout=0.0))
        total += loss * outputs.size
    assert found["counted"] == 97
    np.testing.assert_allclose(found["loss"], total / 97, rtol=1e-12)
    first = engine.evaluate(params, CONFIG, data, batches=1)
    assert first["counted"] == 30 and first["loss"] != found["loss"]


def test_bfloat16_and_float16_stay_within_a_hundredth_of_float32():
    """Over 200 steps.  Turns red if the masters are rounded in each step, or a gradient is not
    scaled back.
    """
    training = replace(TRAINING, dtype="float32", learning_rate=3e-3, average=0.9)
    exact = losses_of(accelerated, training)
    for dtype in ("bfloat16", "float16"):
        narrow = losses_of(accelerated, training, compilation=Compilation(compute_dtype=dtype))
        assert (narrow != exact).any() and exact[-1] < exact[0] - 0.3
        np.testing.assert_allclose(narrow, exact, rtol=0.01)


def test_a_float16_step_that_overflows_moves_nothing_and_halves_the_scale():
    """Turns red if a moment, an average or AdamW's count moves with it."""
    # AdamW's first step is as long as the rate, in each weight; so is it after one that is skipped.
    settings = {"schedule": "constant", "warmup": 0, "weight_decay": 0.0, "average": 0.9}
    training = replace(TRAINING, steps=9, dtype="float32", **settings)
    choice = {"compilation": Compilation(compute_dtype="float16")}
    begun = accelerated.portable(
        accelerated.packed(initial_state(CONFIG, training), **choice), CONFIG
    )
    huge = begun._replace(scaling=begun.scaling | {"scale": 2.0**40})
    state, _ = next(accelerated.train(CONFIG, training, windows(), state=huge, **choice))
    after = accelerated.portable(state, CONFIG)
    assert after.step == 1
    assert after.scaling == {"scale": 2.0**39, "streak": 0, "skipped": 1}
    for name in TREES[:3]:
        tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(begun, name))
    assert_close(after.average, moving_average(begun.average, begun.params, decay=0.9), 1e-6)
    after = after._replace(scaling=after.scaling | {"scale": 2.0**16})
    state, _ = next(accelerated.train(CONFIG, training, windows(), state=after, **choice))
    moved = accelerated.portable(state, CONFIG)
    step = moved.params["norm"]["bias"] - after.params["norm"]["bias"]
    np.testing.assert_allclose(np.abs(step), training.learning_rate, rtol=1e-3)


def test_the_scale_grows_after_many_steps_and_never_falls_below_1():
    scaling = initial_scaling() | {"streak": np.int32(PATIENCE - 2)}
    scales = []
    for finite in (True, True, True, False):
        scaling = next_scaling(scaling, np.bool_(finite))
        scales.append((float(scaling["scale"]), int(scaling["streak"])))
    assert scales == [(2**16, PATIENCE - 1), (2**17, 0), (2**17, 1), (2**16, 0)]
    least = next_scaling(scaling | {"scale": np.float32(1)}, np.bool_(False))
    assert float(least["scale"]) == 1 and int(least["skipped"]) == 2


def test_the_scaling_of_a_float16_run_passes_through_the_other_engine():
    training = replace(TRAINING, steps=4, warmup=1, dtype="float32")
    choice = Compilation(compute_dtype="float16")
    run = accelerated.train(CONFIG, training, windows(), compilation=choice)
    state = accelerated.portable(next(run)[0], CONFIG)
    there, _ = next(reference.train(CONFIG, training, windows(), state=state))
    assert there.scaling == state.scaling == {"scale": 2.0**16, "streak": 1, "skipped": 0}


@each_engine
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"tokens": np.full((6, 5), 17)}, InputError, r"tokens\[0, 0\] is 17, outside the vocab"),
        ({"labels": np.full((6, 5), -1)}, InputError, r"labels\[0, 0\] is -1, outside the vocab"),
        ({"tokens": np.zeros((6, 5))}, DtypeError, "tokens is of float64"),
        ({"tokens": np.zeros((6, 8), int)}, InputError, "sequence has 8 tokens, .* only 7"),
        ({"labels": np.zeros((6, 4), int)}, InputError, r"labels has shape \(6, 4\), tokens"),
        ({"documents": np.zeros((6, 4), int)}, InputError, r"documents has shape \(6, 4\), tokens"),
        ({"words": np.zeros((6, 5), int)}, InputError, "the batch has .*words"),
    ],
)
def test_a_batch_that_cannot_be_trained_on_is_refused(engine, change, error, message):
    class Data:
        def batch(self, step):
            return dict.fromkeys(("tokens", "labels"), np.zeros((6, 5), int)) | change

        def in_order(self):
            yield self.batch(0)

    with pytest.raises(error, match=message):
        next(engine.train(CONFIG, TRAINING, Data()))
    params = initial_params(CONFIG, key=random.key(0), dtype=np.float64)
    with pytest.raises(error, match=message):
        engine.evaluate(params, CONFIG, Data())


@each_engine
def test_parts_of_a_loss_that_is_not_their_mean_are_refused(engine, monkeypatch):
    """As CLIP's.  Turns red if parts are trained on silently."""
    monkeypatch.setitem(MODELS, "gpt", MODELS["gpt"]._replace(in_parts=lambda config: False))
    with pytest.raises(InputError, match="accumulation is 3, but this model's loss"):
        next(engine.train(CONFIG, TRAINING, windows()))


def test_training_starts_from_the_weights_that_are_given_or_says_why_not():
    params = initial_params(CONFIG, key=random.key(7), dtype=np.float64)
    assert initial_state(CONFIG, TRAINING, params).params is params
    with pytest.raises(DtypeError, match="token.embedding is float32, and the training's dtype"):
        initial_state(CONFIG, TRAINING, tree.map(np.float32, params))
    with pytest.raises(InputError, match="params does not fit .*missing: norm.scale"):
        initial_state(CONFIG, TRAINING, params | {"norm": {"bias": params["norm"]["bias"]}})


@each_engine
def test_nothing_to_evaluate_on_is_said(engine):
    class Data:
        def in_order(self):
            yield {"tokens": np.zeros((2, 3), int), "labels": np.full((2, 3), -100)}

    params = initial_params(CONFIG, key=random.key(0))
    with pytest.raises(InputError, match="nothing in the validation data counts"):
        engine.evaluate(params, CONFIG, Data())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps is 0; give a positive integer"),
        ({"batch": 2.5}, "batch is 2.5"),
        ({"accumulation": 4}, "accumulation is 4, which does not divide the batch of 6"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; give a positive number"),
        ({"dtype": "float16"}, "dtype is 'float16'; give float32 or float64"),
        ({"warmup": 200}, "warmup is 200 of 200 steps"),
        ({"seed": -1}, "seed is -1"),
        ({"schedule": "square"}, "schedule is 'square'; give one of cosine, linear"),
        ({"schedule": "warmup_stable_decay", "decay": 190}, "decay is 190 of 200 steps"),
        ({"average": 1.0}, "average is 1.0; give a decay between 0 and 1"),
        ({"patience": 0}, "patience is 0; give a positive integer"),
        ({"evaluation_interval": None}, "evaluation_interval is None"),
        ({"final_learning_rate": -1}, "final is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(TRAINING, **changes)


def test_over_trees_leaves_out_what_is_not_there():
    state = State(3, {"a": 1}, {"a": 2}, {"a": 3}, scaling={"scale": 4})
    doubled = over_trees(lambda part: {"a": 2 * part["a"]}, state)
    assert doubled == State(3, {"a": 2}, {"a": 4}, {"a": 6}, scaling={"scale": 4})
