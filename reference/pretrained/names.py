"""Where a parameter of ours lies in a published file."""

from typing import NamedTuple

import numpy as np

LINEAR = (1, 0)  # PyTorch keeps a kernel as (out, in)
CONV = (2, 3, 1, 0)  # and one of a convolution as (out, in, height, width)


class Stored(NamedTuple):
    """The name of an array in a file, and how ours is made of it.

    axes: ours is np.transpose(theirs, axes).  part, parts: it then holds several of ours, side by
    side along the last axis.  factor: ours is so many times theirs.
    name None: the file has none, for theirs is always 0, and so must ours be.
    """

    name: str | None
    axes: tuple[int, ...] | None = None
    part: int = 0
    parts: int = 1
    factor: float = 1.0

    def ours(self, array):
        """The array as we have it, all parts of it."""
        turned = array if self.axes is None else array.transpose(self.axes)
        return turned if self.factor == 1 else turned * self.factor

    def theirs(self, array):
        """All parts side by side, as the file has them."""
        turned = array if self.axes is None else array.transpose(np.argsort(self.axes))
        return turned if self.factor == 1 else turned / self.factor

    def shape_of_theirs(self, shape):
        """The shape in the file of what has this shape with us."""
        return shape if self.axes is None else tuple(shape[i] for i in np.argsort(self.axes))


class Reshaped(NamedTuple):
    """As `Stored`, of an array that has as many numbers with us in another shape."""

    name: str
    own: tuple[int, ...]  # the shape of ours
    shape: tuple[int, ...]  # and of theirs
    part: int = 0
    parts: int = 1

    def ours(self, array):
        return array.reshape(self.own)

    def theirs(self, array):
        return array.reshape(self.shape)

    def shape_of_theirs(self, shape):
        return self.shape


def linear(name, *, bias=True, part=0, parts=1, factor=1.0):
    """Our kernel and bias of a torch.nn.Linear of this name; ours are `factor` times theirs."""
    found = {"kernel": Stored(f"{name}.weight", LINEAR, part, parts, factor)}
    return found | ({"bias": Stored(f"{name}.bias", None, part, parts, factor)} if bias else {})


def norm(name, *, bias=True):
    """Our scale and bias of a norm of this name."""
    found = {"scale": Stored(f"{name}.weight")}
    return found | ({"bias": Stored(f"{name}.bias")} if bias else {})


def embedding(name):
    """Our table of a torch.nn.Embedding of this name."""
    return {"embedding": Stored(f"{name}.weight")}
