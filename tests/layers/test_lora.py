import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.lora as twins
from accelerated import functional
from accelerated.models.gpt import GPT
from reference import random, tree
from reference.errors import InputError
from reference.layers.linear import linear
from reference.layers.lora import initial_adapters, lora, lora_merge, lora_unmerge
from reference.models.gpt import GPTConfig, gpt_loss, initial_params
from tests.mirror import assert_gradient, assert_mirror, cast, random_like
from tests.peers import peer

ALPHA = 5.0  # not 3, the rank: α/r would be 1, and not be missed
seeds = st.integers(0, 2**32)


def adapter(rng, inputs=7, outputs=5, rank=3):
    return {
        "lora_a": rng.standard_normal((inputs, rank)) / inputs**0.5,
        "lora_b": rng.standard_normal((rank, outputs)),
    }


def base(rng, inputs=7, outputs=5):
    """A linear map whose numbers bfloat16 can hold, so that each precision has the same."""
    kernel = rng.standard_normal((inputs, outputs)) / inputs**0.5
    exact = {"kernel": kernel, "bias": rng.standard_normal(outputs)}
    return cast(cast(exact, jnp.bfloat16), np.float64)


def frozen_like(a, frozen):
    """Frozen parameters in the precision of what is computed with them."""
    return jax.tree.map(lambda leaf: leaf.astype(a.dtype), frozen)


@pytest.mark.parametrize("bias, leading", [(True, (2, 11)), (False, ())])
def test_lora_equals_its_twin(bias, leading):
    rng = np.random.default_rng(0)
    frozen = base(rng) if bias else {"kernel": base(rng)["kernel"]}
    apply, made = functional(twins.LoRA(7, 5, rank=3, alpha=ALPHA, rngs=nnx.Rngs(0)))

    def ours(params, x):
        return lora(params, x, frozen=frozen_like(x, frozen), alpha=ALPHA)

    def theirs(params, x):
        return apply(params, x, frozen=frozen_like(x, frozen))

    params, x = adapter(rng), rng.standard_normal((*leading, 7))
    tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), made, params)
    assert_gradient(ours, params, x, rng=rng)
    assert_mirror(ours, theirs, params, x, rng=rng)


def test_lora_merge_equals_its_twin():
    """Two adapters of different rank, and leaves without one."""
    rng = np.random.default_rng(1)
    frozen = {"blocks": [{"up": base(rng)}, {"up": base(rng)}], "norm": base(rng)}
    params = {
        "blocks.1.up.kernel": adapter(rng),
        "norm.kernel": adapter(rng, rank=2),
    }

    def ours(params):
        of = params["norm.kernel"]["lora_a"]
        return lora_merge(params, frozen=frozen_like(of, frozen), alpha=ALPHA)

    def theirs(params):
        of = params["norm.kernel"]["lora_a"]
        return twins.lora_merge(params, frozen=frozen_like(of, frozen), alpha=ALPHA)

    assert_gradient(ours, params, rng=rng)
    assert_mirror(ours, theirs, params, rng=rng)


def test_lora_equals_peft_s_merged_and_not():
    torch, peft = peer("torch"), peer("peft")
    rng = np.random.default_rng(2)
    params, frozen, x = adapter(rng), base(rng), rng.standard_normal((2, 11, 7))

    module = torch.nn.ModuleDict({"query": torch.nn.Linear(7, 5).double()})
    module.forward = lambda x: module["query"](x)
    config = peft.LoraConfig(r=3, lora_alpha=ALPHA, target_modules=["query"], lora_dropout=0.0)
    adapted = peft.get_peft_model(module, config)
    layer = adapted.base_model.model["query"]
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.tensor(frozen["kernel"].T))
        layer.base_layer.bias.copy_(torch.tensor(frozen["bias"]))
    layer.lora_A["default"].weight = torch.nn.Parameter(torch.tensor(params["lora_a"].T))
    layer.lora_B["default"].weight = torch.nn.Parameter(torch.tensor(params["lora_b"].T))

    there = torch.tensor(x, requires_grad=True)
    expected = layer(there)
    y, backward = lora(params, x, frozen=frozen, alpha=ALPHA)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=1e-13)
    dy = rng.standard_normal(y.shape)
    expected.backward(torch.tensor(dy))
    dparams, dx = backward(dy)
    assert layer.base_layer.weight.grad is None
    for ours, theirs in (
        (dparams["lora_a"], layer.lora_A["default"].weight.grad.T),
        (dparams["lora_b"], layer.lora_B["default"].weight.grad.T),
        (dx, there.grad),
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-11, atol=1e-12)

    merged, _ = lora_merge({"query.kernel": params}, frozen={"query": frozen}, alpha=ALPHA)
    weight = adapted.merge_and_unload()["query"].weight.detach().numpy()
    np.testing.assert_allclose(merged["query"]["kernel"], weight.T, rtol=1e-12, atol=1e-13)


