import math
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.rotary as twins
from reference.errors import DtypeError, InputError
from reference.layers.rotary import (
    dynamic_ntk,
    linear_scaling,
    llama3,
    rotary_frequencies,
    rotary_halves,
    rotary_pairs,
    yarn,
)
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer

BOTH = [rotary_pairs, rotary_halves]
LLAMA = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "context": 512}
SCALED = {
    "default": (rotary_frequencies(14), 1.0),
    "linear": (linear_scaling(rotary_frequencies(14), factor=4.0), 1.0),
    "dynamic": (dynamic_ntk(14, base=1e4, factor=2.0, context=512, length=1999), 1.0),
    "yarn": yarn(14, base=1e4, factor=8.0, context=512),
    "llama3": (llama3(rotary_frequencies(14), factor=8.0, **LLAMA), 1.0),
}
each_scaling = pytest.mark.parametrize("frequencies, scale", SCALED.values(), ids=SCALED)
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize("component", BOTH)
@pytest.mark.parametrize(
    "leading, positions, scale",
    [((), None, 1.0), ((2, 3), np.array([[[4, 0, 7, 1, 1]], [[2, 3, 5, 6, 0]]]), 1.3)],
)
def test_rotary_positions_equal_their_twins(component, leading, positions, scale):
    """rotary_pairs and rotary_halves; positions are not known while the twin is compiled."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*leading, 5, 11))
    frequencies = rotary_frequencies(6)
    options = {} if positions is None else {"positions": positions}
    twin = {rotary_pairs: twins.rotary_pairs, rotary_halves: twins.rotary_halves}[component]
    ours, theirs = (partial(f, frequencies=frequencies, scale=scale) for f in (component, twin))
    assert_gradient(ours, x, **options, rng=rng)
    assert_mirror(ours, theirs, x, **options, rng=rng)


@pytest.mark.parametrize("engine", [*BOTH, twins.rotary_pairs, twins.rotary_halves])
@pytest.mark.parametrize("late", [None, 1_000_000])
def test_a_late_position_is_exact_in_float32(engine, late):
    """Turns red with angles in float32, which are off by 0.06 there."""
    x = np.random.default_rng(1).standard_normal((2, 5, 14))
    frequencies, scale = SCALED["yarn"]
    positions = None if late is None else late + np.arange(5)
    reference = rotary_pairs if "pairs" in engine.__name__ else rotary_halves
    options = {"frequencies": frequencies, "positions": positions, "scale": scale}
    exact, _ = reference(x, **options)
    narrow = engine(x.astype(np.float32), **options)
    narrow = narrow[0] if engine in BOTH else narrow
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, exact, rtol=0, atol=2e-6)


@contextmanager
def in_float64():
    """What asks for float32 by name or by default, as Hugging Face's frequencies, gets float64."""
    torch = peer("torch")
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch, "float32", torch.float64)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def hugging_face(rope, width=14, context=512):
    """Llama's rotary module in float64, for a `rope_parameters` of its config."""
    llama = peer("transformers.models.llama.modeling_llama")
    config = peer("transformers").LlamaConfig(
        hidden_size=3 * width,
        num_attention_heads=3,
        head_dim=width,
        max_position_embeddings=context,
        rope_parameters={"rope_theta": 1e4, **rope},
    )
    with in_float64():
        return llama.LlamaRotaryEmbedding(config)


THEIRS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
}


@pytest.mark.parametrize("kind", SCALED)
def test_halves_with_every_scaling_are_llama_s_in_hugging_face(kind):
    """Values and gradients; the last position, 1998, is what makes theirs of "dynamic" grow."""
    torch, llama = peer("torch"), peer("transformers.models.llama.modeling_llama")
    frequencies, scale = SCALED[kind]
    rng = np.random.default_rng(2)
    x, dy = rng.standard_normal((2, 2, 3, 5, 14))
    positions = np.array([[0, 3, 700, 1, 1998], [5, 2, 1, 1998, 11]])
    there = torch.tensor(x, requires_grad=True)
    rotary = hugging_face(THEIRS[kind])
    with in_float64():
        cos, sin = rotary(there, torch.tensor(positions))
    expected, _ = llama.apply_rotary_pos_emb(there, there, cos, sin)
    expected.backward(torch.tensor(dy))
    y, backward = rotary_halves(
        x, frequencies=frequencies, positions=positions[:, None], scale=scale
    )
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(backward(dy), there.grad.numpy(), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "width, context, options",
    [
        (64, 4096, {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.3}),
        (62, 4096, {"factor": 32.0, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False}),
        (14, 64, {"factor": 2.0}),
        (14, 6, {"factor": 2.0}),
    ],
    ids=["DeepSeek's scale", "GPT-OSS's ramp", "a ramp that starts before 0", "a ramp of length 0"],
)
def test_yarn_s_frequencies_and_scale_are_hugging_face_s(width, context, options):
    rope = {"rope_type": "yarn", "original_max_position_embeddings": context} | options
    theirs = hugging_face(rope, width, context)
    frequencies, scale = yarn(width, base=1e4, context=context, **options)
    np.testing.assert_allclose(frequencies, theirs.inv_freq.numpy(), rtol=1e-13)
    np.testing.assert_allclose(scale, theirs.attention_scaling, rtol=1e-14)
    assert np.ptp(frequencies / rotary_frequencies(width)) > 0  # both ends of the ramp are there


