"""LoRA: kernels that are not trained, plus products of two thin matrices that are.

`initial_adapters` and `lora_unmerge` are the reference's: they take JAX's arrays too.
"""

from flax import nnx

from accelerated.layers.linear import rows
from reference import tree
from reference.layers.lora import check_adapter, check_adapters, check_rank

__all__ = ["LoRA", "lora_merge"]


class LoRA(nnx.LoRA):
    """Flax's own has neither α nor, here, the frozen `linear`: it is an argument, no parameter.

    A starts as in `reference.layers.lora.initial_adapters`, not as Flax's he_uniform.
    """

    def __init__(self, in_features, out_features, *, rank, alpha, rngs):
        check_rank(rank, (in_features, out_features), name="the kernel")
        normal = nnx.initializers.normal(1 / rank)
        super().__init__(in_features, rank, out_features, a_initializer=normal, rngs=rngs)
        self.scale = alpha / rank

    def __call__(self, x, *, frozen):
        kernel = frozen["kernel"]
        check_adapter(self.lora_a.shape, self.lora_b.shape, kernel.shape, name="the kernel")
        y = rows(x) @ kernel + self.scale * super().__call__(rows(x))
        if "bias" in frozen:
            y = y + frozen["bias"]
        return y.reshape(*x.shape[:-1], -1)


def lora_merge(params, *, frozen, alpha):
    flat = tree.flatten(frozen)
    check_adapters(params, flat)
    merged = {}
    for path, adapter in params.items():
        a, b = adapter["lora_a"], adapter["lora_b"]
        merged[path] = flat[path] + (alpha / a.shape[1]) * (a @ b)
    return tree.unflatten(flat | merged)
