"""From scores to a choice: which token comes next."""

import jax
import jax.numpy as jnp

from accelerated.layers.embedding import known
from reference.inference.sampling import check_sampling


def restrict(logits, *, temperature=1.0, top_k=None):
    """Equals `reference.inference.sampling.restrict`; faster because only k scores are sorted.

    A temperature that is not known while this is compiled is the caller's to check, and not 0.
    """
    check_sampling(
        logits.shape[-1], temperature=temperature if known(temperature) else 1.0, top_k=top_k
    )
    if known(temperature) and temperature == 0:
        return restrict(logits, top_k=1)
    scaled = logits / jnp.asarray(temperature, logits.dtype)
    if top_k is None:
        return scaled
    # Of equal scores it takes the lower index first, but 0.0 before -0.0.
    _, head = jax.lax.top_k(jnp.where(logits == 0, 0, logits), top_k)
    kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), head, True, axis=-1, inplace=False)
    return jnp.where(kept, scaled, -jnp.inf)


def sample(key, logits, *, temperature=1.0, top_k=None):
    """The reference's key, two uint32.  Logits that hold NaN or +inf raise nothing here."""
    if key is None:
        return logits.argmax(axis=-1)
    return jax.random.categorical(key, restrict(logits, temperature=temperature, top_k=top_k))
