"""A layer of a Transformer: positions exchange what they know, then each one thinks.

The parts are chosen where a block is used: which attention, which feed-forward, how they are wired
to the stream (`residual.py`), which norm.  GPT-2's block is the default of each:

    transformer_block(params, x, attention=partial(multi_head_attention, heads=12, mask=causal))
"""

from functools import partial

from reference import random
from reference.layers.dropout import dropout
from reference.layers.feed_forward import feed_forward as plain_feed_forward
from reference.layers.normalization import layer_norm
from reference.layers.residual import pre_norm

__all__ = ["decoder_block", "parallel_block", "transformer_block"]


def transformer_block(
    params,
    x,
    *others,
    attention,
    feed_forward=plain_feed_forward,
    wiring=pre_norm,
    rate=0.0,
    key=None,
):
    """Attention, then the feed-forward, each wired to the stream: encoders and GPTs are this alone.

        h = wiring(attention)(x),   y = wiring(feed_forward)(h)

    params: attention and feed_forward, each of that wiring.  x (B, T, D) -> y (B, T, D); others:
    what the attention also reads, such as a bias on its scores.  wiring: of `residual.py`, with its
    norm, if another than `layer_norm`, bound.
    rate and key: dropout; keys in the order of `split`: attention weights, attention, feed-forward.
    Source: Vaswani et al. 2017, sec. 3.1.

    Backward: that of each in turn, from the last to the first.
    """
    keys = (None, None, None) if key is None else random.split(key, 3)
    attend = partial(attention, rate=rate, key=keys[0])
    h, attention_backward = wiring(
        params["attention"], x, *others, sublayer=attend, rate=rate, key=keys[1]
    )
    y, feed_forward_backward = wiring(
        params["feed_forward"], h, sublayer=feed_forward, rate=rate, key=keys[2]
    )

    def backward(dy):
        dfeed_forward, dh = feed_forward_backward(dy)
        dattention, dx, *dothers = attention_backward(dh)
        return {"attention": dattention, "feed_forward": dfeed_forward}, dx, *dothers

    return y, backward


def decoder_block(
    params,
    x,
    memory,
    *others,
    attention,
    cross_attention,
    feed_forward=plain_feed_forward,
    wiring=pre_norm,
    rate=0.0,
    key=None,
):
    """A block that also reads another sequence, what an encoder made of the source.

        h = wiring(attention)(x),   c = wiring(cross_attention)(h, memory)
        y = wiring(feed_forward)(c)

    params: attention, cross_attention, feed_forward, each of that wiring.  x (B, T, D), memory
    (B, S, D) -> y (B, T, D); others and wiring as in `transformer_block`.  Dropout's keys, in the
    order of `split`: the weights of attention and attention, of cross-attention and
    cross-attention, feed-forward.
    Source: Vaswani et al. 2017, sec. 3.1, "Decoder".

    Backward: that of each in turn, from the last to the first.
    """
    keys = (None,) * 5 if key is None else random.split(key, 5)  # of None, more would do no harm
    attend = partial(attention, rate=rate, key=keys[0])
    cross_attend = partial(cross_attention, rate=rate, key=keys[2])
    h, attention_backward = wiring(
        params["attention"], x, *others, sublayer=attend, rate=rate, key=keys[1]
    )
    c, cross_attention_backward = wiring(
        params["cross_attention"], h, memory, sublayer=cross_attend, rate=rate, key=keys[3]
    )
    y, feed_forward_backward = wiring(
        params["feed_forward"], c, sublayer=feed_forward, rate=rate, key=keys[4]
    )

    def backward(dy):
        dfeed_forward, dc = feed_forward_backward(dy)
        dcross_attention, dh, dmemory, *_ = cross_attention_backward(dc)
        dattention, dx, *dothers = attention_backward(dh)
        dparams = {"attention": dattention, "cross_attention": dcross_attention}
        return dparams | {"feed_forward": dfeed_forward}, dx, dmemory, *dothers

    return y, backward


def parallel_block(
    params,
    x,
    *others,
    attention,
    feed_forward=plain_feed_forward,
    norm=layer_norm,
    drop=dropout,
    rate=0.0,
    key=None,
):
    """Attention and feed-forward side by side, from one norm: their products can run as one.

        n = norm(x),   y = x + drop(attention(n)) + drop(feed_forward(n))

    params: norm, attention, feed_forward.  x (B, T, D) -> y (B, T, D); others and the keys of
    dropout as in `transformer_block`.  Used by GPT-J and PaLM.
    Source: Wang & Komatsuzaki 2021, "GPT-J-6B";  Chowdhery et al. 2022, "PaLM", sec. 2.

    Backward: n is read twice, so its gradient is a sum; and the stream adds its own.
    """
    keys = (None, None, None) if key is None else random.split(key, 3)
    n, norm_backward = norm(params["norm"], x)
    read, attention_backward = attention(params["attention"], n, *others, rate=rate, key=keys[0])
    thought, feed_forward_backward = feed_forward(params["feed_forward"], n)
    read_kept, read_drop_backward = drop(read, rate=rate, key=keys[1])
    thought_kept, thought_drop_backward = drop(thought, rate=rate, key=keys[2])

    def backward(dy):
        dattention, dn_read, *dothers = attention_backward(read_drop_backward(dy))
        dfeed_forward, dn_thought = feed_forward_backward(thought_drop_backward(dy))
        dnorm, dx = norm_backward(dn_read + dn_thought)
        dparams = {"norm": dnorm, "attention": dattention, "feed_forward": dfeed_forward}
        return dparams, dy + dx, *dothers

    return x + read_kept + thought_kept, backward
