"""Writing text one token at a time, without reading it all again for each."""

import numpy as np

from reference import random, tree
from reference.errors import InputError
from reference.inference.cache import check_decoder, decode, make_cache
from reference.inference.sampling import check_sampling, penalize, sample
from reference.layers.embedding import check_ids, check_integers


def generate(
    params, *, tokens, steps, config, key=None, stop=(), repetition_penalty=1.0, **sampling
):
    """Go on with a text: draw a token, append it, and ask again.

        xᵢ ~ softmax(restrict(penalize(model(x₀ … xᵢ₋₁))))

    tokens (T,), the prompt -> (n,) int64, the new tokens: `steps`, or fewer where one of `stop` is
    the last.  The i-th of these, from 0 on, is drawn with fold_in(key, i); without a key or at a
    temperature of 0 it is the likeliest.  repetition_penalty, and sampling, which is temperature,
    top_k, top_p and min_p: see `sampling`.
    A list of prompts -> a list of what each goes on with: prompt b alone with fold_in(key, b).
    Raises InputError for a prompt that is empty, of another vocabulary, or with `steps` longer than
    the context, for what `restrict` refuses, and where logits are not finite.
    Source: Radford et al. 2019, sec. 2 (the factorization).
    """
    options = {"stop": stop, "repetition_penalty": repetition_penalty} | sampling
    if isinstance(tokens, list):
        check_batch_of_prompts(tokens)
        keys = [None if key is None else random.fold_in(key, b) for b in range(len(tokens))]
        task = {"steps": steps, "config": config} | options
        return [
            generate(params, tokens=prompt, key=own, **task)
            for prompt, own in zip(tokens, keys, strict=True)
        ]
    check_generation(tokens, steps, config, key=key, **options)
    dtype = tree.leaves(params)[0].dtype
    cache = make_cache(config, batch=1, length=len(tokens) + steps, dtype=dtype)
    text, start = tokens.astype(np.int64), 0
    for i in range(steps):
        logits = decode(params, cache, tokens=text[None, start:], start=start, config=config)[0, -1]
        check_finite(np.isfinite(logits).all())
        scores = penalize(logits, text, repetition_penalty=repetition_penalty)
        token = sample(None if key is None else random.fold_in(key, i), scores, **sampling)
        start, text = len(text), np.append(text, token)
        if token in stop:
            break
    return text[len(tokens) :]


def check_batch_of_prompts(prompts):
    """Raise InputError for no prompts."""
    if not prompts:
        raise InputError("tokens is an empty list; give one prompt at least")


def check_generation(tokens, steps, config, *, key, stop=(), **options):
    """Raise DtypeError or InputError for what `generate` cannot work with."""
    check_decoder(config)
    check_integers(tokens, name="tokens")
    if tokens.ndim != 1:
        raise InputError(
            f"tokens has shape {tokens.shape}; give those of one text, (T,), or a list of such"
        )
    if len(tokens) == 0:
        raise InputError("the prompt has no tokens; give a text that encodes to one at least")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise InputError(f"steps is {steps}; give the number of new tokens, an integer from 1 on")
    if len(tokens) + steps > config.context:
        raise InputError(
            f"a prompt of {len(tokens)} tokens and {steps} new ones are {len(tokens) + steps}, the "
            f"model's context is {config.context}; shorten the prompt or ask for fewer new tokens"
        )
    check_ids(tokens, config.vocabulary, name="tokens")
    if stop:
        check_ids(np.asarray(stop), config.vocabulary, name="stop")
    check_sampling(config.vocabulary, **options)
    if key is not None:
        random.fold_in(key, 0)  # for its errors


def check_finite(finite):
    """Raise InputError unless all logits that tokens are drawn from are finite."""
    if not finite:
        raise InputError(
            "the logits of a new token are not finite: the weights are damaged, or training went "
            "wrong; take an earlier checkpoint"
        )