@given(seeds)
def test_an_adapter_with_b_of_zero_changes_nothing(seed):
    """Turns red if α/r multiplies W too."""
    rng = np.random.default_rng(seed)
    params, frozen, x = adapter(rng), base(rng), rng.standard_normal((2, 7))
    params["lora_b"] = np.zeros((3, 5))
    y, _ = lora(params, x, frozen=frozen, alpha=ALPHA)
    np.testing.assert_array_equal(y, linear(frozen, x)[0])
    merged, _ = lora_merge({"kernel": params}, frozen=frozen, alpha=ALPHA)
    tree.map(np.testing.assert_array_equal, merged, frozen)


@given(seeds)
def test_a_merged_linear_map_is_the_adapted_one(seed):
    """In value and gradient.  Turns red if either leaves out α/r, forward or backward."""
    rng = np.random.default_rng(seed)
    params, frozen, x = adapter(rng), base(rng), rng.standard_normal((2, 11, 7))
    merged, merge_backward = lora_merge({"kernel": params}, frozen=frozen, alpha=ALPHA)
    y, backward = lora(params, x, frozen=frozen, alpha=ALPHA)
    merged_y, merged_backward = linear(merged, x)
    np.testing.assert_allclose(merged_y, y, rtol=1e-12, atol=1e-12)
    dy = rng.standard_normal(y.shape)
    (dparams, dx), (dmerged, merged_dx) = backward(dy), merged_backward(dy)
    np.testing.assert_allclose(merged_dx, dx, rtol=1e-11, atol=1e-12)
    for name, gradient in merge_backward(dmerged)["kernel"].items():
        np.testing.assert_allclose(gradient, dparams[name], rtol=1e-11, atol=1e-11)


@given(seeds)
def test_unmerging_gives_the_base_back(seed):
    """Turns red if it forgets α/r, or adds once more."""
    rng = np.random.default_rng(seed)
    frozen = {"blocks": [{"up": base(rng)}, {"up": base(rng)}]}
    params = {"blocks.0.up.kernel": adapter(rng)}
    merged, _ = lora_merge(params, frozen=frozen, alpha=ALPHA)
    assert (merged["blocks"][0]["up"]["kernel"] != frozen["blocks"][0]["up"]["kernel"]).all()
    for tree_of_arrays in (merged, jax.tree.map(jnp.asarray, merged)):
        back = lora_unmerge(params, merged=tree_of_arrays, alpha=ALPHA)
        tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-14), back, frozen)


@given(seeds, st.integers(1, 4))
def test_what_is_added_has_at_most_the_adapter_s_rank(seed, rank):
    """Turns red if the product goes through a nonlinearity, such as max(A B, 0)."""
    rng = np.random.default_rng(seed)
    frozen, params = base(rng), {"kernel": adapter(rng, rank=rank)}
    merged, _ = lora_merge(params, frozen=frozen, alpha=ALPHA)
    singular = np.linalg.svd(merged["kernel"] - frozen["kernel"], compute_uv=False)
    assert (singular[rank:] < 1e-12 * singular[0]).all() and singular[rank - 1] > 0


