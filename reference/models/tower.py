"""What a Vision Transformer and both towers of CLIP are made of."""

import math
from functools import partial

import numpy as np

from reference import random
from reference.errors import DtypeError, InputError
from reference.layers.activation import gelu, gelu_tanh, quick_gelu
from reference.layers.attention import check_heads, multi_head_attention
from reference.layers.convolution import patch_embed
from reference.layers.dropout import dropout
from reference.layers.feed_forward import feed_forward
from reference.layers.normalization import layer_norm
from reference.layers.position import learned_position
from reference.layers.recompute import recomputed
from reference.layers.residual import pre_norm

__all__ = []

ACTIVATIONS = {"tanh": gelu_tanh, "erf": gelu, "quick": quick_gelu}


def embed_image(params, images, *, size):
    """Patches as tokens, behind the class token where there is one, and all in their places.

    Its `backward` gives dparams alone: nobody needs the pixels'.
    """
    pixels = images.astype(params["patch"]["kernel"].dtype, copy=False)
    patches, patch_backward = patch_embed(params["patch"], pixels, size=size)
    tokens, leading = patches, "class_token" in params
    if leading:
        row = params["class_token"]["embedding"]
        first = np.broadcast_to(row, (len(patches), 1, len(row)))
        tokens = np.concatenate([first, patches], axis=1)
    placed, position_backward = learned_position(params["position"], tokens)

    def backward(dplaced):
        dposition, dtokens = position_backward(dplaced)
        dpatch, _ = patch_backward(dtokens[:, int(leading) :])
        dparams = {"patch": dpatch, "position": dposition}
        if leading:
            dparams["class_token"] = {"embedding": dtokens[:, 0].sum(axis=0)}
        return dparams

    return placed, backward


def through(blocks, x, *, config, mask=None, rate=0.0, recompute=False, key=None):
    """x through all blocks, one after another; their `backward` gives a list, and dx."""
    block_of, block_backwards, h = recomputed(block) if recompute else block, [], x
    options = {"heads": config.heads, "activation": config.activation, "epsilon": config.epsilon}
    for layer, params in enumerate(blocks):
        layer_key = None if key is None else random.fold_in(key, layer)
        h, block_backward = block_of(params, h, mask=mask, rate=rate, key=layer_key, **options)
        block_backwards.append(block_backward)

    def backward(dh):
        dblocks = []
        for block_backward in reversed(block_backwards):
            dblock, dh = block_backward(dh)
            dblocks.append(dblock)
        return dblocks[::-1], dh

    return h, backward


def block(params, x, *, heads, activation, epsilon, mask=None, rate=0.0, key=None):
    """`transformer_block` with dropout where ViT has it: "after every dense layer except for the
    qkv-projections" (appendix B.1), so on hidden features too, and not on attention's weights.

    Keys, in the order of `split`: attention, hidden features, feed-forward.
    Differs from Hugging Face's, which drops attention's weights by a rate of their own, 0 in all
    published settings, and no hidden features.
    """
    keys = (None, None, None) if key is None else random.split(key, 3)
    wiring = partial(pre_norm, norm=partial(layer_norm, epsilon=epsilon), rate=rate)
    attention = partial(multi_head_attention, heads=heads, mask=mask)
    noisy = partial(activated, activation=ACTIVATIONS[activation], rate=rate, key=keys[1])
    think = partial(feed_forward, activation=noisy)
    h, attention_backward = wiring(params["attention"], x, sublayer=attention, key=keys[0])
    y, feed_forward_backward = wiring(params["feed_forward"], h, sublayer=think, key=keys[2])

    def backward(dy):
        dfeed_forward, dh = feed_forward_backward(dy)
        dattention, dx, _ = attention_backward(dh)
        return {"attention": dattention, "feed_forward": dfeed_forward}, dx

    return y, backward


def activated(x, *, activation, rate, key):
    """An activation, and dropout of what it gives."""
    active, activation_backward = activation(x)
    y, dropout_backward = dropout(active, rate=rate, key=key)
    return y, lambda dy: activation_backward(dropout_backward(dy))


def pick(x, *, at):
    """One position of each sequence: x (B, T, D), at (B,) or a number -> (B, D)."""
    place = np.arange(len(x)), at
    y = x[place]

    def backward(dy):
        dx = np.zeros_like(x)
        dx[place] = dy
        return dx

    return y, backward


def block_shapes(config, *, qkv_bias=True):
    """The shapes of a block's parameters."""
    width, norm = config.width, {"scale": (config.width,), "bias": (config.width,)}
    attention = {n: linear_shapes(width, width, bias=qkv_bias) for n in ("query", "key", "value")}
    attention |= {"out": linear_shapes(width, width)}
    feed_forward = {
        "up": linear_shapes(width, config.hidden),
        "down": linear_shapes(config.hidden, width),
    }
    return {
        "attention": {"norm": norm, "sublayer": attention},
        "feed_forward": {"norm": norm, "sublayer": feed_forward},
    }


def linear_shapes(inputs, outputs, *, bias=True):
    """The shapes of a `linear`'s parameters."""
    return {"kernel": (inputs, outputs)} | ({"bias": (outputs,)} if bias else {})


def training_flops(shapes, config, *, once):
    """6 (N T + M) + 12 L D T²: M weights of the parts `once`, whom one vector of each sequence goes
    through, N all others but tables, which multiply nothing.
    """
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    after = sum(n for path, n in sizes.items() if path.split(".")[0] in once)
    tables = sum(n for path, n in sizes.items() if path.endswith("embedding"))
    each, length = sum(sizes.values()) - after - tables, config.length
    return 6 * (each * length + after) + 12 * config.layers * config.width * length**2


def check_images(images, config):
    """Raise DtypeError or InputError unless images are floats (B, rows, columns, C) of the size."""
    dtype = getattr(images, "dtype", None)
    if dtype is None or not (np.issubdtype(dtype, np.floating) or str(dtype) == "bfloat16"):
        came = f"of {dtype}" if dtype is not None else f"a {type(images).__name__}"
        raise DtypeError(f"images is {came}; give floats, such as pixels / 127.5 - 1")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != config.pixels:
        raise InputError(
            f"images has shape {shape}; give (B, {', '.join(map(str, config.pixels))}), "
            "rows, columns and channels of this model: resize them, or take another model"
        )


def check_sizes(config, *names):
    """Raise InputError unless these fields of a config are integers from 1 on."""
    for name in names:
        size = getattr(config, name)
        if not isinstance(size, int) or size < 1:
            raise InputError(f"{name} is {size!r}; give a positive integer")


def check_tower(config):
    """Raise InputError for heads, an activation or an epsilon that cannot be."""
    check_heads(config.width, config.heads)
    if config.activation not in ACTIVATIONS:
        raise InputError(
            f"activation is {config.activation!r}; give one of {', '.join(ACTIVATIONS)}"
        )
    if not 0 < config.epsilon < 1:
        raise InputError(f"epsilon is {config.epsilon!r}; give a small positive number")
