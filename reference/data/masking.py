"""What BERT learns from bare text: hidden tokens to guess, and pairs of which half belong together.

pairs = sentence_pairs(documents, length=128, key=…)      sentences -> (first, second, follows)
batch = joined_pairs(pairs, length=128, start_id=…, end_id=…)               -> arrays (N, T)
tokens, labels = mask_tokens(batch["tokens"], kept=batch["kept"], …)
"""

from itertools import count

import numpy as np

from reference import random
from reference.data.packing import int32, pad, token_ids
from reference.errors import InputError
from reference.layers.embedding import check_ids
from reference.layers.loss import check_booleans
from reference.layers.mask import check_at_least

IGNORE = -100


def mask_tokens(
    tokens, *, kept, mask_id, vocabulary, special_ids, key, share=0.15, exact=False, ignore=IGNORE
):
    """Hide some tokens, to be guessed from those around them.

    Each token is chosen with the probability `share`.  Of the chosen, 80 % are shown as [MASK],
    10 % as any token of the vocabulary, and 10 % as what they are: in its later use the model will
    meet no [MASK], and so learns to doubt, and to look closely at, every token.

    tokens (..., T): integers in [0, vocabulary);  kept (..., T): booleans, False for what only
    fills up, or None;  special_ids: of tokens that are never chosen, such as [CLS] and [SEP];
    exact: choose max(1, round(share · n)) of each sequence's n kept tokens, special ones counted.
    -> the tokens shown (..., T), of the same dtype, and labels (..., T) int32: the token where it
    was chosen, else `ignore`.
    Keys, in the order of `split`: which are chosen, what becomes of each, the other tokens.
    Raises DtypeError for tokens that are no integers or kept that are no booleans, InputError for
    one outside the vocabulary, other shapes, or a share outside [0, 1].
    Source: Devlin et al. 2018, sec. 3.1, task 1, and A.1; google-research/bert,
    create_pretraining_data.py (`exact`);  Hugging Face's DataCollatorForLanguageModeling (each).
    """
    check_masking(tokens, kept, mask_id, vocabulary, share)
    chosen_key, fate_key, other_key = random.split(key, 3)
    there = np.ones(tokens.shape, bool) if kept is None else kept
    eligible = there & ~np.isin(tokens, list(special_ids))
    chance = random.uniform(chosen_key, tokens.shape)
    if exact:
        wanted = np.maximum(1, np.rint(share * there.sum(axis=-1, keepdims=True)))
        place = np.argsort(np.argsort(np.where(eligible, chance, 2), axis=-1), axis=-1)
        chosen = eligible & (place < wanted)
    else:
        chosen = eligible & (chance < share)
    fate = random.uniform(fate_key, tokens.shape)
    other = random.randint(other_key, tokens.shape, 0, vocabulary).astype(tokens.dtype)
    shown = np.where(chosen & (fate < 0.8), tokens.dtype.type(mask_id), tokens)
    shown = np.where(chosen & (fate >= 0.9), other, shown)
    return shown, np.where(chosen, int32(tokens, name="tokens"), np.int32(ignore))


def sentence_pairs(documents, *, length, key, short=0.1):
    """Yield pairs of parts of texts, of which about half follow each other, for BERT's question.

    A document is gone through once.  Sentences are taken until with [CLS] and two [SEP] they fill
    T, and split after a random one of them.  With the probability ½ the first part stays with the
    second; else the second part is of another document, from a random sentence on, and the
    sentences that it displaced are taken next.  A single sentence, such as a last one, always gets
    a foreign one.  Of a pair that is too long, the longer part loses its first or last token, by
    chance, until it fits.

    documents: a list of documents, each a list of sentences, each a sequence of token ids, in order
    short: the probability that a document is cut for a random length from 2 to T - 3 in place of
    T - 3, lest the model knows long texts only
    -> first and second (lists of ids, one at least), and whether the second does follow.
    Document d draws from fold_in(key, d).
    Raises InputError for fewer than two documents, for one without sentences, a sentence without
    tokens, or a length below 5.
    Source: Devlin et al. 2018, sec. 3.1, task 2, and A.2; google-research/bert,
    create_pretraining_data.py.
    Differs from the released code, which, if ten draws of another document all find the same one,
    takes that.
    """
    check_at_least(5, length=length)
    check_documents(documents)
    most = length - 3
    for d, sentences in enumerate(documents):
        draw = Draws(random.fold_in(key, d))
        target = 2 + draw.below(most - 1) if draw.chance() < short else most
        begin = 0
        while begin < len(sentences):
            end = until(sentences, begin, target)
            split = begin + 1 + (draw.below(end - begin - 1) if end - begin > 1 else 0)
            first = joined(sentences[begin:split])
            follows = split < end and draw.chance() < 0.5
            if follows:
                begin, second = end, joined(sentences[split:end])
            else:
                begin, second = split, foreign(documents, d, target - len(first), draw)
            yield *shortened(first, second, most, draw), follows


