"""The same GPT in JAX alone, as one writes it by hand: to see what the modules cost.

Activations are rows (N, D) outside attention, queries go in four tiles: as in `accelerated`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from reference.training.optimizer import DECAYED


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def norm(params, x):
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered * centered).mean(axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5) * params["scale"] + params["bias"]


def attention(params, x, config, length):
    def split(a):
        return a.reshape(-1, length, config.heads, a.shape[-1] // config.heads).swapaxes(1, 2)

    q, k, v = (split(linear(params[part], x)) for part in ("query", "key", "value"))
    q, tiles = q * q.shape[-1] ** -0.5, []
    size = max(-(-length // 4), 64)
    for start in range(0, length, size):
        end = min(start + size, length)
        scores = jnp.einsum("bhtk,bhsk->bhts", q[:, :, start:end], k[:, :, :end])
        mask = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        tiles.append(jnp.einsum("bhts,bhsk->bhtk", weights, v[:, :, :end]))
    context = jnp.concatenate(tiles, axis=2)
    return linear(params["out"], context.swapaxes(1, 2).reshape(x.shape))


def loss(params, tokens, labels, config):
    """The mean cross-entropy of a batch (B, T)."""
    length, table = tokens.shape[1], params["token"]["embedding"]
    x = (table[tokens] + params["position"]["embedding"][:length]).reshape(-1, config.width)
    for block in params["blocks"]:
        outer, part = block["attention"], block["feed_forward"]
        x = x + attention(outer["sublayer"], norm(outer["norm"], x), config, length)
        hidden = linear(part["sublayer"]["up"], norm(part["norm"], x))
        x = x + linear(part["sublayer"]["down"], jax.nn.gelu(hidden, approximate=True))
    scores = jax.nn.log_softmax(norm(params["norm"], x) @ table.T)
    return -jnp.take_along_axis(scores, labels.reshape(-1, 1), axis=-1).mean()


@partial(jax.jit, static_argnames=("config", "training"), donate_argnums=0)
def train_step(state, tokens, labels, rate, *, config, training):
    """One step with clipping and AdamW, as `reference.training.loop.train_step`.

    state: its step and three trees;  rate: of learning, for this step -> the next state, the loss.
    """
    count, *trees = state
    value, gradients = jax.value_and_grad(loss)(trees[0], tokens, labels, config)
    length = jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(gradients)))
    shorter = jnp.minimum(1, training.clip / length)
    step, b1, b2 = count + 1, training.beta1, training.beta2

    def update(path, p, m, s, g):
        m = b1 * m + (1 - b1) * shorter * g
        s = b2 * s + (1 - b2) * (shorter * g) ** 2
        direction = m / (1 - b1**step) / (jnp.sqrt(s / (1 - b2**step)) + training.epsilon)
        decay = training.weight_decay * (path[-1].key in DECAYED)
        return p - rate * (direction + decay * p), m, s

    new = jax.tree_util.tree_map_with_path(update, *trees, gradients)
    parts = [jax.tree.map(lambda _, leaf, i=i: leaf[i], trees[0], new) for i in range(3)]
    return (step, *parts), value
