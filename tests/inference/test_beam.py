import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accelerated.inference.beam as twins
import reference.inference.beam as beam
from reference import random, tree
from reference.errors import DtypeError, InputError
from reference.inference.beam import STOPS, beam_generate, beam_search, scored, translate
from reference.inference.decoding import generate
from reference.models.bert import BertConfig
from reference.models.gpt import GPTConfig
from reference.models.gpt import initial_params as gpt_params
from reference.models.llama import LlamaConfig
from reference.models.llama import initial_params as llama_params
from reference.models.transformer import TransformerConfig, initial_params, transformer
from reference.pretrained import save
from tests.mirror import cast, random_like
from tests.peers import peer

MARIAN = TransformerConfig(
    *(23, 40, 2, 3, 12, 20),
    **{"positions": "marian", "activation": "silu", "attention_bias": True, "output_bias": True},
    **{"epsilon": 1e-5, "smoothing": 0.0, "pad": 22, "end": 0},
)
RELEASED = TransformerConfig(23, 40, 1, 2, 12, 20, wiring="pre", positions="concatenated", end=4)
GPT = GPTConfig(vocabulary=19, context=24, layers=2, heads=3, width=12)
LLAMA = LlamaConfig(19, 24, 1, 4, 2, 16, 20)
KEPT = np.arange(7) < np.array([7, 4, 6, 2])[:, None]
EARLY = dict(zip(STOPS, ("never", False, True), strict=True))  # Hugging Face's early_stopping


def translator(config, seed=2):
    """Parameters with which translations end early and late, and differ by their sources."""
    rng = np.random.default_rng(seed)
    flat = tree.flatten(initial_params(config, key=random.key(seed)))
    for path, a in flat.items():
        if path.endswith("kernel"):
            flat[path] = a * np.float32(4 if "cross" in path else 2)
        elif path.endswith("bias"):
            flat[path] = np.float32(0.1) * rng.standard_normal(a.shape).astype(np.float32)
    if "output.bias" in flat:
        flat["output.bias"][config.end] = 2
    return tree.unflatten(flat)


def writer(config, made):
    """Parameters of a decoder, of which each one matters."""
    new = made(config, key=random.key(0), dtype=np.float64)
    params = random_like(new, np.random.default_rng(0))
    return params | {"token": tree.map(lambda a: a / 2, params["token"])}


def sources(pad, seed=3):
    tokens = np.random.default_rng(seed).integers(1, 21, (4, 7))
    return {"source": np.where(KEPT, tokens, pad), "source_kept": KEPT}


PROMPTS = np.random.default_rng(1).integers(0, 19, (2, 5))


# The search itself, with a made-up model


def table_of(seed, vocabulary):
    """Log-probabilities of what comes next that depend on the whole text: a hash of it."""

    def scores_of_next(tokens):
        logits = [
            np.random.default_rng([seed, *map(int, row)]).standard_normal(vocabulary)
            for row in tokens
        ]
        return scored(2 * np.array(logits)[:, None])

    return scores_of_next


def every_text(scores_of_next, begun, steps, end, vocabulary):
    """All texts that end or have `steps` tokens, with log p: the definition."""
    for length in range(1, steps + 1):
        for text in itertools.product(range(vocabulary), repeat=length):
            done = (text[-1] == end) if length < steps else True
            if done and end not in text[:-1]:
                total = 0.0
                for i, token in enumerate(text):
                    total += scores_of_next(np.array([[*begun, *text[:i]]]))[0, token]
                yield text, total


PENALTY = {
    "paper": lambda n, alpha: ((5 + n) / 6) ** alpha,
    "hugging_face": lambda n, alpha: n**alpha,
}


