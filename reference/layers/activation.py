"""Elementwise nonlinearities: without one, any number of layers would be a single linear map."""

import math

import numpy as np

from reference.errors import InputError

__all__ = [
    "relu",
    "relu_squared",
    "sigmoid",
    "tanh",
    "softplus",
    "silu",
    "quick_gelu",
    "gelu",
    "gelu_tanh",
    "soft_cap",
]


def relu(x):
    """The rectified linear unit: let what is positive through, and nothing else.

        y = max(x, 0)

    x (...) -> y (...).  Used by the original Transformer and by T5.
    Source: Glorot et al. 2011, "Deep sparse rectifier neural networks".

    Backward: the slope is 1 above 0 and 0 below; at 0, where there is none, it is taken as 0,
        dx = dy ∘ [x > 0].
    """
    y = np.maximum(x, 0)
    return y, lambda dy: dy * (x > 0)


def relu_squared(x):
    """The square of `relu`: it has a slope at 0 too, and grows faster.

        y = max(x, 0)²

    x (...) -> y (...).  Used by Primer, found there by a search over programs.
    Source: So et al. 2021, "Primer: searching for efficient Transformers for language modeling".

    Backward:  dx = 2 dy ∘ max(x, 0).
    """
    positive = np.maximum(x, 0)
    y = positive * positive
    return y, lambda dy: 2 * dy * positive


def sigmoid(x):
    """The logistic function: a score becomes a probability, or how far a gate is open.

        y = σ(x) = 1 / (1 + exp(-x)) = exp(min(x, 0)) / (1 + exp(-|x|))

    x (...) -> y (...).  The second form has no exponential of a positive number, so none overflows.
    Used by the gates of AlphaFold and by the router of DeepSeek-V3.
    Source: Goodfellow et al. 2016, "Deep learning", eq. 3.30.

    Backward: with e = exp(-x), dσ/dx = e / (1 + e)², which are two factors, y and 1 - y,
        dx = dy y (1 - y).
    """
    y = np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))
    return y, lambda dy: dy * y * (1 - y)


def tanh(x):
    """The hyperbolic tangent: a sigmoid from -1 to 1, so that 0 stays 0.

        y = (exp x - exp(-x)) / (exp x + exp(-x)) = 2 σ(2x) - 1

    x (...) -> y (...).  Used by BERT's pooler.
    Source: Goodfellow et al. 2016, "Deep learning", sec. 6.3.2.

    Backward:  dx = dy (1 - y²).
    """
    y = np.tanh(x)
    return y, lambda dy: dy * (1 - y * y)


def softplus(x):
    """A smooth `relu`, always positive: -log σ(-x), without a σ that would round to 0.

        y = log(1 + exp x) = max(x, 0) + log(1 + exp(-|x|))

    x (...) -> y (...).  The second form does not overflow.  Used by Mamba for its step sizes.
    Source: Goodfellow et al. 2016, "Deep learning", eq. 3.31.

    Backward: the derivative of log is 1 over its argument, which leaves exp x / (1 + exp x),
        dx = dy σ(x).
    """
    # np.logaddexp(x, 0) is the same, and 8 times slower.
    y = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return y, lambda dy: dy * sigmoid(x)[0]


def silu(x):
    """The sigmoid linear unit, or swish: x gates itself, a smooth `relu` that dips below 0.

        y = x σ(x)

    x (...) -> y (...).  Used by Llama, in its gated feed-forward layer.
    Source: Hendrycks & Gimpel 2016, sec. 2; Ramachandran et al. 2017, whose β is 1 here.

    Backward: x reaches y as the factor and through σ, whose derivative is σ (1 - σ),
        dx = dy (σ(x) + y (1 - σ(x))).
    """
    gate, _ = sigmoid(x)
    y = x * gate
    return y, lambda dy: dy * (gate + y * (1 - gate))


def quick_gelu(x):
    """The Gaussian error linear unit x Φ(x), with Φ approximated by a sigmoid.

        y = x σ(1.702 x)

    x (...) -> y (...).  Off `gelu` by up to 0.02.  Used by CLIP.
    Source: Hendrycks & Gimpel 2016, sec. 2.

    Backward: as `silu`, but that the gate is 1.702 times as steep,
        dx = dy (σ(1.702 x) + 1.702 y (1 - σ(1.702 x))).
    """
    gate, _ = sigmoid(1.702 * x)
    y = x * gate
    return y, lambda dy: dy * (gate + 1.702 * y * (1 - gate))


