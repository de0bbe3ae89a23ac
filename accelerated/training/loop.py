"""Training: one compiled step, over and over, for every model."""

from dataclasses import replace
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax

from accelerated import functional
from accelerated.models import twin_of
from accelerated.training.compilation import PLAIN, check_device, check_model, pack, unpack
from accelerated.training.optimizer import optimizer
from accelerated.training.scaling import chosen, initial_scaling, next_scaling
from reference.data.batches import IGNORE, LABELS
from reference.training.loop import check_accumulation, checked, counted, mean_loss
from reference.training.state import initial_state, keys_of, over_trees, updates, weights


def train(config, training, data, *, state=None, compilation=PLAIN):
    """As `reference.training.loop.train`, with the state on the device and the loss not waited for.

    With several steps a call it yields after each call, with the figures of all of them.  A state
    that was yielded is used up by the next call, and is packed for the device: `portable` makes the
    reference's of it, to be kept.  The next batch is made while the device is at work.
    """
    keys = keys_of(training.seed)
    check_device(compilation)
    check_model(compilation, config)
    check_accumulation(config, training.accumulation)
    state = initial_state(config, training) if state is None else state
    step, on_device = state.step, jax.device_put(packed(state, compilation))
    stream = checked(config, map(data.batch, range(step, training.steps)))
    feed = calls(stream, compilation.steps_per_call)
    following = next(feed, None)
    # No step knows the seed, and another seed is no reason to compile anew.
    static = {"config": config, "training": replace(training, seed=0), "compilation": compilation}
    while following is not None:
        on_device, figures = train_call(on_device, following, keys.dropout, **static)
        step += len(next(iter(following.values())))
        following = next(feed, None)
        if compilation.steps_per_call == 1:
            figures = {name: of_all[0] for name, of_all in figures.items()}
        yield on_device._replace(step=step), figures


def calls(stream, steps):
    """Yield the batches of each call on the device: arrays (steps, B, …).

    Batches that differ in shape cannot share a call: then each has one of its own.
    """
    stream = iter(stream)
    while several := list(islice(stream, steps)):
        alike = len({tuple(a.shape for a in batch.values()) for batch in several}) == 1
        for group in [several] if alike else [[batch] for batch in several]:
            stacked = {name: np.stack([batch[name] for batch in group]) for name in group[0]}
            yield jax.device_put(narrowed(stacked))


def narrowed(batch):
    """Integers as int32, which devices count in."""
    return {n: np.int32(a) if np.issubdtype(a.dtype, np.integer) else a for n, a in batch.items()}


def packed(state, compilation):
    """A State of the reference's for the compiled step."""
    state = over_trees(partial(pack, compilation=compilation), state)
    if compilation.compute_dtype == "float16" and state.scaling is None:
        state = state._replace(scaling=initial_scaling())
    return state


def portable(state, config):
    """A State that `train` yielded as the reference's, in host memory: for a checkpoint."""
    state = over_trees(partial(unpack, config=config), state)
    scaling = None if state.scaling is None else {n: a.item() for n, a in state.scaling.items()}
    return state._replace(step=int(state.step), scaling=scaling)


@partial(jax.jit, static_argnames=("config", "training", "compilation"), donate_argnums=0)
def train_call(state, batches, key, *, config, training, compilation):
    """Some steps of `reference.training.loop.train_step`, compiled whole; the old state's memory is
    reused.

    batches: a dict of arrays (steps, B, …);  key: the run's for dropout -> the next state, figures
    (steps,).
    """
    one = partial(train_step, key=key, config=config, training=training, compilation=compilation)
    if len(next(iter(batches.values()))) > 1:
        return jax.lax.scan(one, state, batches)
    state, figures = one(state, {name: several[0] for name, several in batches.items()})
    return state, {name: figure[None] for name, figure in figures.items()}


def train_step(state, batch, *, key, config, training, compilation):
    """One step, to be compiled: loss, gradient, clipping and AdamW by optax."""
    loss, gradients = loss_and_gradients(
        state.params,
        batch,
        config=config,
        key=jax.random.fold_in(key, state.step) if getattr(config, "dropout", 0) else None,
        accumulation=training.accumulation,
        recompute=training.recompute,
        compilation=compilation,
        scale=None if state.scaling is None else state.scaling["scale"],
    )
    norm = optax.tree.norm(gradients)
    optax_step = optimizer(training, step=state.step)
    optax_state = optax.tree_utils.tree_set(
        optax_step.init(state.params), mu=state.mean, nu=state.square, count=updates(state)
    )
    changes, after = optax_step.update(gradients, optax_state, state.params)
    mean, square = (optax.tree_utils.tree_get(after, name) for name in ("mu", "nu"))
    params = optax.apply_updates(state.params, changes)
    moved = state._replace(params=params, mean=mean, square=square)
    if state.scaling is not None:
        finite = jnp.isfinite(norm)
        moved = chosen(finite, moved, state)._replace(scaling=next_scaling(state.scaling, finite))
    if state.average is not None:
        average = optax.incremental_update(moved.params, state.average, 1 - training.average)
        moved = moved._replace(average=average)
    return moved._replace(step=state.step + 1), {"loss": loss, "gradient_norm": norm}


