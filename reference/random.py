"""JAX's random numbers in NumPy: from the same key both engines draw the same bits.

A generator with a state hands out its numbers in one order only.  Threefry has no state: it
encrypts the counter 0, 1, 2, … under a key, and what comes out is as good as random.  Any part of
a stream can so be made at any time, on any device, and a new stream is only a new key:

    key → threefry → bits → uniform → bernoulli, normal, truncated_normal, gumbel → categorical

Everything is drawn as `jax.random` does with `jax_threefry_partitionable`, its default: keys,
bits, integers, uniforms and booleans are equal; normals and gumbels differ in rounding alone.
What is no key or no shape raises InputError, a dtype that is not offered its kind DtypeError.
"""

import math
import operator

import numpy as np

from reference.errors import DtypeError, InputError

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
BLOCK = 1 << 15  # numbers made at a time: their temporaries stay in the processor's cache


def key(seed):
    """A key, which names a stream of random numbers, from a number that a person can remember.

    key = (⌊seed / 2³²⌋, seed mod 2³²), (2,) uint32.  It equals `jax.random.key(seed)` where that
    keeps 64 bits; without `jax_enable_x64`, JAX drops the upper half of the seed.
    Raises InputError unless seed is an integer in [0, 2⁶³).
    """
    seed = _integer("seed", seed, 0, 2**63)
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def split(key, n=2):
    """n new keys, whose streams have nothing to do with each other: key i is threefry(key, i).

    The old key is used up by it: its bits are the same encrypted counters.
    key (2,) uint32 -> (n, 2) uint32.  Raises InputError unless n is an integer from 1 on.
    """
    n = _integer("n", n, 1, 2**63)
    return np.stack(threefry(_checked(key), *_counters(0, n)), axis=-1)


def fold_in(key, data):
    """A new key out of a key and a number, such as a layer's or a step's: threefry(key, data).

    key (2,) uint32 -> (2,) uint32.  Raises InputError unless data is an integer in [0, 2³²).
    """
    data = _integer("data", data, 0, 2**32)
    return np.concatenate(threefry(_checked(key), *_counters(data, data + 1)))


def threefry(key, high, low):
    """Encrypt 64-bit counters, given as halves: each bit that goes in decides all that come out.

    Twenty rounds of  a ← a + b,  b ← (b rotated left) ⊕ a  (mod 2³²) mix the halves.  Before them
    and after every fourth, two of the words k₀, k₁, k₂ = k₀ ⊕ k₁ ⊕ parity are added in turn, and
    to b the number of the addition too, lest the groups of four be alike.

    key (2,) uint32, high and low (N,) uint32 -> a, b (N,) uint32.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", sec. 3.3
    (Threefry-2×32 with 20 rounds).
    """
    k0, k1 = key.tolist()
    schedule = (k0, k1, k0 ^ k1 ^ PARITY)
    a, b = high + schedule[0], low + schedule[1]
    upper = np.empty_like(b)
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            a += b
            np.left_shift(b, distance, out=upper)
            b >>= 32 - distance
            b |= upper
            b ^= a
        a += schedule[(group + 1) % 3]
        b += (schedule[(group + 2) % 3] + group + 1) & 0xFFFFFFFF
    return a, b


def bits(key, shape, *, dtype=np.uint32):
    """Uniform random integers: the two encrypted halves joined (uint64) or xored (uint32).

    -> `shape`, uint32 or uint64.  A larger shape begins with the numbers of a smaller.
    """
    word = _word(dtype, ("uint32", "uint64"))
    return _draw(key, shape, word, dtype, lambda words: words)


def uniform(key, shape, *, dtype=np.float32, low=0, high=1):
    """Uniform floats in [low, high), where all other distributions come from.

    f, in [0, 1), is 23 random bits (52 in float64) put behind the point of a float in [1, 2),
    minus 1.  Then max(low, f · (high − low) + low), rounded once, as XLA fuses it: where floats
    are sparse that may round up to high itself.

    -> `shape`, float32 or float64.  Raises InputError unless low < high, both finite.
    """
    word = _word(dtype)
    start, stop = _interval(low, high, dtype, widest=float(np.finfo(dtype).max) / 2**28)

    def transform(words):
        f = _fraction(words)
        if start == 0 and stop == 1:
            return f
        return np.maximum(start, _multiply_add(f, stop - start, start))

    return _draw(key, shape, word, dtype, transform)


def bernoulli(key, probability, shape):
    """True with a probability: what dropout keeps.  A float32 uniform < probability.

    It is float32 whatever the model computes in, so that every precision drops the same units.
    `jax.random.bernoulli` agrees if its probability is a float32: under `jax_enable_x64` a Python
    float draws float64 uniforms.

    -> `shape`, bool.  Raises InputError for a probability outside [0, 1].
    """
    if np.ndim(probability) or not 0 <= probability <= 1:
        raise InputError(f"probability is {probability}; give a number in [0, 1]")
    limit = np.float32(probability)
    return _draw(key, shape, np.uint32, bool, lambda words: _fraction(words) < limit)


