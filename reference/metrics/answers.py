"""Answers to questions on paragraphs, of which some have none: SQuAD 2.0's scores.

"the Rhine." is as good an answer as "Rhine", so texts are compared without case, punctuation and
articles; several people marked answers, and the one that fits best counts.  An answer of half the
words is worth something (F1).  A question without an answer is right if none was given: "".

Whether to answer at all is a decision of its own.  Where a model says how probable it is that there
is no answer, answers are withdrawn above a threshold, and the best threshold is looked for; it is
chosen on the same questions, so what it promises is a little too good.
"""

import re
from collections import Counter
from string import punctuation

from reference.errors import DtypeError, InputError
from reference.metrics.checks import check_texts

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", punctuation)


def normalized_answer(text):
    """An answer in lower case, without ASCII punctuation and articles, with single blanks.

    Source: Rajpurkar et al. 2018, released evaluate-v2.0.py (normalize_answer).
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def exact_match(predicted, answers):
    """1 if an answer is one of those that were marked, normalized, else 0; "" is no answer."""
    check_texts("predicted", [predicted])
    return max(int(normalized_answer(predicted) == answer) for answer in _allowed(answers))


def answer_f1(predicted, answers):
    """The words an answer has in common with the marked one that is most like it.

    With c words in common, of n predicted and m marked, repeated ones counted:
    2 (c/n) (c/m) / (c/n + c/m); where one of the two is no answer, 1 if both are, else 0.
    Source: Rajpurkar et al. 2016, sec. 6.1; 2018, released evaluate-v2.0.py (compute_f1).
    """
    check_texts("predicted", [predicted])
    words = normalized_answer(predicted).split()
    return max(_f1(words, answer.split()) for answer in _allowed(answers))


def _allowed(answers):
    """The normalized answers, "" if there are none or nothing remains of any."""
    if isinstance(answers, str):
        raise DtypeError("answers must be a list of str: put a single text in brackets")
    check_texts("answers", answers)
    return [text for text in map(normalized_answer, answers) if text] or [""]


def _f1(words, answer):
    if not words or not answer:
        return float(words == answer)
    common = (Counter(words) & Counter(answer)).total()
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(answer)
    return 2 * precision * recall / (precision + recall)


def squad_scores(questions, predicted, *, no_answer=None, threshold=1.0):
    """The scores of answers, in percent -> dict with the official script's names.

    questions: an iterable of Questions (`reference.data.squad`).  predicted {id: text}: "" where
    there is no answer.  no_answer {id: probability that there is none}: an answer is withdrawn
    where it is above the threshold; without it, none is.

    exact, f1, total; HasAns_… and NoAns_… the same of questions with and without answers, if there
    are some; and with `no_answer` best_exact, best_f1 and the thresholds (…_thresh) that give them.
    Raises InputError for no questions, for ids that are missing or of no question, and for
    probabilities that are none; DtypeError for a prediction that is not text.

    Source: Rajpurkar et al. 2018, released evaluate-v2.0.py.  Differs from it: there a question
    without a prediction is left out and the mean taken over the others.
    """
    listed = list(questions)
    answerable = {question.id: bool(question.answers) for question in listed}
    if not listed:
        raise InputError("there are no questions: give at least one")
    _check_ids("predicted", predicted, answerable)
    for name, text in predicted.items():
        check_texts(f"predicted[{name!r}]", [text])
    marked = {question.id: [text for text, _ in question.answers] for question in listed}
    scores = {
        "exact": {name: exact_match(predicted[name], marked[name]) for name in marked},
        "f1": {name: answer_f1(predicted[name], marked[name]) for name in marked},
    }
    if no_answer is None:
        return _means(scores, answerable)
    _check_ids("no_answer", no_answer, answerable)
    for name, probability in no_answer.items():
        if not 0 <= probability <= 1:
            raise InputError(
                f"no_answer[{name!r}] is {probability}, and must be a probability in [0, 1]: take "
                "the sigmoid of a difference of logits"
            )
    withdrawn = {name for name in answerable if no_answer[name] > threshold}
    kept = {
        metric: {n: float(not answerable[n]) if n in withdrawn else s for n, s in found.items()}
        for metric, found in scores.items()
    }
    result = _means(kept, answerable)
    for metric, found in scores.items():
        best = _best_threshold(predicted, found, no_answer, answerable)
        result[f"best_{metric}"], result[f"best_{metric}_thresh"] = best
    return result


def _check_ids(name, given, answerable):
    """Raise unless the given are of all questions, and of no others."""
    for missing in (question for question in answerable if question not in given):
        raise InputError(f"{name} has nothing for question {missing!r}: give one for each")
    for unknown in (question for question in given if question not in answerable):
        raise InputError(f"{name} has {unknown!r}, which is the id of no question: remove it")


def _means(scores, answerable):
    """In percent: of all questions, of those with an answer, of those without."""
    kinds = {"": list(answerable)}
    kinds["HasAns_"] = [name for name, has in answerable.items() if has]
    kinds["NoAns_"] = [name for name, has in answerable.items() if not has]
    result = {}
    for prefix, names in kinds.items():
        if names:
            for metric, found in scores.items():
                result[prefix + metric] = 100 * sum(found[name] for name in names) / len(names)
            result[prefix + "total"] = len(names)
    return result


def _best_threshold(predicted, scores, no_answer, answerable):
    """The highest mean score that withdrawing answers can give, and the threshold that does.

    Withdraw all: every question without an answer is right.  Then give answers back, the surest
    first: each adds its score, or takes 1 where there is no answer and one was given.  As in the
    official script, a threshold may so fall between two equal probabilities.
    """
    now = best = sum(not has for has in answerable.values())
    threshold = 0.0
    for name in sorted(no_answer, key=no_answer.get):
        now += scores[name] if answerable[name] else -bool(predicted[name])
        if now > best:
            best, threshold = now, no_answer[name]
    return 100 * best / len(scores), threshold