def gelu(x):
    """The Gaussian error linear unit: keep x with the probability that a normal number is below it.

        y = x Φ(x),   Φ(x) = (1 + erf(x/√2)) / 2

    x (...) -> y (...).  Used by Hugging Face's BERT; the GPTs use `gelu_tanh`.
    Source: Hendrycks & Gimpel 2016, sec. 2.

    Backward: the derivative of Φ is the normal density φ,
        dx = dy (Φ(x) + x φ(x)),   φ(x) = exp(-x²/2) / √(2π).
    """
    cdf = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    y = x * cdf

    def backward(dy):
        density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return dy * (cdf + x * density)

    return y, backward


def gelu_tanh(x):
    """The Gaussian error linear unit x Φ(x), with Φ approximated by a tanh, which is cheaper.

        y = x/2 (1 + t),   t = tanh u,   u = √(2/π) (x + 0.044715 x³)

    x (...) -> y (...).  Used by GPT-1, GPT-2 and Google's BERT; Hugging Face's BERT uses `gelu`.
    Source: Hendrycks & Gimpel 2016, sec. 2.

    Backward: x reaches y as the factor and through t, whose derivative by u is 1 - t²,
        dx = dy/2 (1 + t + x (1 - t²) du/dx),   du/dx = √(2/π) (1 + 3·0.044715 x²).
    """
    # In place, for what it computes costs less than a new array does.
    scale = math.sqrt(2 / math.pi)
    u = x * x
    u *= 0.044715 * scale
    u += scale
    u *= x
    t = np.tanh(u, out=u)
    y = 1 + t
    np.multiply(y, x, out=y)
    np.multiply(y, 0.5, out=y)

    def backward(dy):
        slope = x * x  # becomes x du/dx
        slope *= 3 * 0.044715 * scale
        slope += scale
        slope *= x
        slope *= 1 - t * t  # dt/du
        slope += 1 + t
        slope *= 0.5
        slope *= dy
        return slope

    return y, backward


def soft_cap(x, *, cap):
    """Keep scores between -cap and cap: small ones hardly change, large ones level off, and unlike
    those that are clipped they keep a gradient.

        y = cap tanh(x / cap)

    x (...) -> y (...).  A mask comes after it, for -inf would become -cap.  Used by Gemma 2: 50 for
    the scores of attention, 30 for the logits.
    Raises InputError unless cap is a finite number above 0.
    Source: Gemma Team 2024, "Gemma 2", sec. 2; before it Bello et al. 2017, "Neural combinatorial
    optimization with reinforcement learning".

    Backward: the factors cap and 1 / cap cancel,
        dx = dy (1 - tanh²(x / cap)).
    """
    check_cap(cap)
    c = float(cap)  # a number of NumPy's would make everything float64
    t = np.tanh(x / c)
    y = c * t
    return y, lambda dy: dy * (1 - t * t)


def check_cap(cap):
    """Raise InputError unless 0 < cap < ∞."""
    if not 0 < cap < math.inf:
        raise InputError(f"the cap is {cap}; give a finite number above 0, or leave soft_cap out")


def _tail_coefficients(degree):
    """P of `erf`, interpolated in Chebyshev's points from the standard library's erfc."""

    def tail(u):
        z = (16 / (3 * u + 5) - 2).tolist()
        return [math.log(math.erfc(a) * (1 + a / 2)) + a * a for a in z]

    fit = np.polynomial.Chebyshev.interpolate(tail, degree)
    return fit.convert(kind=np.polynomial.Polynomial).coef[::-1].tolist()


_TAIL = {"float32": _tail_coefficients(8), "float64": _tail_coefficients(20)}


def erf(x):
    """The error function 2/√π ∫₀ˣ exp(-z²) dz, which NumPy lacks.

        erf |x| = 1 - t exp(P(u) - x²),   t = 2 / (2 + |x|),   u = (8 t - 5) / 3

    The exponential does the falling, and what is left is so smooth in t that a polynomial P gives
    it, on u in [-1, 1]: up to |x| = 6, where erf is 1.  The absolute error is at most 4e-7 in
    float32 and 2e-15 in float64.
    Source: Press et al. 2007, "Numerical recipes", sec. 6.2.2 (the form; P is interpolated here).
    """
    z = np.minimum(np.abs(x), 6)
    t = 2 / (2 + z)
    u = (8 * t - 5) / 3
    highest, *others = _TAIL["float32" if x.dtype == np.float32 else "float64"]
    exponent = np.full_like(u, highest)
    for coefficient in others:
        exponent *= u
        exponent += coefficient
    return np.copysign(1 - t * np.exp(exponent - z * z), x)
