"""A random order of any number of things, for an epoch: drawn at once, or place by place."""

import math
from functools import lru_cache

import numpy as np

from reference import random

MOST_SORTED = 2**22  # a random order of more is not kept, but made where it is asked for
ROUNDS = 6  # with four, some differences of neighbours are measurably more frequent than others
STRETCH = 2**12  # places of such an order that are made at a time


def random_order(key, n):
    """A random order of n things: a function from places (N,) in it, N > 0, to what is there."""
    if n <= MOST_SORTED:
        return random.permutation(key, n).__getitem__
    round_keys = random.split(key, ROUNDS)

    @lru_cache(maxsize=2)
    def stretch(i):  # one by one, a batch's few numbers would take as long as hundreds at once
        return scattered(round_keys, n, np.arange(i * STRETCH, min((i + 1) * STRETCH, n)))

    def order(places):
        first, last = places.min() // STRETCH, places.max() // STRETCH
        numbers = np.concatenate([stretch(i) for i in range(first, last + 1)])
        return numbers[places - first * STRETCH]

    return order


def scattered(round_keys, n, places):
    """What stands at some places of a random order of 0 … n−1, without the rest of it.

    A place is two digits a, b to the base r = ⌈√n⌉.  A round
        (a, b) ← (b, (a + threefry(key, b)) mod r)
    could be undone, so that different places stay different; and so do they if what is n or more
    goes through all rounds again, until it is less.

    round_keys (rounds, 2);  places (N,), integers in [0, n) -> (N,) int64.
    Source: Luby & Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom
    functions" (four rounds or more);  Black & Rogaway 2002, "Ciphers with arbitrary finite
    domains" (again until it is less; a base of any size).
    """
    base = math.isqrt(n - 1) + 1
    numbers, todo = np.array(places, np.int64), np.arange(len(places))
    while len(todo):
        a, b = np.divmod(numbers[todo], base)
        for key in round_keys:
            low = b.astype(np.uint32)
            a, b = b, (a + random.threefry(key, np.zeros_like(low), low)[0]) % base
        numbers[todo] = a * base + b
        todo = todo[numbers[todo] >= n]
    return numbers
