"""From scores to a choice: which token comes next."""

import jax
import jax.numpy as jnp

from accelerated.layers.embedding import known
from reference.inference.sampling import check_sampling


def restrict(logits, *, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Equals `reference.inference.sampling.restrict`; faster because only k scores are sorted,
    where top_k is all that is asked for.

    A temperature that is not known while this is compiled is the caller's to check, and not 0.
    """
    check_sampling(
        logits.shape[-1],
        temperature=temperature if known(temperature) else 1.0,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )
    if known(temperature) and temperature == 0:
        return restrict(logits, top_k=1)
    scaled = logits / jnp.asarray(temperature, logits.dtype)
    positive = jnp.where(logits == 0, 0, logits)  # 0.0 and -0.0 are one number
    if top_k is not None:
        # Of equal scores it takes the lower index first.
        _, head = jax.lax.top_k(positive, top_k)
        kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), head, True, -1, inplace=False)
        scaled = jnp.where(kept, scaled, -jnp.inf)
    if top_p is not None:
        order = jnp.argsort(-positive, axis=-1, stable=True)
        falling = probabilities(jnp.take_along_axis(scaled, order, axis=-1))
        before = jnp.cumsum(falling, axis=-1) - falling
        tail = jnp.take_along_axis(before >= top_p, jnp.argsort(order, axis=-1), axis=-1)
        scaled = jnp.where(tail, -jnp.inf, scaled)
    if min_p is not None:
        shares = probabilities(scaled)
        low = shares < min_p * shares.max(axis=-1, keepdims=True)
        scaled = jnp.where(low, -jnp.inf, scaled)
    return scaled


def probabilities(logits):
    """In float32 or wider."""
    return jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)


def penalize(logits, seen, *, repetition_penalty):
    """seen (..., V): which tokens are in the text, for the reference's text itself."""
    penalty = jnp.asarray(repetition_penalty, logits.dtype)
    changed = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, changed, logits)


def sample(key, logits, **options):
    """The reference's key, two uint32.  Logits that hold NaN or +inf raise nothing here."""
    if key is None:
        return logits.argmax(axis=-1)
    return jax.random.categorical(key, restrict(logits, **options))
