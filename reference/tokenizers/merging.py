"""Pairs of neighbouring tokens become one: what all byte-pair encodings have in common.

Whichever symbols a tokenizer starts from, bytes or characters, it learns merges by counting pairs,
and encodes by joining them in the order learnt. Neither goes over the whole text for each merge.

Source: Sennrich et al. 2016, sec. 3.2.
"""

from collections import Counter, defaultdict
from heapq import heapify, heappop, heappush

NO_TOKEN = -1  # at the borders of words, and where a token was joined to the one on its left


class LinkedTokens:
    """Tokens in a doubly linked list: two neighbours become one, and none of the others moves."""

    def __init__(self, tokens):
        self.tokens = list(tokens)
        self.left = list(range(-1, len(self.tokens) - 1))
        self.right = list(range(1, len(self.tokens) + 1))

    def pair(self, i):
        """The token at place i and the next one."""
        return self.tokens[i], self.tokens[self.right[i]]

    def join(self, i, token):
        """Put `token` where the pair at place i was."""
        j = self.right[i]
        self.tokens[i], self.tokens[j] = token, NO_TOKEN
        self.right[i] = self.right[j]
        self.left[self.right[i]] = i


def row_of_words(words):
    """Words in one row with borders between them, and how often each place counts.

    words: (ids, count) of each -> the row of ids, beginning and ending with a border, the weights.
    """
    row, weights = [NO_TOKEN], [0]
    for ids, count in words:
        row += [*ids, NO_TOKEN]
        weights += [count] * (len(row) - len(weights))
    return row, weights


def learn_pairs(words, number, first):
    """The first `number` pairs to join that words teach, fewer if no pair is left.

    The pair with the highest count is next and, of equal counts, the lower pair of ids; it becomes
    token `first`, the next `first` + 1. A word is counted as often as it occurs, but stands in the
    row once. All pairs are counted at the start; then a merge changes the counts of the pairs that
    it touches, and no others. The heap holds every count that was: what is not true is dropped.

    words: (ids, count) of each -> list of (id, id).
    Source: Sennrich et al. 2016, algorithm 1, which counts all anew for each merge.
    """
    row, weights = row_of_words(words)
    linked, counts, places, merges = LinkedTokens(row), Counter(), defaultdict(list), []
    for i in range(len(row) - 1):
        counts[linked.pair(i)] += weights[i]
        places[linked.pair(i)].append(i)  # from left to right, here and below
    heap = [(-count, pair) for pair, count in counts.items() if NO_TOKEN not in pair]
    heapify(heap)

    while heap and len(merges) < number:
        count, pair = heappop(heap)
        if -count != counts[pair]:
            continue
        change = Counter()
        for i in places.pop(pair):
            if linked.pair(i) != pair:  # "aaa" has two pairs, and the first took part of the second
                continue
            before, after, weight = linked.left[i], linked.right[i], weights[i]
            for gone in (pair, linked.pair(before), linked.pair(after)):
                change[gone] -= weight
            linked.join(i, first + len(merges))
            for place in (before, i):
                change[linked.pair(place)] += weight
                places[linked.pair(place)].append(place)
        for changed, difference in change.items():
            counts[changed] += difference
            if counts[changed] > 0 and NO_TOKEN not in changed:
                heappush(heap, (-counts[changed], changed))
        merges.append(pair)
    return merges


def join_pairs(ids, joined):
    """Join the pair that was learnt first, at its leftmost place, until none can be joined.

    joined {(id, id): (when it was learnt, what it becomes)} -> list of ids.
    A heap has the pairs that can be joined: n tokens take n log n steps, however long a word is.
    """
    row = [NO_TOKEN, *ids, NO_TOKEN]
    n, pairs = len(row), enumerate(zip(row[:-1], row[1:], strict=True))
    # One integer for the rank and the place is compared in half the time of the two.
    heap = [joined[pair][0] * n + i for i, pair in pairs if pair in joined]
    if not heap:
        return row[1:-1]
    linked = LinkedTokens(row)
    heapify(heap)
    while heap:
        rank, i = divmod(heappop(heap), n)
        now, token = joined.get(linked.pair(i), (None, None))
        if now != rank:  # one of the two has been joined with another
            continue
        linked.join(i, token)
        for place in (linked.left[i], i):
            if (pair := linked.pair(place)) in joined:
                heappush(heap, joined[pair][0] * n + place)
    return [token for token in linked.tokens if token != NO_TOKEN]
