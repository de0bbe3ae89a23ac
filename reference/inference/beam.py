"""Beam search: the likeliest texts that can be found by keeping a few beginnings at a time.

Greedy decoding takes the likeliest token each time, and may so miss a likelier whole.  A beam keeps
the k likeliest beginnings, asks how each may go on, and keeps the k likeliest of what comes out.
"""

from typing import NamedTuple

import numpy as np

from reference.errors import InputError
from reference.inference.cache import check_decoder, decode, make_cache
from reference.inference.decoding import check_finite
from reference.layers.embedding import check_ids, check_integers
from reference.layers.softmax import log_softmax
from reference.models import name_of
from reference.models.transformer import check_source, transformer_decode, transformer_encode

LONGER = 50  # tokens that a translation may have more than its source
PENALTIES = {
    "paper": lambda length, alpha: ((5 + length) / 6) ** alpha,
    "hugging_face": lambda length, alpha: length**alpha,
}
STOPS = ("bound", "current", "full")


class Hypotheses(NamedTuple):
    """The k best of each text, the best first; one that was not found has the score -inf."""

    tokens: np.ndarray  # (B, k, steps): the new ones, and `pad` after the end
    lengths: np.ndarray  # (B, k), the end token counted
    scores: np.ndarray  # (B, k)


def beam_search(
    scores_of_next,
    *,
    tokens,
    steps,
    end,
    beams=4,
    alpha=0.6,
    penalty="paper",
    stop="bound",
    pad=0,
):
    """Find texts y of high score by keeping the k likeliest beginnings of each length.

        score(y) = log p(y) / penalty(|y|),   penalty(n) = ((5 + n) / 6)^α   "paper"
                                              penalty(n) = n^α               "hugging_face"

    log p falls with every token, so without a penalty (α = 0) short texts win.
    scores_of_next: a function of tokens (N, T) -> log-probabilities (N, V) of what comes next; the
    rows of the b-th text are b k … b k + k - 1.  tokens (B, T), how each begins; steps: at most so
    many new ones -> Hypotheses.  end: the token that ends a text, several, or None: all have
    `steps` then.  pad: written after an end.

    Of each text's k beginnings the 2 k likeliest continuations are looked at (with m ends,
    (m + 1) k); those among the first k that end, or have `steps` tokens, are finished, and the k
    finished ones of the highest score are kept.  The first k that do not end are the next
    beginnings.  Equal ones keep their order.  A text is done (stop)
        "bound"     when no beginning can still reach the worst of k finished ones, at any length;
        "current"   when none would, if it were as long as it is;  or
        "full"      when k are finished.
    "bound" is tensor2tensor's, and Hugging Face's early_stopping="never"; "current" and "full" are
    early_stopping=False and True there.  With k = 1 and "full" it is greedy decoding.
    Raises InputError for what `check_beam` refuses, and for log-probabilities that are NaN.
    Source: Wu et al. 2016, sec. 7 and eq. 14 (without the coverage); Vaswani et al. 2017, sec. 6.1:
    k = 4, α = 0.6.
    Differs from tensor2tensor, which finishes any of the 2 k that end, and returns texts without an
    end only where no other was found; as here Hugging Face's `generate`.
    """
    ends = check_beam(tokens, steps, end, beams, alpha, penalty, stop)
    penalties = [PENALTIES[penalty](n, float(alpha)) for n in range(1, steps + 1)]
    kept, start = max(2, 1 + len(ends)) * beams, tokens.shape[1]
    running = np.repeat(tokens[:, None].astype(np.int64), beams, axis=1)
    scores = np.where(np.arange(beams) == 0, 0.0, -np.inf) + np.zeros((len(tokens), 1))
    found = nothing(len(tokens), beams, steps, pad)
    is_open = np.ones(len(tokens), bool)
    for length in range(1, steps + 1):
        following = scores_of_next(running.reshape(-1, running.shape[-1]))
        check_finite(not np.isnan(following).any())
        totals = scores[..., None].astype(following.dtype) + following.reshape(*scores.shape, -1)
        order = largest(totals.reshape(len(tokens), -1), kept)
        parents, chosen = np.divmod(order, following.shape[-1])
        candidates = take(totals.reshape(len(tokens), -1), order)
        texts = np.concatenate([take(running, parents), chosen[..., None]], axis=-1)
        ended = np.isin(chosen, ends) | (length == steps)

        enters = ended & (np.arange(kept) < beams)[: order.shape[1]] & is_open[:, None]
        final = np.where(enters, candidates / penalties[length - 1], -np.inf)
        found = merged(found, texts[..., start:], final, pad)

        unfinished = np.where(ended, -np.inf, candidates)
        going_on = largest(unfinished, beams)
        running, scores = take(texts, going_on), take(unfinished, going_on)
        is_open &= may_improve(scores[:, 0], found.scores[:, -1], penalties[length - 1 :], stop)
        if not is_open.any():
            break
    return found


def may_improve(best, worst, penalties, stop):
    """Whether the best beginning of each text, of log p (B,), may still take the place of the worst
    that was found, (B,).  penalties: from the present length to the last.
    """
    if stop == "full":
        return (worst == -np.inf) & (best > -np.inf)
    return best / (penalties[0] if stop == "current" else max(penalties)) > worst


def nothing(batch, beams, steps, pad):
    """Hypotheses before any was found."""
    tokens = np.full((batch, beams, steps), pad, np.int64)
    lengths = np.zeros((batch, beams), np.int64)
    return Hypotheses(tokens, lengths, np.full((batch, beams), -np.inf))


