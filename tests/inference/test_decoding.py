import tempfile

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.inference.decoding as twins
from accelerated import functional
from accelerated.models.gpt import GPT
from reference import random
from reference.errors import DtypeError, InputError
from reference.inference.cache import decode, make_cache
from reference.inference.decoding import generate
from reference.inference.sampling import sample
from reference.models.gpt import GPTConfig, gpt, initial_params
from reference.models.llama import LlamaConfig, llama
from reference.models.llama import initial_params as initial_llama_params
from reference.pretrained import load
from tests.mirror import MODEL, assert_close, cast, random_like, read_only
from tests.peers import peer

CONFIG = GPTConfig(vocabulary=19, context=13, layers=2, heads=3, width=15)
PARAMS = read_only(
    random_like(
        initial_params(CONFIG, key=random.key(0), dtype=np.float64), np.random.default_rng(0)
    )
)
TEXTS = np.random.default_rng(1).integers(0, 19, (2, 13))
TWIN, _ = functional(GPT.abstract(CONFIG), twins.decode)
COMPILED = jax.jit(TWIN, donate_argnums=1)  # with a `start` that is not known
KEY = random.key(7)
GENERATE = (generate, twins.generate)


def cache_of(length, *, batch=2, dtype=np.float64, filled=np.nan):
    """Full of NaN: whoever reads what was not written, has it in the logits."""
    cache = make_cache(CONFIG, batch=batch, length=length, dtype=dtype)
    cache += filled
    return cache


# The cache


@given(st.data())
def test_a_text_read_in_any_pieces_has_the_logits_of_the_whole(data):
    """And each piece is written at its own places of the cache, and nowhere else."""
    end = data.draw(st.integers(1, 13))
    cuts = sorted(data.draw(st.sets(st.integers(1, end), max_size=end)) | {0, end})
    tokens, cache = read_only(TEXTS[:, :end]), cache_of(data.draw(st.integers(end, 13)))
    logits = []
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
        before = cache.copy()
        piece = tokens[:, start:stop]
        logits.append(decode(PARAMS, cache, tokens=piece, start=start, config=CONFIG))
        assert np.isfinite(cache[..., start:stop, :]).all()
        before[..., start:stop, :] = cache[..., start:stop, :]
        np.testing.assert_array_equal(cache, before)
    whole, _ = gpt(PARAMS, tokens=tokens, config=CONFIG)
    assert_close(np.concatenate(logits, axis=1), whole, MODEL)


def test_both_engines_score_and_remember_alike():
    """Where the twin cannot tell that it is past the cache's end, NaN does."""
    ours = make_cache(CONFIG, batch=2, length=11, dtype=np.float64)
    theirs = twins.make_cache(CONFIG, batch=2, length=11, dtype=np.float64)
    for start, stop in [(0, 3), (3, 6), (6, 7), (7, 8), (8, 11)]:
        tokens, old = TEXTS[:, start:stop], theirs
        expected = decode(PARAMS, ours, tokens=tokens, start=start, config=CONFIG)
        logits, theirs = COMPILED(PARAMS, old, tokens=tokens, start=start)
        assert_close((logits, theirs), (expected, ours), MODEL)
        assert old.is_deleted()
    past_the_end, _ = COMPILED(PARAMS, theirs, tokens=TEXTS[:, 8:11], start=9)
    assert np.isnan(past_the_end).all()


def test_what_lies_in_the_cache_ahead_is_not_seen():
    """By the twin, which looks at the whole cache, through a mask: exactly."""
    logits = [
        COMPILED(PARAMS, cache_of(11, filled=filled), tokens=TEXTS[:, :3], start=0)[0]
        for filled in (0.0, 3.0, -8.0)
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])


def test_precision_stays_what_it_was():
    params = cast(PARAMS, np.float32)
    cache = cache_of(5, dtype=np.float32, filled=0)
    assert decode(params, cache, tokens=TEXTS[:, :3], start=0, config=CONFIG).dtype == np.float32
    logits, new_cache = COMPILED(params, cache, tokens=TEXTS[:, :3], start=0)
    assert logits.dtype == new_cache.dtype == np.float32


