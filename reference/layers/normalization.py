"""Normalization of each position over its features: their size goes, their pattern stays."""

import numpy as np

from reference.layers.linear import rows

__all__ = ["l2_norm", "rms_norm", "layer_norm", "query_key_norm"]


def l2_norm(x, *, epsilon=1e-12):
    """Give every position length 1, so that a product of two is the cosine of their angle.

        y = x / ‖x‖,   ‖x‖ = √(Σ x²)

    x (..., D) -> y (..., D).  What is not longer than ε has no direction: it gives zeros, and its
    gradient is zero.  Used by CLIP for what it compares.
    Source: Radford et al. 2021, fig. 3.
    Differs from PyTorch's `normalize`, which divides by ε what is shorter, its gradient too.

    Backward: x reaches y directly and through its length, which does not change along y,
        dx = (dy - y (y·dy)) / ‖x‖.
    """
    square = np.vecdot(x, x)[..., None]
    long = square > epsilon * epsilon
    inverse_length = long / np.sqrt(np.where(long, square, 1))
    y = x * inverse_length

    def backward(dy):
        dx = dy - y * np.vecdot(y, dy)[..., None]
        dx *= inverse_length
        return dx

    return y, backward


def rms_norm(params, x, *, epsilon=1e-6):
    """Give every position mean square 1, then a learned scale: `layer_norm` without the mean, which
    is cheaper and serves as well.

        n = x / √(mean(x²) + ε),   y = scale ∘ n

    params: scale (D,).  x (..., D) -> y (..., D).  Used by T5, Llama, Qwen, and by Gemma, whose
    files hold scale - 1.
    Source: Zhang & Sennrich 2019, eq. 4.
    Differs from the paper: ε, which it lacks; as in Llama.

    Backward: x reaches n directly and through the mean square; with dn = scale ∘ dy,
        dx = (dn - n ∘ mean(dn ∘ n)) / √(mean(x²) + ε).
    """
    mean_square = np.vecdot(x, x)[..., None] / x.shape[-1]
    inverse_rms = 1 / np.sqrt(mean_square + epsilon)
    n = x * inverse_rms
    y = params["scale"] * n

    def backward(dy):
        dparams = {"scale": rows(dy * n).sum(axis=0)}
        dn = params["scale"] * dy
        mean_dn_n = np.vecdot(dn, n)[..., None] / x.shape[-1]
        dn -= n * mean_dn_n
        dn *= inverse_rms
        return dparams, dn  # now dx

    return y, backward


def layer_norm(params, x, *, epsilon=1e-5):
    """Give every position mean 0 and variance 1, then a learned scale and bias: no layer has to
    follow the drift of those before it.

        n = (x - mean x) / √(var x + ε),   y = scale ∘ n + bias

    params: scale (D,), bias (D,).  x (..., D) -> y (..., D).  The variance is the population's.
    Source: Ba et al. 2016, eq. 3.

    Backward: x reaches n directly, through the mean and through the variance; with dn = scale ∘ dy,
        dx = (dn - mean dn - n ∘ mean(dn ∘ n)) / √(var x + ε).
    """
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.vecdot(centered, centered)[..., None] / x.shape[-1]
    inverse_std = 1 / np.sqrt(variance + epsilon)
    n = np.multiply(centered, inverse_std, out=centered)
    y = params["scale"] * n
    np.add(y, params["bias"], out=y)

    def backward(dy):
        dparams = {"scale": rows(dy * n).sum(axis=0), "bias": rows(dy).sum(axis=0)}
        dn = params["scale"] * dy
        mean_dn_n = np.vecdot(dn, n)[..., None] / x.shape[-1]
        dn -= dn.mean(axis=-1, keepdims=True)
        dn -= n * mean_dn_n
        dn *= inverse_std
        return dparams, dn  # now dx

    return y, backward


def query_key_norm(params, q, k, *, epsilon=1e-6):
    """Normalize queries and keys, head by head, before they meet: their products cannot grow with
    the weights, so no softmax saturates.

        q̂ = rms_norm(q),   k̂ = rms_norm(k),   |q̂·k̂| ≤ K max|scale_query| max|scale_key|

    params: query and key, each a scale (K,) that all heads share.
    q (..., T, K), k (..., S, K) -> (q̂, k̂), of the same shapes.  Used by Qwen3 and Gemma 3.
    Source: Dehghani et al. 2023, sec. 2, for the reason; Henry et al. 2020 for the idea.
    Differs from the papers: RMS norms, where the first has layer norms and the second l2 norms.

    Backward: that of each `rms_norm`.
    """
    q_normed, query_backward = rms_norm(params["query"], q, epsilon=epsilon)
    k_normed, key_backward = rms_norm(params["key"], k, epsilon=epsilon)

    def backward(dnormed):
        dq_normed, dk_normed = dnormed
        dquery, dq = query_backward(dq_normed)
        dkey, dk = key_backward(dk_normed)
        return {"query": dquery, "key": dkey}, dq, dk

    return (q_normed, k_normed), backward