def merged(found, texts, scores, pad):
    """The best of what was found and of new texts (B, N, T) with scores (B, N)."""
    batch, number, length = texts.shape
    found = found._replace(scores=found.scores.astype(scores.dtype))
    missing = found.tokens.shape[-1] - length
    filled = np.pad(texts, ((0, 0), (0, 0), (0, missing)), constant_values=pad)
    lengths = np.full((batch, number), length)
    together = [
        np.concatenate(pair, axis=1) for pair in zip(found, (filled, lengths, scores), strict=True)
    ]
    best = largest(together[2], found.scores.shape[1])
    return Hypotheses(*(take(array, best) for array in together))


def largest(scores, number):
    """Where the largest of each row are, in falling order; the lower index first of equal ones."""
    return np.argsort(-scores, axis=-1, kind="stable")[:, :number]


def take(array, index):
    """array (B, N, …) at index (B, M) -> (B, M, …)."""
    return array[np.arange(len(array))[:, None], index]


def beam_generate(params, *, tokens, steps, config, end, **options):
    """`beam_search` for how texts go on, with a decoder such as GPT or Llama.

    tokens (B, T), prompts of one length;  end and options: of `beam_search` -> Hypotheses.
    Raises what `beam_search` does, and InputError for another model, for tokens outside its
    vocabulary, or for more than its context.
    """
    check_decoder(config)
    check_room(tokens, steps, config)

    def scores_of_next(tokens):
        dtype = params["token"]["embedding"].dtype
        cache = make_cache(config, batch=len(tokens), length=tokens.shape[1], dtype=dtype)
        return scored(decode(params, cache, tokens=tokens, start=0, config=config))

    return beam_search(scores_of_next, tokens=tokens, steps=steps, end=end, **options)


def translate(params, *, source, config, source_kept=None, steps=None, beams=4, **options):
    """`beam_search` for the translations of sentences, with a Transformer of encoder and decoder.

    source (B, S) and source_kept as of `transformer_encode`;  steps: at most so many tokens, None:
    50 more than S, as far as the context has room;  options: of `beam_search` -> Hypotheses.  Each
    begins after the config's `pad`, and ends with its `end`.
    Raises what `beam_search` does, and InputError for another model or a source that it cannot
    read.
    Source: Vaswani et al. 2017, sec. 6.1.
    """
    steps, tokens = check_translation(source, source_kept, steps, config)
    check_counts(beams=beams)
    encoded, _ = transformer_encode(params, source=source, source_kept=source_kept, config=config)
    memory = np.repeat(encoded, beams, axis=0)
    kept = None if source_kept is None else np.repeat(source_kept, beams, axis=0)

    def scores_of_next(tokens):
        read = {"tokens": tokens, "source_kept": kept, "config": config}
        return scored(transformer_decode(params, memory, **read)[0])

    ends = {"end": config.end, "pad": config.pad}
    return beam_search(scores_of_next, tokens=tokens, steps=steps, beams=beams, **ends, **options)


def scored(logits):
    """The log-probabilities after the last position, of logits (N, T, V)."""
    check_finite(np.isfinite(logits[:, -1]).all())
    return log_softmax(logits[:, -1])[0]


def check_beam(tokens, steps, end, beams, alpha, penalty, stop):
    """The tokens that end a text, as a list; or an InputError for what cannot be searched."""
    check_begun(tokens)
    check_counts(steps=steps, beams=beams)
    if not -10 <= alpha <= 10:
        raise InputError(f"alpha is {alpha}; give a number from -10 to 10: 0 for no penalty")
    for name, value, allowed in (("penalty", penalty, PENALTIES), ("stop", stop, STOPS)):
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; give one of {', '.join(allowed)}")
    ends = [] if end is None else np.ravel(end).tolist()
    if not all(isinstance(token, int) and token >= 0 for token in ends):
        raise InputError(f"end is {end!r}; give a token, several, or None")
    return ends


def check_begun(tokens):
    """Raise DtypeError or InputError unless texts begin with tokens (B, T)."""
    check_integers(tokens, name="tokens")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise InputError(f"tokens has shape {tokens.shape}; give (B, T), neither of them 0")


def check_counts(**counts):
    """Raise InputError unless each is a positive integer."""
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name} is {value!r}; give a positive integer")


def check_room(tokens, steps, config):
    """Raise DtypeError or InputError for prompts that are not the model's, or leave no room."""
    check_begun(tokens)
    check_counts(steps=steps)
    check_ids(tokens, config.vocabulary, name="tokens")
    if tokens.shape[1] + steps > config.context:
        raise InputError(
            f"prompts of {tokens.shape[1]} tokens and {steps} new ones are "
            f"{tokens.shape[1] + steps}, the model's context is {config.context}; shorten the "
            "prompts or ask for fewer new tokens"
        )


def check_translation(source, source_kept, steps, config):
    """The steps, and how each translation begins (B, 1); or an error for what cannot be read."""
    if name_of(config) != "transformer":
        raise InputError(f"the model is a {name_of(config)}; give a transformer to translate with")
    check_source(source, source_kept, config)
    if steps is None:
        steps = max(min(source.shape[1] + LONGER, config.context - 1), 1)
    tokens = np.full((len(source), 1), config.pad, np.int64)
    check_room(tokens, steps, config)
    return steps, tokens
