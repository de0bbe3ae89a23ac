"""The components of `reference/` in Flax, compiled by XLA for CPU, GPU and TPU."""

from flax import nnx


def functional(module, method=None):
    """Split a module into a pure function of its parameters, and those parameters.

    The parameters are the reference's own tree: dicts, lists and arrays, by the same names.
    `method` is what to call, a function whose first argument is the module (`Embed.unembed`,
    `GPT.loss`); without one, the module itself.  The module may be abstract, as `nnx.eval_shape`
    makes it, where the parameters come from elsewhere.
    Under `jax.jit` a call costs a twentieth of `nnx.jit`, which walks the module every time.
    """
    graphdef, state = nnx.split(module)
    call = type(module).__call__ if method is None else method

    def apply(params, *args, **kwargs):
        return call(nnx.merge(graphdef, _without_lists(params)), *args, **kwargs)

    return apply, _with_lists(nnx.to_pure_dict(state))


def _with_lists(tree):
    """Flax gives an nnx.List as a dict with keys 0, 1, …; ours is a list."""
    if not isinstance(tree, dict):
        return tree
    if tree and all(isinstance(name, int) for name in tree):
        return [_with_lists(tree[i]) for i in range(len(tree))]
    return {name: _with_lists(child) for name, child in tree.items()}


def _without_lists(tree):
    if isinstance(tree, list):
        return {i: _without_lists(child) for i, child in enumerate(tree)}
    if isinstance(tree, dict):
        return {name: _without_lists(child) for name, child in tree.items()}
    return tree
