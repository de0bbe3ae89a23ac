import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.training.loop as accelerated
import reference.training.loop as reference
from accelerated import functional
from accelerated.models.transformer import Transformer
from accelerated.training.compilation import Compilation
from reference import random, tree
from reference.errors import DtypeError, InputError
from reference.layers.loss import cross_entropy
from reference.models.transformer import (
    PRESETS,
    TransformerConfig,
    flops_per_example,
    initial_params,
    parameter_shapes,
    transformer,
    transformer_decode,
    transformer_encode,
    transformer_loss,
)
from reference.training.config import TrainingConfig
from tests.mirror import MODEL, PLAIN, assert_close, assert_gradient, assert_mirror, random_like
from tests.peers import peer

PAPER = TransformerConfig(17, 9, layers=1, heads=3, width=12, hidden=19)
RELEASED = replace(
    PAPER,
    **{"wiring": "pre", "positions": "concatenated", "activation": "silu"},
    **{"attention_dropout": 0.2, "attention_bias": True, "output_bias": True, "heads": 2},
)
KEPT = np.array([[True] * 7, [True] * 4 + [False] * 3])


def params_of(config, seed=0):
    params = initial_params(config, key=random.key(0), dtype=np.float64)
    return random_like(params, np.random.default_rng(seed))


def batch_of(seed, **more):
    rng = np.random.default_rng(seed)
    pair = {"source": rng.integers(0, 17, (2, 7)), "tokens": rng.integers(0, 17, (2, 5))}
    return pair | {"source_kept": KEPT} | more


def twin(config, method=None):
    return functional(Transformer.abstract(config), method)[0]


PARAMS = params_of(PAPER)
batches = st.integers(0, 2**32).map(batch_of)


def ours(params, config=PAPER, **batch):
    return transformer(params, config=config, **batch)


# The twin


def halves(params, memory, *, source, tokens, **options):
    """The encoder of a source, and the decoder of another's memory."""
    options |= {"config": PAPER}
    made, encode_backward = transformer_encode(params, source=source, **options)
    logits, decode_backward = transformer_decode(params, memory, tokens=tokens, **options)

    def backward(dy):
        dencode, (ddecode, dmemory) = encode_backward(dy[0]), decode_backward(dy[1])
        dtoken = tree.map(np.add, dencode["token"], ddecode["token"])
        return dencode | ddecode | {"token": dtoken}, dmemory

    return (made, logits), backward


def their_halves(params, memory, *, source, tokens, **options):
    made = twin(PAPER, Transformer.encode)(params, source=source, **options)
    return made, twin(PAPER, Transformer.decode)(params, memory, tokens=tokens, **options)


def test_encoding_and_decoding_equal_their_twins():
    """With dropout, and a source that is filled up."""
    rng = np.random.default_rng(1)
    batch, memory = batch_of(1, key=random.key(3)), rng.standard_normal((2, 7, 12))
    assert_gradient(halves, PARAMS, memory, **batch, rng=rng)
    options = {"rng": rng, "tolerance": MODEL, "narrow": {}}
    assert_mirror(halves, their_halves, PARAMS, memory, **batch, **options)


def our_loss(params, **batch):
    return transformer_loss(params, config=RELEASED, **batch)


def test_the_whole_and_its_loss_equal_their_twins():
    """In the released form, with biases and labels to ignore; and what comes out with dropout, in
    attention too.  Turns red if the two halves' keys change places.
    """
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 17, (2, 5))
    labels[1, 3:] = -100
    batch, params = batch_of(2, labels=labels), params_of(RELEASED)
    noisy = {name: array for name, array in batch.items() if name != "labels"}
    noisy["key"] = random.key(5)
    assert_gradient(our_loss, params, **batch, rng=rng)
    assert_gradient(partial(transformer, config=RELEASED), params, **noisy, rng=rng)
    loss = twin(RELEASED, Transformer.loss)
    assert_mirror(our_loss, loss, params, **batch, rng=rng, tolerance=MODEL, narrow={})
    theirs = jax.jit(twin(RELEASED), compiler_options=PLAIN)(params, **noisy)
    assert_close(ours(params, RELEASED, **noisy)[0], theirs, MODEL)


