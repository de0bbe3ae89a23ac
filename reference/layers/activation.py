"""Elementwise nonlinearities: without one, any number of layers would be a single linear map."""

import math

import numpy as np

__all__ = ["gelu", "gelu_tanh"]


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
