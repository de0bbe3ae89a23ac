"""Beam search: the likeliest texts that can be found by keeping a few beginnings at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from accelerated import functional
from accelerated.inference.cache import after, before, decode, make_cache
from accelerated.layers.attention import attention, split
from accelerated.models import twin_of
from accelerated.models.transformer import POSITIONS, Transformer
from reference.inference.beam import (
    PENALTIES,
    Hypotheses,
    check_beam,
    check_counts,
    check_room,
    check_translation,
    may_improve,
)
from reference.inference.cache import check_decoder
from reference.inference.decoding import check_finite


def beam_generate(params, *, tokens, steps, config, end, pad=0, **options):
    """Equals `reference.inference.beam.beam_generate`; faster because all of it runs compiled, and
    reads each token once.

    Prompts and new tokens have room for the next power of two, so that a few compilations serve all
    lengths.
    """
    check_decoder(config)
    check_room(tokens, steps, config)
    length = tokens.shape[1]
    room = padded(length + steps, config.context)
    search, static = prepared(tokens, steps, end, room, **options)
    prompts = np.pad(tokens.astype(np.int32), ((0, 0), (0, room - length)))
    rows = padded(length, config.context)
    found = go_on(params, prompts, length, **search, rows=rows, config=config, **static)
    return on_host(found, length, steps, pad)


def translate(params, *, source, config, source_kept=None, steps=None, beams=4, **options):
    """Equals `reference.inference.beam.translate`; faster as `beam_generate` is."""
    steps, tokens = check_translation(source, source_kept, steps, config)
    check_counts(beams=beams)
    room = padded(1 + steps, config.context)
    search, static = prepared(tokens, steps, config.end, room, beams=beams, **options)
    missing = (0, 0), (0, padded(source.shape[1], config.context) - source.shape[1])
    kept = np.ones(source.shape, bool) if source_kept is None else source_kept
    padded_source = np.pad(source.astype(np.int32), missing), np.pad(kept, missing)
    found = go_over(params, *padded_source, **search, room=room, config=config, **static)
    return on_host(found, 1, steps, config.pad)


def prepared(tokens, steps, end, room, *, beams=4, alpha=0.6, penalty="paper", stop="bound"):
    """The options of a search: what is handed over, and what is compiled in."""
    ends = check_beam(tokens, steps, end, beams, alpha, penalty, stop)
    penalties = np.array([PENALTIES[penalty](n, float(alpha)) for n in range(1, room + 1)])
    limits = penalties.copy()  # those that `may_improve` is to know
    if stop == "bound":
        limits[:steps] = np.maximum.accumulate(penalties[:steps][::-1])[::-1]
    dynamic = {"steps": steps, "penalties": penalties, "limits": limits, "full": stop == "full"}
    return dynamic, {"beams": int(beams), "ends": tuple(ends)}


@partial(jax.jit, static_argnames=("rows", "config", "beams", "ends"))
def go_on(params, prompts, length, *, rows, config, **options):
    """`search` after prompts (B, room), of which the first `rows` are filled, up to `length`."""
    decode_with, _ = functional(twin_of(config).abstract(config), decode)
    batch, room = prompts.shape
    dtype = params["token"]["embedding"].dtype
    empty = make_cache(config, batch=batch, length=room, dtype=dtype)
    # The last token of the prompt is read again, by `following`, in the place where it lies.
    _, cache = decode_with(params, empty, tokens=prompts[:, :rows], start=0)

    def following(cache, last, place):
        logits, cache = decode_with(params, cache, tokens=last[:, None], start=place)
        return logits[:, 0], cache

    cache = jnp.repeat(cache, options["beams"], axis=2)
    return search(following, cache, prompts, length, **options)


@partial(jax.jit, static_argnames=("room", "config", "beams", "ends"))
def go_over(params, source, source_kept, *, room, config, **options):
    """`search` for translations (B, room), which begin with the padding's token."""
    model = Transformer.abstract(config)
    apply, _ = functional(model, prepare_translation)
    beams = options["beams"]
    memory_cache = apply(params, source=source, source_kept=source_kept)
    step, _ = functional(model, decode_translation)
    shape = config.layers, 2, len(source) * beams, config.heads, room, config.width // config.heads
    cache = jnp.zeros(shape, params["token"]["embedding"].dtype)

    def following(cache, last, place):
        options = {"last": last, "place": place, "source_kept": source_kept}
        return step(params, cache, memory_cache, **options)

    begun = jnp.full((len(source), room), config.pad, jnp.int32)
    return search(following, cache, begun, 1, **options)