def joined_pairs(pairs, *, length, start_id, end_id):
    """Pairs as BERT reads them: [CLS] first [SEP] second [SEP], filled up to T.

    pairs: (first, second, follows), as of `sentence_pairs`;  start_id, end_id: of [CLS] and [SEP]
    -> a dict of tokens and segments (N, T) int32, kept (N, T) and follows (N,) booleans; segment 0
    is up to the first [SEP], with it, and what fills up.
    Raises InputError for a pair that is too long.
    """
    rows, kinds, answers = [], [], []
    for first, second, follow in pairs:
        rows.append([start_id, *first, end_id, *second, end_id])
        kinds.append([0] * (len(first) + 2) + [1] * (len(second) + 1))
        answers.append(follow)
    tokens, kept = pad(rows, length=length)
    segments, _ = pad(kinds, length=length)
    return {
        "tokens": tokens,
        "segments": segments,
        "kept": kept,
        "follows": np.array(answers, bool),
    }


class Draws:
    """One random number after the other, of a key."""

    def __init__(self, key):
        self._numbers = self._stream(key)

    @staticmethod
    def _stream(key):
        for block in count():
            yield from random.uniform(random.fold_in(key, block), (64,), dtype=np.float64).tolist()

    def chance(self):
        """A number in [0, 1)."""
        return next(self._numbers)

    def below(self, n):
        """An integer in [0, n)."""
        return int(next(self._numbers) * n)


def until(sentences, begin, target):
    """The end of as many sentences as have so many tokens together, or of all."""
    end = size = 0
    for end in range(begin, len(sentences)):
        size += len(sentences[end])
        if size >= target:
            break
    return end + 1


def foreign(documents, own, target, draw):
    """So many tokens of another document, from a random sentence on."""
    other = draw.below(len(documents) - 1)
    sentences = documents[other + (other >= own)]
    begin = draw.below(len(sentences))
    return joined(sentences[begin : until(sentences, begin, target)])


def joined(sentences):
    """The tokens of several sentences, as a list."""
    return [
        token for sentence in sentences for token in token_ids(sentence, name="a sentence").tolist()
    ]


def shortened(first, second, most, draw):
    """Two lists of tokens, together at most so many: the longer one loses at either end."""
    parts = [[first, 0, len(first)], [second, 0, len(second)]]
    for _ in range(len(first) + len(second) - most):
        longer = max(parts, key=lambda part: part[2] - part[1])
        front = draw.chance() < 0.5
        longer[1 if front else 2] += 1 if front else -1
    return [tokens[start:stop] for tokens, start, stop in parts]


def check_masking(tokens, kept, mask_id, vocabulary, share):
    """Raise DtypeError or InputError for what `mask_tokens` cannot do."""
    check_ids(tokens, vocabulary, name="tokens")
    check_ids(np.array(mask_id), vocabulary, name="mask_id")
    if kept is not None:
        check_booleans(kept, name="kept")
        if kept.shape != tokens.shape:
            raise InputError(
                f"kept has shape {kept.shape}, tokens {tokens.shape}; give one for each token"
            )
    if not 0 <= share <= 1:
        raise InputError(f"share is {share}; give a number in [0, 1]")


def check_documents(documents):
    """Raise InputError unless there are two documents at least, and nothing is empty."""
    if len(documents) < 2:
        raise InputError(
            f"there are {len(documents)} documents, and half of the pairs need a sentence of "
            "another; give two or more"
        )
    for d, sentences in enumerate(documents):
        if len(sentences) == 0 or any(len(sentence) == 0 for sentence in sentences):
            what = "sentences" if len(sentences) == 0 else "tokens in one of its sentences"
            raise InputError(f"documents[{d}] has no {what}; leave it out")
