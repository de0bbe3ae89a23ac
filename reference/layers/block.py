"""Sub-layers wired together by residual connections."""

from reference import random
from reference.layers.attention import multi_head_attention
from reference.layers.dropout import dropout
from reference.layers.feed_forward import feed_forward
from reference.layers.normalization import layer_norm

__all__ = ["pre_norm_block"]


def pre_norm_block(params, x, *, heads, mask=None, rate=0.0, key=None):
    """Attend, add; compute, add: each sub-layer reads a normalized copy of the residual stream.

        h = x + dropout(attention(norm(x))),   y = h + dropout(feed_forward(norm(h)))

    params: attention_norm, attention, feed_forward_norm, feed_forward.  x (B, T, D) -> y (B, T, D).
    Dropout's keys, in the order of `split`: attention weights, attention, feed-forward.
    Raises InputError unless the heads divide the width.
    Source: Radford et al. 2019, sec. 2.3.
    Differs from Vaswani et al. 2017, who normalize after the addition.

    Backward: where the stream forks, gradients add:  dh = dy + (through the feed-forward),
        dx = dh + (through attention).
    """
    keys = (None, None, None) if key is None else random.split(key, 3)
    attention_input, attention_norm_backward = layer_norm(params["attention_norm"], x)
    attention_output, attention_backward = multi_head_attention(
        params["attention"], attention_input, heads=heads, mask=mask, rate=rate, key=keys[0]
    )
    attention_kept, attention_dropout_backward = dropout(attention_output, rate=rate, key=keys[1])
    h = x + attention_kept

    feed_forward_input, feed_forward_norm_backward = layer_norm(params["feed_forward_norm"], h)
    feed_forward_output, feed_forward_backward = feed_forward(
        params["feed_forward"], feed_forward_input
    )
    feed_forward_kept, feed_forward_dropout_backward = dropout(
        feed_forward_output, rate=rate, key=keys[2]
    )
    y = h + feed_forward_kept

    def backward(dy):
        dfeed_forward, dinput = feed_forward_backward(feed_forward_dropout_backward(dy))
        dfeed_forward_norm, dh_inside = feed_forward_norm_backward(dinput)
        dh = dy + dh_inside
        dattention, dinput = attention_backward(attention_dropout_backward(dh))
        dattention_norm, dx_inside = attention_norm_backward(dinput)
        dparams = {
            "attention_norm": dattention_norm,
            "attention": dattention,
            "feed_forward_norm": dfeed_forward_norm,
            "feed_forward": dfeed_forward,
        }
        return dparams, dh + dx_inside

    return y, backward