class Pairs:
    """A data set of random pairs, with labels to ignore."""

    def batch(self, step):
        labels = np.random.default_rng(step).integers(0, 17, (2, 5))
        labels[step % 2, 2:] = -100
        return batch_of(step, labels=labels)


def test_ten_training_steps_of_both_engines_are_the_same():
    """One layer after another here, as a compiled loop that recomputes there.  Turns red if the
    loop's gradient of the memory is that of one layer alone.
    """
    training = TrainingConfig(
        steps=10, batch=2, warmup=4, dtype="float64", schedule="inverse_square_root", clip=1.0
    )
    config = replace(PAPER, layers=2, dropout=0.0)
    for state, figures in reference.train(config, training, Pairs()):  # noqa: B007
        pass
    looped = Compilation(unroll=1, recompute_policy="nothing_saveable")
    for there, theirs in accelerated.train(config, training, Pairs(), compilation=looped):  # noqa: B007
        pass
    assert abs(theirs["loss"] - figures["loss"]) <= 1e-9
    assert_close(accelerated.portable(there, config).params, state.params, MODEL)


# PyTorch's


def torch_s(config):
    """torch.nn.Transformer of these sizes, its embeddings aside."""
    nn, sizes = peer("torch").nn, {"d_model": config.width, "nhead": config.heads}
    sizes |= {"dim_feedforward": config.hidden, "dropout": 0.0, "layer_norm_eps": config.epsilon}
    options = sizes | {"batch_first": True, "norm_first": config.wiring == "pre"}
    options["activation"] = config.activation
    norms = [None, None]  # its own container has them always, the paper never
    if config.wiring == "pre":
        norms = [nn.LayerNorm(config.width, eps=config.epsilon) for _ in norms]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**options), config.layers, norms[0], enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**options), config.layers, norms[1])
    both = {"custom_encoder": encoder, "custom_decoder": decoder}
    return nn.Transformer(**options | both).double()


def modules(model, config):
    """By our paths: their parameter, and the part of its first axis that is ours, transposed."""
    pairs, d = {}, config.width

    def add(path, module, *names):
        for name, theirs in zip(names, ("weight", "bias"), strict=False):
            pairs[f"{path}.{name}"] = getattr(module, theirs), slice(None)

    for side in ("encoder", "decoder"):
        stack = getattr(model, side)
        for i, layer in enumerate(stack.layers):
            block, attentions = f"{side}.blocks.{i}", {"attention": layer.self_attn}
            if side == "decoder":
                attentions["cross_attention"] = layer.multihead_attn
            for n, (name, module) in enumerate(attentions.items()):
                path = f"{block}.{name}.sublayer"
                for j, part in enumerate(("query", "key", "value")):
                    rows = slice(j * d, (j + 1) * d)
                    pairs[f"{path}.{part}.kernel"] = module.in_proj_weight, rows
                    pairs[f"{path}.{part}.bias"] = module.in_proj_bias, rows
                add(f"{path}.out", module.out_proj, "kernel", "bias")
                add(f"{block}.{name}.norm", getattr(layer, f"norm{n + 1}"), "scale", "bias")
            last = getattr(layer, f"norm{len(attentions) + 1}")
            add(f"{block}.feed_forward.norm", last, "scale", "bias")
            add(f"{block}.feed_forward.sublayer.up", layer.linear1, "kernel", "bias")
            add(f"{block}.feed_forward.sublayer.down", layer.linear2, "kernel", "bias")
        if stack.norm is not None:
            add(f"{side}.norm", stack.norm, "scale", "bias")
    return pairs


def waves_by_hand(config, length):
    """The positions of the paper's formula or, concatenated, of tensor2tensor's."""
    table, half = np.zeros((length, config.width)), config.width // 2
    for p in range(length):
        for i in range(half):
            if config.positions == "interleaved":
                angle = p / 10000 ** (2 * i / config.width)
                table[p, 2 * i], table[p, 2 * i + 1] = math.sin(angle), math.cos(angle)
            else:
                angle = p * math.exp(-i * math.log(10000) / (half - 1))
                table[p, i], table[p, half + i] = math.sin(angle), math.cos(angle)
    return table


