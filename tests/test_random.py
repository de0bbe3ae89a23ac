"""`reference.random` against `jax.random`: equal where the docstrings say so, else but rounding."""

import math
from statistics import NormalDist

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reference import random
from reference.errors import DtypeError, InputError
from tests.mirror import RUN

jax.config.update("jax_enable_x64", True)

SEEDS = (0, 1, 42, 2**31 + 5, 2**32 - 1, 2**40 + 77, 2**63 - 1)
SIZES = (1, 7, random.BLOCK - 1, 2 * random.BLOCK + 3)
FLOATS = (np.float32, np.float64)
INTERVALS = ((0, 1), (-2, 3), (-1.3, 0.7), (0, 0.1), (5, 5.3), (-1e-3, 1e3), (1e6, 1e6 + 1))
seeds = st.integers(0, 2**63 - 1)
# LLVM's passes make one rounding of a product and a sum, and so do ours.
jax_uniform = jax.jit(jax.random.uniform, static_argnums=(1, 2), compiler_options=RUN)
jax_truncated_normal = jax.jit(
    jax.random.truncated_normal, static_argnums=(3, 4), compiler_options=RUN
)


def in_jax(key):
    return jax.random.wrap_key_data(key)


def assert_equal(ours, theirs):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def assert_near(ours, theirs, scale=None):
    """Within 8 units in the last place in float32, 1e-11 relative in float64: DESIGN's tolerance.

    Of each number itself, or of `scale` where a number near 0 is a difference of larger ones.
    """
    theirs = np.asarray(theirs)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    size = np.abs(theirs) if scale is None else scale
    allowed = 8 * np.spacing(size) if ours.dtype == np.float32 else 1e-11 * size
    assert (np.abs(ours.astype(np.float64) - theirs) <= allowed).all()


# Threefry and the keys


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers_of_its_authors(counter, key, expected):
    """Those of Random123's kat_vectors, threefry2x32 with 20 rounds."""
    high, low = (np.array([half], np.uint32) for half in counter)
    a, b = random.threefry(np.array(key, np.uint32), high, low)
    assert (a.item(), b.item()) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_are_jax_s_own(seed):
    key, theirs = random.key(seed), jax.random.key(seed)
    assert_equal(key, jax.random.key_data(theirs))
    for n in (1, 2, 5):
        assert_equal(random.split(key, n), jax.random.key_data(jax.random.split(theirs, n)))
    for data in (0, 7, 2**31, 2**32 - 1):
        assert_equal(
            random.fold_in(key, data), jax.random.key_data(jax.random.fold_in(theirs, data))
        )


def test_a_stream_longer_than_32_bits_counts_on():
    high, low = random._counters(2**32 - 2, 2**32 + 2)
    assert_equal(high, np.array([0, 0, 1, 1], np.uint32))
    assert_equal(low, np.array([2**32 - 2, 2**32 - 1, 0, 1], np.uint32))


@given(seeds)
def test_split_keys_are_distinct_and_none_is_the_old_one(seed):
    key = random.key(seed)
    keys = [key, *random.split(key, 50), *(random.fold_in(key, i) for i in range(50, 60))]
    assert len({tuple(k.tolist()) for k in keys}) == len(keys)
    assert_equal(random.split(key, 50)[:7], random.split(key, 7))


# What equals jax.random


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 0, 3), (3, 2, random.BLOCK + 1)])
def test_bits_equal_jax_s(shape, dtype):
    for seed in SEEDS[:4]:
        key = random.key(seed)
        assert_equal(
            random.bits(key, shape, dtype=dtype), jax.random.bits(in_jax(key), shape, dtype)
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
def test_uniforms_equal_jax_s(n, dtype):
    for seed, (low, high) in enumerate(INTERVALS):
        key = random.key(seed)
        assert_equal(
            random.uniform(key, (n,), dtype=dtype, low=low, high=high),
            jax_uniform(in_jax(key), (n,), dtype, low, high),
        )


@settings(deadline=None)  # the first example compiles
@given(
    seeds, st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=2, max_size=2, unique=True)
)
@example(0, [3.0, 4.506848731796762e-24])  # half of the products are ties, which low decides
def test_uniforms_of_any_interval_equal_jax_s_and_keep_to_it(seed, bounds):
    key, (low, high) = random.key(seed), sorted(bounds)
    for dtype in FLOATS:
        x = random.uniform(key, (997,), dtype=dtype, low=low, high=high)
        theirs = np.asarray(jax_uniform(in_jax(key), (997,), dtype, low, high))
        subnormal = np.abs(theirs) < np.finfo(dtype).tiny  # XLA makes zeros of them
        assert_equal(np.where(subnormal, 0, x), np.where(subnormal, 0, theirs))
        assert (low <= x).all() and (x <= high).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("probability", [0, 1e-3, 0.1, 0.5, 0.9, 1])