def search(following, cache, begun, start, *, steps, penalties, limits, full, beams, ends):
    """`reference.inference.beam.beam_search` of texts (B, room) that begin with their first `start`
    -> Hypotheses with all places, (B, k, room), and whether all scores were finite.

    following: a function of a cache, whose axis 2 has B k rows, the last tokens (B k,) and their
    place -> logits (B k, V) and the new cache.
    """
    batch, room = begun.shape
    kept = max(2, 1 + len(ends)) * beams
    texts = jnp.repeat(begun[:, None], beams, axis=1)

    def goes_on(carry):
        i, *_, is_open, sound = carry
        return (i < steps) & is_open.any() & sound

    def step(carry):
        i, texts, scores, cache, found, is_open, sound = carry
        last = texts[:, :, start + i - 1].reshape(-1)
        logits, cache = following(cache, last, start + i - 1)
        sound &= jnp.isfinite(logits).all()
        new = jax.nn.log_softmax(logits.astype(scores.dtype)).reshape(batch, beams, -1)
        totals = (scores[..., None] + new).reshape(batch, -1)
        candidates, order = jax.lax.top_k(totals, min(kept, totals.shape[1]))
        parents, chosen = jnp.divmod(order.astype(jnp.int32), new.shape[-1])
        longer = take(texts, parents).at[:, :, start + i].set(chosen)
        ended = jnp.isin(chosen, jnp.asarray(ends, jnp.int32)) | (i == steps - 1)

        enters = ended & (jnp.arange(chosen.shape[1]) < beams) & is_open[:, None]
        final = jnp.where(enters, candidates / penalties[i].astype(scores.dtype), -jnp.inf)
        found = merged(found, longer, jnp.broadcast_to(i + 1, chosen.shape), final)

        unfinished, going_on = jax.lax.top_k(jnp.where(ended, -jnp.inf, candidates), beams)
        origin = take(parents, going_on) + beams * jnp.arange(batch)[:, None]
        cache = jax.tree.map(lambda a: a[:, :, origin.reshape(-1)], cache)
        now = unfinished[:, 0], found.scores[:, -1], [limits[i].astype(scores.dtype)]
        is_open &= jnp.where(full, may_improve(*now, "full"), may_improve(*now, "current"))
        return i + 1, take(longer, going_on), unfinished, cache, found, is_open, sound

    dtype = jnp.promote_types(jax.tree.leaves(cache)[0].dtype, jnp.float32)
    scores = jnp.full((batch, beams), -jnp.inf, dtype)
    nothing = texts, jnp.zeros((batch, beams), int), scores
    first = jnp.asarray(0), texts, scores.at[:, 0].set(0), cache, Hypotheses(*nothing)
    *_, found, _, sound = jax.lax.while_loop(
        goes_on, step, (*first, jnp.ones(batch, bool), jnp.array(True))
    )
    return found, sound


def merged(found, *new):
    """The best of what was found and of others."""
    together = [jnp.concatenate(pair, axis=1) for pair in zip(found, new, strict=True)]
    _, best = jax.lax.top_k(together[2], found.scores.shape[1])
    return Hypotheses(*(take(array, best) for array in together))


def take(array, index):
    """array (B, N, …) at index (B, M) -> (B, M, …)."""
    return array[jnp.arange(len(array))[:, None], index]


def prepare_translation(model, *, source, source_kept):
    """The keys and values of the source, for each of the decoder's layers: they stay the same."""
    memory = model.encode(source=source, source_kept=source_kept)
    parts = [block.cross_attention.sublayer for block in model.decoder.blocks]
    return [(split(p.key(memory), p.heads), split(p.value(memory), p.heads)) for p in parts]


def decode_translation(model, cache, memory_cache, *, last, place, source_kept):
    """Score what follows the last tokens (B k,) of texts -> logits (B k, V), and the new cache.

    A text's k beginnings look at its source as k queries of one sequence would: no key is repeated.
    """
    config, count = model.config, len(last)
    zeros = jnp.zeros((1, cache.shape[-2], config.width), cache.dtype)
    table = POSITIONS[config.positions](zeros)[0]
    x = config.width**0.5 * model.token(ids=last[:, None]) + table[place]
    shown = source_kept[:, None, None]
    past = (jnp.arange(cache.shape[-2]) <= place)[None]
    for layer, block in enumerate(model.decoder.blocks):
        part, read = block.attention.sublayer, before(block.attention, x)
        q, k, v = part.project(read, read)
        new = jnp.stack((k, v))
        own = jax.lax.dynamic_update_slice_in_dim(cache[layer], new, place, axis=-2)
        cache = cache.at[layer].set(own)
        h = after(block.attention, x, part.out(part.merge(attention(q, *own, mask=past))))

        part, read = block.cross_attention.sublayer, before(block.cross_attention, h)
        q = split(part.query(read).reshape(len(source_kept), -1, config.width), part.heads)
        context = part.merge(attention(q, *memory_cache[layer], mask=shown))
        c = after(block.cross_attention, h, part.out(context.reshape(count, 1, -1)))
        x = block.feed_forward(c)
    y = x if model.decoder.norm is None else model.decoder.norm(x)
    return model.score(y)[:, 0], cache


def on_host(found, start, steps, pad):
    """What was found, as NumPy's arrays of the new tokens."""
    hypotheses, sound = found
    check_finite(bool(sound))
    tokens, lengths, scores = (np.asarray(array) for array in hypotheses)
    inside = np.arange(steps) < lengths[..., None]
    written = np.where(inside, tokens[:, :, start : start + steps].astype(np.int64), pad)
    return Hypotheses(written, lengths.astype(np.int64), scores)


def padded(length, context):
    """The next power of two, but at most the context."""
    return min(1 << (length - 1).bit_length(), context)