def randint(key, shape, low, high):
    """Integers in [low, high): 64 random bits modulo the span.

    With words w₁ and w₂ from the two split keys: low + (w₁ · 2³² + w₂) mod (high − low).  As in
    JAX, 2³² mod span is made as (2¹⁶ mod span)² mod span in 32 bits, where the square of 2¹⁶ is 0:
    a span over 2¹⁶ does without w₁, and its numbers are uneven by up to span / 2³².

    -> `shape`, int32.  Raises InputError unless −2³¹ <= low < high < 2³¹ are integers.
    """
    low = _integer("low", low, -(2**31), 2**31 - 1)
    high = _integer("high", high, low + 1, 2**31)
    span = high - low
    carry = (2**16 % span) ** 2 % 2**32 % span
    upper, lower = (bits(part, (_size(shape),)) for part in split(key))
    offset = (upper % span * carry + lower % span) % span
    return (offset.view(np.int32) + low).reshape(shape)


def permutation(key, n):
    """The numbers 0 … n−1 in random order: sorted by random words.

    Equal words leave two numbers in the order that they had, so this is done ⌈3 ln n / ln 2³²⌉
    times, each with the second key of a split, going on with the first.

    -> (n,) int64.  Raises InputError unless n is an integer from 0 on.
    """
    order = np.arange(_integer("n", n, 0, 2**63))
    for _ in range(math.ceil(3 * math.log(max(1, n)) / math.log(2**32 - 1))):
        key, round_key = split(key)
        order = order[np.argsort(bits(round_key, (n,)), kind="stable")]
    return order


# erfinv's pieces: where in w each begins, the shift c of its variable, and the coefficients of its
# polynomial P, highest power first.
# fmt: off
ERFINV_PIECES = {
    "float32": (
        (0, 2.5, (
            2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
            -0.00125372503, -0.00417768164, 0.246640727, 1.50140941)),
        (5, 3.0, (
            -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
            -0.0076224613, 0.00943887047, 1.00167406, 2.83297682))),
    "float64": (
        (0, 3.125, (
            -3.6444120640178196996e-21, -1.685059138182016589e-19, 1.2858480715256400167e-18,
            1.115787767802518096e-17, -1.333171662854620906e-16, 2.0972767875968561637e-17,
            6.6376381343583238325e-15, -4.0545662729752068639e-14, -8.1519341976054721522e-14,
            2.6335093153082322977e-12, -1.2975133253453532498e-11, -5.4154120542946279317e-11,
            1.051212273321532285e-09, -4.1126339803469836976e-09, -2.9070369957882005086e-08,
            4.2347877827932403518e-07, -1.3654692000834678645e-06, -1.3882523362786468719e-05,
            0.0001867342080340571352, -0.00074070253416626697512, -0.0060336708714301490533,
            0.24015818242558961693, 1.6536545626831027356)),
        (6.25, 3.25, (
            2.2137376921775787049e-09, 9.0756561938885390979e-08, -2.7517406297064545428e-07,
            1.8239629214389227755e-08, 1.5027403968909827627e-06, -4.013867526981545969e-06,
            2.9234449089955446044e-06, 1.2475304481671778723e-05, -4.7318229009055733981e-05,
            6.8284851459573175448e-05, 2.4031110387097893999e-05, -0.0003550375203628474796,
            0.00095328937973738049703, -0.0016882755560235047313, 0.0024914420961078508066,
            -0.0037512085075692412107, 0.005370914553590063617, 1.0052589676941592334,
            3.0838856104922207635)),
        (16, 5.0, (
            -2.7109920616438573243e-11, -2.5556418169965252055e-10, 1.5076572693500548083e-09,
            -3.7894654401267369937e-09, 7.6157012080783393804e-09, -1.4960026627149240478e-08,
            2.9147953450901080826e-08, -6.7711997758452339498e-08, 2.2900482228026654717e-07,
            -9.9298272942317002539e-07, 4.5260625972231537039e-06, -1.9681778105531670567e-05,
            7.5995277030017761139e-05, -0.00021503011930044477347, -0.00013871931833623122026,
            1.0103004648645343977, 4.8499064014085844221))),
}
# fmt: on