@pytest.mark.parametrize(
    "shape, start, message",
    [
        ((2, 2, 2, 3, 11, 5), 9, "3 tokens from position 9 on .* a cache of 11 .* from 0 to 8"),
        ((2, 2, 2, 3, 11, 5), -1, "3 tokens from position -1 on"),
        ((2, 2, 1, 3, 11, 5), 0, r"cache has shape \(2, 2, 1, .* need \(2, 2, 2, 3, 11, 5\)"),
        ((3, 2, 2, 3, 11, 5), 0, r"cache has shape \(3, "),
        ((2, 2, 2, 3, 14, 5), 0, "2 sequences of 14 tokens; .* from 1 to the model's context, 13"),
        ((7,), 0, "2 sequences of 0 tokens"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(shape, start, message):
    cache, tokens = np.zeros(shape), TEXTS[:, :3]
    with pytest.raises(InputError, match=message) as ours:
        decode(PARAMS, cache, tokens=tokens, start=start, config=CONFIG)
    assert not cache.any()
    with pytest.raises(InputError) as theirs:
        TWIN(PARAMS, cache, tokens=tokens, start=start)
    assert str(theirs.value) == str(ours.value)


def test_bad_tokens_are_refused_before_the_cache_is_written():
    cache = cache_of(11, filled=0)
    bad = (TEXTS[:, :3] + 17, InputError), (TEXTS[:, :3] / 1, DtypeError), (TEXTS[0], InputError)
    for tokens, error in (*bad, (TEXTS[:, :0], InputError)):
        with pytest.raises(error):
            decode(PARAMS, cache, tokens=tokens, start=0, config=CONFIG)
        with pytest.raises(error):
            TWIN(PARAMS, cache, tokens=tokens, start=0)
    assert not cache.any()


@pytest.mark.parametrize("make", [make_cache, twins.make_cache])
def test_a_cache_longer_than_the_context_or_for_nobody_is_not_made(make):
    assert make(CONFIG, batch=4, length=13, dtype=np.float32).shape == (2, 2, 4, 3, 13, 5)
    for batch, length in ((4, 14), (4, 0), (0, 13)):
        with pytest.raises(InputError, match=f"{batch} sequences of {length} tokens"):
            make(CONFIG, batch=batch, length=length, dtype=np.float32)


# The text


@pytest.mark.parametrize("top_k, temperature", [(None, 1.0), (4, 2.0)])
def test_generation_asks_the_whole_model_for_each_token(top_k, temperature):
    """The definition: no cache, all of the text read again, token i drawn with fold_in(key, i)."""
    text = TEXTS[0, :4].tolist()
    for i in range(9):
        logits = gpt(PARAMS, tokens=np.array([text]), config=CONFIG)[0][0, -1]
        options = {"temperature": temperature, "top_k": top_k}
        text.append(int(sample(random.fold_in(KEY, i), logits, **options)))
    written = generate(PARAMS, tokens=TEXTS[0, :4], steps=9, config=CONFIG, key=KEY, **options)
    np.testing.assert_array_equal(written, text[4:])


LLAMA = LlamaConfig(19, 13, 2, 4, 2, 16, 10, window=5, base=50.0)
LLAMA_PARAMS = read_only(
    random_like(
        initial_llama_params(LLAMA, key=random.key(0), dtype=np.float64), np.random.default_rng(2)
    )
)
MODELS = {"gpt": (CONFIG, PARAMS), "llama": (LLAMA, LLAMA_PARAMS)}
each_model = pytest.mark.parametrize("config, params", MODELS.values(), ids=MODELS)


@given(st.integers(1, 13), st.integers(1, 13))
def test_a_llama_read_in_two_pieces_has_the_logits_of_the_whole(end, cut):
    """With grouped heads, a window, and positions that turn.

    Turns red if keys are kept before they are turned, or turned by places from 0 on.
    """
    cut, cache = min(cut, end), make_cache(LLAMA, batch=2, length=13, dtype=np.float64)
    pieces = [(0, cut), (cut, end)] if cut < end else [(0, end)]
    logits = [
        decode(LLAMA_PARAMS, cache, tokens=TEXTS[:, a:b], start=a, config=LLAMA) for a, b in pieces
    ]
    whole, _ = llama(LLAMA_PARAMS, tokens=TEXTS[:, :end], config=LLAMA)
    assert_close(np.concatenate(logits, axis=1), whole, MODEL)


PROMPTS = [TEXTS[0, :5], TEXTS[1, :2], TEXTS[1, 3:9], TEXTS[0, 7:8]]
WAYS = {
    "greedy": {},
    "drawn": {"key": KEY},
    "restricted": {"key": KEY, "temperature": 2.0, "top_p": 0.8, "min_p": 0.05, "top_k": 9},
    "not again": {"repetition_penalty": 1.7},
    "stopping": {"key": KEY, "temperature": 3.0, "stop": (2, 4, 5, 7, 11, 16)},
}


@each_model
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_batch_of_prompts_is_each_of_them_alone_in_both_engines(config, params, options):
    """Of different lengths, and ended at different times.

    Turns red if a row of the twin's cache begins where another's does, or if padding is seen.
    """
    task = {"steps": 6, "config": config} | options
    ours, theirs = (engine(params, tokens=PROMPTS, **task) for engine in GENERATE)
    key = task.pop("key", None)
    for b, prompt in enumerate(PROMPTS):
        own = None if key is None else random.fold_in(key, b)
        alone = generate(params, tokens=prompt, **task, key=own)
        np.testing.assert_array_equal(ours[b], alone)
        np.testing.assert_array_equal(theirs[b], alone)
    if "stop" in options:
        assert len({len(row) for row in ours}) > 1
        assert all(len(row) == 6 or row[-1] in options["stop"] for row in ours)
        assert not any(set(row[:-1].tolist()) & set(options["stop"]) for row in ours)


def test_what_hugging_face_writes_from_a_padded_batch_is_the_same():
    """Greedy, with an end; and one alone with a repetition penalty, which there counts padding."""
    torch, transformers = peer("torch"), peer("transformers")
    settings = transformers.GPT2Config(
        **{"vocab_size": 19, "n_positions": 13, "n_layer": 2, "n_head": 3, "n_embd": 15},
        bos_token_id=0,
        eos_token_id=11,
        pad_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(settings).eval()
    torch.manual_seed(1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config, params = load(folder)
    longest = max(map(len, PROMPTS))
    padded = torch.zeros(len(PROMPTS), longest, dtype=torch.long)
    for row, prompt in zip(padded, PROMPTS, strict=True):
        row[longest - len(prompt) :] = torch.tensor(prompt)
    kept = torch.arange(longest) >= longest - torch.tensor([[len(p)] for p in PROMPTS])
    options = {"max_new_tokens": 7, "do_sample": False, "attention_mask": kept.long()}
    found = model.generate(padded, **options)[:, longest:].numpy()
    task = {"tokens": PROMPTS, "steps": 7, "config": config, "stop": (11,)}
    for engine in GENERATE:
        for ours, theirs in zip(engine(params, **task), found, strict=True):
            np.testing.assert_array_equal(ours, theirs[: len(ours)])
            assert len(ours) == 7 or ours[-1] == 11
    options = {"max_new_tokens": 7, "do_sample": False, "repetition_penalty": 1.3}
    alone = torch.tensor(PROMPTS[2][None])
    expected = model.generate(alone, attention_mask=torch.ones_like(alone), **options)[0, 6:]
    (ours,) = generate(params, **task | {"tokens": PROMPTS[2:3]}, repetition_penalty=1.3)
    np.testing.assert_array_equal(ours, expected.numpy()[: len(ours)])


def test_a_model_that_does_not_write_is_refused():
    with pytest.raises(InputError, match="config is a tuple; give one of"):
        generate(PARAMS, tokens=TEXTS[0, :4], steps=2, config=(1, 2))


# At, below and above the powers of two that prompts and caches are padded to, and up to the end.
LENGTHS = ((1, 12), (4, 4), (5, 3), (5, 8), (8, 4), (9, 4), (12, 1))
DRAWN, BOLD = {"key": KEY}, {"key": KEY, "temperature": 0.5}
FEW = {"key": KEY, "temperature": 3.0, "top_k": 4}


@pytest.mark.parametrize(
    "length, steps, options",
    [(*lengths, DRAWN) for lengths in LENGTHS]
    + [(*lengths, options) for lengths in ((5, 8), (8, 3)) for options in ({}, BOLD, FEW)],
)
def test_both_engines_write_the_same_text(length, steps, options):
    prompt = read_only(TEXTS[1, :length])
    ours, theirs = (
        engine(PARAMS, tokens=prompt, steps=steps, config=CONFIG, **options) for engine in GENERATE
    )
    assert ours.dtype == theirs.dtype == np.int64 and ours.shape == (steps,)
    assert isinstance(theirs, np.ndarray)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("engine", GENERATE)
def test_temperature_0_is_greedy_whatever_the_key(engine):
    task = {"tokens": TEXTS[0, :5], "steps": 7, "config": CONFIG}
    greedy = engine(PARAMS, **task)
    np.testing.assert_array_equal(greedy, engine(PARAMS, **task, key=KEY, temperature=0))
    assert (greedy != engine(PARAMS, **task, key=KEY, temperature=3.0)).any()


def test_lengths_keys_and_temperatures_share_a_compilation():
    def run(length, steps, **options):
        twins.generate(PARAMS, tokens=TEXTS[0, :length], steps=steps, config=CONFIG, **options)

    run(5, 8, key=KEY)
    compilations = twins.write._cache_size()
    for length, steps in ((5, 4), (6, 3), (7, 5), (8, 1), (8, 5)):
        run(length, steps, key=random.key(length), temperature=0.1 * length)
    assert twins.write._cache_size() == compilations


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tokens": TEXTS[0, :0]}, "the prompt has no tokens; give a text that encodes to one"),
        ({"tokens": TEXTS}, r"tokens has shape \(2, 13\); give those of one text, \(T,\)"),
        ({"tokens": [1, 2]}, "tokens is a int; give an array of integers"),
        ({"tokens": []}, "tokens is an empty list; give one prompt at least"),
        ({"stop": (19,)}, r"stop\[0\] is 19, outside the vocabulary"),
        ({"top_p": 0.0}, r"top_p is 0.0; give a number in \(0, 1\], or None"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; give a number"),
        ({"tokens": np.array([3, 1, 19])}, r"tokens\[2\] is 19, outside the vocabulary \[0, 19\)"),
        ({"steps": 0}, "steps is 0; give the number of new tokens"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": 10}, "a prompt of 4 tokens and 10 new ones are 14, .* 13; shorten the prompt"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": np.inf}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 20}, "top_k is 20; give an integer from 1 to the vocabulary's 19"),
        ({"key": 7}, "key is int64 of shape"),
        ({"key": np.zeros(2)}, "key is float64"),
    ],
)
def test_what_no_text_can_be_made_from_is_refused_alike(options, message):
    task = {"tokens": TEXTS[0, :4], "steps": 2, "config": CONFIG} | options
    with pytest.raises(InputError, match=message) as ours:
        generate(PARAMS, **task)
    with pytest.raises(InputError) as theirs:
        twins.generate(PARAMS, **task)
    assert str(theirs.value) == str(ours.value) and theirs.type == ours.type


@pytest.mark.parametrize("engine", GENERATE)
def test_logits_that_are_not_finite_are_refused_where_a_token_is_drawn_from_them(engine):
    """The fourth new token after 4 would be drawn from those of position 6."""
    table = PARAMS["position"]["embedding"].copy()
    table[6] = np.nan
    params = PARAMS | {"position": {"embedding": table}}
    task = {"tokens": TEXTS[0, :4], "config": CONFIG, "key": KEY}
    assert (engine(params, steps=3, **task) >= 0).all()
    with pytest.raises(InputError, match="not finite: the weights are damaged"):
        engine(params, steps=4, **task)
