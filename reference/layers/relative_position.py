"""How far apart two tokens stand, not where each stands: a text that is moved reads the same.

`alibi` and `t5_bias` make a bias that any attention adds to its scores; in `shaw_attention` and
`transformer_xl_attention` what a distance means depends on the query too.
"""

from functools import lru_cache

import numpy as np

from reference.errors import InputError
from reference.layers.attention import attention, merge, split, sum_to, visible
from reference.layers.dropout import dropout
from reference.layers.embedding import embed
from reference.layers.linear import linear, rows
from reference.layers.mask import moved
from reference.layers.position import check_waves, waves
from reference.layers.softmax import softmax

__all__ = ["alibi", "t5_bias", "shaw_attention", "transformer_xl_attention"]


def alibi(slopes, *, queries, keys, offset=0):
    """Lower a score in proportion to the distance: what is near is preferred, by each head to its
    own degree, and a text longer than those trained on holds nothing new.

        bias[h, t, s] = -slopeₕ |offset + t - s|

    For scores (..., H, T, S): slopes (H,) -> bias (H, T, S), with T `queries` and S `keys`; the
    first query stands at `offset`, which is not 0 where a cache holds those before it.  The paper's
    slopes are those of `alibi_slopes`.  Used by BLOOM and MPT.
    Source: Press et al. 2022, "Train short, test long", sec. 3.
    Differs from the paper, which masks the future: here it has a bias by its distance too, as the
    authors advise for encoders.  Their slopes are fixed; trained ones did not extrapolate well.
    BLOOM adds slope·s, which for the past is this and slope·t, and softmax ignores what all keys
    have in common.

    Backward: the bias is a product,  dslopeₕ = -Σ over t and s of |offset + t - s| dbias[h, t, s].
    """
    distance = abs(distances(queries, keys, offset)).astype(slopes.dtype)
    bias = -slopes[:, None, None] * distance
    return bias, lambda dbias: -(dbias.reshape(len(slopes), -1) @ distance.ravel())


def t5_bias(params, *, queries, keys, bidirectional=True, max_distance=128, offset=0):
    """Learn how much each head prefers a distance: exactly for near ones, in ever wider buckets for
    far ones, of which one more hardly matters.

        bias[h, t, s] = E[bucket(s - t - offset), h]

    params: embedding E (buckets, H).  For scores (..., H, T, S) -> bias (H, T, S); queries, keys
    and offset as in `alibi`.  bucket: see `relative_buckets`; bidirectional: the future has buckets
    of its own, as in encoders.  T5 has 32 buckets, the same bias in all layers of a stack, and no
    1/√K in its scores.
    Raises InputError for buckets that cannot be laid out so.
    Source: Raffel et al. 2020, sec. 2.1; the buckets are those of their code.
    Differs from their code in no published layout, but in a few others, where its logarithms in
    float32 round a distance into the next bucket.

    Backward: that of `embed`: a row gets the sum over all pairs at a distance of its bucket.
    """
    check_buckets(len(params["embedding"]), bidirectional, max_distance)
    ids = relative_buckets(
        distances(queries, keys, offset),
        buckets=len(params["embedding"]),
        bidirectional=bidirectional,
        max_distance=max_distance,
    )
    looked_up, embed_backward = embed(params, ids=ids)
    bias = np.moveaxis(looked_up, -1, 0)
    return bias, lambda dbias: embed_backward(np.moveaxis(dbias, 0, -1))


def shaw_attention(params, q, k, v, *, offset=0, mask=None, rate=0.0, key=None):
    """Add to each key, and to each value, a learned vector for its distance from the query.

        e[t, s] = qₜ·(kₛ + a[r]) / √K,   r = clip(s - t - offset, -c, c)
        A = dropout(softmax(e)),   yₜ = Σₛ A[t, s] (vₛ + b[r])

    params: key, embedding a (2c + 1, K), and value, embedding b (2c + 1, K), for all heads; row
    r + c is that of r.  q (..., T, K), k and v (..., S, K) -> y (..., T, K).  offset as in `alibi`.
    mask, rate, key: as in `attention`, but a mask that is a function is asked for offset + t.
    No array (T, S, K) is made: e = (q kᵀ + spread(q aᵀ)) / √K,   y = A v + gather(A) b,
    where spread hands out a number for each distance, and gather sums by distance.
    Raises InputError unless both tables have the same odd number of rows.
    Source: Shaw et al. 2018, eq. 3 to 5; their k is c here.

    Backward: spread and gather are each other's transposes, and the products as in `attention`:
        dA = dy vᵀ + spread(dy bᵀ),   db = gather(A)ᵀ dy,   da = gather(de)ᵀ q / √K,
        dq = (de k + gather(de) a) / √K.
    """
    key_table, value_table = params["key"]["embedding"], params["value"]["embedding"]
    check_tables(len(key_table), len(value_table))
    scaled = q * q.shape[-1] ** -0.5
    cells = distance_cells(q.shape[-2], k.shape[-2], offset, len(key_table))
    scores = scaled @ k.mT
    scores += spread(scaled @ key_table.T, cells)
    if mask is not None:
        np.copyto(scores, -np.inf, where=~visible(moved(mask, offset), scores.shape))
    weights, softmax_backward = softmax(scores)
    kept, dropout_backward = dropout(weights, rate=rate, key=key)
    shares = gather(kept, cells, len(value_table))
    y = kept @ v + shares @ value_table

    def backward(dy):
        dkept = dy @ v.mT + spread(dy @ value_table.T, cells)
        dscores = softmax_backward(dropout_backward(dkept))
        dproducts = gather(dscores, cells, len(key_table))
        dq = q.shape[-1] ** -0.5 * (dscores @ k + dproducts @ key_table)
        dparams = {
            "key": {"embedding": rows(dproducts).T @ rows(scaled)},
            "value": {"embedding": rows(shares).T @ rows(dy)},
        }
        return dparams, dq, dscores.mT @ scaled, kept.mT @ dy

    return y, backward


