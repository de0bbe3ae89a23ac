"""Texts that came before: exact copies by a digest, near copies by MinHash.

A model that reads a page a hundred times learns it by heart, and one that has read its own test
looks better than it is.  To compare every text with every other takes too long, and to keep them
all too much memory.  So each text is turned into something small, which copies have in common:

  exact     A digest of 128 bits.  Two different texts share one with a probability of 2⁻¹²⁸.
  shingles  A near copy shares most of its pieces.  The pieces are all runs of nine characters, the
            text taken as a set A of them, and two texts are as similar as their sets (Jaccard):

                s = |A ∩ B| / |A ∪ B|

  MinHash   Put all shingles there could be in a random order.  The first of those in A ∪ B is as
            likely to be any of them, so the first of A is the first of B with probability s.  With
            k = 128 orders, the k firsts are the signature of a text, and the share of places in
            which two signatures agree is an estimate of s, with a standard error of √(s(1 − s)/k):
            0.035 at s = 0.8.
  bands     Cut the signature into b bands of r places, and put the text into a bucket for each.
            Two texts meet in a bucket, whatever else there is, with probability

                P(s) = 1 − (1 − sʳ)ᵇ

            an S-curve: near 0 for unlike texts, near 1 for like ones, and the larger r, the later
            and steeper its rise.  Only texts that meet are compared, by their whole signatures.

Each text is compared with those that were kept before it, and is kept unless it repeats one.  All
arithmetic is that of integers with fixed coefficients: every machine finds the same copies.

Source: Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman &
Ullman, "Mining of massive datasets", ch. 3 (shingles 3.2, MinHash 3.3, bands 3.4).
"""

from functools import reduce
from hashlib import blake2b
from numbers import Real

import numpy as np

from reference import random
from reference.errors import InputError

SHINGLE = 9  # characters: few enough to recur in a copy, too many to recur by chance in long texts
ORDERS = 128  # k
RECALL = 0.99  # the probability that two texts of just the similarity asked for meet in a bucket
BLOCK = 4096  # shingles hashed at a time: k times as many numbers are made of them
DIGEST = 16  # bytes
NO_DIGEST = bytes(DIGEST)

# The hash functions' coefficients are random, but the same for ever: they come from this key.
_KEYS = random.split(random.key(1997), 4)
_SHINGLE_FACTORS = random.bits(_KEYS[0], (SHINGLE,), dtype=np.uint64)
_FACTORS = random.bits(_KEYS[1], (ORDERS, 1), dtype=np.uint64)
_SHIFTS = random.bits(_KEYS[2], (ORDERS, 1), dtype=np.uint64)
_BUCKET_FACTORS = random.bits(_KEYS[3], (ORDERS,), dtype=np.uint64)


class ExactDuplicates:
    """The digests of all texts so far: 16 bytes for each, in a table a third to two thirds full.

    That is 24 to 48 bytes a text, where a Python set of the digests takes over 100.  While the
    table grows, the old one is there as well.
    """

    def __init__(self):
        self._size, self._table = 0, bytearray(1024 * DIGEST)

    def seen(self, text):
        """Whether this text came before.  From now on, it did."""
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()
        place = self._place(digest)
        if self._table[place : place + DIGEST] == digest:
            return True
        self._table[place : place + DIGEST] = digest
        self._size += 1
        if 3 * self._size * DIGEST > 2 * len(self._table):
            self._grow()
        return False

    def _place(self, digest):
        """Where a digest stands, or the empty place for it: the next one after its own."""
        place = int.from_bytes(digest[:8], "little") * DIGEST % len(self._table)
        while self._table[place : place + DIGEST] not in (digest, NO_DIGEST):
            place = (place + DIGEST) % len(self._table)
        return place

    def _grow(self):
        old, self._table = self._table, bytearray(2 * len(self._table))
        for start in range(0, len(old), DIGEST):
            digest = bytes(old[start : start + DIGEST])
            if digest != NO_DIGEST:
                place = self._place(digest)
                self._table[place : place + DIGEST] = digest


def shingles(text):
    """Every run of nine characters, as a number of 32 bits.

    Case does not count, nor what kind of blanks are between words or how many.  Characters rather
    than words are taken because not every language puts blanks between words.  Eight border
    characters on both sides make nine shingles or more of a single character, so that short texts
    are told apart as well.  A changed character costs nine: in a text of 73 characters it leaves a
    similarity of 0.8, in a longer one more.

    A shingle's number is the upper half of Σ cᵢ · characterᵢ mod 2⁶⁴ with random c: two different
    shingles share it with a probability of about 2⁻³².

    text of n characters, once it is so -> (n + 8,) uint32, repeated where the text repeats itself.
    Source: Lemire & Kaser 2014, "Strongly universal string hashing is fast" (multilinear hashing).
    """
    return _numbers(_bordered(text))


def _bordered(text):
    border = "\0" * (SHINGLE - 1)
    return border + " ".join(text.casefold().split()) + border


def _numbers(text):
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    sums = np.correlate(characters.astype(np.uint64), _SHINGLE_FACTORS, "valid")
    return (sums >> 32).astype(np.uint32)


