"""Images: from pixels to features and to the tokens of a Transformer, and back.

An image is (..., rows, columns, C), channels last, as in Flax; PyTorch has them before the rows.
"""

import numpy as np

from reference.errors import InputError
from reference.layers.linear import linear

__all__ = ["assemble", "conv2d", "max_pool", "nearest_upsample", "patch_embed", "patches"]


def nearest_upsample(x, *, factor):
    """Repeat every pixel in both directions: the cheapest way to a larger image.

        y[i, j] = x[⌊i / f⌋, ⌊j / f⌋]

    x (..., rows, columns, C) -> y (..., f·rows, f·columns, C), f the `factor`: a number, or two for
    rows and columns.  Raises InputError unless it is from 1 on and x an image.
    Used by DALL-E's decoder with f = 2.
    Source: Ramesh et al. 2021, "Zero-shot text-to-image generation", appendix A.

    Backward: a pixel gets the sum of what its f·f copies caused,
        dx[i, j] = Σ over m, n < f of dy[f i + m, f j + n].
    """
    check_image(x.shape)
    down, across = pair(factor, name="factor")
    y = x.repeat(down, axis=-3).repeat(across, axis=-2)

    def backward(dy):
        *leading, rows, columns, channels = x.shape
        return dy.reshape(*leading, rows, down, columns, across, channels).sum(axis=(-4, -2))

    return y, backward


