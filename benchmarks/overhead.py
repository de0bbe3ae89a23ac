"""What a training step costs besides its arithmetic: calling it, and compiling it."""

import time
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import optax
from flax import nnx
from rich.box import SIMPLE
from rich.table import Table

from accelerated.models.gpt import GPT
from accelerated.training.compilation import PLAIN, Compilation
from accelerated.training.loop import packed, train, train_call
from benchmarks.report import median, ratio
from reference import random
from reference.data.batches import Windows
from reference.models.gpt import GPTConfig
from reference.training.config import TrainingConfig
from reference.training.state import initial_state, keys_of

TINY = GPTConfig(vocabulary=65, context=16, layers=12, heads=2, width=16)
TRAINING = TrainingConfig(steps=10**6, batch=4, length=16)
STACKED = Compilation(unroll=1)
MANY = 32  # steps a call


def measure(console, rounds=21):
    """Both, as tables and as figures."""
    with console.status("the overhead of a call, at 12 layers of width 16"):
        steps = overheads(rounds)
    with console.status("compiling 2 and 24 layers"):
        seconds = compile_times()
    console.print(steps_table(steps), compile_table(seconds))
    return {"steps": steps, "compile_seconds": seconds}


def overheads(rounds):
    """Seconds of one step in each way to call it, all in turn."""
    ways = {
        "compiled step on flat arrays": flat_step(PLAIN),
        "accelerated.training.train": shipped(PLAIN),
        "compiled step on flat arrays, layers in a loop": flat_step(STACKED),
        "accelerated.training.train, layers in a loop": shipped(STACKED),
        f"the same, {MANY} steps a call": shipped(replace(STACKED, steps_per_call=MANY)),
        "nnx.jit with nnx.Optimizer": nnx_step(),
    }
    seconds = {name: [] for name in ways}
    for call in ways.values():
        call(), call()
    for _ in range(rounds):
        for name, call in ways.items():
            call()
            start = time.perf_counter()
            steps = call()
            seconds[name].append((time.perf_counter() - start) / steps)
    return {name: median(times) for name, times in seconds.items()}


def flat_step(compilation):
    """The compiled step with nothing around it: arrays in a list, the same batch each time."""
    state = packed(initial_state(TINY, TRAINING), compilation)
    leaves, structure = jax.tree.flatten(jax.device_put(state))
    static = {"config": TINY, "training": TRAINING, "compilation": compilation}

    @partial(jax.jit, donate_argnums=0)
    def compiled(leaves, *batch):
        state, losses = train_call.__wrapped__(structure.unflatten(leaves), *batch, **static)
        return jax.tree.leaves(state), losses

    ids = np.zeros((1, TRAINING.batch, TRAINING.length), np.int32)
    batch = jax.device_put(({"tokens": ids, "labels": ids}, random.key(0)))

    def call():
        nonlocal leaves
        leaves, _ = jax.block_until_ready(compiled(leaves, *batch))
        return 1

    return call


def shipped(compilation):
    """What a user runs, data and all."""
    text = np.random.default_rng(0).integers(0, TINY.vocabulary, 100_000)
    size = {"length": TRAINING.length, "batch": TRAINING.batch, "key": keys_of(0).data}
    steps = train(TINY, TRAINING, Windows(text, **size), compilation=compilation)

    def call():
        jax.block_until_ready(next(steps))
        return compilation.steps_per_call

    return call


def nnx_step():
    """The same model with nnx.Optimizer under nnx.jit, as Flax's examples have it."""
    model = GPT(TINY, rngs=nnx.Rngs(0))
    adamw = optax.adamw(1e-3, TRAINING.beta1, TRAINING.beta2, weight_decay=TRAINING.weight_decay)
    chained = optax.chain(optax.clip_by_global_norm(TRAINING.clip), adamw)
    optimizer = nnx.Optimizer(model, chained, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, tokens, labels):
        loss, gradients = nnx.value_and_grad(lambda m: m.loss(tokens=tokens, labels=labels))(model)
        optimizer.update(model, gradients)
        return loss

    batch = jax.device_put(np.zeros((2, TRAINING.batch, TRAINING.length), np.int32))

    def call():
        jax.block_until_ready((step(model, optimizer, *batch), nnx.state(model)))
        return 1

    return call


def compile_times():
    """Seconds to compile a training step of 2 and of 24 layers, with a loop over them and without.

    The median of three, each with a vocabulary of its own, so that none is found compiled.
    """
    return {
        name: {
            layers: float(np.median([compile_time(layers, 60 + i, choice) for i in range(3)]))
            for layers in (2, 24)
        }
        for name, choice in (("layers in a loop", STACKED), ("layers one by one", PLAIN))
    }


def compile_time(layers, vocabulary, compilation):
    config = GPTConfig(vocabulary, 64, layers=layers, heads=4, width=128)
    training = replace(TRAINING, length=64)
    state = packed(initial_state(config, training), compilation)
    ids = np.zeros((1, training.batch, training.length), np.int32)
    start = time.perf_counter()
    static = {"config": config, "training": training, "compilation": compilation}
    train_call.lower(state, {"tokens": ids, "labels": ids}, random.key(0), **static).compile()
    return time.perf_counter() - start


def steps_table(steps):
    """Milliseconds, and how they compare with the bare step and with nnx.jit."""
    rows = Table("", title="12 layers of width 16: a step, AdamW included", box=SIMPLE)
    for name in ("ms", "/ flat arrays", "/ nnx.jit"):
        rows.add_column(name, justify="right")
    flat, *_, plain = steps
    for name, timing in steps.items():
        bare = flat if "loop" not in name and "same" not in name else f"{flat}, layers in a loop"
        ratios = (f"{ratio(timing, steps[other])['ratio']:.2f}" for other in (bare, plain))
        rows.add_row(name, f"{1e3 * timing['median']:.2f}", *ratios)
    return rows


def compile_table(seconds):
    rows = Table("", title="Compilation of a step, width 128, in seconds", box=SIMPLE)
    for name in ("2 layers", "24 layers", "ratio"):
        rows.add_column(name, justify="right")
    for name, (two, many) in ((name, times.values()) for name, times in seconds.items()):
        rows.add_row(name, f"{two:.2f}", f"{many:.2f}", f"{many / two:.2f}")
    return rows