@given(seeds)
def test_zeros_in_twice_the_rank_with_twice_alpha_change_nothing(seed):
    """Turns red with α, or α/√r, in place of α/r."""
    rng = np.random.default_rng(seed)
    params, frozen, x = adapter(rng, rank=2), base(rng), rng.standard_normal((3, 7))
    doubled = {
        "lora_a": np.concatenate([params["lora_a"], np.zeros((7, 2))], axis=1),
        "lora_b": np.concatenate([params["lora_b"], np.zeros((2, 5))], axis=0),
    }
    y, _ = lora(params, x, frozen=frozen, alpha=ALPHA)
    again, _ = lora(doubled, x, frozen=frozen, alpha=2 * ALPHA)
    np.testing.assert_allclose(again, y, rtol=1e-13, atol=1e-13)
    merged, _ = lora_merge({"kernel": params}, frozen=frozen, alpha=ALPHA)
    merged_again, _ = lora_merge({"kernel": doubled}, frozen=frozen, alpha=2 * ALPHA)
    np.testing.assert_allclose(merged_again["kernel"], merged["kernel"], rtol=1e-13, atol=1e-13)


# A whole model

CONFIG = GPTConfig(vocabulary=17, context=7, layers=2, heads=3, width=15)
LOSS, _ = functional(GPT.abstract(CONFIG), GPT.loss)


def test_training_moves_the_adapters_alone_and_both_engines_agree():
    """The loss falls, and the model beneath stays what it was, bit for bit.  Turns red if a
    gradient is another adapter's, or if the merge adds in place.
    """
    made = initial_params(CONFIG, key=random.key(0), dtype=np.float64)
    frozen = random_like(made, np.random.default_rng(3))
    before = tree.map(np.copy, frozen)
    adapters = initial_adapters(frozen, rank=2, targets=("query", "value"), key=random.key(1))
    tokens, labels = np.random.default_rng(4).integers(0, 17, (2, 5, 7))
    rate = 0.01

    @jax.jit
    def twin_step(adapters, frozen):
        def loss(adapters):
            merged = twins.lora_merge(adapters, frozen=frozen, alpha=ALPHA)
            return LOSS(merged, tokens=tokens, labels=labels)

        value, gradient = jax.value_and_grad(loss)(adapters)
        return value, jax.tree.map(lambda a, da: a - rate * da, adapters, gradient)

    ours, theirs, losses = adapters, adapters, []
    for _ in range(8):
        merged, merge_backward = lora_merge(ours, frozen=frozen, alpha=ALPHA)
        loss, backward = gpt_loss(merged, tokens=tokens, labels=labels, config=CONFIG)
        twin_loss, theirs = twin_step(theirs, frozen)
        losses.append(loss)
        np.testing.assert_allclose(twin_loss, loss, rtol=0, atol=1e-9)
        ours = tree.map(lambda a, da: a - rate * da, ours, merge_backward(backward(1.0)))
    assert all(np.diff(losses) < 0), losses
    tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), theirs, ours)
    tree.map(np.testing.assert_array_equal, frozen, before)
    changed = tree.map(lambda a, b: (a != b).any(), merged, frozen)
    moved = {path for path, different in tree.flatten(changed).items() if different}
    assert moved == set(adapters) and len(moved) == 4


def test_initial_adapters_are_where_they_were_asked_for_and_change_nothing():
    """A has the deviation 1/r, within 5 standard errors.  Turns red with 1/√r."""
    config = GPTConfig(vocabulary=17, context=7, layers=2, heads=4, width=256)
    frozen = initial_params(config, key=random.key(0))
    adapters = initial_adapters(frozen, rank=4, targets=("query", "value"), key=random.key(1))
    assert len(adapters) == 4
    assert all(path.endswith(("query.kernel", "value.kernel")) for path in adapters)
    for path, made in adapters.items():
        assert made["lora_a"].shape == (256, 4) and made["lora_b"].shape == (4, 256), path
        assert made["lora_a"].dtype == made["lora_b"].dtype == np.float32
        assert abs(made["lora_a"].std() * 4 - 1) < 5 / (2 * made["lora_a"].size) ** 0.5
    first, second = list(adapters.values())[:2]
    assert (first["lora_a"] != second["lora_a"]).all()
    merged, _ = lora_merge(adapters, frozen=frozen, alpha=ALPHA)
    tree.map(np.testing.assert_array_equal, merged, frozen)


