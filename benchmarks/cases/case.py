"""What is timed of a component: one call in three engines, and the arrays of it."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from accelerated import functional

KERNELS = ("kernel", "lora_a", "lora_b")


class Case(NamedTuple):
    """A component in NumPy, Flax and PyTorch: three functions of (*args, **arrays).

    args are differentiated, arrays are not.  Both are trees of NumPy arrays; PyTorch gets them as
    tensors, the kernels as it keeps them.  noise: whether each engine draws its own, so that
    PyTorch's result cannot be compared.
    """

    reference: Callable
    twin: Callable
    torch: Callable | None
    args: tuple
    arrays: dict = {}
    noise: bool = False


def module(reference, make, torch, *args, method=None, options=None, **arrays):
    """The case of a component with parameters: `make` makes its module, given `rngs`.

    method: what is called of it;  options: keyword arguments of the call that are no arrays.
    """
    apply, shapes = functional(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), method)
    twin = partial(apply, **(options or {}))
    return Case(reference, twin, torch, (weights(shapes), *args), arrays)


class Sizes(NamedTuple):
    """How large the arrays are, and what they are drawn from; the same every time."""

    batch: int
    length: int  # T
    memory: int  # S
    width: int  # D
    heads: int  # H
    hidden: int  # F
    vocabulary: int  # V
    side: int  # of an image
    channels: int
    patch: int
    rank: int

    @property
    def head(self):
        return self.width // self.heads

    def stream(self, seed=0, *, length=None, times=1):
        """x (times · B, T, D)."""
        return normal(times * self.batch, length or self.length, self.width, seed=seed)

    def wide(self, seed=0):
        """What is inside a feed-forward layer (B, T, F)."""
        return normal(self.batch, self.length, self.hidden, seed=seed)

    def scores(self):
        """Of attention (B, H, T, T)."""
        return normal(self.batch, self.heads, self.length, self.length)

    def in_heads(self, seed=0, *, length=None, times=1):
        """Queries (times · B, H, T, K), and keys or values."""
        shape = (times * self.batch, self.heads, length or self.length, self.head)
        return normal(*shape, seed=seed)

    def logits(self, seed=0):
        """Scores of every token (B, T, V)."""
        return normal(self.batch, self.length, self.vocabulary, seed=seed)

    def ids(self, below=None):
        """Integers (B, T) below that, or below V."""
        shape = (self.batch, self.length)
        ids = np.random.default_rng(3).integers(0, below or self.vocabulary, shape)
        return ids.astype(np.int32)

    def labels(self):
        """Those of a language model (B, T), every eighth of them ignored."""
        labels = self.ids()
        labels[:, ::8] = -100
        return labels

    def coins(self, *shape):
        """Booleans, True one time in seven, as the tokens that BERT is asked for."""
        return np.random.default_rng(4).integers(0, 7, shape) == 0

    def embedded(self, seed):
        """One vector for each image or text of a batch (B T, D)."""
        return normal(self.batch * self.length, self.width, seed=seed)

    def image(self):
        """(2 B, rows, columns, C)."""
        return normal(2 * self.batch, self.side, self.side, self.channels)

    def photo(self):
        """Three colours, and sides of fourteen patches."""
        side = 14 * self.patch
        return normal(2 * self.batch, side, side, 3)

    def in_patches(self):
        """What such photos are in patches (2 B, 196, p p 3)."""
        return normal(2 * self.batch, 14 * 14, self.patch * self.patch * 3)


# A call takes about 1 to 60 ms on two cores, of a whole block up to 150.
ON_CPU = Sizes(4, 256, 160, 384, 6, 1536, 4096, side=64, channels=32, patch=16, rank=8)
# About as long as on the processor, on a large GPU.
ON_GPU = Sizes(16, 1024, 768, 768, 12, 3072, 16384, side=128, channels=128, patch=16, rank=8)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def shape(*sizes):
    """What `weights` draws an array of."""
    return jax.ShapeDtypeStruct(sizes, np.float32)


def weights(shapes):
    """Normal numbers in a tree's shapes; kernels of the size that keeps that of x."""
    rng = np.random.default_rng(1)

    def draw(path, a):
        kernel = getattr(path[-1], "key", None) in KERNELS
        scale = math.prod(a.shape[:-1]) ** -0.5 if kernel else 1
        return np.asarray(scale * rng.standard_normal(a.shape), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def cotangent(case):
    """A random tree like the component's value."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(case.twin, *case.args, **case.arrays)
    return jax.tree.map(lambda a: np.asarray(rng.standard_normal(a.shape), np.float32), shapes)
