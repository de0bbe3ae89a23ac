"""The Vision Transformer: an encoder whose tokens are the patches of an image."""

from dataclasses import replace

import numpy as np

from reference import random, tree
from reference.layers.activation import tanh
from reference.layers.dropout import dropout
from reference.layers.grid_position import learned_grid_position
from reference.layers.linear import linear
from reference.layers.loss import cross_entropy
from reference.layers.normalization import layer_norm
from reference.models.tower import check_images, embed_image, pick, through
from reference.models.vit_sizes import PRESETS as PRESETS  # all of these: handed on
from reference.models.vit_sizes import ViTConfig as ViTConfig
from reference.models.vit_sizes import check_batch as check_batch
from reference.models.vit_sizes import check_head
from reference.models.vit_sizes import flops_per_example as flops_per_example
from reference.models.vit_sizes import initial_params as initial_params
from reference.models.vit_sizes import parameter_shapes as parameter_shapes

__all__ = ["vit", "vit_features", "vit_loss"]


def vit(params, *, images, config, recompute=False, key=None):
    """Score every class for each image.

        logits = features W_head + b_head

    params: as of `vit_features`, and head (a `linear`).  images (B, rows, columns, C), floats ->
    logits (B, V).  Pixels are those of the weights: from -1 to 1 in all published ones.
    recompute, key: as in `vit_features`.
    Raises DtypeError and InputError for images that are not of the config's size, InputError for a
    config without a head.
    Source: Dosovitskiy et al. 2020, sec. 3.1.

    Backward: that of `linear`, then of `vit_features`.
    """
    check_head(config)
    options = {"config": config, "recompute": recompute, "key": key}
    features, encode_backward = encode(params, images, **options)
    logits, head_backward = linear(params["head"], features)

    def backward(dlogits):
        dhead, dfeatures = head_backward(dlogits)
        return encode_backward(dfeatures) | {"head": dhead}

    return logits, backward


def vit_features(params, *, images, config, recompute=False, key=None):
    """Make one vector of each image: what its class token has become, or the mean of its patches.

        x₀ = dropout([x_class; patch₁ W_patch; …; patch_N W_patch] + P),   xₗ = block(xₗ₋₁)
        y = norm(x_L)₀   "token",   y = mean over n of norm(x_L)ₙ   "mean"
        features = y,   with a representation   tanh(y W + b)

    params: patch (a `patch_embed`), class_token (an embedding (D,); not with "mean"), position,
    blocks (a list), norm, and where the config has one, representation (a `linear`).
    images (B, rows, columns, C) as of `vit` -> features (B, D), or as wide as the representation.
    recompute: blocks keep only their input, see `recomputed`.  With a key, dropout is on: block l's
    key is fold_in(key, l), the embeddings' fold_in(key, L).
    Source: Dosovitskiy et al. 2020, eq. 1 to 4; "mean": appendix D.3, and "gap" in their code.

    Backward: from the last step to the first; a head that is there gets zeros.
    """
    options = {"config": config, "recompute": recompute, "key": key}
    features, encode_backward = encode(params, images, **options)
    unused = {name: params[name] for name in ("head",) if name in params}

    def backward(dfeatures):
        return encode_backward(dfeatures) | tree.map(np.zeros_like, unused)

    return features, backward


def vit_loss(params, *, images, labels, config, ignore=-100, **options):
    """How surprised the model is, in nats an image, by what it shows: what training descends.

        loss = cross_entropy(vit(images), labels)

    params, images (B, rows, columns, C) and options as of `vit`;  labels (B,), integers in [0, V),
    `ignore` where nothing is to be learnt -> a scalar.
    Raises what `vit` and `cross_entropy` raise.
    Source: Dosovitskiy et al. 2020, sec. 4.1.

    Backward: the chain rule.
    """
    logits, vit_backward = vit(params, images=images, config=config, **options)
    loss, cross_entropy_backward = cross_entropy(logits, labels=labels, ignore=ignore)
    return loss, lambda dloss: vit_backward(cross_entropy_backward(dloss))


def encode(params, images, *, config, recompute, key):
    """`vit_features`, with a backward that knows of no head."""
    check_images(images, config)
    embedded, embed_backward = embed_image(params, images, size=config.patch)
    embedding_key = None if key is None else random.fold_in(key, config.layers)
    x, dropout_backward = dropout(embedded, rate=config.dropout, key=embedding_key)
    options = {"rate": config.dropout, "recompute": recompute, "key": key}
    y, blocks_backward = through(params["blocks"], x, config=config, **options)
    normed, norm_backward = layer_norm(params["norm"], y, epsilon=config.epsilon)
    pooled, pool_backward = pick(normed, at=0) if config.pooling == "token" else mean(normed)
    features, represent_backward = represent(params, pooled)

    def backward(dfeatures):
        drepresentation, dpooled = represent_backward(dfeatures)
        dnorm, dy = norm_backward(pool_backward(dpooled))
        dblocks, dx = blocks_backward(dy)
        dembedding = embed_backward(dropout_backward(dx))
        return dembedding | {"blocks": dblocks, "norm": dnorm} | drepresentation

    return features, backward


def mean(x):
    """The mean of all positions: x (B, T, D) -> (B, D)."""
    length = x.shape[1]
    return x.mean(axis=1), lambda dy: np.repeat(dy[:, None] / length, length, axis=1)


def represent(params, x):
    """The layer before the head, where there is one; its `backward` gives a dict."""
    if "representation" not in params:
        return x, lambda dy: ({}, dy)
    dense, dense_backward = linear(params["representation"], x)
    y, tanh_backward = tanh(dense)

    def backward(dy):
        drepresentation, dx = dense_backward(tanh_backward(dy))
        return {"representation": drepresentation}, dx

    return y, backward


def at_resolution(params, config, image, *, interpolation="bilinear"):
    """The same model for images of another size: patches stay as large, so there are more or fewer,
    and their places are interpolated between those that were learned.

    image: as in the config -> params, config.  interpolation: "bilinear" as Google's code,
    "bicubic" as Hugging Face's, see `learned_grid_position`.
    Source: Dosovitskiy et al. 2020, sec. 3.2.
    """
    new, table = replace(config, image=image), np.asarray(params["position"]["embedding"])
    moved, _ = learned_grid_position(
        {"embedding": table},
        np.zeros((new.length, config.width), table.dtype),
        grid=config.grid,
        to=new.grid,
        extra=int(config.pooling == "token"),
        interpolation=interpolation,
    )
    return params | {"position": {"embedding": moved}}, new


def for_labels(params, config, labels):
    """The same model with a new head, of zeros, to be fine-tuned on other classes: what was before
    the old one, in pre-training, goes with it -> params, config.

    Source: Dosovitskiy et al. 2020, sec. 3.2.
    """
    new, kernel = replace(config, labels=labels, representation=None), params["patch"]["kernel"]
    kept = {name: part for name, part in params.items() if name not in ("head", "representation")}
    check_head(new)
    zeros = {"kernel": (config.width, labels), "bias": (labels,)}
    head = {name: np.zeros(shape, kernel.dtype) for name, shape in zeros.items()}
    return kept | {"head": head}, new