def loss_and_gradients(
    params,
    batch,
    *,
    config,
    key=None,
    accumulation=1,
    recompute=False,
    compilation=PLAIN,
    scale=None,
):
    """As the reference's; the parts run in a compiled loop.

    params: packed for this Compilation.  Forward and backward run in its dtype, for which all of
    them are cast once; loss and gradients are of the parameters' own.  scale: of the loss while
    gradients are computed, see `scaling`.
    """
    loss_of = loss_function(config, compilation, recompute)
    kept = jnp.maximum(count(batch), 1)

    def part(i, batch):
        def weighted_loss(params):
            part_key = None if key is None else jax.random.fold_in(key, i)
            loss = loss_of(params, **batch, key=part_key)
            loss = loss * (count(batch) / kept).astype(loss.dtype)
            return (loss if scale is None else loss * scale), loss

        (_, loss), gradients = jax.value_and_grad(weighted_loss, has_aux=True)(params)
        return loss, gradients

    def add(total, each):
        return jax.tree.map(jnp.add, total, part(*each)), None

    if accumulation == 1:
        loss, gradients = part(0, batch)
    else:
        split = in_parts(batch, accumulation)
        first = {name: array[0] for name, array in split.items()}
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, 0, first))
        (loss, gradients), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulation), split))
    if scale is not None:
        gradients = jax.tree.map(lambda g: g / scale, gradients)
    return loss, gradients


def loss_function(config, compilation, recompute=False):
    """The loss of a model, as a function of packed parameters that casts them to the compute dtype.

    recompute: blocks keep only their input, if the Compilation has no policy of its own.
    """
    options = compilation.model
    if recompute and options["recompute"] is None:
        options["recompute"] = "nothing_saveable"
    model = twin_of(config)
    loss_of, _ = functional(model.abstract(config, **options), model.loss)

    def loss(params, **batch):
        narrow = jax.tree.map(lambda p: p.astype(compilation.compute_dtype or p.dtype), params)
        return loss_of(narrow, **batch)

    return loss


def count(batch):
    """`counted`, of arrays that are not known yet."""
    for name in LABELS:
        if name in batch:
            return (batch[name] != IGNORE).sum()
    return jnp.asarray(len(next(iter(batch.values()))))


def in_parts(batch, number):
    """As `parts`, each array (parts, B / parts, …)."""
    rows = len(next(iter(batch.values())))
    missing = -rows % number
    return {
        name: jnp.pad(
            array,
            ((0, missing),) + ((0, 0),) * (array.ndim - 1),
            constant_values=IGNORE if name in LABELS else 0,
        ).reshape(number, -1, *array.shape[1:])
        for name, array in batch.items()
    }


def evaluate(params, config, data, *, batches=None, compilation=PLAIN):
    """As `reference.training.loop.evaluate`, compiled."""
    check_device(compilation)
    check_model(compilation, config)
    on_device = jax.device_put(pack(params, compilation))
    return evaluate_packed(on_device, config, data, batches=batches, compilation=compilation)


def evaluate_packed(params, config, data, *, batches, compilation):
    """`evaluate` of parameters that are on the device; they are waited for at the end only."""
    counts, losses = [], []
    for batch in islice(checked(config, data.in_order()), batches):
        counts.append(counted(batch))
        losses.append(
            evaluation_loss(params, narrowed(batch), config=config, compilation=compilation)
        )
    return mean_loss(zip(map(float, losses), counts, strict=True))


@partial(jax.jit, static_argnames=("config", "compilation"))
def evaluation_loss(params, batch, *, config, compilation):
    return loss_function(config, compilation)(params, **batch)


def measure(state, config, training, data, *, compilation=PLAIN):
    """`evaluate` of a State that `train` yielded, as it lies on the device."""
    return evaluate_packed(
        weights(state, training.average),
        config,
        data,
        batches=training.evaluation_batches,
        compilation=compilation,
    )
