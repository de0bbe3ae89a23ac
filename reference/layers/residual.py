"""How a sub-layer is wired to the residual stream: where it is normalized, and how it is scaled.

Depth needs the plain path x + …, along which a gradient arrives undiminished.  The variants differ
in what they do to keep the sum from growing, or training from diverging, with depth.

In each, f is a sub-layer: a function of params, the stream, and what else it reads, such as
`multi_head_attention` or `feed_forward` with its keyword arguments bound:

    pre_norm(params, x, sublayer=partial(multi_head_attention, heads=4, mask=causal))

norm is `layer_norm` or `rms_norm`; drop is `dropout` or `stochastic_depth`, with its rate and key.
"""

import numpy as np

from reference.errors import InputError
from reference.layers.dropout import dropout
from reference.layers.linear import rows
from reference.layers.normalization import layer_norm

__all__ = ["deep_norm", "layer_scale", "post_norm", "pre_norm", "rezero", "sandwich_norm"]


def post_norm(params, x, *others, sublayer, norm=layer_norm, drop=dropout, rate=0.0, key=None):
    """Add, then normalize: the stream itself has mean 0 and variance 1 after each sub-layer.

        y = norm(x + drop(f(x)))

    params: sublayer, norm.  x (B, T, D) and what else f reads -> y (B, T, D).  The first form; deep
    stacks of it need a warm-up, for every norm also scales the gradient.  Used by the Transformer
    of 2017, GPT-1 and BERT.
    Source: Vaswani et al. 2017, sec. 3.1 and 5.4.

    Backward: the sum hands its gradient to both of its terms,
        dsum = norm's of dy,   dx = dsum + f's of drop's of dsum.
    """
    change, sublayer_backward = sublayer(params["sublayer"], x, *others)
    kept, drop_backward = drop(change, rate=rate, key=key)
    y, norm_backward = norm(params["norm"], x + kept)

    def backward(dy):
        dnorm, dsum = norm_backward(dy)
        dsublayer, dx, *dothers = sublayer_backward(drop_backward(dsum))
        return {"sublayer": dsublayer, "norm": dnorm}, dsum + dx, *dothers

    return y, backward


def pre_norm(params, x, *others, sublayer, norm=layer_norm, drop=dropout, rate=0.0, key=None):
    """Normalize, compute, add: the sub-layer reads a normalized copy, and nothing stands in the
    stream's way.

        y = x + drop(f(norm(x)))

    params: norm, sublayer.  x (B, T, D) and what else f reads -> y (B, T, D).  A stack of it ends
    with one more norm.  Used by GPT-2 and 3, ViT, CLIP, and with `rms_norm` by Llama.
    Source: Radford et al. 2019, sec. 2.3;  Xiong et al. 2020, why it trains without a warm-up.

    Backward: where the stream forks, gradients add,
        dx = dy + norm's of f's of drop's of dy.
    """
    read, norm_backward = norm(params["norm"], x)
    change, sublayer_backward = sublayer(params["sublayer"], read, *others)
    kept, drop_backward = drop(change, rate=rate, key=key)

    def backward(dy):
        dsublayer, dread, *dothers = sublayer_backward(drop_backward(dy))
        dnorm, dx = norm_backward(dread)
        return {"norm": dnorm, "sublayer": dsublayer}, dy + dx, *dothers

    return x + kept, backward


def sandwich_norm(params, x, *others, sublayer, norm=layer_norm, drop=dropout, rate=0.0, key=None):
    """Normalize what the sub-layer reads and what it writes: no change to the stream can be large.

        y = x + drop(norm_after(f(norm(x))))

    params: norm, sublayer, norm_after.  x (B, T, D) and what else f reads -> y (B, T, D).  Used by
    CogView and, with `rms_norm`, by Gemma 2.
    Source: Ding et al. 2021, "CogView", sec. 2.4 (Sandwich-LN).

    Backward: as `pre_norm`, with one more step between.
    """
    read, norm_backward = norm(params["norm"], x)
    change, sublayer_backward = sublayer(params["sublayer"], read, *others)
    written, after_backward = norm(params["norm_after"], change)
    kept, drop_backward = drop(written, rate=rate, key=key)

    def backward(dy):
        dafter, dchange = after_backward(drop_backward(dy))
        dsublayer, dread, *dothers = sublayer_backward(dchange)
        dnorm, dx = norm_backward(dread)
        dparams = {"norm": dnorm, "sublayer": dsublayer, "norm_after": dafter}
        return dparams, dy + dx, *dothers

    return x + kept, backward