def test_bernoulli_equals_jax_s_of_a_float32_probability(probability, n):
    key = random.key(n)
    ours = random.bernoulli(key, probability, (n,))
    assert_equal(ours, jax.random.bernoulli(in_jax(key), np.float32(probability), (n,)))
    assert_equal(ours, random.uniform(key, (n,)) < np.float32(probability))


@pytest.mark.parametrize(
    "low, high",
    [(0, 1), (0, 10), (-5, 50257), (0, 65536), (3, 65540), (0, 2**31 - 1), (-(2**31), 2**31 - 1)],
)
def test_integers_equal_jax_s(low, high):
    for shape in [(), (7,), (3, random.BLOCK)]:
        key = random.key(low % 97)
        assert_equal(
            random.randint(key, shape, low, high),
            jax.random.randint(in_jax(key), shape, low, high, np.int32),
        )


@settings(deadline=None)  # the first example compiles
@given(seeds, st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=2, unique=True))
def test_integers_of_any_interval_equal_jax_s_and_keep_to_it(seed, bounds):
    key, (low, high) = random.key(seed), sorted(bounds)
    numbers = random.randint(key, (101,), low, high)
    assert_equal(numbers, jax.random.randint(in_jax(key), (101,), low, high, np.int32))
    assert (low <= numbers).all() and (numbers < high).all()


@pytest.mark.parametrize("n", [0, 1, 2, 1625, 1626, 100_003, 2_700_001])
def test_permutations_equal_jax_s(n):
    """Of none to three rounds."""
    key = random.key(n)
    assert_equal(random.permutation(key, n), jax.random.permutation(in_jax(key), n))


@given(seeds, st.integers(0, 5000))
def test_a_permutation_has_each_number_once(seed, n):
    assert_equal(np.sort(random.permutation(random.key(seed), n)), np.arange(n))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(5,), (0, 5), (20_011, 17), (3, 41, 997)])
def test_categorical_draws_jax_s_own_indices(shape, dtype):
    rng = np.random.default_rng(0)
    for seed, scale in enumerate((0, 1, 10)):
        key, logits = random.key(seed), (scale * rng.standard_normal(shape)).astype(dtype)
        logits[..., 2] = -np.inf
        drawn = random.categorical(key, logits)
        assert_equal(drawn, jax.random.categorical(in_jax(key), logits))
        assert (drawn != 2).all()


# What agrees with jax.random


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", SEEDS)
def test_normals_agree_with_jax_s(seed, dtype):
    key = random.key(seed)
    for shape in [(), (3, 100_003)]:
        assert_near(
            random.normal(key, shape, dtype=dtype), jax.random.normal(in_jax(key), shape, dtype)
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "low, high", [(-2, 2), (-3, 3), (-3, 1), (-1, 9), (-np.inf, 0.5), (-9, np.inf)]
)
def test_truncated_normals_agree_with_jax_s_and_keep_to_their_bounds(low, high, dtype):
    key = random.key(3)
    x = random.truncated_normal(key, low, high, (3, 50_021), dtype=dtype)
    assert_near(x, jax_truncated_normal(in_jax(key), low, high, x.shape, dtype))
    assert (low < x).all() and (x < high).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("low, high", [(1, 4), (-4, -0.5), (2, np.inf)])
def test_truncated_normals_of_one_side_agree_as_far_as_jax_s_erf_does(low, high, dtype):
    """Two units in erf's last place, times the slope of its inverse, √(π/2) exp(x²/2)."""
    x = random.truncated_normal(random.key(3), low, high, (50_021,), dtype=dtype)
    theirs = jax_truncated_normal(in_jax(random.key(3)), low, high, x.shape, dtype)
    error = np.abs(x.astype(np.float64) - theirs)
    slope = np.sqrt(np.pi / 2) * np.exp(x.astype(np.float64) ** 2 / 2)
    # What rounding leaves of the last few floats below erf = 1 is no longer linear.
    inner = np.abs(x) < (4 if dtype == np.float32 else 7)
    assert inner.mean() > 0.99
    assert (error <= 4 * np.finfo(dtype).eps * (slope + 2))[inner].all()
    assert (low < x).all() and (x < high).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", SEEDS)
def test_gumbels_agree_with_jax_s(seed, dtype):
    """Where −ln u is near 1, its logarithm is near 0: there, the units are those of 1."""
    key = random.key(seed)
    theirs = np.asarray(jax.random.gumbel(in_jax(key), (3, 100_003), dtype))
    ours = random.gumbel(key, theirs.shape, dtype=dtype)
    assert_near(ours, theirs, scale=np.maximum(np.abs(theirs), 1))


# erfinv


