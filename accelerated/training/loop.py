"""Training: one compiled step, over and over."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from accelerated import functional
from accelerated.models.gpt import GPT
from accelerated.training.optimizer import optimizer
from reference import random
from reference.data.batches import batches
from reference.training.loop import State, check_data, initial_state, keys_of


def train(config, training, tokens, *, state=None):
    """As `reference.training.loop.train`, with the state on the device and the loss not waited for.

    A state that was yielded is used up by the next step: copy what is to be kept.
    """
    keys = keys_of(training.seed)
    check_data(tokens, config, training)
    state = initial_state(config, training) if state is None else state
    # In float64 runs the step becomes an int64, from which optax makes its rates in float64 too.
    step, on_device = state.step, jax.device_put(state)
    size = {"length": training.length, "batch": training.batch}
    for inputs, labels in batches(tokens, **size, key=keys.data, start=step):
        if step == training.steps:
            return
        key = random.fold_in(keys.dropout, step)
        batch = {"tokens": np.int32(inputs), "labels": np.int32(labels), "key": key}
        on_device, loss = train_step(on_device, **batch, config=config, training=training)
        step += 1
        yield on_device._replace(step=step), loss


@partial(jax.jit, static_argnames=("config", "training"), donate_argnums=0)
def train_step(state, *, tokens, labels, key, config, training):
    """As `reference.training.loop.train_step`, compiled whole; the old state's memory is reused."""
    loss, gradients = loss_and_gradients(
        state.params,
        tokens=tokens,
        labels=labels,
        config=config,
        key=key,
        accumulation=training.accumulation,
    )
    optax_step = optimizer(training)
    optax_state = optax.tree_utils.tree_set(
        optax_step.init(state.params),
        mu=state.mean,
        nu=state.square,
        count=state.step,
    )
    updates, moved = optax_step.update(gradients, optax_state, state.params)
    mean, square = (optax.tree_utils.tree_get(moved, name) for name in ("mu", "nu"))
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, params, mean, square), loss


def loss_and_gradients(params, *, tokens, labels, config, key=None, accumulation=1, ignore=-100):
    """As the reference's; the parts run in a compiled loop."""
    loss_of, _ = functional(GPT.abstract(config), GPT.loss)
    kept = jnp.maximum((labels != ignore).sum(), 1)

    def part(i, tokens, labels):
        def weighted_loss(params):
            part_key = None if key is None else jax.random.fold_in(key, i)
            loss = loss_of(params, tokens=tokens, labels=labels, key=part_key, ignore=ignore)
            return loss * ((labels != ignore).sum() / kept).astype(loss.dtype)

        return jax.value_and_grad(weighted_loss)(params)

    def add(total, batch):
        return jax.tree.map(jnp.add, total, part(*batch)), None

    if accumulation == 1:
        return part(0, tokens, labels)
    split = (a.reshape(accumulation, -1, a.shape[-1]) for a in (tokens, labels))
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, 0, tokens, labels))
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulation), *split))
    return total