@pytest.mark.parametrize("length", [100, 512, 513, 9999])
def test_dynamic_ntk_is_hugging_face_s(length):
    utils = peer("transformers.modeling_rope_utils")
    config = hugging_face(THEIRS["dynamic"]).config
    with in_float64():
        theirs, scale = utils.ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=length)
    ours = dynamic_ntk(14, base=1e4, factor=2.0, context=512, length=length)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-13)
    assert scale == 1


def test_pairs_are_gpt_j_s():
    """Values and gradients, 6 of 11 features turned."""
    torch, gptj = peer("torch"), peer("transformers.models.gptj.modeling_gptj")
    rng = np.random.default_rng(3)
    x, dy = rng.standard_normal((2, 2, 5, 3, 11))  # theirs has the positions before the heads
    frequencies = rotary_frequencies(6)
    there = torch.tensor(x, requires_grad=True)
    angles = torch.tensor(np.arange(5)[None, :, None] * frequencies)
    turned = gptj.apply_rotary_pos_emb(there[..., :6], angles.sin(), angles.cos())
    expected = torch.cat([turned, there[..., 6:]], dim=-1)
    expected.backward(torch.tensor(dy))
    y, backward = rotary_pairs(x.swapaxes(1, 2), frequencies=frequencies)
    np.testing.assert_allclose(y.swapaxes(1, 2), expected.detach().numpy(), rtol=0, atol=1e-13)
    dx = backward(dy.swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_allclose(dx, there.grad.numpy(), rtol=0, atol=1e-13)


def test_pairs_are_roformer_s():
    torch, roformer = peer("torch"), peer("transformers.models.roformer.modeling_roformer")
    rng = np.random.default_rng(4)
    x, dy = rng.standard_normal((2, 2, 3, 5, 14))
    frequencies = rotary_frequencies(14)
    angles = np.arange(5)[:, None] * frequencies
    there = torch.tensor(x, requires_grad=True)
    table = torch.tensor(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1))
    rotate = roformer.RoFormerSelfAttention.apply_rotary_position_embeddings
    expected, _ = rotate(table, there, there)
    expected.backward(torch.tensor(dy))
    y, backward = rotary_pairs(x, frequencies=frequencies)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(backward(dy), there.grad.numpy(), rtol=0, atol=1e-13)


