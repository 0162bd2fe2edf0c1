"""Quantises floating-point matrices into blocks of small integers, for sources that are not quantised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from gateway.builder.sources.source import Blocks

BLOCK = 32
_AT_ONCE = 1 << 18  # weights, so that temporary arrays stay in the processor's cache
#: Fractions of a block's range to try. Clipping the extremes often gives a smaller error.
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)

_Array = NDArray[np.float32]


def four_bit(weights: _Array, importance: _Array | None = None) -> Blocks:
    """Blocks of 32, fitted by least squares: weight = scale * (quant - zero), with an integer zero 0..15.

    Args:
        importance: of each column, the mean square of its input. Its errors have this weight. None: all the same.
    """
    counts = np.ones(weights.shape[1], np.float32) if importance is None else importance
    counts = counts.reshape(1, -1, BLOCK)
    # Of the mean in a block a thousandth at least: the text for the means has not each input.
    counts = np.maximum(counts, counts.mean(-1, keepdims=True) * np.float32(1e-3) + np.float32(1e-20))
    return _by_rows(weights, lambda rows: _four_bit(rows, counts))


def eight_bit(weights: _Array, block: int = BLOCK) -> Blocks:
    """Symmetric blocks: weight = scale * quant, quant -127..127."""
    return _by_rows(weights, _eight_bit, block)


def in_larger_blocks(blocks: Blocks, largest: int) -> Blocks:
    """Symmetric 8-bit blocks of `largest` inputs, or a half or a quarter of that. Rounds values by about 0.5 %.

    The blocks themselves if they are already symmetric 8-bit blocks of 32 or more.
    """
    if blocks.bits == 8 and blocks.block_size >= BLOCK and not blocks.minimum.any():
        return blocks
    rows, columns = len(blocks.scale), blocks.scale.shape[1] * blocks.block_size
    block, step = whole_block(columns, largest), max(1, _AT_ONCE // columns)
    some = (rows_of(blocks, slice(start, start + step)) for start in range(0, rows, step))
    return join([eight_bit(part.values(), block) for part in some])


def whole_block(columns: int, largest: int) -> int:
    """The largest block that divides the columns: `largest`, a half or a quarter of it, or 32."""
    return next(size for size in (largest, largest // 2, BLOCK) if columns % size == 0)


def rows_of(blocks: Blocks, rows: slice) -> Blocks:
    return replace(blocks, scale=blocks.scale[rows], minimum=blocks.minimum[rows], quants=blocks.quants[rows])


def as_eight_bit(blocks: Blocks | None) -> Blocks | None:
    """The same values as symmetric 8-bit blocks. None if that is not possible without loss."""
    if blocks is None or (blocks.bits == 8 and not blocks.minimum.any()):
        return blocks
    if blocks.bits == 8 or not np.array_equal(blocks.minimum, -8 * blocks.scale):
        return None
    quants = (blocks.quants - np.uint8(8)).view(np.int8)
    return Blocks(bits=8, scale=blocks.scale, minimum=np.zeros_like(blocks.scale), quants=quants)


def with_eight_bits(blocks: Blocks) -> Blocks:
    """The same values as 8-bit blocks, with minimums if necessary."""
    if blocks.bits == 8:
        return blocks
    symmetric = as_eight_bit(blocks)
    return symmetric or Blocks(bits=8, scale=blocks.scale, minimum=blocks.minimum, quants=blocks.quants.view(np.int8))


def centred(blocks: Blocks) -> Blocks:
    """The same values, with quants around the kernel's zero: then the rounding of an input counts least.

    Changes 8-bit quants that are all positive (Q5_K), and 4-bit ones that use only the lower half (Q2_K).
    """
    largest, smallest = int(blocks.quants.max()), int(blocks.quants.min())
    zero = 8 if blocks.bits == 4 else 0
    if smallest < 0 or (blocks.bits == 4 and largest > 7):
        return blocks
    shift = zero - (largest + 1) // 2
    minimum = blocks.minimum - np.float32(shift) * blocks.scale
    quants = blocks.quants.view(np.int8) + np.int8(shift)
    return replace(blocks, minimum=minimum, quants=quants if blocks.bits == 8 else quants.view(np.uint8))


def with_positive_scales(blocks: Blocks) -> Blocks:
    """The same values of 4-bit blocks. Quants of a negative scale count from the other end: 15 - quant."""
    negative = blocks.scale < 0
    return Blocks(
        bits=blocks.bits,
        scale=abs(blocks.scale),
        minimum=np.where(negative, blocks.minimum + 15 * blocks.scale, blocks.minimum),
        quants=np.where(negative[..., None], np.uint8(15) - blocks.quants, blocks.quants),
    )


def with_sums_as_inputs(blocks: Blocks) -> Blocks:
    """4-bit blocks whose minimums are whole steps, for a product of x, s and s. s are the sums of the blocks of x.

    The minimums are rounded to whole steps, 0 to 15 of them. What is missing then, half a step at most as a rule, is
    multiplied by the sums of the inputs. It is written as two digits of 4 bits, so its error is a 225th of the largest
    in a block of sums. The number of sums is rounded up to whole blocks.
    """
    zeros = np.clip(np.rint(-blocks.minimum / _nonzero(blocks.scale)), 0, 15)
    whole = replace(blocks, minimum=-zeros * blocks.scale)
    rest = blocks.minimum - whole.minimum
    rest = np.pad(rest, ((0, 0), (0, -rest.shape[1] % blocks.block_size)))
    first = _digit(rest.reshape(len(rest), -1, blocks.block_size))
    second = _digit(rest.reshape(first.quants.shape) - first.values().reshape(first.quants.shape))
    return _joined_columns([whole, first, second])


def _digit(values: _Array) -> Blocks:
    """Symmetric blocks: quants 0..15, of which 8 is zero. The error is half a step at most."""
    scale = np.abs(values).max(-1) / np.float32(7.5)
    steps = np.rint(values / _nonzero(scale)[..., None])
    quants = (np.clip(steps, -8, 7) + 8).astype(np.uint8)
    return Blocks(bits=4, scale=scale, minimum=-8 * scale, quants=quants)


def _joined_columns(parts: list[Blocks]) -> Blocks:
    return Blocks(
        bits=parts[0].bits,
        scale=np.concatenate([part.scale for part in parts], 1),
        minimum=np.concatenate([part.minimum for part in parts], 1),
        quants=np.concatenate([part.quants for part in parts], 1),
    )


def join(parts: list[Blocks]) -> Blocks:
    """Concatenate the rows of several matrices of one kind."""
    return Blocks(
        bits=parts[0].bits,
        scale=np.concatenate([part.scale for part in parts]),
        minimum=np.concatenate([part.minimum for part in parts]),
        quants=np.concatenate([part.quants for part in parts]),
    )


def _by_rows(weights: _Array, quantise: Callable[[_Array], Blocks], block: int = BLOCK) -> Blocks:
    rows, columns = weights.shape
    blocked = weights.reshape(rows, columns // block, block)
    step = max(1, _AT_ONCE // columns)
    return join([quantise(blocked[start : start + step]) for start in range(0, rows, step)])


def _eight_bit(weights: _Array) -> Blocks:
    scale = _nonzero(np.abs(weights).max(-1) / np.float32(127))
    quants = np.rint(weights / scale[..., None]).astype(np.int8)
    return Blocks(bits=8, scale=scale, minimum=np.zeros_like(scale), quants=quants)


def _four_bit(weights: _Array, counts: _Array) -> Blocks:
    low, high = np.minimum(weights.min(-1), 0), np.maximum(weights.max(-1), 0)
    best = _fit(weights, counts, low, high)
    for shrink in _SHRINKS[1:]:
        best = _better(best, _fit(weights, counts, low * shrink, high * shrink))
    _, scale, zero, quants = _better(best, _rounded_again(weights, counts, best))
    return Blocks(bits=4, scale=scale, minimum=-zero * scale, quants=quants.astype(np.uint8))


_Fit = tuple[_Array, _Array, _Array, _Array]  # squared error, scale, zero point: (rows, blocks); quants


def _fit(weights: _Array, counts: _Array, low: _Array, high: _Array) -> _Fit:
    """Choose integers for the range low..high, then the best scale for these integers."""
    scale = _nonzero((high - low) / np.float32(15))
    return _fit_to(weights, counts, scale, np.clip(np.rint(-low / scale), 0, 15))


def _rounded_again(weights: _Array, counts: _Array, fit: _Fit) -> _Fit:
    """The best integers for the scale of a fit, then the best scale for them."""
    _, scale, zero, _ = fit
    return _fit_to(weights, counts, scale, zero)


def _fit_to(weights: _Array, counts: _Array, scale: _Array, zero: _Array) -> _Fit:
    quants = np.clip(np.rint(weights / scale[..., None]) + zero[..., None], 0, 15)
    steps = quants - zero[..., None]
    counted = steps * counts
    squares = (counted * steps).sum(-1)
    products = (counted * weights).sum(-1)
    scale = _nonzero(np.where(squares > 0, products / np.where(squares > 0, squares, 1), scale).astype(np.float32))
    error = (counts * (steps * scale[..., None] - weights) ** 2).sum(-1)
    return error, scale, zero, quants


def _better(first: _Fit, second: _Fit) -> _Fit:
    wins = second[0] < first[0]
    error, scale, zero = (np.where(wins, b, a) for a, b in zip(first[:3], second[:3], strict=True))
    return error, scale, zero, np.where(wins[..., None], second[3], first[3])


def _nonzero(scale: _Array) -> _Array:
    """Replace scale 0, of a block of zeros, with 1, because the weights are divided by it."""
    return np.where(scale == 0, np.float32(1), scale).astype(np.float32)