def deep_norm(
    params, x, *others, sublayer, alpha, norm=layer_norm, drop=dropout, rate=0.0, key=None
):
    """`post_norm` with a stream that weighs more than the change: hundreds of layers train.

        y = norm(α x + drop(f(x)))

    params: sublayer, norm.  x (B, T, D) and what else f reads -> y (B, T, D).  For L equal layers
    α = (2 L)^¼, and the initial weights of feed-forward, value and out are scaled by
    β = (8 L)^-¼: `deep_norm_scales`.
    Source: Wang et al. 2022, "DeepNet", sec. 3 and figure 2.

    Backward: as `post_norm`, with α:  dx = α dsum + f's of drop's of dsum.
    """
    change, sublayer_backward = sublayer(params["sublayer"], x, *others)
    kept, drop_backward = drop(change, rate=rate, key=key)
    y, norm_backward = norm(params["norm"], alpha * x + kept)

    def backward(dy):
        dnorm, dsum = norm_backward(dy)
        dsublayer, dx, *dothers = sublayer_backward(drop_backward(dsum))
        return {"sublayer": dsublayer, "norm": dnorm}, alpha * dsum + dx, *dothers

    return y, backward


def layer_scale(params, x, *others, sublayer, norm=layer_norm, drop=dropout, rate=0.0, key=None):
    """`pre_norm` with a learned scale for each feature of the change, which starts near 0: a deep
    stack begins as the identity.

        y = x + drop(scale ∘ f(norm(x)))

    params: norm, sublayer, scale (D,), at first 0.1 to 1e-6 by depth.  x (B, T, D) and what else f
    reads -> y (B, T, D).
    Source: Touvron et al. 2021, "Going deeper with image Transformers" (CaiT), eq. 4.

    Backward: a product's:  dscale = Σ f ∘ dchange,  df = scale ∘ dchange;  else as `pre_norm`.
    """
    read, norm_backward = norm(params["norm"], x)
    change, sublayer_backward = sublayer(params["sublayer"], read, *others)
    kept, drop_backward = drop(params["scale"] * change, rate=rate, key=key)

    def backward(dy):
        dscaled = drop_backward(dy)
        dscale = rows(change * dscaled).sum(axis=0)
        dsublayer, dread, *dothers = sublayer_backward(params["scale"] * dscaled)
        dnorm, dx = norm_backward(dread)
        return {"norm": dnorm, "sublayer": dsublayer, "scale": dscale}, dy + dx, *dothers

    return x + kept, backward


def rezero(params, x, *others, sublayer, drop=dropout, rate=0.0, key=None):
    """One learned number in place of the norm, which starts at 0.

        y = x + α drop(f(x))

    params: sublayer, scale α ().  x (B, T, D) and what else f reads -> y (B, T, D).
    Source: Bachlechner et al. 2020, "ReZero is all you need".

    Backward: a product's:  dα = Σ drop(f) ∘ dy,  and f gets α dy.
    """
    change, sublayer_backward = sublayer(params["sublayer"], x, *others)
    kept, drop_backward = drop(change, rate=rate, key=key)

    def backward(dy):
        dscale = np.asarray(np.vdot(kept, dy))
        dsublayer, dx, *dothers = sublayer_backward(drop_backward(params["scale"] * dy))
        return {"sublayer": dsublayer, "scale": dscale}, dy + dx, *dothers

    return x + params["scale"] * kept, backward


def deep_norm_scales(layers):
    """α and β of `deep_norm` for an encoder alone or a decoder alone of L layers.

    Raises InputError for fewer than one.
    Source: Wang et al. 2022, figure 2.
    """
    if layers < 1:
        raise InputError(f"layers is {layers}; give 1 or more")
    return (2 * layers) ** 0.25, (8 * layers) ** -0.25
