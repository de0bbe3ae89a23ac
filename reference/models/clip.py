"""CLIP: an image and its caption, each read by its own tower, meet in one space of features."""

import math

import numpy as np

from reference.layers.contrastive import clip_loss as contrastive_loss
from reference.layers.embedding import embed
from reference.layers.linear import linear
from reference.layers.mask import causal
from reference.layers.normalization import l2_norm, layer_norm
from reference.layers.position import learned_position
from reference.layers.softmax import softmax
from reference.models.clip_sizes import PRESETS as PRESETS  # all of these: handed on
from reference.models.clip_sizes import ClipConfig as ClipConfig
from reference.models.clip_sizes import ClipImageConfig as ClipImageConfig
from reference.models.clip_sizes import ClipTextConfig as ClipTextConfig
from reference.models.clip_sizes import check_batch as check_batch
from reference.models.clip_sizes import check_ends, check_prompts
from reference.models.clip_sizes import flops_per_example as flops_per_example
from reference.models.clip_sizes import initial_params as initial_params
from reference.models.clip_sizes import parameter_shapes as parameter_shapes
from reference.models.gpt import check_tokens
from reference.models.tower import check_images, embed_image, pick, through

__all__ = ["clip", "clip_image", "clip_loss", "clip_text"]


def clip(params, *, tokens, images, config, recompute=False, key=None):
    """How well each image and each text go together, and the features that say so.

        I, T = the features of images and texts at length 1,   scores = exp(s) I Tᵀ

    params: text and vision, of `clip_text` and `clip_image`, and logit_scale s (1,).
    tokens (M, T), images (N, rows, columns, C) -> scores (N, M), I (N, P), T (M, P).
    recompute: blocks keep only their input, see `recomputed`.  key: of no use, for CLIP was
    published without dropout.
    Raises what `clip_text` and `clip_image` raise.
    Source: Radford et al. 2021, fig. 3.
    Differs from the paper where the config has no largest_scale: s is not clipped.

    Backward: of a product of three,  dI = exp(s) dscores T,  dT = exp(s) dscoresᵀ I,
        ds = Σ dscores ∘ scores,   and what came for I and T themselves is added.
    """
    options = {"config": config, "recompute": recompute}
    features, towers_backward = both_towers(params, tokens, images, **options)
    units, units_backwards = zip(*map(l2_norm, features), strict=True)
    log_scale, scale_backward = limited(params["logit_scale"], config.largest_scale)
    scale = np.exp(log_scale)
    scores = scale * (units[0] @ units[1].T)

    def backward(dy):
        dscores, dimages, dtexts = dy
        dcosines = scale * dscores
        dfeatures = (
            units_backwards[0](dimages + dcosines @ units[1]),
            units_backwards[1](dtexts + dcosines.T @ units[0]),
        )
        dlogit_scale = scale_backward((dscores * scores).sum())
        return towers_backward(*dfeatures) | {"logit_scale": dlogit_scale}

    return (scores, *units), backward


def clip_text(params, *, tokens, config, recompute=False):
    """The features of each text: what its end has read, for that is the one place that sees all.

        x₀ = E[tokens] + P,   xₗ = block(xₗ₋₁),   features = norm(x_L)[end] W

    params: token and position (embeddings), blocks (a list), norm, projection (a kernel): the text
    tower's, and config the whole CLIP's.  tokens (B, T), integers in [0, V) -> features (B, P).
    The blocks are causal.  end: the first place of the config's end token;  without one, that of
    the largest token, which OpenAI's tokenizer numbers last.
    recompute: as in `clip`.
    Raises DtypeError and InputError for tokens that are no batch of sequences of the vocabulary,
    longer than the context or without an end.
    Source: Radford et al. 2021, sec. 2.4; openai/CLIP, clip/model.py; the first end token: Hugging
    Face's, where eos_token_id is not 2.

    Backward: from the last step to the first; all places but the end get zeros from the norm.
    """
    check_tokens(tokens, config.text)
    check_ends(tokens, config.text.end)
    embedded, token_backward = embed(params["token"], ids=tokens)
    x, position_backward = learned_position(params["position"], embedded)
    options = {"config": config.text, "mask": causal, "recompute": recompute}
    y, blocks_backward = through(params["blocks"], x, **options)
    read, pick_backward = pick(y, at=ends(tokens, config.text.end))
    features, project_backward = projected(params, read, epsilon=config.text.epsilon)

    def backward(dfeatures):
        dparams, dread = project_backward(dfeatures)
        dblocks, dx = blocks_backward(pick_backward(dread))
        dposition, dembedded = position_backward(dx)
        dparams |= {"token": token_backward(dembedded), "position": dposition}
        return dparams | {"blocks": dblocks}

    return features, backward