@settings(max_examples=15)
@given(st.integers(0, 2**16), st.sampled_from([-0.7, 0.0, 0.6, 2.0]), st.sampled_from([*PENALTY]))
def test_a_wide_beam_finds_the_best_of_all_texts_in_order(seed, alpha, penalty):
    """Turns red if an end's own place does not count as length, or a finished text is lost to a
    worse one.
    """
    model, begun = table_of(seed, 3), [1, 0]
    texts = dict(every_text(model, begun, 4, 2, 3))
    scored_texts = [(total / PENALTY[penalty](len(t), alpha), t) for t, total in texts.items()]
    expected = sorted(scored_texts, reverse=True)[:24]
    options = {"alpha": alpha, "penalty": penalty, "beams": 24, "pad": 9}
    found = beam_search(model, tokens=np.array([begun, begun]), steps=4, end=2, **options)
    for b in range(2):
        rows = zip(found.tokens[b], found.lengths[b], found.scores[b], strict=True)
        texts = [(score, tuple(row[:n])) for row, n, score in rows]
        assert [text for _, text in texts] == [text for _, text in expected]
        np.testing.assert_allclose([s for s, _ in texts], [s for s, _ in expected], rtol=1e-12)
        assert all((row[n:] == 9).all() for row, n, _ in zip(*(a[b] for a in found), strict=True))


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.sampled_from([0.0, 0.6, 2.0]), st.integers(1, 4))
def test_texts_of_a_batch_do_not_meet_and_a_bound_loses_nothing(seed, alpha, beams):
    """Turns red if parents are counted across the batch, or "bound" goes by the present length."""
    model, tokens = table_of(seed, 5), np.array([[1], [2], [3]])
    options = {"steps": 6, "end": 0, "alpha": alpha, "beams": beams}
    found = beam_search(model, tokens=tokens, **options)
    for b in range(3):
        alone = beam_search(model, tokens=tokens[b : b + 1], **options)
        for a, one in zip(found, alone, strict=True):
            np.testing.assert_array_equal(a[b], one[0])
    assert (np.diff(found.scores, axis=1) <= 0).all()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(beam, "may_improve", lambda best, *_: best > -np.inf)
        to_the_end = beam_search(model, tokens=tokens, **options)
    for a, b in zip(found, to_the_end, strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.sampled_from([0.0, 3.0]), st.sampled_from(["full", "bound"]))
def test_one_beam_is_greedy(seed, alpha, stop):
    """Where it stops at the first end; without a penalty "bound" does, for no longer text is
    likelier.  Turns red if the second best continues after an end.
    """
    model, text = table_of(seed, 4), [3]
    while len(text) < 8 and text[-1] != 0:
        text.append(int(model(np.array([text]))[0].argmax()))
    stop = "full" if alpha else stop
    options = {"steps": 7, "end": 0, "beams": 1, "alpha": alpha, "stop": stop}
    found = beam_search(model, tokens=np.array([[3]]), **options)
    assert found.lengths == [[len(text) - 1]]
    assert found.tokens[0, 0, : len(text) - 1].tolist() == text[1:]


def test_several_ends_or_none():
    """Turns red if only the first end ends a text, or too few continuations are looked at: the two
    likeliest are ends here.
    """

    def model(tokens):
        return np.log(np.array([[0.3, 0.1, 0.5, 0.07, 0.03]] * len(tokens)))

    options = {"tokens": np.array([[1]]), "steps": 3, "beams": 1, "penalty": "hugging_face"}
    found = beam_search(model, **options, end=(0, 2), alpha=0.0)
    assert found.tokens.tolist() == [[[2, 0, 0]]] and found.lengths == [[1]]
    found = beam_search(model, **options, end=(0, 2), alpha=9.0)
    assert found.tokens.tolist() == [[[1, 1, 2]]]
    assert beam_search(model, **options, end=None).tokens.tolist() == [[[2, 2, 2]]]


def test_fewer_texts_than_beams_have_no_score():
    """Two tokens, one of which ends: of two steps there are three texts."""
    found = beam_search(table_of(0, 2), tokens=np.array([[1]]), steps=2, end=0, beams=5)
    assert np.isfinite(found.scores).tolist() == [[True, True, True, False, False]]
    assert found.lengths.tolist()[0][3:] == [0, 0]


def test_log_probabilities_that_are_nan_are_refused():
    with pytest.raises(InputError, match="not finite"):
        beam_search(
            lambda tokens: np.full((len(tokens), 3), np.nan), tokens=np.array([[1]]), steps=2, end=0
        )


# With models: both engines, and Hugging Face's


def assert_same(actual, expected, rtol=1e-9):
    np.testing.assert_array_equal(actual.tokens, expected.tokens)
    np.testing.assert_array_equal(actual.lengths, expected.lengths)
    np.testing.assert_allclose(actual.scores, expected.scores, rtol=rtol)
    for a, b in zip(actual, expected, strict=True):
        assert type(a) is type(b) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beam") / "marian"
    save(folder, MARIAN, translator(MARIAN))
    model = peer("transformers").MarianMTModel.from_pretrained(folder)
    return model.eval()


HUGGING_FACE = [
    ("bound", 3, 1.0, 11),
    ("current", 3, 1.0, 10),
    ("bound", 3, 0.0, 9),
    ("current", 3, 2.0, 11),
    ("full", 3, 1.0, 11),
    ("full", 3, 0.6, 8),
]


