import json
import sys
import types
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from accelerated import functional
from accelerated.models.gpt import GPT
from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.models.gpt import GPTConfig, gpt, gpt_loss, initial_params
from reference.pretrained import load, save
from tests.mirror import assert_close, relative_errors
from tests.peers import peer

CONFIG = GPTConfig(vocabulary=17, context=11, layers=2, heads=3, width=15, dropout=0.2)
LABELLED = {
    "tokens": np.random.default_rng(0).integers(0, 17, (2, 7)),
    "labels": np.random.default_rng(1).integers(0, 17, (2, 7)),
}
LABELLED["labels"][0, 3:5] = -100
LEAVES = ("weight", "bias")


@pytest.fixture(scope="module")
def published():
    """A GPT-2 of Hugging Face's, with weights of which each one matters."""
    torch, transformers = peer("torch"), peer("transformers")
    config = transformers.GPT2Config(
        vocab_size=17,
        n_positions=11,
        n_layer=2,
        n_head=3,
        n_embd=15,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.2),
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            torch.nn.init.normal_(weight, centre, 0.2)
    return model


@pytest.fixture
def folder(tmp_path):
    """A folder in Hugging Face's form, made without it: what is refused needs no peer."""
    write(tmp_path)
    return tmp_path


SETTINGS = {"model_type": "gpt2", "vocab_size": 17, "n_positions": 11, "n_layer": 2}
SETTINGS |= {"n_head": 3, "n_embd": 15, "resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}


def write(folder, settings=SETTINGS, arrays=None):
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(random_arrays() if arrays is None else arrays, folder / "model.safetensors")


def random_arrays():
    """Arrays by Hugging Face's names, without "transformer."."""
    rng = np.random.default_rng(2)
    shapes = {"wte.weight": (17, 15), "wpe.weight": (11, 15)}
    for i in range(2):
        shapes |= {f"h.{i}.{norm}.{leaf}": (15,) for norm in ("ln_1", "ln_2") for leaf in LEAVES}
        for name, inputs, outputs in (
            ("attn.c_attn", 15, 45),
            ("attn.c_proj", 15, 15),
            ("mlp.c_fc", 15, 60),
            ("mlp.c_proj", 60, 15),
        ):
            shapes |= {f"h.{i}.{name}.weight": (inputs, outputs), f"h.{i}.{name}.bias": (outputs,)}
    shapes |= {f"ln_f.{leaf}": (15,) for leaf in LEAVES}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def torch_logits_and_gradients(model):
    """Logits, the loss by Hugging Face's own code, and its gradient by autograd as our tree.

    It compares position t with label t + 1, so its labels are ours moved by one.
    """
    torch = peer("torch")
    tokens = torch.tensor(LABELLED["tokens"])
    moved = torch.nn.functional.pad(torch.tensor(LABELLED["labels"]), (1, 0), value=-100)
    model.zero_grad()
    padded = torch.nn.functional.pad(tokens, (0, 1))
    loss = model(padded, labels=moved).loss
    loss.backward()
    with torch.no_grad():
        logits = model(tokens).logits
    return logits.numpy(), loss.item(), by_our_names(model)


def by_our_names(model):
    """The gradients, sorted into our tree by attribute access: not by the names of any file."""

    def linear(module):
        return {"kernel": module.weight.grad.numpy(), "bias": module.bias.grad.numpy()}

    def norm(module):
        return {"scale": module.weight.grad.numpy(), "bias": module.bias.grad.numpy()}

    def part(module, i):
        return {name: a[..., 15 * i : 15 * (i + 1)] for name, a in linear(module).items()}

    body = model.transformer
    return {
        "token": {"embedding": body.wte.weight.grad.numpy()},
        "position": {"embedding": body.wpe.weight.grad.numpy()},
        "blocks": [
            {
                "attention": {
                    "norm": norm(block.ln_1),
                    "sublayer": {
                        "query": part(block.attn.c_attn, 0),
                        "key": part(block.attn.c_attn, 1),
                        "value": part(block.attn.c_attn, 2),
                        "out": linear(block.attn.c_proj),
                    },
                },
                "feed_forward": {
                    "norm": norm(block.ln_2),
                    "sublayer": {"up": linear(block.mlp.c_fc), "down": linear(block.mlp.c_proj)},
                },
            }
            for block in body.h
        ],
        "norm": norm(body.ln_f),
    }


def of_reference(config, params):
    logits, _ = gpt(params, tokens=LABELLED["tokens"], config=config)
    loss, backward = gpt_loss(params, **LABELLED, config=config)
    return logits, loss, backward(np.float32(1))


def of_accelerated(config, params):
    apply, _ = functional(GPT.abstract(config))
    loss_of, _ = functional(GPT.abstract(config), GPT.loss)

    @jax.jit
    def run(params, tokens, labels):
        logits = apply(params, tokens=tokens)
        return logits, *jax.value_and_grad(loss_of)(params, tokens=tokens, labels=labels)

    return run(params, **LABELLED)


@pytest.mark.parametrize("engine", [of_reference, of_accelerated])
def test_both_engines_compute_what_hugging_face_does(published, tmp_path, engine):
    published.save_pretrained(tmp_path)
    config, params = load(tmp_path)
    assert config == CONFIG
    assert {a.dtype for a in tree.leaves(params)} == {np.dtype(np.float32)}
    logits, loss, gradients = engine(config, params)
    expected_logits, expected_loss, expected_gradients = torch_logits_and_gradients(published)
    assert_close(logits, expected_logits, 1e-5)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert_close(gradients, expected_gradients, 1e-4)


def test_several_files_are_read_as_one(published, tmp_path):
    published.save_pretrained(tmp_path / "one")
    published.save_pretrained(tmp_path / "many", max_shard_size="4KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert_trees_equal(load(tmp_path / "many"), load(tmp_path / "one"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened(published, tmp_path, dtype):
    torch = peer("torch")
    published.save_pretrained(tmp_path / "full")
    narrow = type(published)(published.config).to(getattr(torch, dtype))
    narrow.load_state_dict(published.state_dict())
    narrow.save_pretrained(tmp_path / dtype)
    back = narrow.to(torch.float32)
    back.save_pretrained(tmp_path / "back")
    loaded, full = load(tmp_path / dtype), load(tmp_path / "full")
    assert_trees_equal(loaded, load(tmp_path / "back"))
    assert 1e-4 < max(relative_errors(loaded[1], full[1]).values()) < 1e-2


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_files_of_half_precision_hold_the_rounded_numbers(folder, dtype):
    narrow = {name: a.astype(dtype) for name, a in random_arrays().items()}
    write(folder, arrays=narrow)
    _, loaded = load(folder)
    write(folder, arrays={name: a.astype(np.float32) for name, a in narrow.items()})
    _, expected = load(folder)
    tree.map(np.testing.assert_array_equal, loaded, expected)
    assert {a.dtype for a in tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_hugging_face_reads_the_same_folder(folder):
    """The folders made here are as those of others."""
    model = peer("transformers").GPT2LMHeadModel.from_pretrained(folder)
    arrays = random_arrays()
    for name, weight in model.transformer.named_parameters():
        np.testing.assert_array_equal(weight.detach().numpy(), arrays[name])


def test_names_and_order_are_those_of_new_weights(folder):
    config, params = load(str(folder))
    assert config == CONFIG
    new = tree.flatten(initial_params(CONFIG, key=random.key(0)))
    loaded = tree.flatten(params)
    assert list(loaded) == list(new)
    arrays = random_arrays()
    for path, a in loaded.items():
        assert a.shape == new[path].shape and a.dtype == np.float32 and a.flags.c_contiguous
        assert a.base is None and a.flags.writeable
    fused = [
        params["blocks"][1]["attention"]["sublayer"][part]["bias"]
        for part in ("query", "key", "value")
    ]
    np.testing.assert_array_equal(np.concatenate(fused), arrays["h.1.attn.c_attn.bias"])


def test_a_prefix_old_buffers_and_the_tied_output_change_nothing(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "old").mkdir()
    write(tmp_path / "plain")
    arrays = random_arrays()
    old = {f"transformer.{name}": a for name, a in arrays.items()}
    old["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 11, 11), bool))
    old["h.1.attn.bias"] = np.tril(np.ones((1, 1, 11, 11), np.uint8))
    old["transformer.h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    write(tmp_path / "old", arrays=old | {"lm_head.weight": arrays["wte.weight"]})
    assert_trees_equal(load(tmp_path / "old"), load(tmp_path / "plain"))


def test_what_the_settings_leave_out_has_their_default(tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if "pdrop" not in name}
    write(tmp_path, settings | {"n_inner": 60, "reorder_and_upcast_attn": True})
    assert asdict(load(tmp_path)[0]) == asdict(CONFIG) | {"dropout": 0.1}
    write(tmp_path, SETTINGS | {"n_inner": None})
    assert load(tmp_path)[0] == CONFIG


def assert_trees_equal(actual, expected):
    assert actual[0] == expected[0]
    tree.map(np.testing.assert_array_equal, actual[1], expected[1])


def refused(folder, *words):
    """load raises CheckpointError, whose message has all these words."""
    with pytest.raises(CheckpointError) as raised:
        load(folder)
    for word in words:
        assert str(word) in str(raised.value)


REFUSED = {
    "model_type": ("lama", "give one of bert"),
    "activation_function": ("relu", "must be 'gelu_new'"),
    "layer_norm_epsilon": (1e-6, "must be 1e-05"),
    "n_inner": (59, "must be 60"),
    "scale_attn_weights": (False, "must be True"),
    "scale_attn_by_inverse_layer_idx": (True, "must be False"),
    "add_cross_attention": (True, "must be False"),
    "tie_word_embeddings": (False, "must be True"),
    "embd_pdrop": (0.1, "must be 0.2"),
    "attn_pdrop": (0.0, "must be 0.2"),
    "resid_pdrop": (1.5, "the dropout rate is 1.5"),
    "n_head": (4, "4 heads do not divide the width 15"),
    "vocab_size": ("17", "vocabulary is '17'"),
    "n_embd": (None, "width is None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_our_gpt_lacks_is_refused_by_name(folder, name):
    value, words = REFUSED[name]
    write(folder, SETTINGS | {name: value})
    own_words = name in ("resid_pdrop", "n_head", "vocab_size", "n_embd")
    refused(folder, folder / "config.json", words, "" if own_words else f"{name} is {value!r}")


def test_dropout_that_differs_from_a_default_is_refused(folder):
    write(folder, {name: value for name, value in SETTINGS.items() if name != "attn_pdrop"})
    refused(folder, "attn_pdrop is 0.1, and must be 0.2")


@pytest.mark.parametrize("name", [name for name in SETTINGS if "pdrop" not in name])
def test_a_size_that_is_missing_is_refused(folder, name):
    write(folder, {other: value for other, value in SETTINGS.items() if other != name})
    refused(folder, folder / "config.json", name)


def test_arrays_that_do_not_fit_are_all_named(folder):
    arrays = random_arrays()
    del arrays["h.1.ln_2.bias"]
    arrays["h.2.ln_2.bias"] = arrays["score.weight"] = np.ones(15, np.float32)
    arrays["h.0.mlp.c_fc.weight"] = arrays["h.0.mlp.c_fc.weight"].T.copy()
    arrays["h.0.attn.c_attn.bias"] = np.ones(44, np.float32)
    write(folder, arrays=arrays)
    refused(
        folder,
        folder,
        "missing: transformer.h.1.ln_2.bias;",
        "left over: ",
        "h.2.ln_2.bias",
        "score.weight",
        "h.0.mlp.c_fc.weight (60, 15), not (15, 60)",
        "h.0.attn.c_attn.bias (44,), not (45,)",
    )


def test_an_output_layer_of_its_own_is_refused(folder):
    arrays = random_arrays()
    for shape in ((17, 15), (16, 15)):
        head = {"lm_head.weight": arrays["wte.weight"][: shape[0]] + np.float32(1e-3)}
        write(folder, arrays=arrays | head)
        refused(folder, "lm_head.weight is not equal to what is our token.embedding", "tied")


@pytest.mark.parametrize("dtype", [np.int8, np.float64])
def test_arrays_of_another_dtype_are_refused(folder, dtype):
    write(folder, arrays=random_arrays() | {"wpe.weight": np.ones((11, 15), dtype)})
    refused(folder, folder / "model.safetensors", "wpe.weight is ", "give float32")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_missing_or_torn_is_refused(folder, name):
    content = (folder / name).read_bytes()
    for torn in (b"", content[:-1], content[:7], b"PK\x03\x04\xff" * 9):
        (folder / name).write_bytes(torn)
        refused(folder, folder / name, "copy it again")
    (folder / name).unlink()
    refused(folder, folder / name, "is missing")


def sharded(folder, weight_map=None):
    """The arrays in two files with an index."""
    arrays = load_file(folder / "model.safetensors")
    placed = {name: f"part-{name.startswith('h.0')}.safetensors" for name in arrays}
    for part in set(placed.values()):
        save_file({n: a for n, a in arrays.items() if placed[n] == part}, folder / part)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": placed if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_part_that_is_missing_is_refused(folder):
    whole = load(folder)
    sharded(folder)
    assert_trees_equal(load(folder), whole)
    (folder / "part-True.safetensors").unlink()
    refused(folder, folder / "part-True.safetensors", "is missing")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_saved_is_loaded_by_hugging_face_and_by_us(tmp_path, dtype):
    torch, transformers = peer("torch"), peer("transformers")
    params = initial_params(CONFIG, key=random.key(0))
    save(tmp_path / "new", CONFIG, params, dtype=dtype)
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "new", dtype=dtype).eval()
    config, loaded = load(tmp_path / "new")
    assert config == CONFIG
    for path, array in tree.flatten(loaded).items():
        exact = torch.tensor(tree.flatten(params)[path]).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(array, exact)
    with torch.no_grad():
        theirs = model.float()(torch.tensor(LABELLED["tokens"])).logits.numpy()
    assert_close(gpt(loaded, tokens=LABELLED["tokens"], config=config)[0], theirs, 1e-5)


def test_nothing_is_saved_over_a_model_or_of_another_s_parameters(folder):
    params = initial_params(CONFIG, key=random.key(0))
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="has a model already"):
        save(folder, CONFIG, params)
    assert (folder / "model.safetensors").read_bytes() == before
    with pytest.raises(InputError, match="dtype is 'float8'; give one of float32"):
        save(folder / "new", CONFIG, params, dtype="float8")
    del params["norm"]["bias"]
    with pytest.raises(CheckpointError, match="missing: norm.bias"):
        save(folder / "new", CONFIG, params)
    assert not (folder / "new").exists()


def test_numbers_that_are_not_finite_are_refused_by_name(folder):
    arrays = random_arrays()
    arrays["h.1.ln_1.bias"][3] = np.nan
    write(folder, arrays=arrays)
    refused(folder, folder / "model.safetensors", "h.1.ln_1.bias", "not finite")


def test_a_name_on_the_hub_is_refused_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="gpt2 is no directory .* pip install huggingface_hub"):
        load("openai-community/gpt2")
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, allow_patterns: 1 / 0
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(InputError, match="did not give it .ZeroDivisionError"):
        load("openai-community/gpt2")
    write(tmp_path)
    hub.snapshot_download = lambda name, allow_patterns: str(tmp_path)
    assert load("openai-community/gpt2")[0] == CONFIG
    refused("./nowhere", "nowhere is not there")
