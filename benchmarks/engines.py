"""What each engine has to time: the same model, weights and batch, in five ways to run it."""

import os
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

import accelerated.training.loop
import reference.training.loop
from accelerated.training.compilation import PLAIN, Compilation, pack
from benchmarks import jax_gpt
from reference import random
from reference.models.gpt import GPTConfig, flops_per_token
from reference.training.config import TrainingConfig, rate
from reference.training.optimizer import global_norm
from reference.training.state import initial_state

ON_GPU = Compilation(compute_dtype="bfloat16", attention="cudnn", vocabulary_multiple=128)


class Size(NamedTuple):
    """What is trained, on how much at a time, and how often it is timed."""

    layers: int
    width: int
    length: int
    batch: int
    vocabulary: int
    heads: int
    rounds: int

    def __str__(self):
        return (
            f"{self.layers} layers, width {self.width}, T {self.length}, batch {self.batch}, "
            f"V {self.vocabulary}"
        )


SIZES = {
    "small": Size(4, 128, 64, 12, 65, 4, rounds=21),
    "medium": Size(6, 384, 256, 4, 1024, 6, rounds=15),
    "large": Size(12, 768, 256, 1, 50257, 12, rounds=15),
    "gpt2": Size(12, 768, 1024, 32, 50257, 12, rounds=21),  # for a GPU, in bfloat16
}


class Problem:
    """A batch and weights of a size, the same for every engine."""

    def __init__(self, size, compilation=PLAIN):
        sizes = {"layers": size.layers, "heads": size.heads, "width": size.width}
        self.config = GPTConfig(size.vocabulary, size.length, **sizes)
        self.training = TrainingConfig(steps=1000, batch=size.batch, length=size.length)
        self.compilation = compilation
        self.state = initial_state(self.config, self.training)
        shape = (2, size.batch, size.length)
        ids = np.random.default_rng(0).integers(0, size.vocabulary, shape)
        self.tokens, self.labels = ids.astype(np.int32)
        self.batch = {"tokens": self.tokens, "labels": self.labels}
        self.flops = flops_per_token(self.config, size.length) * size.batch * size.length


class Calls(NamedTuple):
    """Functions without arguments, each of which ends when its work is done."""

    gradients: object  # forward, loss, backward
    step: object  # the same, clipping and AdamW: the weights move
    values: object  # -> the loss and the length of the gradient, at the first weights
    program: object = None  # -> the text of the compiled step


def numpy_calls(problem):
    loop, static = reference.training.loop, {"config": problem.config}
    params, state, batch = problem.state.params, problem.state, problem.batch

    def gradients():
        return loop.loss_and_gradients(params, batch, **static)

    def step():
        nonlocal state
        options = static | {"training": problem.training}
        state, _ = loop.train_step(state, batch, key=random.key(0), **options)

    def values():
        loss, gradient = gradients()
        return float(loss), global_norm(gradient)

    return Calls(gradients, step, values)


def flax_calls(problem):
    loop, batch = accelerated.training.loop, problem.batch
    static = {"config": problem.config, "compilation": problem.compilation}
    compiled = jax.jit(partial(loop.loss_and_gradients, **static))
    params = jax.device_put(pack(problem.state.params, problem.compilation))
    state = jax.device_put(loop.packed(problem.state, problem.compilation))
    arrays = jax.device_put(({name: a[None] for name, a in batch.items()}, random.key(0)))
    call = partial(loop.train_call, **static, training=problem.training)

    def gradients():
        return jax.block_until_ready(compiled(params, batch))

    def step():
        nonlocal state
        state, _ = jax.block_until_ready(call(state, *arrays))

    def program():
        options = static | {"training": problem.training}
        return loop.train_call.lower(state, *arrays, **options).compile().as_text()

    return Calls(gradients, step, partial(jax_values, gradients), program)


def jax_calls(problem):
    static = {"config": problem.config}
    compiled = jax.jit(jax.value_and_grad(partial(jax_gpt.loss, **static)))
    batch, params = jax.device_put(((problem.tokens, problem.labels), problem.state.params))
    state, count = jax.device_put(tuple(problem.state[:4])), 0
    call = partial(jax_gpt.train_step, **static, training=problem.training)

    def gradients():
        return jax.block_until_ready(compiled(params, *batch))

    def step():
        nonlocal state, count
        count += 1
        of_step = rate(problem.training)(count)
        state, _ = jax.block_until_ready(call(state, *batch, of_step))

    return Calls(gradients, step, partial(jax_values, gradients))


def jax_values(gradients):
    loss, gradient = gradients()
    host = jax.tree.map(np.asarray, gradient)
    return float(loss), global_norm(host)


def torch_calls(problem, compiled=False):
    import torch

    from benchmarks.torch_gpt import TorchGPT

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    model = TorchGPT(
        pack(problem.state.params, replace(problem.compilation, unroll=None)),
        problem.config,
        problem.training,
        dtype=problem.compilation.compute_dtype,
        compiled=compiled,
    )
    batch = [torch.tensor(a, device=model.device).long() for a in (problem.tokens, problem.labels)]

    def values():
        return model.loss_and_gradients(*batch).item(), model.gradient_norm()

    def call(method):
        return lambda: method(*batch).item()

    return Calls(call(model.loss_and_gradients), call(model.train_step), values)


ENGINES = {
    "NumPy": numpy_calls,
    "Flax": flax_calls,
    "JAX": jax_calls,
    "PyTorch": torch_calls,
    "PyTorch compiled": partial(torch_calls, compiled=True),
}
