"""Training: the same few lines, over and over."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reference import random, tree
from reference.data.batches import batches
from reference.errors import InputError
from reference.layers.embedding import check_ids
from reference.models.gpt import check_tokens, gpt_loss, initial_params
from reference.training.optimizer import adamw, clip_factor, global_norm
from reference.training.schedule import warmup_cosine


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.  Raises InputError for what cannot be."""

    steps: int
    batch: int = 12  # sequences in each step
    length: int = 64  # tokens in each sequence, T
    accumulation: int = 1  # parts of a batch that are computed one after another, to save memory
    learning_rate: float = 1e-3  # the peak, after the warm-up
    final_learning_rate: float = 1e-4
    warmup: int = 20
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 1.0
    initialization: str = "paper"
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch", "length", "accumulation"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}; give a positive integer")
        if self.batch % self.accumulation:
            raise InputError(
                f"accumulation is {self.accumulation}, which does not divide the batch of "
                f"{self.batch}; give a divisor of it"
            )
        for name in ("learning_rate", "clip", "epsilon"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(f"{name} is {value!r}; give a positive number")
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype is {self.dtype!r}; give float32 or float64")
        warmup_cosine(1, peak=1, warmup=self.warmup, steps=self.steps)
        random.key(self.seed)


class State(NamedTuple):
    """All that a run carries from step to step, the same in both engines."""

    step: int  # steps done
    params: dict
    mean: dict  # AdamW's moments, trees like params
    square: dict


class Keys(NamedTuple):
    """The streams of random numbers of one seed: split(key(seed), 4), in this order."""

    params: np.ndarray
    data: np.ndarray
    dropout: np.ndarray
    sample: np.ndarray


def keys_of(seed):
    """The keys of a run."""
    return Keys(*random.split(random.key(seed), 4))


def initial_state(config, training):
    """The state before the first step: published initial weights, moments of zero."""
    key, dtype = keys_of(training.seed).params, np.dtype(training.dtype)
    params = initial_params(config, key=key, initialization=training.initialization, dtype=dtype)
    return State(0, params, tree.map(np.zeros_like, params), tree.map(np.zeros_like, params))


def train(config, training, tokens, *, state=None):
    """Yield (state, loss) after each step: the whole run, or what is left of it after `state`.

    config: GPTConfig;  training: TrainingConfig;  tokens (n,): the text.  The loss is the batch's,
    before the step.  Step i's dropout key is fold_in(the run's dropout key, i), i from 0.
    Raises InputError for tokens outside the vocabulary, too few of them, or a length over the
    context.
    """
    keys = keys_of(training.seed)
    check_data(tokens, config, training)
    state = initial_state(config, training) if state is None else state
    size = {"length": training.length, "batch": training.batch}
    for inputs, labels in batches(tokens, **size, key=keys.data, start=state.step):
        if state.step == training.steps:
            return
        key = random.fold_in(keys.dropout, state.step)
        batch = {"tokens": inputs, "labels": labels, "key": key}
        state, loss = train_step(state, **batch, config=config, training=training)
        yield state, loss


def train_step(state, *, tokens, labels, key, config, training):
    """One step: the loss's gradient, clipped, and AdamW with the scheduled rate.

    tokens and labels (B, T) -> the next state, the loss before.
    """
    loss, gradients = loss_and_gradients(
        state.params,
        tokens=tokens,
        labels=labels,
        config=config,
        key=key,
        accumulation=training.accumulation,
    )
    step = state.step + 1
    moved = adamw(
        state.params,
        gradients,
        state.mean,
        state.square,
        step=step,
        learning_rate=learning_rate(step, training),
        beta1=training.beta1,
        beta2=training.beta2,
        epsilon=training.epsilon,
        weight_decay=training.weight_decay,
        factor=clip_factor(global_norm(gradients), limit=training.clip),
    )
    return State(step, *moved), loss


def learning_rate(step, training):
    """The rate of a step, from 1: `warmup_cosine` of the run."""
    return warmup_cosine(
        step,
        peak=training.learning_rate,
        warmup=training.warmup,
        steps=training.steps,
        final=training.final_learning_rate,
    )


def loss_and_gradients(params, *, tokens, labels, config, key=None, accumulation=1, ignore=-100):
    """The loss of a batch and its gradients, computed in parts that fit into memory.

        loss = Σᵢ wᵢ lossᵢ,   wᵢ = tokens that part i keeps / tokens that all keep

    With equal weights it would be a mean of means, and not the batch's loss where padding makes
    parts uneven.  Part i's dropout key is fold_in(key, i).

    tokens and labels (B, T), B divisible by `accumulation` -> a scalar, a tree like params.
    """
    kept = max(int((labels != ignore).sum()), 1)
    loss, gradients = 0, None
    parts = zip(np.split(tokens, accumulation), np.split(labels, accumulation), strict=True)
    for i, (part, part_labels) in enumerate(parts):
        part_key = None if key is None else random.fold_in(key, i)
        part_loss, backward = gpt_loss(
            params, tokens=part, labels=part_labels, config=config, key=part_key, ignore=ignore
        )
        weight = int((part_labels != ignore).sum()) / kept
        part_gradients = backward(weight)
        loss = loss + weight * part_loss
        gradients = part_gradients if i == 0 else tree.map(np.add, gradients, part_gradients)
    return loss, gradients


def check_data(tokens, config, training):
    """Raise InputError or DtypeError for tokens that this model cannot be trained on."""
    check_ids(tokens, config.vocabulary, name="tokens")
    check_tokens(np.zeros((1, training.length), np.int32), config, name="a batch")
    next(batches(tokens, length=training.length, batch=training.batch, key=random.key(0)))