@pytest.mark.parametrize(
    "dtype, inside, anywhere", [(np.float32, 3e-7, 7e-6), (np.float64, 1e-15, 2e-10)]
)
def test_erfinv_is_as_accurate_as_it_says(dtype, inside, anywhere):
    """Against the standard library's quantile, which is another approximation (AS241)."""
    rng = np.random.default_rng(0)
    near_one = 1 - 10 ** rng.uniform(np.log10(np.finfo(dtype).eps), -1, 50_000)
    x = np.concatenate([rng.uniform(0.5, 1, 50_000), near_one]).astype(dtype)
    x = x[x < 1]
    tail = (1 - x.astype(np.float64)) / 2  # exact from 1/2 on
    expected = np.array([-NormalDist().inv_cdf(p) for p in tail.tolist()]) / math.sqrt(2)
    error = np.abs(random.erfinv(x) / expected - 1)
    assert error[x <= 0.9].max() <= inside and error.max() <= anywhere
    assert_equal(random.erfinv(-x), -random.erfinv(x))


@pytest.mark.parametrize("dtype", FLOATS)
def test_erfinv_agrees_with_jax_s(dtype):
    x = np.random.default_rng(0).uniform(-1, 1, (3, 70_001)).astype(dtype)
    assert_near(random.erfinv(x), jax.scipy.special.erfinv(x))


@given(st.floats(-5, 5))
def test_erfinv_undoes_erf(z):
    """erf's own rounding is worth ε/2 · √π/2 · exp(z²) in z; beyond 5 nothing is left of z."""
    undone = random.erfinv(np.float64(math.erf(z)))
    assert abs(undone - z) <= 2e-10 * abs(z) + 1e-16 * math.exp(z * z)


def test_erfinv_at_its_ends_and_of_small_numbers():
    x = np.array([-1, -0.0, 0, 1e-300, 1e-20, 1])
    slope = math.sqrt(math.pi) / 2
    expected = [-np.inf, 0, 0, slope * 1e-300, slope * 1e-20, np.inf]
    np.testing.assert_allclose(random.erfinv(x), expected, rtol=1e-15)
    assert random.erfinv(np.zeros((0, 3), np.float32)).shape == (0, 3)


# What holds whatever JAX does


@given(seeds, st.integers(0, 300), st.integers(0, 300))
def test_a_larger_shape_begins_with_the_numbers_of_a_smaller(seed, m, n):
    key, m, n = random.key(seed), *sorted((m, n))
    for draw in (random.bits, random.uniform, random.normal, random.gumbel):
        assert_equal(draw(key, (n,))[:m], draw(key, (m,)))
    assert_equal(random.bits(key, (2, m)), random.bits(key, (2 * m,)).reshape(2, m))


@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_size_of_a_block_shows_nowhere(monkeypatch, block):
    key = random.key(5)
    draws = [
        lambda: random.bits(key, (3, 67), dtype=np.uint64),
        lambda: random.uniform(key, (201,), low=-2, high=3, dtype=np.float64),
        lambda: random.bernoulli(key, 0.3, (201,)),
        lambda: random.categorical(key, np.zeros((67, 3))),
        lambda: random.randint(key, (201,), 0, 9),
    ]
    expected = [draw() for draw in draws]
    monkeypatch.setattr(random, "BLOCK", block)
    for draw, whole in zip(draws, expected, strict=True):
        assert_equal(draw(), whole)


@given(seeds)
def test_uniforms_are_in_0_to_1_and_the_key_is_left_alone(seed):
    key = random.key(seed)
    key.flags.writeable = False
    for dtype in FLOATS:
        x = random.uniform(key, (1000,), dtype=dtype)
        assert x.dtype == dtype and (x >= 0).all() and (x < 1).all()
    assert_equal(key, random.key(seed))


@pytest.mark.parametrize("dtype", FLOATS)
def test_moments_are_those_of_the_distributions(dtype):
    """Each within 5 standard errors of what it estimates."""
    n, key = 1_000_000, random.key(0)

    def assert_mean(sample, mean, variance):
        assert abs(sample.mean(dtype=np.float64) - mean) < 5 * math.sqrt(variance / n)

    x = random.normal(key, (n,), dtype=dtype)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert_mean(x.astype(np.float64) ** power, mean, variance)
    assert_mean(x[1:] * x[:-1], 0, 1)
    u = random.uniform(key, (n,), dtype=dtype, low=-1, high=3)
    assert_mean(u, 1, 16 / 12)
    assert_mean(random.gumbel(key, (n,), dtype=dtype), np.euler_gamma, math.pi**2 / 6)
    kept = math.erf(2 / math.sqrt(2))  # the variance of N(0, 1) between −2 and 2:
    variance = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / kept
    t = random.truncated_normal(key, -2, 2, (n,), dtype=dtype)
    assert_mean(t, 0, variance)
    assert_mean(t.astype(np.float64) ** 2, variance, 3)
    assert_mean(random.bernoulli(key, 0.3, (n,)), 0.3, 0.21)


