"""Computation at each position by itself."""

from reference.layers.activation import gelu_tanh
from reference.layers.linear import linear

__all__ = ["feed_forward"]


def feed_forward(params, x, *, activation=gelu_tanh):
    """Project up, apply a nonlinearity, project down: attention mixes positions, this mixes
    the features of each.

        y = activation(x W_up + b_up) W_down + b_down

    params: up (D -> F), down (F -> D), each a `linear`.  x (..., D) -> y (..., D).
    Source: Vaswani et al. 2017, eq. 2.
    Differs from the paper: GELU, as in the GPTs, where it has ReLU.

    Backward: the chain rule, from the last step to the first.
    """
    hidden, up_backward = linear(params["up"], x)
    activated, activation_backward = activation(hidden)
    y, down_backward = linear(params["down"], activated)

    def backward(dy):
        ddown, dactivated = down_backward(dy)
        dup, dx = up_backward(activation_backward(dactivated))
        return {"up": dup, "down": ddown}, dx

    return y, backward
