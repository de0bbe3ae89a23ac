"""A layer of a Transformer, and how a stack of equal ones is compiled."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from accelerated import functional
from accelerated.layers.dropout import dropout

__all__ = ["DecoderBlock", "ParallelBlock", "TransformerBlock"]


class TransformerBlock(nnx.Module):
    """attention and feed_forward are modules;  wiring makes one of a sub-layer, such as
    `partial(PreNorm, norm=partial(LayerNorm, width))`.  A call's options are the attention's.
    """

    def __init__(self, *, attention, feed_forward, wiring):
        self.attention, self.feed_forward = wiring(attention), wiring(feed_forward)

    def __call__(self, x, *others, rate=0.0, key=None, **options):
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        options |= {"rate": rate, "key": keys[0]}
        h = self.attention(x, *others, options=options, rate=rate, key=keys[1])
        return self.feed_forward(h, rate=rate, key=keys[2])


class DecoderBlock(nnx.Module):
    """As `TransformerBlock`; `cross_options` are a dict of the cross-attention's."""

    def __init__(self, *, attention, cross_attention, feed_forward, wiring):
        self.attention, self.cross_attention = wiring(attention), wiring(cross_attention)
        self.feed_forward = wiring(feed_forward)

    def __call__(self, x, memory, *others, rate=0.0, key=None, cross_options=None, **options):
        keys = (None,) * 5 if key is None else jax.random.split(key, 5)
        options |= {"rate": rate, "key": keys[0]}
        cross = (cross_options or {}) | {"rate": rate, "key": keys[2]}
        h = self.attention(x, *others, options=options, rate=rate, key=keys[1])
        c = self.cross_attention(h, memory, options=cross, rate=rate, key=keys[3])
        return self.feed_forward(c, rate=rate, key=keys[4])


class ParallelBlock(nnx.Module):
    """As `TransformerBlock`; norm makes its one norm."""

    def __init__(self, *, attention, feed_forward, norm):
        self.norm, self.attention, self.feed_forward = norm(), attention, feed_forward

    def __call__(self, x, *others, drop=dropout, rate=0.0, key=None, **options):
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        n = self.norm(x)
        read = self.attention(n, *others, rate=rate, key=keys[0], **options)
        thought = self.feed_forward(n)
        return x + drop(read, rate=rate, key=keys[1]) + drop(thought, rate=rate, key=keys[2])


def blocks_of(layers, make, *, unroll, rngs):
    """L equal blocks, an nnx.List; or with `unroll` their stack, as `through` wants it: one module,
    each of whose parameters has a leading axis L.
    """
    if unroll is None:
        return nnx.List([make(rngs) for _ in range(layers)])
    return nnx.split_rngs(splits=layers)(nnx.vmap(make))(rngs)


def through(blocks, x, *, layers, key=None, unroll=None, recompute=None, turns=({},), **options):
    """x through L blocks, one after another; block l's key is fold_in(key, l).

    blocks: an nnx.List;  or with `unroll`, their stack: then they are one compiled loop with
    that many blocks a turn, which takes the same time to compile for any L.
    recompute: what the backward may find kept, a policy of `jax.checkpoint_policies` by its name
    ("nothing_saveable", "dots_saveable", …); the rest it computes again.  None: keep all.
    turns: options that blocks take in turns, such as two masks.  A loop then has one block of each
    in a turn, so that what a mask hides of a tile is known while it is compiled.
    """
    in_loop, period = unroll is not None, len(turns)

    def step(params, h, layer, *, apply, turn):
        layer_key = None if key is None else jax.random.fold_in(key, layer)
        return apply(params, h, key=layer_key, **options, **turn)

    def compiled(block, turn):
        apply, params = functional(block)
        one = partial(step, apply=apply, turn=turn)
        if recompute is not None:
            policy = getattr(jax.checkpoint_policies, recompute)
            one = jax.checkpoint(one, policy=policy, prevent_cse=not in_loop)
        return one, params

    if in_loop and period == 1:
        one, stacked = compiled(blocks, turns[0])
        each = (stacked, jnp.arange(layers))
        y, _ = jax.lax.scan(lambda h, at: (one(at[0], h, at[1]), None), x, each, unroll=unroll)
        return y
    if in_loop:
        return in_turns(blocks, x, [partial(compiled, turn=turn) for turn in turns], layers, unroll)
    y = x
    for layer, block in enumerate(blocks):
        one, params = compiled(block, turns[layer % period])
        y = one(params, y, layer)
    return y


def in_turns(blocks, x, compiled, layers, unroll):
    """x through a stack of L blocks that are compiled in several ways, in turns: one of each kind
    in each turn of a loop, and those that are left after it.
    """
    period, rounds = len(compiled), layers // len(compiled)
    kinds, stacks = zip(*(each(blocks) for each in compiled), strict=True)
    first = period * rounds
    in_rounds = jax.tree.map(lambda a: a[:first].reshape(rounds, period, *a.shape[1:]), stacks[0])

    def one_round(h, at):
        params, layer = at
        for i, one in enumerate(kinds):
            h = one(jax.tree.map(lambda a, i=i: a[i], params), h, layer + i)
        return h, None

    each = (in_rounds, jnp.arange(0, first, period))
    y, _ = jax.lax.scan(one_round, x, each, unroll=max(unroll // period, 1))
    for i in range(layers - first):
        last = jax.tree.map(lambda a, layer=first + i: a[layer], stacks[0])
        y = kinds[i](last, y, first + i)
    return y
