import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import accelerated.training.compilation as compilation_module
import accelerated.training.loop as accelerated
import reference.training.loop as reference
from accelerated.training.compilation import PLAIN, Compilation, pack, unpack
from reference import random, tree
from reference.data.batches import Windows
from reference.errors import InputError
from reference.models.gpt import GPTConfig, initial_params
from reference.models.llama import LlamaConfig
from reference.training.config import TrainingConfig
from reference.training.state import TREES, initial_state, keys_of
from tests.mirror import MODEL, assert_close

CONFIG = GPTConfig(vocabulary=17, context=7, layers=3, heads=3, width=15, dropout=0.1)
TRAINING = TrainingConfig(
    steps=22, batch=6, length=5, accumulation=2, warmup=4, dtype="float64", clip=0.5
)
PADDED = {"vocabulary_multiple": 8}
TEXT = (np.random.default_rng(0).integers(0, 3, 2000).cumsum() % 17).astype(np.int32)
DATA = Windows(TEXT, length=TRAINING.length, batch=TRAINING.batch, key=keys_of(0).data)


def run(engine, training=TRAINING, config=CONFIG, **options):
    """All losses of a run, and the state at its end as the reference's."""
    losses = []
    for state, figures in engine.train(config, training, DATA, **options):  # noqa: B007
        losses += np.ravel(figures["loss"]).tolist()
    return losses, state if engine is reference else engine.portable(state, config)


@pytest.mark.parametrize(
    "choices",
    [
        {"steps_per_call": 8, "unroll": 1},
        {"unroll": 2, "recompute_policy": "nothing_saveable"} | PADDED,
        {"recompute_policy": "dots_saveable"},
    ],
    ids=lambda choices: "-".join(choices),
)
def test_however_it_is_compiled_a_run_is_the_reference_s(choices):
    """With dropout, accumulation, clipping, and a last call that is short.

    Turns red if a layer of the loop takes another's key, or rows beneath the table score.
    """
    losses, state = run(reference)
    theirs, their_state = run(accelerated, compilation=Compilation(**choices))
    assert np.abs(np.subtract(losses, theirs)).max() <= 1e-9
    assert their_state.step == state.step == 22
    for name in TREES[:3]:
        assert_close(getattr(their_state, name), getattr(state, name), MODEL)


def test_a_run_of_several_steps_a_call_goes_on_bit_for_bit():
    options = {"compilation": Compilation(steps_per_call=4, unroll=1)}
    whole, _ = run(accelerated, **options)
    steps = accelerated.train(CONFIG, TRAINING, DATA, **options)
    next(steps)
    kept = accelerated.portable(next(steps)[0], CONFIG)
    next(steps)  # reuses the memory of the state that was kept
    assert kept.step == 8
    assert run(accelerated, state=kept, **options)[0] == whole[8:]


def lowered(compilation, **sizes):
    config = replace(CONFIG, dropout=0.0, **sizes)
    state = initial_state(config, replace(TRAINING, dtype="float32"))
    batch = dict.fromkeys(("tokens", "labels"), np.zeros((1, 6, 7), np.int32))
    arguments = jax.eval_shape(lambda: (accelerated.packed(state, compilation), batch))
    static = {"config": config, "training": TRAINING, "compilation": compilation}
    return accelerated.train_call.lower(*arguments, random.key(0), **static)


def test_a_loop_over_layers_is_compiled_once_for_all():
    """The program of 24 layers is as long as that of 2."""
    lengths = [len(lowered(Compilation(unroll=1), layers=n).as_text()) for n in (2, 24)]
    assert lengths[1] < 1.05 * lengths[0]
    assert len(lowered(PLAIN, layers=6).as_text()) > 1.5 * len(lowered(PLAIN, layers=2).as_text())


def test_recomputation_saves_memory():
    kept, recomputed = (
        lowered(Compilation(unroll=1, recompute_policy=policy), layers=24)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for policy in (None, "nothing_saveable")
    )
    assert recomputed < 0.5 * kept


@pytest.mark.parametrize("choices", [{}, {"unroll": 2}, PADDED, {"unroll": 1} | PADDED])
def test_what_is_packed_can_be_unpacked(choices):
    params = initial_params(CONFIG, key=random.key(0))
    packed = pack(params, Compilation(**choices))
    assert isinstance(packed["blocks"], dict) == ("unroll" in choices)
    assert len(packed["token"]["embedding"]) == (24 if "vocabulary_multiple" in choices else 17)
    back = unpack(packed, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert list(tree.flatten(back)) == list(tree.flatten(params))


def test_a_padded_output_layer_scores_nothing():
    """Of a Llama whose output is not its table.  Turns red if zeros beside the kernel score 0."""
    config = LlamaConfig(17, 7, 2, 2, 1, 8, 10)
    training = replace(TRAINING, steps=3, warmup=1)
    losses, state = run(reference, training, config)
    choice = Compilation(unroll=1, **PADDED)
    theirs, their_state = run(accelerated, training, config, compilation=choice)
    assert np.abs(np.subtract(losses, theirs)).max() <= 1e-9
    assert_close(their_state.params, state.params, MODEL)
    assert list(tree.flatten(their_state.params)) == list(tree.flatten(state.params))


def test_padding_is_for_models_with_a_vocabulary(monkeypatch):
    monkeypatch.setattr(compilation_module, "DECODERS", ("llama",))
    with pytest.raises(InputError, match="vocabulary_multiple is 8, which is for llama; leave"):
        run(accelerated, compilation=Compilation(**PADDED))


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"steps_per_call": 0}, "steps_per_call is 0; give a positive integer"),
        ({"steps_per_call": None}, "steps_per_call is None"),
        ({"unroll": -1}, "unroll is -1"),
        ({"vocabulary_multiple": 1.5}, "vocabulary_multiple is 1.5"),
        ({"compute_dtype": "float8"}, "'float8'; give one of bfloat16, float16, or none"),
        ({"attention": "flash"}, "attention is 'flash'; give one of cudnn, or none"),
        ({"recompute_policy": "dots"}, "is 'dots'; give one of nothing_saveable, dots_saveable"),
    ],
)
def test_choices_that_cannot_be_are_refused(choices, message):
    with pytest.raises(InputError, match=message):
        Compilation(**choices)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="a GPU is there")
def test_a_kernel_of_a_device_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="attention is 'cudnn', which NVIDIA's GPUs have"):
        run(accelerated, compilation=Compilation(attention="cudnn"))


def test_what_was_compiled_is_kept_on_the_disk(tmp_path):
    """The second process finds what the first one left, and adds nothing."""
    script = """
from accelerated.training.compilation import keep_compiled
keep_compiled()
import jax
jax.jit(lambda x: x * 2 + 1)(jax.numpy.ones(7))
"""
    found = []
    for _ in range(2):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        found.append({path.name for path in (tmp_path / "cache").rglob("*-cache")})
    assert found[0] and found[0] == found[1]
