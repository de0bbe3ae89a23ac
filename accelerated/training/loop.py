"""Training: one compiled step, over and over."""

from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax

from accelerated import functional
from accelerated.models.gpt import GPT
from accelerated.training.compilation import PLAIN, check_device, pack, unpack
from accelerated.training.optimizer import optimizer
from reference.data.batches import batches
from reference.training.loop import State, check_data, initial_state, keys_of


def train(config, training, tokens, *, state=None, compilation=PLAIN):
    """As `reference.training.loop.train`, with the state on the device and the loss not waited for.

    With several steps a call it yields after each call, with the losses of all of them.  A state
    that was yielded is used up by the next call, and is packed for the device: `portable` makes the
    reference's of it, to be kept.  The next batch is made while the device is at work.
    """
    keys = keys_of(training.seed)
    check_data(tokens, config, training)
    check_device(compilation)
    state = initial_state(config, training) if state is None else state
    step, on_device = state.step, jax.device_put(packed(state, compilation))
    size = {"length": training.length, "batch": training.batch}
    stream = batches(tokens, **size, key=keys.data, start=step)
    feed = calls(islice(stream, max(training.steps - step, 0)), compilation.steps_per_call)
    following = next(feed, None)
    static = {"config": config, "training": training, "compilation": compilation}
    while following is not None:
        on_device, loss = train_call(on_device, *following, keys.dropout, **static)
        step += len(following[0])
        following = next(feed, None)
        yield on_device._replace(step=step), loss if compilation.steps_per_call > 1 else loss[0]


def calls(stream, steps):
    """Yield the batches of each call on the device: tokens and labels (steps, B, T)."""
    while several := list(islice(stream, steps)):
        tokens, labels = (np.stack(arrays) for arrays in zip(*several, strict=True))
        yield jax.device_put((np.int32(tokens), np.int32(labels)))


def packed(state, compilation):
    """A State of the reference's for the compiled step."""
    return State(state.step, *(pack(params, compilation) for params in state[1:]))


def portable(state, config):
    """A State that `train` yielded as the reference's, in host memory: for a checkpoint."""
    return State(int(state.step), *(unpack(params, config) for params in state[1:]))


@partial(jax.jit, static_argnames=("config", "training", "compilation"), donate_argnums=0)
def train_call(state, tokens, labels, key, *, config, training, compilation):
    """Some steps of `reference.training.loop.train_step`, compiled whole; the old state's memory is
    reused.

    tokens and labels (steps, B, T);  key: the run's for dropout -> the next state, losses (steps,).
    """
    one = partial(train_step, key=key, config=config, training=training, compilation=compilation)
    if len(tokens) > 1:
        return jax.lax.scan(lambda state, batch: one(state, *batch), state, (tokens, labels))
    state, loss = one(state, tokens[0], labels[0])
    return state, loss[None]


def train_step(state, tokens, labels, *, key, config, training, compilation):
    """One step, to be compiled: loss, gradient, clipping and AdamW by optax."""
    loss, gradients = loss_and_gradients(
        state.params,
        tokens=tokens,
        labels=labels,
        config=config,
        key=jax.random.fold_in(key, state.step) if config.dropout else None,
        accumulation=training.accumulation,
        compilation=compilation,
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


def loss_and_gradients(
    params,
    *,
    tokens,
    labels,
    config,
    key=None,
    accumulation=1,
    ignore=-100,
    compilation=PLAIN,
):
    """As the reference's; the parts run in a compiled loop.

    params: packed for this Compilation.  Forward and backward run in its dtype, for which all of
    them are cast once; loss and gradients are of the parameters' own.
    """
    loss_of, _ = functional(GPT.abstract(config, **compilation.model), GPT.loss)
    kept = jnp.maximum((labels != ignore).sum(), 1)

    def part(i, tokens, labels):
        def weighted_loss(params):
            part_key = None if key is None else jax.random.fold_in(key, i)
            narrow = jax.tree.map(lambda p: p.astype(compilation.compute_dtype or p.dtype), params)
            loss = loss_of(narrow, tokens=tokens, labels=labels, key=part_key, ignore=ignore)
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
