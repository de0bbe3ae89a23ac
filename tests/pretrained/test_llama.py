import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import accelerated.inference as twins
import reference.inference as inference
from accelerated import functional
from accelerated.models.llama import Llama
from reference import random, tree
from reference.errors import CheckpointError
from reference.models.llama import LlamaConfig, Scaling, initial_params, llama, llama_loss
from reference.pretrained import load, save
from tests.mirror import PLAIN, assert_close
from tests.peers import peer

LLAMA = LlamaConfig(19, 32, 2, 6, 3, 24, 40, epsilon=1e-6)
LLAMA3 = LlamaConfig(
    19, 64, 2, 2, 1, 12, 20, tied=True, base=500.0, scaling=Scaling(8.0, 1.0, 4.0, 16)
)
MISTRAL = replace(LLAMA, window=5, head_width=6)
CONFIGS = {"llama": LLAMA, "llama3": LLAMA3, "mistral": MISTRAL}
TOKENS, LABELS = np.random.default_rng(0).integers(0, 19, (2, 2, 21))
LABELS[0, 3:9] = -100
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def params_of(config):
    """Large enough for each of them to matter."""
    params = initial_params(config, key=random.key(1))
    return tree.map(lambda a: a * np.float32(8 if a.ndim > 1 else 1), params)


@pytest.fixture
def saved(tmp_path, config):
    save(tmp_path / "model", config, params_of(config))
    return tmp_path / "model"


@pytest.fixture
def theirs(saved):
    transformers = peer("transformers")
    options = {"attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(saved, **options).eval()


@each_config
def test_hugging_face_computes_what_both_engines_do(config, saved, theirs):
    """Logits within 1e-5 of the largest, the loss's gradient within 1e-4."""
    torch = peer("torch")
    expected = theirs(torch.tensor(TOKENS)).logits
    flat = expected.reshape(-1, 19), torch.tensor(LABELS).reshape(-1)
    torch.nn.functional.cross_entropy(*flat).backward()
    _, params = load(saved)
    logits, _ = llama(params, tokens=TOKENS, config=config)
    assert_close(logits, expected.detach().numpy(), 1e-5)
    loss, backward = llama_loss(params, tokens=TOKENS, labels=LABELS, config=config)
    ours = tree.flatten(backward(np.float32(1)))
    twin, _ = functional(Llama.abstract(config), Llama.loss)
    gradients = jax.jit(jax.grad(twin), compiler_options=PLAIN)(
        params, tokens=TOKENS, labels=LABELS
    )
    for engine in (ours, tree.flatten(gradients)):
        for path, module in modules(theirs, config):
            found = module.weight.grad.numpy()
            kernel = path.endswith("kernel")
            assert_close(engine[path], found.T if kernel else found, 1e-4)


@each_config
def test_greedy_and_beam_output_are_those_of_hugging_face(config, saved, theirs):
    """Longer than the window, so that the cache has what is not seen any more."""
    torch = peer("torch")
    prompts, (_, params) = TOKENS[:, :3], load(saved)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = {"input_ids": torch.tensor(prompts), "attention_mask": torch.ones(2, 3, dtype=int)}
    greedy = theirs.generate(**ids, **options)[:, 3:].numpy()
    beams = theirs.generate(**ids, **options, num_beams=3, length_penalty=1.0)[:, 3:].numpy()
    task = {"steps": 9, "config": config}
    search = {"end": None, "beams": 3, "alpha": 1.0, "penalty": "hugging_face"}
    for engine in (inference, twins):
        written = engine.generate(params, tokens=list(prompts), **task)
        np.testing.assert_array_equal(written, greedy)
        found = engine.beam_generate(params, tokens=prompts, **task, **search)
        np.testing.assert_array_equal(found.tokens[:, 0], beams)
    assert (greedy != beams).any()


def modules(model, config):
    """Pairs of our path and their module, by attribute access: not by the names of any file."""
    yield "token.embedding", model.model.embed_tokens
    yield "norm.scale", model.model.norm
    if not config.tied:
        yield "output.kernel", model.lm_head
    for i, layer in enumerate(model.model.layers):
        attention, hidden = layer.self_attn, layer.mlp
        inside = {
            "attention.norm.scale": layer.input_layernorm,
            "attention.sublayer.query.kernel": attention.q_proj,
            "attention.sublayer.key.kernel": attention.k_proj,
            "attention.sublayer.value.kernel": attention.v_proj,
            "attention.sublayer.out.kernel": attention.o_proj,
            "feed_forward.norm.scale": layer.post_attention_layernorm,
            "feed_forward.sublayer.gate.kernel": hidden.gate_proj,
            "feed_forward.sublayer.up.kernel": hidden.up_proj,
            "feed_forward.sublayer.down.kernel": hidden.down_proj,
        }
        yield from ((f"blocks.{i}.{path}", module) for path, module in inside.items())


@each_config
def test_what_hugging_face_saves_is_loaded(config, saved, theirs, tmp_path):
    """Turns red if a name is not written, or read into another's place."""
    theirs.save_pretrained(tmp_path / "again")
    found, params = load(tmp_path / "again")
    assert found == config
    tree.map(np.testing.assert_array_equal, params, params_of(config))
    assert sum(a.size for a in tree.leaves(params)) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("config", [LLAMA3])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and must be 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "the rotary scaling is 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "has no low_freq_factor"),
        ({"num_key_value_heads": 3}, "3 groups do not divide the 2 heads"),
        ({"num_hidden_layers": None}, "layers is None"),
        ({"model_type": "gemma"}, "model_type is 'gemma'; give one of bert, clip"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
        ({"num_hidden_layers": 3}, "missing: model.layers.2."),
    ],
)
def test_settings_that_our_model_lacks_are_refused_by_name(saved, change, message):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as raised:
        load(saved)
    assert message in str(raised.value) and str(saved) in str(raised.value)


@pytest.mark.parametrize("config", [LLAMA3])
def test_settings_of_earlier_versions_are_read(saved):
    """Base and scaling in two entries, and no width of a head."""
    path = saved / "config.json"
    settings = json.loads(path.read_text())
    rotary = settings.pop("rope_parameters")
    settings["rope_theta"] = rotary.pop("rope_theta")
    settings |= {"rope_scaling": rotary}
    del settings["head_dim"]
    path.write_text(json.dumps(settings))
    assert load(saved)[0] == LLAMA3