@pytest.mark.parametrize(
    "config",
    [
        replace(PAPER, layers=2, attention_bias=True),
        replace(RELEASED, layers=2, activation="relu", output_bias=False),
        replace(RELEASED, wiring="post", activation="gelu", output_bias=False),
    ],
    ids=["paper", "pre", "gelu"],
)
def test_it_computes_what_pytorch_does(config):
    """Logits and every gradient, with a source that is filled up."""
    torch = peer("torch")
    params, batch, model = params_of(config), batch_of(5), torch_s(config)
    pairs, flat = modules(model, config), tree.flatten(params)
    with torch.no_grad():
        for path, (parameter, rows) in pairs.items():
            parameter[rows] = torch.tensor(flat[path].T)
    table = torch.tensor(params["token"]["embedding"], requires_grad=True)
    source, target = (
        math.sqrt(config.width) * table[torch.tensor(batch[name])]
        + torch.tensor(waves_by_hand(config, batch[name].shape[1]))
        for name in ("source", "tokens")
    )
    hidden = torch.tensor(~KEPT)
    future = torch.triu(torch.ones(5, 5, dtype=torch.bool), diagonal=1)
    masks = {"tgt_mask": future, "src_key_padding_mask": hidden}
    read = model(source, target, **masks, memory_key_padding_mask=hidden)
    logits, backward = ours(params, config, **batch)
    dlogits = np.random.default_rng(6).standard_normal(logits.shape)
    expected = read @ table.T
    expected.backward(torch.tensor(dlogits))
    assert_close(logits, expected.detach().numpy(), 1e-12)
    gradients = tree.flatten(backward(dlogits))
    found = {path: p.grad[rows].numpy().T for path, (p, rows) in pairs.items()}
    assert_close(gradients, found | {"token.embedding": table.grad.numpy()}, 1e-11)


# Properties


@given(batches, st.integers(0, 4), st.integers(0, 16))
def test_no_position_of_the_target_sees_its_future(batch, t, other):
    """An exact zero.  Turns red if the decoder's own attention is not causal."""
    changed = batch["tokens"].copy()
    changed[:, t] = other
    logits, after = ours(PARAMS, **batch)[0], ours(PARAMS, **batch | {"tokens": changed})[0]
    np.testing.assert_array_equal(logits[:, :t], after[:, :t])


@given(batches, st.integers(0, 16))
def test_what_fills_a_source_up_is_not_read(batch, other):
    """Exactly, and a filled row is what it is alone.  Turns red if the encoder or the decoder's
    attention to it looks there.
    """
    changed = np.where(KEPT, batch["source"], other)
    logits, after = ours(PARAMS, **batch)[0], ours(PARAMS, **batch | {"source": changed})[0]
    np.testing.assert_array_equal(logits, after)
    alone, _ = ours(PARAMS, source=batch["source"][1:, :4], tokens=batch["tokens"][1:])
    np.testing.assert_allclose(logits[1:], alone, rtol=0, atol=1e-12)


@given(batches)
def test_every_position_reads_all_of_the_source(batch):
    """Turns red if the encoder is causal: its first place would not know of the last."""
    changed = batch["source"].copy()
    changed[0, -1] = (changed[0, -1] + 1) % 17
    memory, after = (
        transformer_encode(PARAMS, source=source, config=PAPER)[0]
        for source in (batch["source"], changed)
    )
    assert (memory[0] != after[0]).any(axis=-1).all()
    np.testing.assert_array_equal(memory[1], after[1])


@given(batches)
def test_pairs_of_a_batch_do_not_meet(batch):
    """Turns red if an axis is merged with the batch's."""
    logits, _ = ours(PARAMS, **batch)
    turned, _ = ours(PARAMS, **{name: array[::-1] for name, array in batch.items()})
    np.testing.assert_allclose(turned, logits[::-1], rtol=1e-11, atol=1e-12)