def erfinv(x):
    """The inverse of the error function, which turns uniform numbers into normal ones.

    erfinv(x) = x · P(w − c) while w = −ln(1 − x²) is small, and x · P(√w − c) further out, with a
    polynomial P for each piece: almost linear there, since 1 − erf(z) is about exp(−z²).

    All is computed in x's dtype, as XLA does.  The relative error is at most 3e-7 in float32 and
    1e-15 in float64 up to |x| = 0.9; beyond, x² is rounded where only 1 − x² matters, and it is
    at most 7e-6 and 2e-10 (both at 1 − |x| ≈ √ε).

    x (...) float32 or float64 -> (...); ±1 -> ±inf.  Raises InputError outside [−1, 1].
    Source: Giles 2012, "Approximating the erfinv function", GPU Computing Gems (Jade), ch. 10.
    """
    x = np.asarray(x)
    _word(x.dtype)
    if not (np.abs(x) <= 1).all():
        raise InputError(f"x reaches from {x.min()} to {x.max()}; give numbers in [-1, 1]")
    with np.errstate(divide="ignore"):  # ln 0 at ±1
        w = -np.log1p(-x.ravel() * x.ravel())
    (_, shift, coefficients), *tails = ERFINV_PIECES[x.dtype.name]
    factor = _polynomial(coefficients, w - shift)
    for start, shift, coefficients in tails:
        tail = np.flatnonzero(w >= start)
        factor[tail] = _polynomial(coefficients, np.sqrt(w[tail]) - shift)
    factor[w == np.inf] = np.inf
    return factor.reshape(x.shape) * x


def _polynomial(coefficients, x):
    """… + c₁ x + c₀ by Horner's rule."""
    total = coefficients[0] * x
    for coefficient in coefficients[1:-1]:
        total += coefficient
        total *= x
    total += coefficients[-1]
    return total


def normal(key, shape, *, dtype=np.float32):
    """Numbers of the standard normal distribution N(0, 1), by its inverse: √2 · erfinv(u).

    u is a uniform number f of [0, 1) moved into the open interval (−1, 1): 2 f less the largest
    float below 1, so that it is never −1.

    -> `shape`, float32 or float64.
    Source: Devroye 1986, "Non-uniform random variate generation", sec. II.2 (inversion).
    """
    word = _word(dtype)
    below_one = np.nextafter(np.ones((), dtype), np.zeros((), dtype))

    def transform(words):
        return math.sqrt(2) * erfinv(2 * _fraction(words) - below_one)

    return _draw(key, shape, word, dtype, transform)


def truncated_normal(key, low, high, shape, *, dtype=np.float32):
    """Normal numbers between two bounds, as many models' initial weights are: none far out.

    √2 · erfinv(u), u uniform in [erf(low/√2), erf(high/√2)); then clipped into the open interval
    (low, high), which rounding could have left.  Either bound may be infinite.  JAX's float32 erf
    is wrong in its last bit or two, which shows where both bounds are on one side of 0.

    -> `shape`, float32 or float64.
    Raises InputError unless low < high and `dtype` can tell their error functions apart.
    """
    word = _word(dtype)
    low, high = _interval(low, high, dtype)
    root = low.dtype.type(math.sqrt(2))
    start, stop = (low.dtype.type(math.erf(bound / root)) for bound in (low, high))
    if not start < stop:
        raise InputError(
            f"low is {low} and high is {high}; between them lies none of the normal distribution "
            f"that {low.dtype} could tell from 0: move them towards 0, or take float64"
        )
    inside = np.nextafter(low, high), np.nextafter(high, low)

    def transform(words):
        u = np.maximum(start, _multiply_add(_fraction(words), stop - start, start))
        return np.clip(math.sqrt(2) * erfinv(u), *inside)

    return _draw(key, shape, word, dtype, transform)


def gumbel(key, shape, *, dtype=np.float32):
    """Numbers of the standard Gumbel distribution, the limit of maxima: −ln(−ln u).

    u is uniform, 0 being replaced by the smallest normal float.  That is JAX's mode "low", its
    default; a float32 gumbel is at most 16: what is rarer than 1 in 10⁷ hardly ever comes up.

    -> `shape`, float32 or float64.
    """
    word = _word(dtype)
    smallest = np.finfo(dtype).tiny

    def transform(words):
        return -np.log(-np.log(np.maximum(smallest, _fraction(words))))

    return _draw(key, shape, word, dtype, transform)


def categorical(key, logits):
    """Draw the index of a class, in proportion to exp(logit), without a softmax or a sum.

    argmaxᵢ (logitᵢ + gᵢ), g gumbel of the logits' shape and dtype; ties go to the lower index.

    logits (..., V) float32 or float64 -> (...) int64.  Raises InputError where a row's largest
    logit is not finite: NaN, +inf, or −inf alone, of all of which JAX makes an index.
    Source: Gumbel 1954 and Maddison et al. 2014, "A* sampling", as told by Kool et al. 2019,
    "Stochastic beams and where to find them", sec. 1.
    """
    logits = np.asarray(logits)
    _word(logits.dtype)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise InputError(f"logits has shape {logits.shape}; give (..., V) with a class at least")
    largest = logits.max(axis=-1)
    if not np.isfinite(largest).all():
        row = tuple(np.argwhere(~np.isfinite(largest))[0].tolist())
        raise InputError(
            f"logits{list(row) or ''} has {largest[row]} as its largest; each row needs a finite "
            "one, and no NaN or +inf: mask with -inf, but not all, and look where NaN comes from"
        )
    noisy = gumbel(key, logits.shape, dtype=logits.dtype)
    noisy += logits
    return noisy.argmax(axis=-1)


