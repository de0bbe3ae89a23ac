"""ROUGE, how much of a summary another has too: by the library rouge-score.

ROUGE-N is the F1 of rows of N words, ROUGE-L that of the longest row of words that both have in
this order, with others between; ROUGE-Lsum takes line by line.  The mean over texts is reported.

Source: Lin 2004, secs. 2 and 3.
"""

from types import SimpleNamespace

from reference.errors import InputError
from reference.metrics.checks import check_texts, missing_library, pairs

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(expected, predicted, *, stem=False, words=None):
    """The mean F1 of summaries, 0 to 1 -> {"rouge1": …, "rouge2": …, "rougeL": …, "rougeLsum": …}.

    expected, predicted (N,): texts.  stem: "cats" is "cat", as many papers count.  words: what cuts
    a text into words, such as str.split; None for the library's own, which knows a–z and 0–9 alone.

    Raises InputError where rouge-score is missing, for no rows, two lengths, `stem` with `words`,
    and for an expected summary without any word, such as one in another script: it would count 0.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError:
        raise missing_library("rouge-score", "ROUGE") from None
    summaries, guesses = pairs(expected, predicted)
    check_texts("expected", summaries)
    check_texts("predicted", guesses)
    if stem and words is not None:
        raise InputError("stem is for the library's own words: give either stem or words")
    cut = SimpleNamespace(tokenize=words) if words else DefaultTokenizer(stem)
    for i, text in enumerate(summaries):
        if not cut.tokenize(text):
            raise InputError(
                f"expected[{i}] is {text!r:.40}, in which there is no word: correct it, or give "
                "words=str.split where texts are not in the letters a to z"
            )
    scorer = RougeScorer(KINDS, tokenizer=cut)
    found = [scorer.score(a, b) for a, b in zip(summaries, guesses, strict=True)]
    return {kind: sum(row[kind].fmeasure for row in found) / len(found) for kind in KINDS}