def transformer_xl_attention(params, q, k, v, *, mask=None, rate=0.0, key=None):
    """Attend by content and by distance, each with a bias that all queries share.  Earlier segments
    can stay among the keys, as a memory: no position counts from where a segment starts.

        e[t, s] = ((qₜ + content_bias)·kₛ + (qₜ + position_bias)·W R(d)) / √K,   d = S - T + t - s
        R(d) = [sin(d θ₀) sin(d θ₁) … | cos(d θ₀) cos(d θ₁) …],   θᵢ = 10000^(-2i/D)
        y = dropout(softmax(e)) v

    params: position, a `linear` without bias, kernel W (D, H K); content_bias (the paper's u) and
    position_bias (its v), each (H, K).  q (..., H, T, K), k and v (..., H, S, K) -> y like q.
    The queries stand at the last T of the S positions; the S - T keys before are the memory.
    mask, rate, key: as in `attention`, but a mask that is a function is asked for S - T + t.
    Raises InputError for fewer keys than queries, an odd D, or where heads and widths do not fit.
    Source: Dai et al. 2019, "Transformer-XL", sec. 3.3; the shift: app. B.
    Differs from the paper: 1/√K, and sines before cosines, as in the released code; without a mask
    d goes on to 1 - T, as in XLNet.

    Backward: the second term is a bias of `attention`, made by a product and `shift`; dbias goes
    back through `unshift`, and then to each factor as the other says.  q is read twice: a sum.
    """
    heads, queries, width = q.shape[-3:]
    keys, scale = k.shape[-2], q.shape[-1] ** -0.5
    kernel = params["position"]["kernel"]
    content_bias, position_bias = params["content_bias"], params["position_bias"]
    check_memory(q.shape, k.shape, kernel.shape, content_bias.shape, position_bias.shape)
    table = distance_waves(queries, keys, len(kernel), q.dtype)
    projected, position_backward = linear(params["position"], table)
    by_distance = split(projected, heads)  # (H, T + S, K)
    content_q, position_q = q + content_bias[:, None], q + position_bias[:, None]
    bias = shift((scale * position_q) @ by_distance.mT)
    options = {"mask": moved(mask, keys - queries), "rate": rate, "key": key}
    y, attention_backward = attention(content_q, k, v, bias, **options)

    def backward(dy):
        dcontent_q, dk, dv, dbias, _ = attention_backward(dy)
        dproducts = scale * unshift(dbias)
        dposition_q = dproducts @ by_distance
        dby_distance = sum_to(by_distance.shape, dproducts.mT @ position_q)
        dparams = {
            "position": position_backward(merge(dby_distance))[0],
            "content_bias": sum_to((heads, 1, width), dcontent_q)[:, 0],
            "position_bias": sum_to((heads, 1, width), dposition_q)[:, 0],
        }
        return dparams, dcontent_q + dposition_q, dk, dv

    return y, backward


def alibi_slopes(heads):
    """The published slopes (H,): 2^(-8/H), 2^(-16/H) … 2⁻⁸.

    Where H is no power of 2, the released code's: those of the next lower power, then every second
    one of twice as many, which lie between them.
    Source: Press et al. 2022, sec. 3.
    """
    if heads < 1:
        raise InputError(f"heads is {heads}; give at least 1")
    power = 2 ** (heads.bit_length() - 1)
    published = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power, 2) / power)
    return np.concatenate([published, between[: heads - power]])


def distances(queries, keys, offset):
    """s - t - offset, for all pairs (T, S)."""
    return np.arange(keys) - np.arange(queries)[:, None] - offset


