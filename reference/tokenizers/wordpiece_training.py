"""How WordPiece learns its pieces: two ways to say which pair of pieces is joined next.

Both start from single characters, one piece where a character begins a word and one with "##" where
it continues one, and join pairs of neighbouring pieces until the vocabulary is full.

  likelihood  count(ab) / (count(a) count(b)): how much more often the two stand together than they
              would by chance. Joining that pair raises the likelihood of the text most, for each
              time that it occurs. "qu" comes early, "th" late, since t and h are common anyway. A
              pair that occurs once is never joined: any two rare letters would come first.
  frequency   count(ab), as in byte-pair encoding.

BERT's pieces were made by the first, in a program that Google never released; what is known of it
is one sentence of Wu et al., who follow Schuster and Nakajima 2012. The library `tokenizers` calls
the second WordPiece, and so do most vocabularies that were made since. Small vocabularies are the
better for it: of 1,000 pieces learnt from Shakespeare's plays, the first needs twice as many to
write them, as it spends pieces on words like "oxford", rare but made of what stands nowhere else.

Source: Wu et al. 2016, sec. 4.1 (likelihood); Hugging Face tokenizers, released code (frequency).
"""

from collections import Counter, defaultdict
from heapq import heapify, heappop, heappush

from reference.tokenizers.merging import NO_TOKEN, LinkedTokens, learn_pairs, row_of_words

CONTINUES = "##"
LEAST = 2  # times that a pair must occur to be joined by likelihood


def alphabet_of(words):
    """The pieces of one character: all that begin, then all that continue a longer word."""
    inside = {character for word in words if len(word) > 1 for character in word}
    return [*sorted(set("".join(words))), *(CONTINUES + character for character in sorted(inside))]


def by_frequency(words, pieces, size):
    """Pieces up to a size, the pair that occurs most often first.

    words {str: int}.  pieces: special tokens and alphabet -> these and what was learnt, by id.
    """
    return with_joined(pieces, learn_pairs(in_ids(words, pieces), size - len(pieces), len(pieces)))


def by_likelihood(words, pieces, size):
    """Pieces up to a size, the pair first that stands together most often for how common each is.

    Of equal pairs the lower pair of ids is next. A merge changes the scores of all pairs that one
    of its two pieces is in, and these only are counted anew; the heap holds every score a pair has
    had, and one that is no longer true is dropped when it comes up.

    words {str: int}.  pieces: special tokens and alphabet -> these and what was learnt, by id.
    """
    counts, merges = PairCounts(*row_of_words(in_ids(words, pieces))), []
    heap = [(-counts.score(pair), pair) for pair in counts.frequent(counts.together)]
    heapify(heap)
    while heap and len(pieces) + len(merges) < size:
        score, pair = heappop(heap)
        if counts.together[pair] < LEAST or -score != counts.score(pair):
            continue
        for changed in counts.join(pair, len(pieces) + len(merges)):
            heappush(heap, (-counts.score(changed), changed))
        merges.append(pair)
    return with_joined(pieces, merges)


class PairCounts:
    """How often each piece and each pair of neighbours stands in a row, and where."""

    def __init__(self, row, weights):
        self.linked, self.weights = LinkedTokens(row), weights
        self.single, self.together = Counter(), Counter()
        self.places, self.pairs_with = defaultdict(list), defaultdict(set)
        for i, token in enumerate(row[:-1]):
            self.single[token] += weights[i]
            self.add(i)

    def add(self, i):
        """Note the pair at place i; the border of a word makes none."""
        pair = self.linked.pair(i)
        if NO_TOKEN not in pair:
            self.together[pair] += self.weights[i]
            self.places[pair].append(i)
            for token in pair:
                self.pairs_with[token].add(pair)

    def score(self, pair):
        """How much more often the two stand together than by chance."""
        return self.together[pair] / (self.single[pair[0]] * self.single[pair[1]])

    def frequent(self, pairs):
        """Those of the pairs that may be joined."""
        return [pair for pair in pairs if self.together[pair] >= LEAST]

    def join(self, pair, joined):
        """Put a token wherever a pair stands -> the pairs whose scores are no longer the same."""
        for i in self.places.pop(pair):
            if self.linked.pair(i) != pair:  # "aaa" has two, and the first took part of the second
                continue
            before, after, weight = self.linked.left[i], self.linked.right[i], self.weights[i]
            for token, change in ((pair[0], -weight), (pair[1], -weight), (joined, weight)):
                self.single[token] += change
            for gone in (pair, self.linked.pair(before), self.linked.pair(after)):
                self.together[gone] -= weight
            self.linked.join(i, joined)
            self.add(before)
            self.add(i)
        changed = set().union(*(self.pairs_with[token] for token in (*pair, joined)))
        frequent = self.frequent(changed)
        for token in (*pair, joined):
            self.pairs_with[token] -= changed.difference(frequent)
        return frequent


LEARNERS = {"likelihood": by_likelihood, "frequency": by_frequency}


def in_ids(words, pieces):
    """Words {str: count} as (ids of their characters, count)."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    for word, count in words.items():
        yield [ids[CONTINUES * (n > 0) + character] for n, character in enumerate(word)], count


def with_joined(pieces, merges):
    """The pieces, and what each merge makes of two of them."""
    pieces = list(pieces)
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right].removeprefix(CONTINUES))
    return pieces
