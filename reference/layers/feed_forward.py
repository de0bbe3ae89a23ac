"""Computation at each position by itself."""

from reference.layers.activation import gelu, gelu_tanh, relu, silu
from reference.layers.linear import linear

__all__ = ["feed_forward", "gated_feed_forward", "reglu", "geglu", "swiglu"]


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


def gated_feed_forward(params, x, *, activation):
    """Project up twice, one projection opening and closing the other, and project down: features
    are multiplied with each other, where `feed_forward` only adds them.

        y = (activation(x W_gate + b_gate) ∘ (x W_up + b_up)) W_down + b_down

    params: gate and up (D -> F), down (F -> D), each a `linear`.  x (..., D) -> y (..., D).  With
    two thirds of the hidden width it has as many weights as `feed_forward`.
    T5 v1.1 has it without biases and with `gelu_tanh`.
    Source: Shazeer 2020, eq. 6; Dauphin et al. 2017, the gate with a sigmoid.
    Differs from the paper: biases where params has them.

    Backward: each factor of h = a ∘ u is differentiated by the other,
        da = dh ∘ u,   du = dh ∘ a;   x was read twice, so its gradient is a sum.
    """
    gate, gate_backward = linear(params["gate"], x)
    activated, activation_backward = activation(gate)
    up, up_backward = linear(params["up"], x)
    y, down_backward = linear(params["down"], activated * up)

    def backward(dy):
        ddown, dhidden = down_backward(dy)
        dup, dx_up = up_backward(dhidden * activated)
        dgate, dx_gate = gate_backward(activation_backward(dhidden * up))
        return {"gate": dgate, "up": dup, "down": ddown}, dx_up + dx_gate

    return y, backward


def reglu(params, x):
    """The gated layer whose gate is a ReLU: a feature that is shut gets no gradient either.

        y = (relu(x W_gate) ∘ x W_up) W_down

    params and shapes as in `gated_feed_forward`: x (..., D) -> y (..., D).
    Source: Shazeer 2020, eq. 6.

    Backward: that of `gated_feed_forward`.
    """
    return gated_feed_forward(params, x, activation=relu)


def geglu(params, x):
    """The gated layer whose gate is a GELU, by the error function.

        y = (gelu(x W_gate) ∘ x W_up) W_down

    params and shapes as in `gated_feed_forward`: x (..., D) -> y (..., D).  T5 v1.1 and Gemma have
    the tanh form: `gated_feed_forward` with `gelu_tanh`.
    Source: Shazeer 2020, eq. 6.

    Backward: that of `gated_feed_forward`.
    """
    return gated_feed_forward(params, x, activation=gelu)


def swiglu(params, x):
    """The gated layer whose gate is a SiLU, also called swish.

        y = (silu(x W_gate) ∘ x W_up) W_down

    params and shapes as in `gated_feed_forward`: x (..., D) -> y (..., D).  Used by Llama.
    Source: Shazeer 2020, eq. 6.

    Backward: that of `gated_feed_forward`.
    """
    return gated_feed_forward(params, x, activation=silu)