def test_halves_of_the_first_features_are_gpt_neox_s():
    torch, neox = peer("torch"), peer("transformers.models.gpt_neox.modeling_gpt_neox")
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal((2, 2, 3, 5, 11))
    frequencies = rotary_frequencies(6)
    angles = torch.tensor(np.tile(np.arange(5)[:, None] * frequencies, 2))[None]
    there = torch.tensor(x, requires_grad=True)
    expected, _ = neox.apply_rotary_pos_emb(there, there, angles.cos(), angles.sin())
    expected.backward(torch.tensor(dy))
    y, backward = rotary_halves(x, frequencies=frequencies)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(backward(dy), there.grad.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("component", BOTH)
@each_scaling
@given(seed=seeds, shift=st.integers(-10_000, 10_000))
def test_scores_depend_on_the_distance_alone(component, frequencies, scale, seed, shift):
    """Turns red if the position is not a factor of the angle, or a sine has the wrong sign."""
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 1, 5, 17))
    t, s = rng.integers(0, 1000, (2, 5))

    def scores(moved):
        turn = partial(component, frequencies=frequencies, scale=scale)
        return turn(q, positions=t + moved)[0] @ turn(k, positions=s + moved)[0].mT

    np.testing.assert_allclose(scores(shift), scores(0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("component", BOTH)
@given(seed=seeds, position=st.integers(-100_000, 100_000))
def test_a_rotation_keeps_the_length_of_each_pair_and_position_0_is_the_identity(
    component, seed, position
):
    """Turns red if cosine and sine are of different angles, or if positions start at 1."""
    x = np.random.default_rng(seed).standard_normal((3, 5, 17))
    frequencies = rotary_frequencies(14)
    y, _ = component(x, frequencies=frequencies, positions=np.array(position))
    first, second = pairs_of(component)
    lengths = [np.hypot(a[..., first], a[..., second]) for a in (x, y)]
    np.testing.assert_allclose(*lengths, rtol=1e-13)
    np.testing.assert_array_equal(y[..., 14:], x[..., 14:])
    np.testing.assert_array_equal(component(x, frequencies=frequencies)[0][:, 0], x[:, 0])


def pairs_of(component):
    """Which of 14 features turn together: the first of each pair, and the second."""
    features = np.arange(14)
    return features.reshape(7, 2).T if component is rotary_pairs else features.reshape(2, 7)


@given(seeds)
def test_halves_are_pairs_with_the_features_permuted(seed):
    """Turns red if halves pair i with i + K/2 where only R < K features turn."""
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((2, 3, 5, 17))
    order = np.concatenate([np.arange(0, 14, 2), np.arange(1, 14, 2), np.arange(14, 17)])
    options = {"frequencies": rotary_frequencies(14), "scale": 1.3}
    pairs, pairs_backward = rotary_pairs(x, **options)
    halves, halves_backward = rotary_halves(x[..., order], **options)
    np.testing.assert_array_equal(halves, pairs[..., order])
    np.testing.assert_array_equal(halves_backward(dy[..., order]), pairs_backward(dy)[..., order])


@pytest.mark.parametrize("component", BOTH)
@given(seed=seeds)
def test_backward_turns_back(component, seed):
    """Turns red if `backward` turns by the same angle, or leaves the scale out."""
    x = np.random.default_rng(seed).standard_normal((3, 5, 14))
    y, backward = component(x, frequencies=rotary_frequencies(14), scale=1.3)
    np.testing.assert_allclose(backward(y), 1.3**2 * x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("component", BOTH)
@given(seed=seeds, factor=st.integers(1, 50))
def test_linear_scaling_puts_a_position_where_its_share_was(component, seed, factor):
    """Turns red if linear scaling multiplies."""
    x = np.random.default_rng(seed).standard_normal((3, 5, 14))
    frequencies = rotary_frequencies(14)
    plain, _ = component(x, frequencies=frequencies)
    slower = linear_scaling(frequencies, factor=factor)
    scaled, _ = component(x, frequencies=slower, positions=factor * np.arange(5))
    np.testing.assert_allclose(scaled, plain, rtol=0, atol=1e-13)


widths = st.integers(2, 64).map(lambda n: 2 * n)
bases = st.floats(10, 1e6)
contexts = st.integers(16, 100_000)


@given(widths, bases, contexts, st.data())
def test_a_factor_of_1_changes_nothing(width, base, context, data):
    """Turns red if the two weights of a blend do not sum to 1.

    The dynamic one is still divided by length / context past the context: there 1 is the paper's.
    """
    plain = rotary_frequencies(width, base=base)
    length = data.draw(st.integers(1, context))
    stretched, scale = yarn(width, base=base, factor=1, context=context)
    assert scale == 1
    for scaled in (
        stretched,
        linear_scaling(plain, factor=1),
        dynamic_ntk(width, base=base, factor=1, context=context, length=length),
        llama3(plain, factor=1, **LLAMA),
    ):
        np.testing.assert_allclose(scaled, plain, rtol=1e-14)


@given(widths, bases, contexts, st.floats(1, 40), st.floats(0, 20))
def test_dynamic_ntk_divides_only_the_slowest_frequency_by_s(width, base, context, factor, times):
    """Turns red with an exponent of 1 for R / (R - 2), or s without its - (factor - 1)."""
    length = int(times * context)
    plain = rotary_frequencies(width, base=base)
    ratios = plain / dynamic_ntk(width, base=base, factor=factor, context=context, length=length)
    if length <= context:
        np.testing.assert_allclose(ratios, 1, rtol=1e-14)
    s = factor * max(length, context) / context - (factor - 1)
    np.testing.assert_allclose(ratios[[0, -1]], [1, s], rtol=1e-10)
    assert (np.diff(ratios) >= -1e-10).all()


@given(st.floats(1, 40), st.floats(0.5, 3), st.floats(0.5, 20), contexts)
def test_llama3_leaves_the_fast_and_divides_the_slow(factor, low, more, context):
    """Turns red if the wavelength is not 2π / θ, or the ramp runs the other way."""
    plain = rotary_frequencies(128, base=500_000)
    high = low + more
    scaled = llama3(
        plain,
        factor=factor,
        low_frequency_factor=low,
        high_frequency_factor=high,
        context=context,
    )
    wavelengths = 2 * math.pi / plain
    fast, slow = context / wavelengths > high, context / wavelengths < low
    np.testing.assert_array_equal(scaled[fast], plain[fast])
    np.testing.assert_allclose(scaled[slow], plain[slow] / factor, rtol=1e-15)
    between = plain / scaled
    assert (np.diff(between) >= -1e-12).all() and between.min() >= 1 - 1e-12
    assert between.max() <= factor * (1 + 1e-12)


@given(widths, st.floats(1.5, 40), contexts)
def test_yarn_leaves_what_turned_often_and_divides_what_did_not_turn(width, factor, context):
    """Turns red if beta_fast and beta_slow change places, or the ends are rounded inwards."""
    plain = rotary_frequencies(width)
    scaled, scale = yarn(width, base=1e4, factor=factor, context=context)
    turns = context * plain / (2 * math.pi)
    np.testing.assert_array_equal(scaled[turns > 32], plain[turns > 32])
    slow = turns < 10_000 ** (-2 / width)  # a whole index beyond the one that turns once
    np.testing.assert_allclose(scaled[slow], plain[slow] / factor, rtol=1e-14)
    divided = plain / scaled
    assert (np.diff(divided) >= -1e-12).all()
    between = (1 < turns) & (turns < 32) & (np.arange(width // 2) > 0)
    assert (divided[between] > 1.001).all() and (divided[between] < factor - 0.001).all()
    np.testing.assert_allclose(scale, 0.1 * math.log(factor) + 1, rtol=1e-15)


@pytest.mark.parametrize("component", [twins.rotary_pairs, twins.rotary_halves])
def test_positions_that_are_not_known_while_it_is_compiled_turn_the_same(component):
    """Turns red if the twin's own angles are not positions times frequencies."""
    x = np.random.default_rng(6).standard_normal((2, 5, 14))
    frequencies, scale = SCALED["yarn"]
    turn = partial(component, frequencies=frequencies, scale=scale)
    positions = np.array([3, 9, 27, 81, 243])
    late = jax.jit(lambda x, p: turn(x, positions=p))(x, positions)
    np.testing.assert_allclose(late, turn(x, positions=positions), rtol=0, atol=1e-12)


ENGINES = [*BOTH, twins.rotary_pairs, twins.rotary_halves]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda f: f"{f.__module__}.{f.__name__}")
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"frequencies": [1.0]}, DtypeError, "frequencies is a list; give the float64 array"),
        (
            {"frequencies": np.ones(2, np.float32)},
            DtypeError,
            "frequencies is a ndarray of float32; give the float64 array",
        ),
        (
            {"frequencies": np.ones((1, 2))},
            InputError,
            r"frequencies has shape \(1, 2\), x has 7 features; .* at most 3",
        ),
        (
            {"frequencies": np.ones(4)},
            InputError,
            r"frequencies has shape \(4,\), x has 7 features; .* at most 3",
        ),
        (
            {"positions": np.ones(5)},
            DtypeError,
            "positions is of float64; give an array of integers",
        ),
        (
            {"positions": np.arange(4)},
            InputError,
            r"positions has shape \(4,\), x \(2, 5, 7\); .* broadcasts to \(2, 5\)",
        ),
        (
            {"positions": np.zeros((3, 2, 5), int)},
            InputError,
            r"positions has shape \(3, 2, 5\), x \(2, 5, 7\)",
        ),
    ],
)
def test_frequencies_and_positions_that_do_not_fit_are_refused(engine, options, error, message):
    with pytest.raises(error, match=message):
        engine(np.zeros((2, 5, 7)), **{"frequencies": rotary_frequencies(6)} | options)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: rotary_frequencies(7), "width is 7; give an even one of at least 2"),
        (lambda: rotary_frequencies(8, base=1), "base is 1; give one above 1"),
        (lambda: linear_scaling(np.ones(3), factor=0.5), "factor is 0.5; .* at least 1"),
        (
            lambda: dynamic_ntk(2, base=1e4, factor=2, context=8, length=9),
            "width is 2; give an even one of at least 4",
        ),
        (
            lambda: dynamic_ntk(8, base=1e4, factor=2, context=0, length=9),
            "context is 0; give the length of training",
        ),
        (
            lambda: yarn(8, base=1e4, factor=2, context=64, beta_slow=0),
            "beta_slow is 0, beta_fast 32",
        ),
        (
            lambda: yarn(8, base=1e4, factor=2, context=64, beta_fast=1, beta_slow=32),
            "beta_slow is 32, beta_fast 1; give 0 < beta_slow < beta_fast",
        ),
        (
            lambda: llama3(np.ones(3), factor=2, **LLAMA | {"low_frequency_factor": 4.0}),
            "low_frequency_factor is 4.0, high_frequency_factor 4.0; give 0 < low",
        ),
    ],
)
def test_a_scaling_that_cannot_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