@pytest.mark.parametrize("stop, beams, alpha, steps", HUGGING_FACE)
def test_both_engines_translate_as_hugging_face_does(marian, stop, beams, alpha, steps):
    """All k hypotheses and their scores, of sources of different lengths, some of which end early
    and some late.
    """
    torch, batch = peer("torch"), sources(MARIAN.pad)
    expected = marian.generate(
        input_ids=torch.tensor(batch["source"]),
        attention_mask=torch.tensor(KEPT).long(),
        **{"num_beams": beams, "num_return_sequences": beams, "do_sample": False},
        **{"max_new_tokens": steps, "length_penalty": alpha, "early_stopping": EARLY[stop]},
        **{"return_dict_in_generate": True, "output_scores": True},
    )
    written = expected.sequences.numpy().reshape(4, beams, -1)[:, :, 1:]
    options = {"steps": steps, "beams": beams, "alpha": alpha, "stop": stop}
    options |= {"penalty": "hugging_face", "config": MARIAN}
    params = translator(MARIAN)
    for engine in (translate, twins.translate):
        found = engine(params, **batch, **options)
        longest = found.lengths.max()
        assert longest == written.shape[2]
        np.testing.assert_array_equal(found.tokens[:, :, :longest], written)
        scores = expected.sequences_scores.numpy().reshape(4, beams)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-4)
        assert found.scores.dtype == np.float32


def test_what_is_compared_with_hugging_face_tells_the_rules_apart():
    params, batch = translator(MARIAN), sources(MARIAN.pad)
    options = {"config": MARIAN, "penalty": "hugging_face", "alpha": 1.0, "steps": 11, "beams": 3}
    found = [translate(params, **batch, **options, stop=stop) for stop in STOPS]
    assert len({each.tokens.tobytes() for each in found}) == 3
    assert len(set(found[0].lengths.ravel())) > 3


def test_both_engines_translate_alike_in_float64():
    """Of the released form, with the paper's penalty.  Turns red if a beam's cache is not its
    parent's.
    """
    params = cast(translator(RELEASED, seed=5), np.float64)
    for steps, alpha in ((13, 0.6), (9, 0.0)):
        options = {"config": RELEASED, "steps": steps, "alpha": alpha}
        ours, theirs = (
            engine(params, **sources(0), **options) for engine in (translate, twins.translate)
        )
        assert_same(theirs, ours)
    # Each is scored as the model scores it.
    n = ours.lengths[0, 0]
    tokens = np.concatenate([[RELEASED.pad], ours.tokens[0, 0, :n]])
    logits, _ = transformer(
        params, source=sources(0)["source"][:1], tokens=tokens[None, :-1], config=RELEASED
    )
    each = scored(logits.swapaxes(0, 1))[np.arange(n), tokens[1:]]
    np.testing.assert_allclose(ours.scores[0, 0], each.sum(), rtol=1e-9)


def test_by_default_a_translation_has_room_for_50_more_tokens_than_its_source():
    """As far as the context goes, here to 39."""
    found = translate(translator(RELEASED), config=RELEASED, source=np.ones((1, 7), int), beams=2)
    assert found.tokens.shape == (1, 2, 39)
    config = replace(RELEASED, context=90, end=5)
    found = translate(translator(config), config=config, source=np.ones((1, 3), int), beams=1)
    assert found.tokens.shape == (1, 1, 53)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beam") / "gpt2"
    save(folder, GPT, cast(writer(GPT, gpt_params), np.float32))
    return peer("transformers").GPT2LMHeadModel.from_pretrained(folder).eval()


@pytest.mark.parametrize(
    "stop, alpha, steps, end", [("current", 1.0, 8, 15), ("bound", 0.5, 7, 15)]
)
def test_both_engines_go_on_as_hugging_face_s_gpt_2_does(gpt2, stop, alpha, steps, end):
    torch = peer("torch")
    expected = gpt2.generate(
        input_ids=torch.tensor(PROMPTS),
        attention_mask=torch.ones(2, 5, dtype=torch.long),
        **{"num_beams": 4, "num_return_sequences": 4, "do_sample": False, "eos_token_id": end},
        **{"max_new_tokens": steps, "length_penalty": alpha, "early_stopping": EARLY[stop]},
        pad_token_id=18,
    )
    written = expected.numpy().reshape(2, 4, -1)[:, :, 5:]
    params = writer(GPT, gpt_params)
    options = {"tokens": PROMPTS, "steps": steps, "end": end, "alpha": alpha, "stop": stop}
    options |= {"penalty": "hugging_face", "pad": 18, "config": GPT}
    ours, theirs = (engine(params, **options) for engine in (beam_generate, twins.beam_generate))
    assert_same(theirs, ours)
    np.testing.assert_array_equal(ours.tokens[:, :, : written.shape[2]], written)
    assert len(set(ours.lengths.ravel())) > 1