def clip_image(params, *, images, config, recompute=False):
    """The features of each image: what its class token has become.

        x₀ = norm_before([x_class; patch₁ W_patch; …; patch_N W_patch] + P),   xₗ = block(xₗ₋₁)
        features = norm(x_L)₀ W

    params: patch (a `patch_embed` without bias), class_token (an embedding (D,)), position,
    norm_before, blocks (a list), norm, projection (a kernel): the vision tower's, and config the
    whole CLIP's.  images (B, rows, columns, C), floats -> features (B, P).  Pixels of OpenAI's
    weights have mean 0 and variance 1 over its training images.
    recompute: as in `clip`.
    Raises DtypeError and InputError for images that are not of the config's size.
    Source: Radford et al. 2021, sec. 2.4, and openai/CLIP, clip/model.py.

    Backward: from the last step to the first; all places but the first get zeros from the norm.
    """
    epsilon = config.vision.epsilon
    check_images(images, config.vision)
    embedded, embed_backward = embed_image(params, images, size=config.vision.patch)
    x, before_backward = layer_norm(params["norm_before"], embedded, epsilon=epsilon)
    options = {"config": config.vision, "recompute": recompute}
    y, blocks_backward = through(params["blocks"], x, **options)
    read, pick_backward = pick(y, at=0)
    features, project_backward = projected(params, read, epsilon=epsilon)

    def backward(dfeatures):
        dparams, dread = project_backward(dfeatures)
        dblocks, dx = blocks_backward(pick_backward(dread))
        dbefore, dembedded = before_backward(dx)
        return dparams | embed_backward(dembedded) | {"norm_before": dbefore, "blocks": dblocks}

    return features, backward


def clip_loss(params, *, tokens, images, config, recompute=False, key=None):
    """Each image picks its text among those of the batch, and each text its image: what training
    descends.

        loss = contrastive(clip_image(images), clip_text(tokens), logit_scale)

    params and options as of `clip`;  tokens (B, T), images (B, rows, columns, C), row b of both a
    pair -> a scalar.  It is that of the whole batch: the mean of its parts' is another.
    Raises what `clip` raises, and InputError for another number of texts than of images.
    Source: Radford et al. 2021, fig. 3; the contrastive loss is `contrastive.clip_loss`.
    Differs from the paper as `clip`.

    Backward: the chain rule.
    """
    options = {"config": config, "recompute": recompute}
    features, towers_backward = both_towers(params, tokens, images, **options)
    log_scale, scale_backward = limited(params["logit_scale"], config.largest_scale)
    loss, loss_backward = contrastive_loss(*features, log_scale)

    def backward(dloss):
        dimages, dtexts, dscale = loss_backward(dloss)
        return towers_backward(dimages, dtexts) | {"logit_scale": scale_backward(dscale)}

    return loss, backward


def both_towers(params, tokens, images, **options):
    """The features of images and texts; their `backward` gives all of dparams but logit_scale."""
    of_images, image_backward = clip_image(params["vision"], images=images, **options)
    of_texts, text_backward = clip_text(params["text"], tokens=tokens, **options)

    def backward(dimages, dtexts):
        return {"text": text_backward(dtexts), "vision": image_backward(dimages)}

    return (of_images, of_texts), backward


def projected(params, x, *, epsilon):
    """The end of both towers: norm(x) W."""
    normed, norm_backward = layer_norm(params["norm"], x, epsilon=epsilon)
    features, project_backward = linear(params["projection"], normed)

    def backward(dfeatures):
        dprojection, dnormed = project_backward(dfeatures)
        dnorm, dx = norm_backward(dnormed)
        return {"norm": dnorm, "projection": dprojection}, dx

    return features, backward


def limited(logit_scale, largest):
    """s (), at most log(largest): logit_scale is (1,).  Above it there is no slope."""
    if largest is None:
        return logit_scale[0], lambda ds: np.reshape(ds, 1)
    limit = math.log(largest)
    below = logit_scale <= limit
    return np.minimum(logit_scale[0], limit), lambda ds: np.where(below, ds, 0)


def ends(tokens, end):
    """Where each text ends: (B, T) -> (B,)."""
    return (tokens if end is None else tokens == end).argmax(axis=1)


def zero_shot(params, *, images, prompts, config):
    """Tell classes that were never labelled from what they are called: the text that fits best.

        c = mean over the prompts of T, at length 1,   probabilities = softmax(exp(s) I cᵀ)

    prompts (V, templates, T): tokens of each class's name in each of some sentences, such as "a
    photo of a …".  images (B, rows, columns, C) -> probabilities (B, V).
    Source: Radford et al. 2021, sec. 3.1.2 and 3.1.4, and the notebook of their code.
    """
    classes = class_features(params["text"], prompts=prompts, config=config)
    features, _ = clip_image(params["vision"], images=images, config=config)
    log_scale, _ = limited(params["logit_scale"], config.largest_scale)
    return softmax(np.exp(log_scale) * (l2_norm(features)[0] @ classes.T))[0]


def class_features(params, *, prompts, config):
    """The classifier that `zero_shot` makes of prompts (V, templates, T): (V, P), each of length 1.

    params: the text tower's.
    """
    check_prompts(prompts)
    tokens = prompts.reshape(-1, prompts.shape[-1])
    units, _ = l2_norm(clip_text(params, tokens=tokens, config=config)[0])
    return l2_norm(units.reshape(*prompts.shape[:2], -1).mean(axis=1))[0]


def clamped(params, config):
    """The parameters with logit_scale at most log(largest_scale), for after a step of training:
    other than in the forward pass, what is at the limit can come back.

    Source: Radford et al. 2021, sec. 2.5.
    """
    if config.largest_scale is None:
        return params
    scale = np.minimum(params["logit_scale"], math.log(config.largest_scale))
    return params | {"logit_scale": scale}