def relative_buckets(distance, *, buckets, bidirectional, max_distance):
    """T5's bucket of each distance s - t, in NumPy's arrays or in JAX's.

        bucket(d) = d                                              d < e = n/2
                    min(e + ⌊(n - e) log(d/e) / log(max/e)⌋, n - 1)   else

    With both directions n is half of the buckets, d = |s - t|, and the future has the second half;
    with one, n is all, d = t - s, and the future has that of 0.
    """
    count = buckets // 2 if bidirectional else buckets
    size = abs(distance) if bidirectional else (-distance).clip(0)
    bucket = sum(size >= first for first in first_distances(count, max_distance))
    return bucket + count * (distance > 0) if bidirectional else bucket


@lru_cache(maxsize=16)
def first_distances(count, max_distance):
    """The first distance of each bucket but that of 0: e + k begins where (d/e)ⁿ⁻ᵉ >= (max/e)ᵏ.

    In integers: no logarithm's rounding decides where a bucket begins.
    """
    exact, wider = count // 2, count - count // 2
    limits = (exact ** (wider - k) * max_distance**k for k in range(wider))
    far = range(exact, max_distance + 1)
    return (*range(1, exact), *(next(d for d in far if d**wider >= a) for a in limits))


def distance_cells(queries, keys, offset, count):
    """Where each pair (T, S) finds its clipped distance in an array (T, 2c + 1), flattened."""
    furthest = count // 2
    clipped = distances(queries, keys, offset).clip(-furthest, furthest) + furthest
    return clipped + count * np.arange(queries)[:, None]


def spread(a, cells):
    """(..., T, 2c + 1) -> (..., T, S): to each pair what its query has for its distance."""
    return np.take(a.reshape(*a.shape[:-2], -1), cells, axis=-1)


def gather(a, cells, count):
    """The transpose of `spread`, (..., T, S) -> (..., T, 2c + 1): a sum for each distance."""
    # Along a row the distance grows, so what is to be added lies together.
    used, first = np.unique(cells, return_index=True)
    sums = np.zeros((*a.shape[:-2], a.shape[-2] * count), a.dtype)
    sums[..., used] = np.add.reduceat(a.reshape(*a.shape[:-2], -1), first, axis=-1)
    return sums.reshape(*a.shape[:-1], count)


def distance_waves(queries, keys, width, dtype):
    """R (T + S, D) of the distances S, S - 1 … 1 - T: those that occur, after one for `shift`."""
    check_waves(width, "paper")
    return waves(1 - queries, queries + keys, width, "paper", False, dtype)[::-1]


def shift(a):
    """(..., T, T + S) -> (..., T, S), y[t, s] = a[t, T - t + s]: from columns by distance to keys.

    Without its first T numbers and in rows of T + S - 1, a has each row one further to the left
    than the row before.  For NumPy's arrays and JAX's.
    """
    queries, columns = a.shape[-2:]
    numbers = a.reshape(*a.shape[:-2], queries * columns)[..., queries:]
    return numbers.reshape(*a.shape[:-1], columns - 1)[..., : columns - queries]


def unshift(da):
    """The backward of `shift`: zeros for what it left out."""
    *leading, queries, keys = da.shape
    numbers = np.zeros((*leading, queries * (queries + keys)), da.dtype)
    numbers[..., queries:].reshape(*leading, queries, -1)[..., :keys] = da  # that is a view
    return numbers.reshape(*leading, queries, -1)


def check_buckets(buckets, bidirectional, max_distance):
    """Raise InputError unless each direction has two buckets or more, and distances for them."""
    directions = 1 + bidirectional
    exact = buckets // directions // 2
    if exact < 1 or buckets % directions or max_distance <= exact:
        raise InputError(
            f"{buckets} buckets are to hold distances up to {max_distance}; give {2 * directions} "
            f"or more, a multiple of {directions}, and a max_distance above {exact}"
        )


def check_tables(key_rows, value_rows):
    """Raise InputError unless both tables have a row for each distance from -c to c."""
    if key_rows != value_rows or key_rows % 2 == 0:
        raise InputError(f"the tables have {key_rows} and {value_rows} rows; give each 2c + 1")


def check_memory(q, k, kernel, *biases):
    """Raise InputError unless the queries' positions can be among the keys', and kernel and biases
    are for those heads; all are shapes.
    """
    (heads, queries, width), keys = q[-3:], k[-2]
    if keys < queries:
        raise InputError(
            f"there are {queries} queries and {keys} keys; give the memory's, then the queries' own"
        )
    if kernel[1] != heads * width or any(tuple(bias) != (heads, width) for bias in biases):
        raise InputError(
            f"q has {heads} heads of {width}, the position kernel is {kernel}, the biases are "
            f"{biases}; give (D, {heads * width}) and {(heads, width)}"
        )
