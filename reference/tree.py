"""Trees of arrays: dicts, lists and arrays, as parameters and their gradients come.

    {"token": {"embedding": E}, "blocks": [{…}, {…}], "norm": {"scale": s, "bias": b}}

A path names a leaf of it, as in the files of weights: "blocks.0.attention.norm.scale".
"""

from reference.errors import InputError


def map(function, tree, *others):
    """A tree of function(leaf, …), of equal leaves of one or several trees of the same structure.

    Raises InputError where a tree has other names or lengths than the first.
    """
    if isinstance(tree, dict):
        _check_same(set(tree), [set(other) for other in others])
        return {k: map(function, tree[k], *(other[k] for other in others)) for k in tree}
    if isinstance(tree, list):
        _check_same(len(tree), [len(other) for other in others])
        return [map(function, *children) for children in zip(tree, *others, strict=True)]
    return function(tree, *others)


def flatten(tree, prefix=""):
    """A tree as one dict from path to leaf, in the tree's own order."""
    if not isinstance(tree, dict | list):
        return {prefix: tree}
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat = {}
    for name, child in pairs:
        flat |= flatten(child, f"{prefix}.{name}" if prefix else str(name))
    return flat


def unflatten(flat):
    """The tree that `flatten` was given: names that are all numbers from 0 on make a list."""
    if set(flat) == {""}:
        return flat[""]
    children = {}
    for path, leaf in flat.items():
        name, _, rest = path.partition(".")
        children.setdefault(name, {})[rest] = leaf
    tree = {name: unflatten(child) for name, child in children.items()}
    numbered = bool(tree) and all(str(i) in tree for i in range(len(tree)))
    return [tree[str(i)] for i in range(len(tree))] if numbered else tree


def leaves(tree):
    """The leaves in order."""
    return list(flatten(tree).values())


def _check_same(first, others):
    for other in others:
        if other != first:
            raise InputError(f"trees differ: {first} in one is {other} in another")