def test_initial_adapters_do_not_depend_on_the_order_of_a_tree_or_its_precision():
    rng = np.random.default_rng(5)
    frozen = {"value": base(rng), "query": base(rng)}
    turned = cast({"query": frozen["query"], "value": frozen["value"]}, np.float32)
    options = {"rank": 3, "targets": ("query", "value"), "key": random.key(1)}
    made, again = initial_adapters(frozen, **options), initial_adapters(turned, **options)
    tree.map(np.testing.assert_array_equal, made, again)
    assert again["query.kernel"]["lora_a"].dtype == np.float32


def test_the_twin_starts_as_the_reference_s_adapters():
    _, made = functional(twins.LoRA(256, 5, rank=4, alpha=ALPHA, rngs=nnx.Rngs(0)))
    assert not made["lora_b"].any()
    assert abs(made["lora_a"].std() * 4 - 1) < 5 / (2 * made["lora_a"].size) ** 0.5


# Bad input


@pytest.mark.parametrize("engine", [lora_merge, twins.lora_merge])
@pytest.mark.parametrize(
    "path, shapes, message",
    [
        (
            "down.kernel",
            ((7, 3), (3, 5)),
            "adapter for 'down.kernel', which the model lacks; .*'up.",
        ),
        ("up.kernel", ((5, 3), (3, 5)), r"lora_a is \(5, 3\) and .* up.kernel is \(7, 5\); give"),
        ("up.kernel", ((7, 3), (2, 5)), r"lora_a is \(7, 3\) and lora_b \(2, 5\)"),
        ("up.kernel", ((7, 3), (3, 7)), r"lora_a is \(7, 3\) and lora_b \(3, 7\)"),
        ("up.kernel", ((7,), (3, 5)), r"lora_a is \(7,\) and lora_b \(3, 5\)"),
        ("up.kernel", ((7, 0), (0, 5)), r"the rank is 0, up.kernel \(7, 5\); give .* \[1, 5\]"),
        ("up.kernel", ((7, 6), (6, 5)), r"the rank is 6, up.kernel \(7, 5\)"),
        ("up.bias", ((5, 1), (1, 5)), r"up.bias is \(5,\); give \(D, r\)"),
    ],
)
def test_adapters_that_do_not_fit_are_named(engine, path, shapes, message):
    params = {path: dict(zip(("lora_a", "lora_b"), map(np.ones, shapes), strict=True))}
    frozen = {"up": base(np.random.default_rng(0))}
    with pytest.raises(InputError, match=message):
        engine(params, frozen=frozen, alpha=ALPHA)
    with pytest.raises(InputError, match=message):
        lora_unmerge(params, merged=frozen, alpha=ALPHA)


def test_an_adapter_that_does_not_fit_its_linear_map_is_named():
    rng = np.random.default_rng(0)
    apply, _ = functional(twins.LoRA(7, 5, rank=3, alpha=ALPHA, rngs=nnx.Rngs(0)))
    params, frozen = adapter(rng), {"kernel": np.ones((7, 11))}
    message = r"lora_a is \(7, 3\) and lora_b \(3, 5\), while the kernel is \(7, 11\)"
    with pytest.raises(InputError, match=message):
        lora(params, np.ones((2, 7)), frozen=frozen, alpha=ALPHA)
    with pytest.raises(InputError, match=message):
        apply(params, np.ones((2, 7)), frozen=frozen)


@pytest.mark.parametrize("rank", [0, -1, 6, 1.0])
def test_a_rank_that_is_none_is_refused(rank):
    frozen = {"up": base(np.random.default_rng(0))}
    message = rf"the rank is {rank}, .* \(7, 5\); give an integer in \[1, 5\]"
    with pytest.raises(InputError, match=message):
        initial_adapters(frozen, rank=rank, targets=("up",), key=random.key(0))
    with pytest.raises(InputError, match=message):
        twins.LoRA(7, 5, rank=rank, alpha=ALPHA, rngs=nnx.Rngs(0))


def test_a_target_that_is_nowhere_is_named():
    frozen = {"up": base(np.random.default_rng(0)), "down": {"kernel": np.ones((2, 3, 5))}}
    with pytest.raises(InputError, match="targets has 'query', which no kernel is .* down, up"):
        initial_adapters(frozen, rank=2, targets=("up", "query"), key=random.key(0))
    with pytest.raises(InputError, match=r"down.kernel has shape \(2, 3, 5\); adapters are for"):
        initial_adapters(frozen, rank=2, targets=("down",), key=random.key(0))
