"""Perplexity: among how many tokens, all equally likely, a model is in doubt.

    perplexity = exp(Σₙ −ln p(tokenₙ | those before) / N)

A model that knows nothing has V, one that knows all has 1.  It depends on what a token is, so two
tokenizers are compared by the bits that a byte of text costs.
"""

import math

from reference.errors import InputError
from reference.metrics.checks import pairs


def perplexity(losses, tokens):
    """exp of the mean loss of a token, from the mean losses of batches.

    losses, tokens (N,): each batch's mean loss in nats, and how many tokens it was taken over:
    exp(Σ lossᵢ nᵢ / Σ nᵢ).  The mean of the batches' means would count tokens of a short one more.
    Infinity where that is beyond all floats.
    Raises InputError for no batches, two lengths, losses that are not finite, and no tokens.
    Source: Jelinek et al. 1977, "Perplexity, a measure of the difficulty of speech recognition".
    """
    total, number = _totals(losses, tokens)
    mean = total / number
    return math.exp(mean) if mean < 709 else math.inf


def bits_per_byte(losses, tokens, bytes_of_text):
    """Σ lossᵢ nᵢ / (bytes · ln 2): what a byte of UTF-8 costs, whatever the tokenizer.

    Raises as `perplexity`, and for a text without bytes.
    """
    if not bytes_of_text > 0:
        raise InputError(f"bytes_of_text is {bytes_of_text}, and must be positive")
    return _totals(losses, tokens)[0] / (bytes_of_text * math.log(2))


def _totals(losses, tokens):
    """The sum over tokens of their losses, and the number of tokens."""
    means, counts = pairs(losses, tokens, names=("losses", "tokens"))
    for i, (loss, count) in enumerate(zip(means, counts, strict=True)):
        if not math.isfinite(loss):
            raise InputError(f"losses[{i}] is {loss}, and must be finite: look where it comes from")
        if isinstance(count, float) or count < 0:
            raise InputError(f"tokens[{i}] is {count}, and must be how many tokens were counted")
    if not (number := sum(counts)):
        raise InputError("there is no token in all of the batches: give some text")
    return math.fsum(loss * count for loss, count in zip(means, counts, strict=True)), number