def patches(x, *, size):
    """Cut an image into squares, in the order of reading: a sequence that a Transformer takes.

        y[n] = the p·p·C numbers of x[p i : p i + p, p j : p j + p],   n = i columns / p + j

    x (..., rows, columns, C) -> y (..., N, p·p·C), p the `size` and N = rows columns / p².
    Raises InputError unless x is an image and p divides its sides.
    Source: Dosovitskiy et al. 2020, "An image is worth 16x16 words", sec. 3.1.

    Backward: every number went to one place, and its gradient comes back from there:
        dx = assemble(dy).
    """
    check_divisible(x.shape, size)
    *leading, rows, columns, channels = x.shape
    grid = (rows // size, columns // size)
    tiles = x.reshape(*leading, grid[0], size, grid[1], size, channels).swapaxes(-4, -3)
    y = tiles.reshape(*leading, grid[0] * grid[1], size * size * channels)
    return y, lambda dy: assemble(dy, size=size, grid=grid)[0]


def assemble(x, *, size, grid):
    """Lay patches out as the image that they were cut from: `patches` undone, for a model that
    predicts pixels.

        y[p i : p i + p, p j : p j + p] = x[n] as p·p·C,   n = i columns / p + j

    x (..., N, p·p·C) -> y (..., rows, columns, C), p the `size`; grid: how many patches lie below
    and beside each other, rows / p and columns / p.
    Raises InputError unless the grid has N places and p·p divides the length of a patch.
    Source: He et al. 2021, "Masked autoencoders are scalable vision learners", sec. 3.

    Backward: as the image was laid out, so its gradient is cut:
        dx = patches(dy).
    """
    down, across = grid_of(x.shape, size, grid)
    *leading, _, length = x.shape
    tiles = x.reshape(*leading, down, across, size, size, length // size**2).swapaxes(-4, -3)
    y = tiles.reshape(*leading, down * size, across * size, length // size**2)
    return y, lambda dy: patches(dy, size=size)[0]


def patch_embed(params, x, *, size):
    """Map each patch of an image to a vector: what a token's embedding is to a text.

        yₙ = patchₙ W + b

    params: kernel W (p, p, C, D), bias b (D,) or absent.  x (..., rows, columns, C) ->
    y (..., N, D).  It is `conv2d` with stride p, the `size`: since no windows overlap, each
    pixel is read once and all is one product of matrices.
    Raises InputError unless x is an image of C channels, and p divides its sides.
    Used by ViT, and without bias by CLIP.
    Source: Dosovitskiy et al. 2020, "An image is worth 16x16 words", eq. 1 (its E).

    Backward: as `linear` of the patches, then that of `patches`.
    """
    check_kernel(x.shape, params["kernel"].shape, size=size)
    tokens, patches_backward = patches(x, size=size)
    y, product_backward = product(params, tokens)

    def backward(dy):
        dparams, dtokens = product_backward(dy)
        return dparams, patches_backward(dtokens)

    return y, backward


def conv2d(params, x, *, stride=1, padding=0):
    """Score every place of an image by the window around it, with the same weights everywhere: a
    pattern is known wherever it stands.

        y[i, j] = Σ over m, n of  x[s i + m - top, s j + n - left] W[m, n] + b,   0 outside x

    params: kernel W (kh, kw, C, D), bias b (D,) or absent.  x (..., rows, columns, C) ->
    y (..., ⌊(rows + top + bottom - kh) / s⌋ + 1, columns likewise, D).
    stride s: a number, or two for rows and columns.  padding: how many zeros lie on each side, a
    number or two; "VALID": none; "SAME": as many as make ⌈rows / s⌉ rows, of an odd number one more
    below and on the right.  The kernel is not turned around: a cross-correlation, as all libraries
    have it under this name.
    Raises InputError for an image without C channels or smaller than the kernel, padding included.
    Used by DALL-E's encoder and decoder.
    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", sec. II.A;
    as one product of matrices: Chellapilla et al. 2006.

    Backward: `linear` of the windows, each laid out as a row; what several windows saw gets the
    sum of what they give back.
    """
    window = params["kernel"].shape[:2]
    check_kernel(x.shape, params["kernel"].shape)
    size, steps, margins = geometry(x.shape, window, stride, padding)
    seen, windows_backward = windows(x, size=size, stride=steps, margins=margins)
    y, product_backward = product(params, seen.reshape(*seen.shape[:-2], -1))

    def backward(dy):
        dparams, dseen = product_backward(dy)
        return dparams, windows_backward(dseen.reshape(seen.shape))

    return y, backward


def max_pool(x, *, window, stride=None, padding=0):
    """Keep the largest of each window: a smaller image, in which it matters less where exactly
    something was.

        y[i, j] = max over m, n of x[s i + m - top, s j + n - left],   -∞ outside x

    x (..., rows, columns, C) -> y (..., rows', columns', C): as in `conv2d`, but each channel by
    itself.  window and stride s (None: that of the window): a number, or two for rows and columns.
    Raises InputError for an image smaller than the window, or a padding that would fill one.
    Used by DALL-E's encoder with a window of 2.
    Source: Goodfellow et al. 2016, "Deep learning", sec. 9.3.

    Backward: dy goes to the largest, of equals to the first in reading order; that choice is held
    fixed.  A pixel that was the largest of several windows gets the sum.
    """
    size, steps, margins = pool_geometry(x.shape, window, stride, padding)
    seen, windows_backward = windows(x, size=size, stride=steps, margins=margins, fill=-np.inf)
    first = seen.argmax(axis=-2)[..., None, :]
    y = np.take_along_axis(seen, first, axis=-2)[..., 0, :]

    def backward(dy):
        dseen = np.zeros_like(seen)
        np.put_along_axis(dseen, first, dy[..., None, :], axis=-2)
        return windows_backward(dseen)

    return y, backward


def windows(x, *, size, stride, margins, fill=0.0):
    """Every window of an image: (..., rows, columns, C) -> (..., rows', columns', kh·kw, C)."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 3) + [*margins, (0, 0)], constant_values=fill)
    every = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(-3, -2))
    strided = np.moveaxis(every[..., :: stride[0], :: stride[1], :, :, :], -3, -1)
    y = strided.reshape(*strided.shape[:-3], -1, x.shape[-1])

    def backward(dy):
        # Windows overlap, but not in the same place of each: a few large sums, not many small.
        dpadded = np.zeros_like(padded)
        (high, wide), (down, across) = dy.shape[-4:-2], stride
        for place, (m, n) in enumerate(np.ndindex(size)):
            i, j = slice(m, m + down * high, down), slice(n, n + across * wide, across)
            dpadded[..., i, j, :] += dy[..., place, :]
        (top, _), (left, _) = margins
        return dpadded[..., top : top + x.shape[-3], left : left + x.shape[-2], :]

    return y, backward


def product(params, x):
    """`linear` with a kernel (kh, kw, C, D), of windows laid out as rows: x (..., kh·kw·C)."""
    kernel = params["kernel"]
    y, linear_backward = linear(params | {"kernel": kernel.reshape(-1, kernel.shape[-1])}, x)

    def backward(dy):
        dparams, dx = linear_backward(dy)
        return dparams | {"kernel": dparams["kernel"].reshape(kernel.shape)}, dx

    return y, backward


def geometry(shape, window, stride, padding):
    """Window, stride and margins ((top, bottom), (left, right)), each for rows and columns.

    Raises InputError for what they cannot be, or a window that is larger than the padded image.
    """
    check_image(shape)
    size, steps = pair(window, name="window"), pair(stride, name="stride")
    sides = shape[-3:-1]
    if padding == "SAME":
        lengths = zip(sides, size, steps, strict=True)
        missing = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in lengths]
        margins = tuple((n // 2, n - n // 2) for n in missing)
    else:
        each = (0, 0) if padding == "VALID" else pair(padding, name="padding", least=0)
        margins = tuple((n, n) for n in each)
    padded = tuple(n + sum(around) for n, around in zip(sides, margins, strict=True))
    if any(k > n for k, n in zip(size, padded, strict=True)):
        raise InputError(
            f"the window is {size}, the image with its padding only {padded}; give a larger image"
        )
    return size, steps, margins


def pool_geometry(shape, window, stride, padding):
    """As `geometry`; raises InputError too where a window could see nothing but padding."""
    size, steps, margins = geometry(shape, window, window if stride is None else stride, padding)
    if any(max(around) >= k for around, k in zip(margins, size, strict=True)):
        raise InputError(f"padding is {padding!r}, the window {size}; give less than the window")
    return size, steps, margins


def pair(value, *, name, least=1):
    """Two integers for rows and columns, from one or two; InputError for anything else."""
    both = (value, value) if isinstance(value, int) else value
    two = isinstance(both, tuple | list) and len(both) == 2
    if not (two and all(isinstance(n, int) and n >= least for n in both)):
        allowed = f"an integer from {least} on, or two for rows and columns"
        words = ", 'SAME' or 'VALID'" if name == "padding" else ""
        raise InputError(f"{name} is {value!r}; give {allowed}{words}")
    return tuple(both)


def check_image(shape):
    """Raise InputError unless a shape is that of an image with its channels last."""
    if len(shape) < 3 or 0 in shape[-3:]:
        raise InputError(f"x has shape {tuple(shape)}; give (..., rows, columns, C), none of it 0")


def check_divisible(shape, size):
    """Raise InputError unless an image can be cut into squares of this size."""
    check_image(shape)
    if not isinstance(size, int) or size < 1 or shape[-3] % size or shape[-2] % size:
        raise InputError(
            f"size is {size!r}, the image {tuple(shape[-3:-1])}; give a divisor of both sides, "
            "or crop or pad the image"
        )


def grid_of(shape, size, grid):
    """How many patches lie below and beside each other; InputError if those of `shape` do not."""
    down, across = pair(grid, name="grid")
    if not isinstance(size, int) or size < 1 or shape[-1] % size**2 or shape[-2] != down * across:
        raise InputError(
            f"x has shape {tuple(shape)}, for size {size!r} and grid {(down, across)}; give "
            "(..., grid[0] · grid[1], size · size · C)"
        )
    return down, across


def check_kernel(shape, kernel, *, size=None):
    """Raise InputError unless a kernel has an image's channels, and the patches' size if given."""
    check_image(shape)
    if len(kernel) != 4 or shape[-1] != kernel[2] or size and tuple(kernel[:2]) != (size, size):
        patch = f" for patches of size {size}" if size else ""
        raise InputError(
            f"x has shape {tuple(shape)}, the kernel {tuple(kernel)}{patch}; give (..., rows, "
            f"columns, C) and {'(size, size, C, D)' if size else '(kh, kw, C, D)'}, channels last"
        )