def _draw(key, shape, word, dtype, transform):
    """An array of a shape and dtype: transform(its bits), block by block."""
    key, size = _checked(key), _size(shape)
    out = np.empty(size, dtype)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        high, low = threefry(key, *_counters(start, stop))
        words = high ^ low if word == np.uint32 else high.astype(np.uint64) << 32 | low
        out[start:stop] = transform(words)
    return out.reshape(shape)


def _counters(start, stop):
    """The 64-bit counters start … stop−1, as their high and low halves."""
    count = np.arange(start, stop, dtype=np.uint64)
    return (count >> 32).astype(np.uint32), count.astype(np.uint32)


def _fraction(words):
    """Floats in [0, 1) made in place of uint32 or uint64: the fraction of a float in [1, 2), −1."""
    dtype = np.dtype(f"f{words.itemsize}")
    words >>= 8 * words.itemsize - np.finfo(dtype).nmant
    words |= np.ones(1, dtype).view(words.dtype)
    fraction = words.view(dtype)
    fraction -= 1
    return fraction


def _multiply_add(x, scale, shift):
    """x · scale + shift, rounded once: the fused operation that XLA uses and NumPy lacks.

    Float32 products are exact in float64.  In float64 the product's own error, from halves of 26
    bits (Dekker 1971), and that of each sum are kept, and added at the end.
    Source: Boldo & Melquiond 2008, "Emulation of a FMA and correctly rounded sums", fig. 5.
    """
    if x.dtype == np.float32:
        return _odd_sum(x * np.float64(scale), np.float64(shift)).astype(np.float32)
    (x1, x2), (scale1, scale2) = _halves(x), _halves(scale)
    product = x * scale
    product_error = x1 * scale1 - product + x1 * scale2 + x2 * scale1 + x2 * scale2
    small, small_error = _exact_sum(shift, product_error)
    total, total_error = _exact_sum(product, small)
    return total + _odd_sum(small_error, total_error)


def _exact_sum(a, b):
    """The rounded sum of two floats, and what rounding took from it (Knuth's TwoSum)."""
    total = a + b
    rest = total - a
    return total, (a - (total - rest)) + (b - rest)


def _odd_sum(a, b):
    """a + b in float64; where inexact, of the two floats around it that whose last bit is 1.

    Rounded once more, such a sum ends where the exact one would: it is never taken for a tie.
    """
    total, error = _exact_sum(a, b)
    even = total.view(np.int64) % 2 == 0
    return np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)


def _halves(x):
    """Two float64 of at most 26 bits each that sum to x."""
    scaled = x * (2.0**27 + 1)
    upper = scaled - (scaled - x)
    return upper, x - upper


def _integer(name, value, low, high):
    """An int of [low, high), or the InputError that says it is none."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number < high:
        raise InputError(f"{name} is {value!r}; give an integer in [{low}, {high})")
    return number


def _size(shape):
    """How many numbers an array of this shape has."""
    if not isinstance(shape, tuple | list):
        raise InputError(f"shape is {shape!r}; give a tuple of sizes, such as (5,)")
    return math.prod(_integer(f"shape[{i}]", n, 0, 2**63) for i, n in enumerate(shape))


def _checked(key):
    """A key, or the InputError that says it is none."""
    array = np.asarray(key)
    if array.shape != (2,) or array.dtype != np.uint32:
        raise InputError(
            f"key is {array.dtype} of shape {array.shape}; give two uint32, which come from "
            "key(seed), fold_in, or one row of split"
        )
    return array


def _word(dtype, allowed=("float32", "float64")):
    """The unsigned integer that numbers of this dtype are made of, or the DtypeError."""
    dtype = np.dtype(dtype)
    if dtype.name not in allowed:
        raise DtypeError(f"dtype is {dtype}; give {' or '.join(allowed)}")
    return np.dtype(f"u{dtype.itemsize}")


def _interval(low, high, dtype, widest=np.inf):
    """Both bounds in dtype, or the InputError that says that nothing, or too much, is between."""
    dtype = np.dtype(dtype)
    with np.errstate(over="ignore"):
        start, stop = dtype.type(low), dtype.type(high)
    if not (start < stop and float(high) - float(low) <= widest):
        raise InputError(
            f"low is {low} and high is {high}; give low < high in {dtype}, at most {widest} apart"
        )
    return start, stop