def minima(numbers):
    """The first of a set of shingles in each of k random orders: the MinHash of the set.

    Order j is that of the upper half of aⱼ · x + bⱼ mod 2⁶⁴, for random aⱼ and bⱼ.  Such an order
    is random enough for numbers that are, as those of shingles: on pairs of texts the estimate's
    error is what √(s(1 − s)/k) says.  Numbers in a row, 1, 2, 3, …, would bring a bias.
    The signature of a union is the smaller of the two signatures, in each place.

    (n,) uint32, n >= 1 -> (k,) uint32.
    Source: Dietzfelbinger 1996, "Universal hashing and k-wise independent random variables via
    integer arithmetic without primes" (multiply, add, shift).
    """
    hashed = _FACTORS * numbers
    hashed += _SHIFTS
    return (hashed.min(axis=1) >> 32).astype(np.uint32)


def signature(text):
    """The MinHash of a text's shingles, made piece by piece.  -> (k,) uint32."""
    whole = _bordered(text)
    starts = range(0, len(whole) - SHINGLE + 1, BLOCK)
    pieces = [minima(_numbers(whole[i : i + BLOCK + SHINGLE - 1])) for i in starts]
    return reduce(np.minimum, pieces)


def similarities(signatures, one):
    """Estimates of how similar texts are to one: the share of places in which they agree.

    (..., k) and (k,) -> (...) float64.  The standard error is √(s(1 − s)/k).
    """
    return (signatures == one).mean(axis=-1)


def check_similarity(similarity):
    """Raise InputError unless two texts can be called near copies from this similarity on."""
    if not isinstance(similarity, Real) or not 0.5 <= similarity <= 1:
        raise InputError(
            f"similarity is {similarity!r}; give a number in [0.5, 1], such as 0.8: texts that "
            "share fewer than half of their pieces are not copies"
        )


def meeting_probability(similarity, rows):
    """P(s) = 1 − (1 − sʳ)ᵇ, that two texts share a bucket, with b = ⌊k / r⌋ bands of r rows."""
    return 1 - (1 - similarity**rows) ** (ORDERS // rows)


def rows_for(similarity):
    """r, the most rows a band can have for two texts of this similarity to meet with P >= 0.99.

    More rows bring fewer texts together that are unlike.  At 0.8 it is 6, with 21 bands: texts of
    similarity 0.3 meet with a probability of 0.015.
    """
    check_similarity(similarity)
    return max(r for r in range(1, ORDERS + 1) if meeting_probability(similarity, r) >= RECALL)


class NearDuplicates:
    """The texts kept so far, by their signatures, and the buckets these are in.

    A bucket is a chain: `latest` holds the last text in it, and `previous` the text before each in
    each of its b buckets; −1 ends a chain.  Texts in a bucket by chance are told by comparing.

    Memory for a text kept: 4 k = 512 bytes for its signature and 8 to 12 b for the buckets, some
    760 in all at a similarity of 0.8.  While the tables grow, the old signatures are there as well.

    Raises InputError unless similarity is in [0.5, 1].
    """

    def __init__(self, similarity):
        self.rows = rows_for(similarity)
        self.similarity, self.bands = similarity, ORDERS // self.rows
        self._size, self._signatures = 0, np.empty((0, ORDERS), np.uint32)
        self._make_room(1024)

    def seen(self, text):
        """The kept text that this nearly repeats, as (its number, their similarity), or None.

        Of several, it is the one most like it, and of equals the first.  The similarity is an
        estimate: a pair right at the limit is found half of the time, and one that is two standard
        errors above it nearly always.  A text that repeats none is kept, and gets the next number,
        from 0 on.
        """
        one = signature(text)
        buckets = self._buckets(one)
        candidates = self._chained(buckets)
        if len(candidates):
            similarity = similarities(self._signatures[candidates], one)
            best = similarity.argmax()
            if similarity[best] >= self.similarity:
                return int(candidates[best]), float(similarity[best])
        if self._size == len(self._signatures):
            self._make_room(2 * self._size)
            buckets = self._buckets(one)
        self._signatures[self._size] = one
        self._link(self._size, buckets)
        self._size += 1
        return None

    def _buckets(self, one):
        """The bucket of each band of a signature, by a hash of its rows: (k,) -> (b,)."""
        products = (one * _BUCKET_FACTORS)[: self.bands * self.rows]
        sums = products.reshape(self.bands, self.rows).sum(axis=1)
        return sums >> np.uint64(65 - len(self._signatures).bit_length())

    def _chained(self, buckets):
        """The numbers of all texts in these buckets, in order."""
        bands = np.arange(self.bands)
        texts, found = self._latest[bands, buckets], []
        while (inside := texts >= 0).any():
            bands, texts = bands[inside], texts[inside]
            found.append(texts)
            texts = self._previous[texts, bands]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int32)

    def _link(self, text, buckets):
        bands = np.arange(self.bands)
        self._previous[text] = self._latest[bands, buckets]
        self._latest[bands, buckets] = text

    def _make_room(self, texts):
        """Make room for so many texts, with as many buckets in each band; keep those there are."""
        old, self._signatures = self._signatures, np.empty((texts, ORDERS), np.uint32)
        self._signatures[: self._size] = old
        self._latest = np.full((self.bands, texts), -1, np.int32)
        self._previous = np.empty((texts, self.bands), np.int32)
        for text in range(self._size):
            self._link(text, self._buckets(self._signatures[text]))
