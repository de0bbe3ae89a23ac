"""How a unigram language model learns which pieces there are, and how probable each is.

If the pieces were known, their probabilities could be found by counting them in the text; but how
the text is cut depends on the probabilities. Expectation maximization (EM) goes back and forth:

  E   Count each piece in all ways to cut each word, each way as much as it is probable. Two sums
      that grow with the word give that without going through the ways: α(m) of all ways to the
      first m characters, β(m) of all ways from there to the end. Then a piece x from m to n is in
          α(m) p(x) β(n) / α(end)
      of the ways.
  M   p(x) = count(x) / all counts. The text is more probable now than before, every time.

It starts with many more pieces than are wanted, those that occur most often for their length, and
after some rounds takes a fifth of them away: those that are missed least. If x is removed, its
places are cut in the best way without it, so the text loses about
    loss(x) = count(x) / N · (log p(x) − Σ log p(y) over the pieces y of x's best other way)
Single characters stay, so that every word can be cut. What is left has the size asked for.

Differs from the released code: the first pieces are counted one by one, up to 16 characters long,
where SentencePiece finds them by a suffix array; p(x) is the plain quotient, where it has a digamma
function that makes rare pieces rarer.
Source: Kudo 2018, sec. 3.2; SentencePiece, released code (unigram_model_trainer.cc) for the loss.
"""

from collections import Counter
from math import exp, inf, log, log1p

LONGEST = 16
FIRST_PIECES = 10  # times the size asked for, to begin with
ROUNDS = 2  # of EM between two prunings
KEPT = 0.8
MARGIN = 1.1  # times the size asked for, until the most probable are taken at the end
LEAST = 0.5  # a piece that is expected less often is taken away


def learn_pieces(words, size):
    """Pieces and the logarithms of their probabilities, the most probable first.

    words {str: int}: how often each occurs -> {piece: score}, all characters and at most `size`.
    Memory: all pieces of all words up to 16 characters.
    """
    words = dict(sorted(words.items()))  # sums of the same numbers in another order may differ
    characters = set().union(*words)
    scores = first_pieces(words, max(size * FIRST_PIECES, len(characters)))
    while scores:
        for _ in range(ROUNDS):
            scores = maximize(expected_counts(words, scores)[0], characters)
        if len(scores) <= size * MARGIN:
            break
        table = losses(words, scores)
        keep = max(int(size * MARGIN), int(KEPT * len(scores)))
        ranked = sorted(scores, key=lambda x: (x not in characters, -table[x], x))
        scores = {piece: scores[piece] for piece in ranked[:keep]}
    ranked = sorted(scores, key=lambda x: (x not in characters, -scores[x], x))
    scores = {piece: scores[piece] for piece in ranked[:size]}
    scores = maximize(expected_counts(words, scores)[0], scores)
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0])))


def first_pieces(words, number):
    """All characters, and of the longer pieces of words those with the most characters in all.

    words {str: int} -> {piece: score}, at most `number`.
    """
    counts = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + LONGEST) + 1):
                counts[word[start:end]] += count
    ranked = sorted(
        (piece for piece, count in counts.items() if count > 1 or len(piece) == 1),
        key=lambda piece: (len(piece) > 1, -counts[piece] * len(piece), piece),
    )
    chosen = {piece: counts[piece] * len(piece) for piece in ranked[:number]}
    return maximize(chosen, ())


def maximize(counts, characters):
    """The M step: scores {piece: log p} of counts; rare pieces go, but not these characters."""
    kept = {x: c for x, c in counts.items() if c >= LEAST or x in characters}
    total = log(sum(kept.values())) if kept else 0.0
    return {piece: log(max(count, 1e-10)) - total for piece, count in kept.items()}


def expected_counts(words, scores):
    """The E step: how often each piece occurs over all ways to cut the words, and log p(text).

    words {str: int}, scores {piece: log p} -> ({piece: count}, float).
    """
    tree, counts, likelihood = tree_of({x: x for x in scores}), dict.fromkeys(scores, 0.0), 0.0
    for word, count in words.items():
        spans = [(a, b, x, scores[x]) for a, b, x in spans_of(word, tree)]
        alpha, beta = [0.0] + [-inf] * len(word), [-inf] * len(word) + [0.0]
        for start, end, _, score in spans:
            alpha[end] = add_logs(alpha[end], alpha[start] + score)
        for start, end, _, score in reversed(spans):
            beta[start] = add_logs(beta[start], score + beta[end])
        for start, end, piece, score in spans:
            counts[piece] += count * exp(alpha[start] + score + beta[end] - alpha[-1])
        likelihood += count * alpha[-1]
    return counts, likelihood


def losses(words, scores):
    """What removing each piece would cost: {piece: loss}, for those that can be replaced.

    The pieces are counted in the best way to cut each word. A piece that is in none has loss 0, and
    one that no others make has none, which is to say that it has to stay.
    """
    tree, counts = tree_of({x: x for x in scores}), Counter()
    for word, count in words.items():
        for piece in best_way(word, tree, scores):
            counts[piece] += count
    total, table = sum(counts.values()), {}
    for piece in scores:
        others = best_way(piece, tree, scores, without=piece)
        if others is None:
            table[piece] = inf
            continue
        now = counts[piece]
        if not now:
            table[piece] = 0.0
            continue
        then = log(total + now * (len(others) - 1))  # more pieces in the text than before
        replaced = sum(log(counts[other] + now) - then for other in others)
        table[piece] = now / total * (log(now / total) - replaced)
    return table


def best_way(word, tree, scores, without=None):
    """The pieces with the highest sum of scores, or None where there is no way."""
    best, last = [0.0] + [-inf] * len(word), [None] * (len(word) + 1)
    for start, end, piece in spans_of(word, tree):
        if piece != without and best[start] + scores[piece] > best[end]:
            best[end], last[end] = best[start] + scores[piece], (start, piece)
    if best[-1] == -inf:
        return None
    pieces, end = [], len(word)
    while end:
        end, piece = last[end]
        pieces.append(piece)
    return pieces[::-1]


def spans_of(word, tree):
    """Where pieces stand in a word -> (start, end, piece), by start."""
    for start in range(len(word)):
        node = tree
        for end in range(start + 1, len(word) + 1):
            node = node.get(word[end - 1])
            if node is None:
                break
            if "" in node:
                yield start, end, node[""]


def tree_of(named):
    """A tree of pieces by their characters: as many steps as fit, where a set needs every length.

    named {piece: what stands for it} -> nested dicts, with that under "".
    """
    tree = {}
    for piece, value in named.items():
        node = tree
        for character in piece:
            node = node.setdefault(character, {})
        node[""] = value
    return tree


def add_logs(a, b):
    """log(eᵃ + eᵇ), where either may be the logarithm of 0."""
    low, high = min(a, b), max(a, b)
    return high if low == -inf else high + log1p(exp(low - high))
