"""Positions: where a token stands, and how far from another."""

from functools import partial

import numpy as np

import reference
from accelerated.layers import grid_position, position, relative_position, rotary
from benchmarks.cases import pytorch
from benchmarks.cases.case import Case, module
from benchmarks.cases.pytorch import torch
from reference.layers.grid_position import grid_waves
from reference.layers.mask import causal
from reference.layers.position import waves
from reference.layers.relative_position import (
    alibi,
    alibi_slopes,
    shaw_attention,
    t5_bias,
    transformer_xl_attention,
)
from reference.layers.rotary import rotary_frequencies, rotation

GRID, LARGER = (14, 14), (16, 16)

CASES = {
    "learned_position": lambda s: module(
        reference.learned_position,
        partial(position.LearnedPosition, s.length, s.width),
        lambda p, x: x + p["embedding"],
        s.stream(times=4),
    ),
    "sinusoidal_position": lambda s: Case(
        reference.sinusoidal_position,
        position.sinusoidal_position,
        plus(waves(0, s.length, s.width, "paper", True, np.float32)),
        (s.stream(times=4),),
    ),
    "sinusoidal_position_concatenated": lambda s: Case(
        reference.sinusoidal_position_concatenated,
        position.sinusoidal_position_concatenated,
        plus(waves(0, s.length, s.width, "tensor2tensor", False, np.float32)),
        (s.stream(times=4),),
    ),
    "rotary_pairs": lambda s: rotary_case(
        reference.rotary_pairs, rotary.rotary_pairs, rotate_pairs, s
    ),
    "rotary_halves": lambda s: rotary_case(
        reference.rotary_halves, rotary.rotary_halves, rotate_halves, s
    ),
    "sinusoidal_grid_position": lambda s: Case(
        partial(reference.sinusoidal_grid_position, grid=GRID),
        partial(grid_position.sinusoidal_grid_position, grid=GRID),
        plus(grid_waves(*GRID, 0, s.width, "paper", np.float32)),
        (s.stream(length=14 * 14, times=4),),
    ),
    "learned_grid_position": lambda s: module(
        partial(
            reference.learned_grid_position,
            grid=GRID,
            to=LARGER,
            extra=1,
            interpolation="bicubic",
        ),
        partial(
            grid_position.LearnedGridPosition,
            s.width,
            grid=GRID,
            extra=1,
            interpolation="bicubic",
        ),
        partial(pytorch.learned_grid_position, grid=GRID, to=LARGER),
        s.stream(length=1 + 16 * 16, times=4),
        options={"to": LARGER},
    ),
    "alibi": lambda s: Case(
        partial(alibi, queries=s.length, keys=s.length),
        partial(relative_position.alibi, queries=s.length, keys=s.length),
        partial(pytorch.alibi, queries=s.length, keys=s.length),
        (alibi_slopes(s.heads).astype(np.float32),),
    ),
    "t5_bias": lambda s: module(
        partial(t5_bias, queries=s.length, keys=s.length),
        partial(relative_position.T5Bias, 32, s.heads),
        partial(pytorch.t5_bias, queries=s.length, keys=s.length),
        options={"queries": s.length, "keys": s.length},
    ),
    "shaw_attention": lambda s: module(
        shaw_attention,
        partial(relative_position.ShawAttention, 16, s.head),
        pytorch.shaw_attention,
        *(s.in_heads(seed) for seed in range(3)),
    ),
    "transformer_xl_attention": lambda s: module(
        partial(transformer_xl_attention, mask=causal),
        partial(
            relative_position.TransformerXLAttention, s.width, heads=s.heads, head_width=s.head
        ),
        transformer_xl(s),
        s.in_heads(0),
        *(s.in_heads(seed, length=s.length + s.memory) for seed in (1, 2)),
        options={"mask": causal},
    ),
}


def plus(table):
    """PyTorch's addition of a table that its module keeps."""
    added = pytorch.constant(table)
    return lambda x: x + added


def rotary_case(ours, twin, rotate, s):
    """All features turn; PyTorch keeps the tables of cosines and sines, (T, K / 2)."""
    frequencies = rotary_frequencies(s.head)
    tables = rotation(frequencies, None, s.length, 1.0, np.float32)
    ours, twin = (partial(function, frequencies=frequencies) for function in (ours, twin))
    return Case(ours, twin, rotate(*tables), (s.in_heads(times=4),))


def rotate_pairs(cos, sin):
    """As Meta's Llama: a pair of features is a complex number."""
    turn = pytorch.constant(cos + np.complex64(1j) * sin)

    def rotated(x):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2)

    return rotated


def rotate_halves(cos, sin):
    """As Hugging Face's Llama."""
    cosines, sines = (pytorch.constant(np.concatenate([a, a], axis=-1)) for a in (cos, sin))
    return lambda x: x * cosines + pytorch.rotate_half(x) * sines


def transformer_xl(s):
    """PyTorch's, with the waves and the mask that its module keeps."""
    keys = s.length + s.memory
    table = waves(0, keys, s.width, "paper", False, np.float32)[::-1]
    future = np.arange(keys) > s.memory + np.arange(s.length)[:, None]
    constants = {"table": pytorch.constant(table.copy()), "future": pytorch.constant(future)}
    return partial(pytorch.transformer_xl_attention, **constants)
