"""Training: the same few lines, over and over, for every model."""

import math
from itertools import islice

import numpy as np

from reference import random, tree
from reference.data.batches import IGNORE, LABELS
from reference.errors import InputError
from reference.models import model_of
from reference.training.config import rate
from reference.training.optimizer import adamw, clip_factor, global_norm, moving_average
from reference.training.state import initial_state, keys_of, updates


def train(config, training, data, *, state=None):
    """Yield (state, figures) after each step: the whole run, or what is left of it after `state`.

    config: a model's;  training: TrainingConfig;  data: `reference.data.batches` has some, with
    `batch(step)`.  figures: "loss", the batch's before the step, and "gradient_norm", before it is
    clipped.  Step i's dropout key is fold_in(the run's dropout key, i), i from 0.
    Raises InputError or DtypeError for a batch that the model cannot be trained on.
    """
    check_accumulation(config, training.accumulation)
    keys = keys_of(training.seed)
    state = initial_state(config, training) if state is None else state
    while state.step < training.steps:
        batch = data.batch(state.step)
        check_batch(config, batch)
        key = random.fold_in(keys.dropout, state.step)
        state, figures = train_step(state, batch, key=key, config=config, training=training)
        yield state, figures


def train_step(state, batch, *, key, config, training):
    """One step: the loss's gradient, clipped, and AdamW with the scheduled rate.

    batch: a dict of arrays (B, …) -> the next state, figures as of `train`.
    """
    loss, gradients = loss_and_gradients(
        state.params,
        batch,
        config=config,
        key=key,
        accumulation=training.accumulation,
        recompute=training.recompute,
    )
    step, norm = state.step + 1, global_norm(gradients)
    params, mean, square = adamw(
        state.params,
        gradients,
        state.mean,
        state.square,
        step=updates(state) + 1,
        learning_rate=rate(training)(step),
        beta1=training.beta1,
        beta2=training.beta2,
        epsilon=training.epsilon,
        weight_decay=training.weight_decay,
        factor=clip_factor(norm, limit=training.clip),
    )
    moved = state._replace(step=step, params=params, mean=mean, square=square)
    if state.average is not None:
        average = moving_average(state.average, params, decay=training.average)
        moved = moved._replace(average=average)
    return moved, {"loss": loss, "gradient_norm": norm}


def loss_and_gradients(params, batch, *, config, key=None, accumulation=1, recompute=False):
    """The loss of a batch and its gradients, computed in parts that fit into memory.

        loss = Σᵢ wᵢ lossᵢ,   wᵢ = what part i counts / what all count

    With equal weights it would be a mean of means, and not the batch's loss where padding makes
    parts uneven.  A last part with fewer rows than the others is filled up with rows that count
    nothing.  Part i's dropout key is fold_in(key, i).

    batch: a dict of arrays (B, …) -> a scalar, a tree like params.
    """
    loss_of, total = model_of(config).loss, max(counted(batch), 1)
    loss, gradients = 0, None
    for i, part in enumerate(parts(batch, accumulation)):
        part_key = None if key is None else random.fold_in(key, i)
        part_loss, backward = loss_of(
            params, **part, config=config, key=part_key, recompute=recompute
        )
        weight = counted(part) / total
        part_gradients = backward(weight)
        loss = loss + weight * part_loss
        gradients = part_gradients if i == 0 else tree.map(np.add, gradients, part_gradients)
    return loss, gradients


def evaluate(params, config, data, *, batches=None):
    """The mean loss over data that is not trained on, without noise -> {"loss": …, "counted": …}.

    data: as for `train`, with `in_order()`, each row once;  batches: only the first so many.
    Every label counts the same, however they lie in batches.
    Raises InputError where nothing counts.
    """
    return mean_loss(
        (float(model_of(config).loss(params, **batch, config=config)[0]), counted(batch))
        for batch in islice(checked(config, data.in_order()), batches)
    )


def mean_loss(losses):
    """The mean of pairs (loss, how many it is the mean of)."""
    total, count = 0.0, 0
    for loss, number in losses:
        total += loss * number
        count += number
    if count == 0:
        raise InputError("nothing in the validation data counts; give some that has labels")
    return {"loss": total / count, "counted": count}


def counted(batch):
    """How many things the loss of a batch is the mean of: labels that are kept, else rows."""
    for name in LABELS:
        if name in batch:
            return int((batch[name] != IGNORE).sum())
    return len(next(iter(batch.values())))


def parts(batch, number):
    """A batch as a list of so many, of equally many rows: see `filled`."""
    if number == 1:
        return [batch]
    whole = filled(batch, math.ceil(len(next(iter(batch.values()))) / number) * number)
    split = {name: np.split(array, number) for name, array in whole.items()}
    return [{name: arrays[i] for name, arrays in split.items()} for i in range(number)]


def filled(batch, rows):
    """A batch with so many rows, the last of which count nothing: labels ignored, the rest 0."""

    def fill(name, array):
        missing = ((0, rows - len(array)),) + ((0, 0),) * (array.ndim - 1)
        return np.pad(array, missing, constant_values=IGNORE if name in LABELS else 0)

    if len(next(iter(batch.values()))) == rows:
        return batch
    if not set(LABELS) & set(batch):
        raise InputError("the batch has no labels, so a row that counts nothing cannot be made")
    return {name: fill(name, array) for name, array in batch.items()}


def checked(config, stream):
    """The batches of a stream, each after `check_batch`."""
    for batch in stream:
        check_batch(config, batch)
        yield batch


def check_accumulation(config, accumulation):
    """Raise InputError for parts of a batch whose loss is not the batch's."""
    if accumulation > 1 and not model_of(config).in_parts(config):
        raise InputError(
            f"accumulation is {accumulation}, but this model's loss of a batch is not the mean of "
            "those of its parts; give 1"
        )


def check_batch(config, batch):
    """Raise InputError or DtypeError for a batch that this model cannot be trained on."""
    try:
        model_of(config).check_batch(config, **batch)
    except TypeError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the batch has {sorted(batch)}; {error}") from None
