"""BLEU, how much of a translation stands in others' translations of the same: by sacrebleu.

    BLEU = min(1, e^(1 − r/c)) · exp(Σₙ ln pₙ / 4),  n = 1 … 4

pₙ is the share of the translations' rows of n words that the references have too, counted over the
whole corpus; c and r are the lengths of both, lest a short translation of sure words win.  What a
word is changes the number by several points, so it is computed by the one library, and its
signature goes with it.

Source: Papineni et al. 2002, sec. 2.3; Post 2018 (sacrebleu).
"""

from dataclasses import dataclass

from reference.errors import InputError
from reference.metrics.checks import check_texts, missing_library, pairs

TOKENIZERS = ("13a", "intl", "zh", "char", "none")  # the others need models or more libraries


@dataclass(frozen=True)
class Bleu:
    """A corpus's BLEU, 0 to 100, and what it was computed with."""

    score: float
    signature: str


def bleu(expected, predicted, *, tokenize="13a"):
    """The BLEU of translations -> Bleu.

    predicted (N,): texts.  expected (N,): the reference of each, or a list of references, as many
    for each.  tokenize: how sacrebleu cuts words: "13a" as WMT, "intl" by Unicode's
    classes, "zh" Chinese characters apart, "char" all apart, "none" at blanks.
    Raises InputError where sacrebleu is missing, for no rows, two lengths, another `tokenize`.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise missing_library("sacrebleu", "BLEU") from None
    references, translations = pairs(expected, predicted)
    check_texts("predicted", translations)
    rows = [[row] if isinstance(row, str) else list(row) for row in references]
    for i, row in enumerate(rows):
        check_texts(f"expected[{i}]", row)
        if not row or len(row) != len(rows[0]):
            raise InputError(
                f"expected[{i}] has {len(row)} references and expected[0] {len(rows[0])}: give as "
                "many for each, and at least one"
            )
    if tokenize not in TOKENIZERS:
        raise InputError(f"tokenize is {tokenize!r}, and must be one of {list(TOKENIZERS)}")
    metric = BLEU(tokenize=tokenize)
    result = metric.corpus_score(translations, [list(column) for column in zip(*rows, strict=True)])
    return Bleu(float(result.score), str(metric.get_signature()))
