import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from accelerated import functional
from accelerated.inference.decoding import generate as write
from accelerated.models.gpt import GPT
from reference import random, tree
from reference.errors import CheckpointError, InputError
from reference.inference.decoding import generate
from reference.models.gpt import GPTConfig, gpt, gpt_loss, initial_params
from reference.pretrained import load, save
from tests.mirror import assert_close
from tests.peers import peer

# Heads of 5, of which the root is no number that floats have, and of 4, of which it is 2.
CONFIG = GPTConfig(17, 16, layers=3, heads=3, width=15, dropout=0.2, band=4)
EVEN = GPTConfig(23, 12, layers=2, heads=2, width=8, band=3)
each_config = pytest.mark.parametrize("config", [CONFIG, EVEN], ids=["odd", "even"])
TOKENS, LABELS = np.random.default_rng(0).integers(0, 17, (2, 2, 11))
LABELS[0, 3:5] = -100
ABSENT = tuple(f"attention.sublayer.{name}.bias" for name in ("query", "key", "value"))


def params_of(config, seed=1):
    """Large enough for each of them to matter, without the biases that the family lacks."""
    rng = np.random.default_rng(seed)
    flat = tree.flatten(initial_params(config, key=random.key(seed)))
    for path, a in flat.items():
        if not path.endswith(ABSENT):
            flat[path] = (a + 0.2 * rng.standard_normal(a.shape)).astype(np.float32)
    return tree.unflatten(flat)


@pytest.fixture
def saved(tmp_path, config):
    save(tmp_path / "model", config, params_of(config))
    return tmp_path / "model"


@pytest.fixture
def theirs(saved):
    options = {"attn_implementation": "eager"}
    return peer("transformers").GPTNeoForCausalLM.from_pretrained(saved, **options).eval()


def of_reference(params, config, batch):
    logits, _ = gpt(params, tokens=batch["tokens"], config=config)
    loss, backward = gpt_loss(params, **batch, config=config)
    return logits, loss, backward(np.float32(1))


def of_accelerated(params, config, batch):
    apply, _ = functional(GPT.abstract(config))
    loss_of, _ = functional(GPT.abstract(config), GPT.loss)

    @jax.jit
    def run(params, batch):
        logits = apply(params, tokens=batch["tokens"])
        return logits, *jax.value_and_grad(loss_of)(params, **batch)

    return run(params, batch)


@each_config
def test_hugging_face_computes_what_both_engines_do(config, saved, theirs):
    """Logits within 1e-5 of the largest, the loss's gradient within 1e-4.  Turns red if the first
    block is banded, or a band of another width, or without the factor √K.
    """
    torch = peer("torch")
    expected = theirs(torch.tensor(TOKENS)).logits
    flat = expected.reshape(-1, config.vocabulary), torch.tensor(LABELS).reshape(-1)
    loss = torch.nn.functional.cross_entropy(*flat)
    loss.backward()
    found, params = load(saved)
    assert found == config
    for engine in (of_reference, of_accelerated)[: 2 if config is CONFIG else 1]:
        logits, ours, gradients = engine(params, config, {"tokens": TOKENS, "labels": LABELS})
        assert_close(logits, expected.detach().numpy(), 1e-5)
        np.testing.assert_allclose(ours, loss.item(), rtol=1e-6)
        flat = tree.flatten(gradients)
        theirs_flat = by_our_names(theirs.transformer, config)
        assert_close({path: flat[path] for path in theirs_flat}, theirs_flat, 1e-4)
        assert {path for path in flat if path not in theirs_flat} == {
            f"blocks.{layer}.{path}" for layer in range(config.layers) for path in ABSENT
        }


