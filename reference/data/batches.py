"""A long text as batches of short sequences, each token in turn the next one's label."""

import numpy as np

from reference import random
from reference.errors import InputError


def batches(tokens, *, length, batch, key, start=0):
    """Yield the inputs and labels of step start, start + 1, … for ever: labels are inputs one on.

    The text is cut into windows of T tokens, which each epoch takes in another order.  What is left
    over at its end, less than two windows, comes to the front by another cut: epoch e begins
    randint(0, T) tokens in, by the second key of split(fold_in(key, e)); the first orders it.  A
    step's batch follows from (key, step) alone, so that a run can go on anywhere.

    tokens (n,) -> pairs of (B, T).  Raises InputError for a text too short for one batch.
    """
    windows = len(tokens) // length - 1
    each_epoch = windows // batch
    if each_epoch < 1:
        raise InputError(
            f"the text has {len(tokens)} tokens, too few for a batch of {batch} sequences of "
            f"{length}; give {(batch + 1) * length} at least, or a smaller batch or length"
        )
    epoch = None
    for step in range(start, 2**62):
        if step // each_epoch != epoch:
            epoch = step // each_epoch
            order_key, cut_key = random.split(random.fold_in(key, epoch))
            order = random.permutation(order_key, windows)
            cut = int(random.randint(cut_key, (), 0, length))
        first = step % each_epoch * batch
        starts = cut + order[first : first + batch, None] * length
        window = tokens[starts + np.arange(length + 1)]
        yield window[:, :-1], window[:, 1:]
