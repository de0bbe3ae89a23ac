"""BLEU, ROUGE and perplexity."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.errors import DtypeError, InputError
from reference.metrics.bleu import bleu
from reference.metrics.perplexity import bits_per_byte, perplexity
from reference.metrics.rouge import rouge
from tests.peers import peer

SENTENCES = st.lists(st.sampled_from("the cats sat on a mat , cat .".split()), max_size=9).map(
    " ".join
)
FEW = settings(max_examples=50)


@FEW
@given(st.lists(st.tuples(SENTENCES, SENTENCES, SENTENCES), min_size=1, max_size=4), st.booleans())
def test_bleu_equals_sacrebleus(rows, two):
    """Turns red if references and translations change places, or references their order."""
    first, second, translations = map(list, zip(*rows, strict=True))
    theirs = peer("sacrebleu").corpus_bleu(translations, [first, second] if two else [first])
    found = bleu(list(zip(first, second, strict=True)) if two else first, translations)
    assert found.score == theirs.score
    assert f"nrefs:{1 + two}|" in found.signature and "tok:13a" in found.signature


def test_bleu_cuts_words_as_asked():
    peer("sacrebleu")
    assert bleu(["ab cd"], ["ab ce"], tokenize="char").score > bleu(["ab cd"], ["ab ce"]).score


@FEW
@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=4), st.booleans())
def test_rouge_is_the_mean_of_rouge_scores(rows, stem):
    """Turns red if words are stemmed always or never, or precision is taken for F1."""
    scorer = peer("rouge_score.rouge_scorer")
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    theirs = scorer.RougeScorer(kinds, use_stemmer=stem)
    rows = [(f"cats {a}", b) for a, b in rows]
    scores = [theirs.score(a, b) for a, b in rows]
    found = rouge([a for a, _ in rows], [b for _, b in rows], stem=stem)
    assert list(found) == kinds
    for kind in kinds:
        assert found[kind] == pytest.approx(np.mean([row[kind].fmeasure for row in scores]))


def test_rouge_of_another_script_does_not_count_as_0():
    peer("rouge_score")
    with pytest.raises(InputError, match=r"expected\[0\] is 'привет мир'.*words=str.split"):
        rouge(["привет мир"], ["привет"])
    found = rouge(["привет мир"], ["привет"], words=str.split)
    assert found["rouge1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("metric", [bleu, rouge])
@pytest.mark.parametrize(
    ("expected", "predicted", "error", "message"),
    [
        (["a"], ["a", "b"], InputError, "expected has 1 rows and predicted 2"),
        ([], [], InputError, "no rows"),
        ("a", ["a"], DtypeError, "expected is of type str"),
        (["a"], [None], DtypeError, r"predicted\[0\] is of type NoneType"),
    ],
)
def test_bad_texts(metric, expected, predicted, error, message):
    peer("sacrebleu"), peer("rouge_score")
    with pytest.raises(error, match=message):
        metric(expected, predicted)


def test_other_bad_input():
    peer("sacrebleu"), peer("rouge_score")
    with pytest.raises(InputError, match=r"expected\[1\] has 0 references and expected\[0\] 1"):
        bleu([["a"], []], ["a", "a"])
    with pytest.raises(DtypeError, match=r"expected\[0\]\[1\] is of type int"):
        bleu([["a", 1]], ["a"])
    with pytest.raises(InputError, match="tokenize is 'words', and must be one of"):
        bleu(["a"], ["a"], tokenize="words")
    with pytest.raises(InputError, match="either stem or words"):
        rouge(["a"], ["a"], stem=True, words=str.split)


@pytest.mark.parametrize(
    ("metric", "module", "library"),
    [(bleu, "sacrebleu.metrics", "sacrebleu"), (rouge, "rouge_score.rouge_scorer", "rouge-score")],
)
def test_a_library_that_is_missing_is_named(monkeypatch, metric, module, library):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"pip install {library}$"):
        metric(["a"], ["a"])


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 50)), min_size=1, max_size=5))
def test_perplexity_is_of_tokens_not_of_batches(batches):
    """Turns red if the batches' means are averaged."""
    losses, tokens = zip(*batches, strict=True)
    each = np.repeat(losses, tokens)
    assert perplexity(losses, tokens) == pytest.approx(math.exp(each.mean()))
    bits = each.sum() / math.log(2)
    assert bits_per_byte(np.array(losses), tokens, 7) == pytest.approx(bits / 7)


def test_a_model_that_knows_nothing_is_in_doubt_among_all():
    assert perplexity([math.log(65)], [3]) == pytest.approx(65)
    assert perplexity([1e6], [1]) == math.inf
    assert bits_per_byte([math.log(256)], [5], 5) == pytest.approx(8)


@pytest.mark.parametrize(
    ("losses", "tokens", "message"),
    [
        ([], [], "no rows"),
        ([1.0], [1, 2], "losses has 1 rows and tokens 2"),
        ([math.nan], [1], r"losses\[0\] is nan"),
        ([1.0, math.inf], [1, 1], r"losses\[1\] is inf"),
        ([1.0], [0.5], r"tokens\[0\] is 0.5"),
        ([1.0], [-1], r"tokens\[0\] is -1"),
        ([1.0], [0], "no token"),
    ],
)
def test_bad_losses(losses, tokens, message):
    with pytest.raises(InputError, match=message):
        perplexity(losses, tokens)
    with pytest.raises(InputError):
        bits_per_byte(losses, tokens, 7)


def test_a_text_has_bytes():
    with pytest.raises(InputError, match="bytes_of_text is 0"):
        bits_per_byte([1.0], [1], 0)