def test_categorical_and_integers_come_as_often_as_they_should():
    n = 200_000
    p = np.array([0.5, 0, 0.3, 0.15, 0.05])
    with np.errstate(divide="ignore"):
        logits = np.broadcast_to(np.log(p) + 7, (n, 5))
    counts = np.bincount(random.categorical(random.key(1), logits), minlength=5)
    assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p)).all()
    counts = np.bincount(random.randint(random.key(1), (n,), 10, 21) - 10)
    assert counts.shape == (11,) and (np.abs(counts - n / 11) < 5 * np.sqrt(n / 11)).all()


# Bad input

KEY = random.key(0)
NAN_ROW = np.array([[[0.0, 1], [np.nan, 0]]])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: random.key(-1), "seed is -1; give an integer in"),
        (lambda: random.key(2**63), "seed is 9223372036854775808"),
        (lambda: random.key(1.0), "seed is 1.0"),
        (lambda: random.split(KEY, 0), "n is 0"),
        (lambda: random.fold_in(KEY, 2**32), "data is 4294967296"),
        (lambda: random.fold_in(KEY, -1), "data is -1"),
        (lambda: random.bits(7, (3,)), r"key is int64 of shape \(\); give two uint32"),
        (lambda: random.split(random.split(KEY, 3)), r"key is uint32 of shape \(3, 2\)"),
        (lambda: random.fold_in(KEY.astype(np.int64), 1), "key is int64"),
        (lambda: random.uniform(KEY, 5), r"shape is 5; give a tuple"),
        (lambda: random.normal(KEY, (5, -1)), r"shape\[1\] is -1"),
        (lambda: random.bits(KEY, (2.5,)), r"shape\[0\] is 2.5"),
        (lambda: random.uniform(KEY, (3,), low=1, high=1), "low is 1 and high is 1"),
        (lambda: random.uniform(KEY, (3,), low=1, high=1 + 1e-9), "low < high in float32"),
        (lambda: random.uniform(KEY, (3,), low=0, high=math.nan), "high is nan"),
        (lambda: random.uniform(KEY, (3,), low=-math.inf, high=0), "low is -inf .* apart"),
        (lambda: random.uniform(KEY, (3,), low=0, high=1e300), "high is 1e[+]300; .* apart"),
        (lambda: random.truncated_normal(KEY, 2, -2, (3,)), "low is 2 and high is -2"),
        (lambda: random.truncated_normal(KEY, 9, 10, (3,)), "or take float64"),
        (lambda: random.bernoulli(KEY, 1.5, (3,)), r"probability is 1.5; .* \[0, 1\]"),
        (lambda: random.bernoulli(KEY, math.nan, (3,)), "probability is nan"),
        (lambda: random.bernoulli(KEY, np.full(3, 0.5), (3,)), "probability is"),
        (lambda: random.randint(KEY, (3,), 4, 4), "high is 4"),
        (lambda: random.randint(KEY, (3,), -(2**31) - 1, 4), "low is -2147483649"),
        (lambda: random.randint(KEY, (3,), 0, 2**31), "high is 2147483648"),
        (lambda: random.randint(KEY, (3,), 0.5, 2), "low is 0.5"),
        (lambda: random.permutation(KEY, -1), "n is -1"),
        (lambda: random.permutation(KEY, np.arange(3)), "n is array"),
        (lambda: random.categorical(KEY, np.full((2, 3), -np.inf)), r"logits\[0\] has -inf"),
        (lambda: random.categorical(KEY, NAN_ROW), r"logits\[0, 1\] has nan"),
        (lambda: random.categorical(KEY, np.array([0, np.inf])), "logits has inf"),
        (lambda: random.categorical(KEY, np.zeros((3, 0))), r"shape \(3, 0\)"),
        (lambda: random.categorical(KEY, np.float64(1)), r"shape \(\)"),
        (lambda: random.erfinv(np.array([0.5, 1.5])), "x reaches from 0.5 to 1.5"),
        (lambda: random.erfinv(np.array([0.5, np.nan])), "x reaches from nan"),
    ],
)
def test_what_cannot_be_used_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: random.bits(KEY, (3,), dtype=np.int32), "dtype is int32; give uint32 or uint64"),
        (lambda: random.uniform(KEY, (3,), dtype=np.float16), "dtype is float16; give float32"),
        (lambda: random.normal(KEY, (3,), dtype=int), "dtype is int64"),
        (lambda: random.categorical(KEY, np.zeros(3, int)), "dtype is int64"),
        (lambda: random.erfinv(1), "dtype is int64"),
    ],
)
def test_other_dtypes_are_refused(call, message):
    with pytest.raises(DtypeError, match=message):
        call()