def test_llama_goes_on_alike_and_with_one_beam_greedily():
    params = writer(LLAMA, llama_params)
    options = {"tokens": PROMPTS, "steps": 6, "end": 7, "config": LLAMA, "beams": 1, "alpha": 0.0}
    ours, theirs = (engine(params, **options) for engine in (beam_generate, twins.beam_generate))
    assert_same(theirs, ours)
    for prompt, row, n in zip(PROMPTS, ours.tokens[:, 0], ours.lengths[:, 0], strict=True):
        greedy = generate(params, tokens=prompt, steps=6, config=LLAMA)
        np.testing.assert_array_equal(row[:n], greedy[:n])
        assert n == 6 or row[n - 1] == 7


def test_lengths_penalties_and_bounds_share_a_compilation():
    """Turns red if one of them is compiled in."""
    params, before = translator(MARIAN), twins.go_over._cache_size()
    for width, steps, alpha, penalty, stop in (
        (5, 15, 0.6, "paper", "bound"),
        (8, 9, 1.0, "hugging_face", "current"),
        (6, 12, 0.0, "paper", "full"),
    ):
        source = np.ones((4, width), int)
        options = {"alpha": alpha, "penalty": penalty, "stop": stop, "beams": 3, "steps": steps}
        twins.translate(params, source=source, config=MARIAN, **options)
    assert twins.go_over._cache_size() <= before + 1


# Bad input

BOTH = pytest.mark.parametrize("module", ["reference", "accelerated"])
GENERATE = {"reference": beam_generate, "accelerated": twins.beam_generate}
TRANSLATE = {"reference": translate, "accelerated": twins.translate}


@BOTH
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"beams": 0}, InputError, "beams is 0; give a positive integer"),
        ({"steps": 1.5}, InputError, "steps is 1.5; give a positive integer"),
        ({"steps": 20}, InputError, "prompts of 5 tokens and 20 new ones are 25, .* context is 24"),
        ({"tokens": PROMPTS[0]}, InputError, r"tokens has shape \(5,\); give \(B, T\)"),
        ({"tokens": PROMPTS[:, :0]}, InputError, r"tokens has shape \(2, 0\)"),
        ({"tokens": PROMPTS + 15}, InputError, r"tokens\[.*outside the vocabulary \[0, 19\)"),
        ({"tokens": PROMPTS / 1}, DtypeError, "tokens is of float64"),
        ({"alpha": np.nan}, InputError, "alpha is nan; give a number from -10 to 10"),
        ({"penalty": "none"}, InputError, "penalty is 'none'; give one of paper, hugging_face"),
        ({"stop": "early"}, InputError, "stop is 'early'; give one of bound, current, full"),
        ({"end": -1}, InputError, "end is -1; give a token, several, or None"),
        ({"end": "."}, InputError, "end is '.'"),
        ({"config": MARIAN}, InputError, "the model is a transformer, which does not write"),
    ],
)
def test_what_cannot_be_searched_is_refused_alike(module, change, error, message):
    task = {"tokens": PROMPTS, "steps": 3, "end": 3, "config": GPT} | change
    with pytest.raises(error, match=message):
        GENERATE[module](writer(GPT, gpt_params), **task)


@BOTH
@pytest.mark.parametrize(
    "change, message",
    [
        ({"config": GPT}, "the model is a gpt; give a transformer"),
        ({"config": BertConfig}, "config is a type"),
        ({"source": np.full((4, 7), 23)}, r"source\[0, 0\] is 23"),
        ({"source_kept": KEPT[:, :3]}, r"source_kept has shape \(4, 3\)"),
        ({"beams": 1.5}, "beams is 1.5"),
        ({"steps": 40}, "prompts of 1 tokens and 40 new ones are 41"),
    ],
)
def test_what_cannot_be_translated_is_refused_alike(module, change, message):
    task = sources(22) | {"config": MARIAN} | change
    with pytest.raises(InputError, match=message):
        TRANSLATE[module](translator(MARIAN), **task)


@BOTH
def test_weights_that_are_damaged_are_refused(module):
    """In the twin after it has run, in the program that is compiled already."""
    params = translator(MARIAN)
    params["decoder"]["blocks"][1]["feed_forward"]["norm"]["bias"][3] = np.nan
    options = {"config": MARIAN, "steps": 11, "beams": 3}
    with pytest.raises(InputError, match="not finite: the weights are damaged"):
        TRANSLATE[module](params, **sources(MARIAN.pad), **options)