def by_our_names(body, config):
    """The gradients by our paths, by attribute access.  Our query's kernel is √K times theirs."""
    found = {
        "token.embedding": body.wte.weight.grad.numpy(),
        "position.embedding": body.wpe.weight.grad.numpy(),
    }

    def add(path, module, bias=True, kernel=True, factor=1.0):
        weight = module.weight.grad.numpy()
        name = "kernel" if kernel else "scale"
        found[f"{path}.{name}"] = weight.T / np.float32(factor) if kernel else weight
        if bias:
            found[f"{path}.bias"] = module.bias.grad.numpy()

    root = (config.width // config.heads) ** 0.5
    for layer, block in enumerate(body.h):
        inside, hidden = f"blocks.{layer}.attention.sublayer", f"blocks.{layer}.feed_forward"
        attention = block.attn.attention
        add(f"{inside}.query", attention.q_proj, bias=False, factor=root)
        add(f"{inside}.key", attention.k_proj, bias=False)
        add(f"{inside}.value", attention.v_proj, bias=False)
        add(f"{inside}.out", attention.out_proj)
        add(f"{hidden}.sublayer.up", block.mlp.c_fc)
        add(f"{hidden}.sublayer.down", block.mlp.c_proj)
        add(f"blocks.{layer}.attention.norm", block.ln_1, kernel=False)
        add(f"{hidden}.norm", block.ln_2, kernel=False)
    add("norm", body.ln_f, kernel=False)
    return found


@each_config
def test_what_hugging_face_saves_is_loaded(config, saved, theirs, tmp_path):
    """Turns red if a name is not written, or read into another's place."""
    theirs.save_pretrained(tmp_path / "again")
    found, params = load(tmp_path / "again")
    assert found == config
    expected = params_of(config)
    assert_close(params, expected, 1e-7)
    for path, a in tree.flatten(params).items():
        exact = "query" not in path or config is EVEN
        assert not exact or (a == tree.flatten(expected)[path]).all(), path
        assert a.dtype == np.float32 and a.flags.c_contiguous and a.flags.writeable
    absent = sum(a.size for path, a in tree.flatten(params).items() if path.endswith(ABSENT))
    every = sum(a.size for a in tree.leaves(params))
    assert every - absent == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("config", [CONFIG])
def test_greedy_texts_are_those_of_hugging_face(saved, theirs):
    """Longer than the band, so that the cache has what is not seen any more."""
    config, params = load(saved)
    task = {"tokens": list(TOKENS[:, :3]), "steps": 13, "config": config}
    found = [engine(params, **task) for engine in (generate, write)]
    torch = peer("torch")
    prompts = torch.tensor(TOKENS[:, :3])
    options = {"max_new_tokens": 13, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = theirs.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    for texts in found:
        np.testing.assert_array_equal(texts, expected[:, 3:].numpy())


@pytest.mark.parametrize("config", [EVEN])
def test_a_model_of_dense_blocks_alone_has_no_band(saved):
    """It is then a GPT-2 with another query, and is saved as one."""
    torch, transformers = peer("torch"), peer("transformers")
    path = saved / "config.json"
    change = {"attention_types": [[["global"], 2]]}
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    theirs = transformers.GPTNeoForCausalLM.from_pretrained(saved).eval()
    config, params = load(saved)
    assert config == replace(EVEN, band=None)
    save(saved / "other", config, params)
    other = transformers.GPT2LMHeadModel.from_pretrained(saved / "other").eval()
    with torch.no_grad():
        logits = [model(torch.tensor(TOKENS)).logits.numpy() for model in (theirs, other)]
    assert_close(logits[1], logits[0], 1e-5)


@pytest.mark.parametrize("config", [EVEN])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"attention_types": [[["local", "global"], 1]]}, "attention_types is [[['local', 'gl"),
        (
            {"attention_types": [[["global", "local"], 2]]},
            "in turns, or global alone, for 2 blocks",
        ),
        ({"attention_types": [["global"]]}, "attention_types is [['global']]"),
        ({"attention_types": 3}, "attention_types is 3, and must be"),
        ({"window_size": 0}, "band is 0; give a positive integer"),
        ({"window_size": "4"}, "band is '4'; give a positive integer"),
        ({"activation_function": "relu"}, "activation_function is 'relu', and must be 'gelu_new'"),
        ({"intermediate_size": 31}, "intermediate_size is 31, and must be 32"),
        ({"embed_dropout": 0.3}, "embed_dropout is 0.3, and must be 0.0"),
        ({"num_heads": 3}, "3 heads do not divide the width 8"),
        ({"num_layers": None}, "layers is None"),
    ],
)
def test_settings_that_our_model_lacks_are_refused_by_name(saved, change, message):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as raised:
        load(saved)
    assert message in str(raised.value) and str(saved) in str(raised.value)


@pytest.mark.parametrize("config", [EVEN])
def test_settings_that_are_left_out_have_hugging_face_s_defaults(saved):
    """A window of 256; and a size that is missing is refused."""
    path = saved / "config.json"
    settings = json.loads(path.read_text())
    del settings["window_size"], settings["resid_dropout"]
    path.write_text(json.dumps(settings))
    assert load(saved)[0] == replace(EVEN, band=256)
    del settings["num_heads"]
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="has no num_heads"):
        load(saved)


def test_a_bias_that_the_family_lacks_is_not_lost_but_refused(tmp_path):
    """By name, and nothing is written.  Turns red if such a bias is left out."""
    params = params_of(EVEN)
    params["blocks"][1]["attention"]["sublayer"]["key"]["bias"][5] = 0.5
    with pytest.raises(
        InputError, match=r"blocks.1.attention.sublayer.key.bias is not 0, .*set it"
    ):
        save(tmp_path / "model", EVEN, params)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("band", [None, 3])
def test_heads_of_another_width_are_in_no_published_form(tmp_path, band):
    config = replace(EVEN, head_width=5, band=band)
    with pytest.raises(InputError, match="no form of gpt2, gpt_neo holds GPTConfig.*head_width=5"):
        save(tmp_path / "model", config, params_of(config))
    same = replace(EVEN, head_width=4, band=band)
    save(tmp_path / "model", same, params_of(same))
    assert load(tmp_path / "model")[0] == replace(same, head_width=None)