def test_a_row_of_nothing_has_finite_gradients():
    """Rows that fill a batch up have no source.  Turns red if a masked row's softmax is NaN."""
    batch = batch_of(7) | {"source_kept": KEPT & [[True], [False]]}
    logits, backward = ours(PARAMS, **batch)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(d).all() for d in tree.leaves(backward(np.ones_like(logits))))


@pytest.mark.parametrize("config", [PAPER, RELEASED])
def test_recomputation_changes_no_bit(config):
    """Nor does it draw other noise the second time."""
    params, options = params_of(config), batch_of(8, key=random.key(1))
    dlogits = np.random.default_rng(8).standard_normal((2, 5, 17))
    kept, again = (ours(params, config, **options, recompute=r)[1](dlogits) for r in (False, True))
    tree.map(np.testing.assert_array_equal, kept, again)


def test_without_smoothing_it_is_cross_entropy_and_each_dropout_is_its_own():
    """Turns red if attention's weights are dropped at the block's rate, or nothing is smoothed."""
    params, batch, quiet = params_of(RELEASED), batch_of(9), replace(RELEASED, dropout=0.0)
    logits, _ = ours(params, RELEASED, **batch)
    plain, _ = cross_entropy(logits, labels=batch["tokens"])
    for smoothing in (0.0, 0.3):
        config = replace(RELEASED, smoothing=smoothing)
        loss, _ = transformer_loss(params, labels=batch["tokens"], config=config, **batch)
        assert (loss == plain) == (smoothing == 0)
    silent = replace(quiet, attention_dropout=0.0)
    with_key = [ours(params, c, **batch, key=random.key(1))[0] for c in (silent, quiet)]
    np.testing.assert_array_equal(with_key[0], logits)
    assert (with_key[1] != logits).all()


# Sizes and initial weights


def test_the_presets_have_about_the_published_numbers_of_parameters():
    """Millions, in table 3, of a vocabulary of "about 37000"; of 41000 all but big are within 1."""
    printed = {"base": 65, "big": 213, "base_2_layers": 36, "base_4_layers": 50}
    printed |= {"base_8_layers": 80, "base_width_256": 28, "base_width_1024": 168}
    printed |= {"base_hidden_1024": 53, "base_hidden_4096": 90}
    assert {n for n in PRESETS if n not in printed} == {
        f"base_{n}" for n in ("1_head", "4_heads", "16_heads", "32_heads")
    }

    def millions(config):
        return sum(math.prod(shape) for shape in parameter_shapes(config).values()) / 1e6

    for name, number in printed.items():
        assert abs(millions(PRESETS[name]) / number - 1) < 0.07, name
        if name != "big":
            assert abs(millions(replace(PRESETS[name], vocabulary=41000)) - number) < 1, name
    assert (
        round(millions(PRESETS["base"]), 2) == round(millions(PRESETS["base_1_head"]), 2) == 63.05
    )


def test_parameters_are_named_as_the_twin_s():
    for config in (PAPER, RELEASED):
        _, theirs = functional(Transformer.abstract(config))
        shapes = {path: a.shape for path, a in tree.flatten(theirs).items()}
        assert shapes == parameter_shapes(config)


def test_initial_weights_have_the_deviations_of_tensor2tensor():
    """Each within 5 standard errors.  Turns red with 1/√(fan in), or a table of deviation 1."""
    config = TransformerConfig(1009, 9, layers=1, heads=4, width=64, hidden=96, output_bias=True)
    params = initial_params(config, key=random.key(0))
    for path, a in tree.flatten(params).items():
        if path.endswith(("bias", "scale")):
            assert (a == path.endswith("scale")).all()
            continue
        std = 1 / 8 if path.endswith("embedding") else math.sqrt(2 / sum(a.shape))
        assert abs(a.std() / std - 1) < 5 / math.sqrt(2 * a.size), path
        assert path.endswith("embedding") or np.abs(a).max() <= std * math.sqrt(3) + 1e-6
    double = initial_params(config, key=random.key(0), dtype=np.float64)
    tree.map(np.testing.assert_array_equal, params, double)
    with pytest.raises(InputError, match="initialization is 'xavier'; give one of paper"):
        initial_params(PAPER, key=random.key(0), initialization="xavier")


