"""Who may look at whom: predicates over positions, to be asked for any pair of them.

A mask is a function of t, the position that looks, and s, the position looked at.  It is asked with
two arrays of integers, (T, 1) and (1, S), and answers with booleans (..., T, S), for the whole
sequence or for a tile of it.  It works on NumPy's and on JAX's arrays alike, so both engines use
these.
"""

__all__ = []


def causal(t, s):
    """The mask of a language model: position t may look at s if that is not in its future.

    Source: Vaswani et al. 2017, sec. 3.2.3.
    """
    return s <= t
