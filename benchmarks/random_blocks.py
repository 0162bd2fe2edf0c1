"""Rows of a matrix in a GGUF number format: random numbers. Their standard deviation is about 1 / sqrt(columns)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

_Bytes = NDArray[np.uint8]


def random_blocks(random: np.random.Generator, stored: Kind, rows: int, columns: int, gain: float) -> _Bytes:
    """uint8 (rows, bytes per row).

    Args:
        stored: Q4_0, Q4_K or Q6_K.
        gain: factor of the standard deviation.
    """
    size, block_bytes = GGML_QUANT_SIZES[stored]
    count = rows * columns // size
    raw = np.frombuffer(random.bytes(count * block_bytes), np.uint8).reshape(count, block_bytes).copy()
    _SCALES[stored](random, raw, gain / np.sqrt(columns))
    return raw.reshape(rows, -1)


def _q4_0(random: np.random.Generator, raw: _Bytes, deviation: float) -> None:
    """A factor with a sign, 32 numbers of 4 bits with a standard deviation of 4.6. The mean of the numbers is -0.5."""
    signs = random.choice((-1, 1), len(raw))
    raw[:, :2] = _halves(signs * random.uniform(0.5, 1.4, len(raw)) * deviation / 4.6)


def _q4_k(random: np.random.Generator, raw: _Bytes, deviation: float) -> None:
    """Two factors, 8 scales and 8 minimums of 6 bits, 256 numbers of 4 bits. A minimum is about 7.5 times its scale."""
    scales = random.integers(24, 60, (len(raw), 8), np.uint8)
    minimums = scales + random.integers(0, 7, scales.shape, np.uint8) - np.uint8(3)
    factors = random.uniform(0.5, 1.4, len(raw)) * deviation / (4.6 * 42)
    raw[:, :2], raw[:, 2:4] = _halves(factors), _halves(7.5 * factors)
    raw[:, 4:8] = scales[:, :4] | scales[:, 4:] >> 4 << 6
    raw[:, 8:12] = minimums[:, :4] | minimums[:, 4:] >> 4 << 6
    raw[:, 12:16] = scales[:, 4:] & 15 | (minimums[:, 4:] & 15) << 4


def _q6_k(random: np.random.Generator, raw: _Bytes, deviation: float) -> None:
    """256 numbers of 6 bits, 16 scales of 8 bits with a sign, a factor."""
    scales = random.integers(50, 127, (len(raw), 16)) * random.choice((-1, 1), (len(raw), 16))
    raw[:, 192:208] = scales.astype(np.int8).view(np.uint8)
    raw[:, 208:210] = _halves(random.uniform(0.5, 1.4, len(raw)) * deviation / (18.5 * 88))


def _halves(values: NDArray[np.float64]) -> _Bytes:
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


_SCALES: dict[Kind, Callable[[np.random.Generator, _Bytes, float], None]] = {
    Kind.Q4_0: _q4_0,
    Kind.Q4_K: _q4_k,
    Kind.Q6_K: _q6_k,
}