def test_flops_are_those_that_xla_counts():
    """XLA counts exponentials and sums too, hence a tenth."""
    config = TransformerConfig(101, 64, layers=2, heads=4, width=64, hidden=256)
    params = initial_params(config, key=random.key(0))
    loss = jax.grad(twin(config, Transformer.loss))
    batch = {"source": (2, 48), "tokens": (2, 64), "labels": (2, 64)}
    batch = {name: np.zeros(shape, np.int32) for name, shape in batch.items()}
    counted = jax.jit(loss).lower(params, **batch).cost_analysis()["flops"] / 2
    assert abs(counted / flops_per_example(config, 48, 64) - 1) < 0.1


# Bad input

ENGINES = [ours, twin(PAPER)]


@pytest.mark.parametrize("engine", ENGINES, ids=["reference", "accelerated"])
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"source": np.array([[0, 17]] * 2)}, InputError, r"source\[0, 1\] is 17, outside the vo"),
        ({"tokens": np.array([[3], [-1]])}, InputError, r"tokens\[1, 0\] is -1, outside"),
        ({"tokens": np.ones((2, 5))}, DtypeError, "tokens is of float64"),
        ({"source": np.ones((2, 10), int)}, InputError, "the sequence has 10 tokens, .* only 9"),
        ({"source": np.ones((2, 0), int)}, InputError, r"source has shape \(2, 0\)"),
        ({"source_kept": np.ones((2, 7))}, DtypeError, "source_kept is of float64; give booleans"),
        ({"source_kept": [True]}, DtypeError, "source_kept is no array"),
        ({"source_kept": KEPT[:, :6]}, InputError, r"source_kept has shape \(2, 6\), source \(2, "),
        (
            {"tokens": np.ones((3, 5), int)},
            InputError,
            r"source has shape \(2, 7\), tokens \(3",
        ),
    ],
)
def test_what_cannot_be_read_is_named(engine, change, error, message):
    with pytest.raises(error, match=message):
        engine(PARAMS, **batch_of(0) | change)


def test_batches_that_cannot_be_trained_on_are_refused():
    with pytest.raises(InputError, match=r"labels has shape \(2, 4\), tokens \(2, 5\)"):
        reference.check_batch(PAPER, batch_of(0, labels=np.ones((2, 4), int)))
    with pytest.raises(InputError, match=r"labels\[0, 0\] is 17"):
        reference.check_batch(PAPER, batch_of(0, labels=np.full((2, 5), 17)))
    with pytest.raises(InputError, match="labels"):
        reference.check_batch(PAPER, batch_of(0))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 5}, "5 heads do not divide the width 12"),
        ({"layers": 0}, "layers is 0; give a positive integer"),
        ({"hidden": 2.0}, "hidden is 2.0; give a positive integer"),
        ({"dropout": 1.0}, "the dropout rate is 1.0"),
        ({"attention_dropout": -0.1}, "the dropout rate is -0.1"),
        ({"smoothing": 1.0}, "smoothing is 1.0"),
        ({"positions": "learned"}, "positions is 'learned'; give one of interleaved, concatenated"),
        ({"wiring": "sandwich"}, "wiring is 'sandwich'; give one of post, pre"),
        ({"activation": "tanh"}, "activation is 'tanh'; give one of relu, silu, gelu"),
        ({"width": 9, "heads": 3}, "the width is 9"),
        ({"width": 2, "heads": 1, "positions": "concatenated"}, "the width is 2"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"pad": 17}, r"pad is 17; give a token of the vocabulary \[0, 17\)"),
        ({"end": None}, "end is None"),
    ],
)
def test_sizes_that_make_no_model_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(PAPER, **changes)
