"""Weights of small random models, the same in each run: for scripts/architecture_logits.py and for the tests.

The matrices are on the grid of the builder's blocks, so that quantising them changes nothing: blocks of 32 along the
inputs, 4-bit integers that reach both ends, and for the embedding and the head 8-bit integers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 32


def random_weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, NDArray[np.float32]]:
    """`shapes`: name of a tensor -> (size,) of a norm or bias, or (rows, columns)."""
    return {name: _tensor(name, tuple(shape), seed) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if len(shape) == 1:
        middle = 0.0 if name.endswith("bias") else 1.0
        return (middle + random.standard_normal(shape) * 0.2).astype(np.float32)
    if "embed_tokens" in name or "lm_head" in name:
        return _grid(random, shape, -127, 127, 1.5)
    return _grid(random, shape, -8, 7, 1.5)


def _grid(random: Any, shape: tuple[int, ...], low: int, high: int, deviation: float) -> NDArray[np.float32]:
    """`deviation`: of a product with inputs of deviation 1."""
    rows, columns = shape
    steps = random.integers(low, high + 1, (rows, columns // _BLOCK, _BLOCK))
    steps[..., 0], steps[..., 1] = low, high
    steps = random.permuted(steps, axis=-1)
    step = deviation / np.sqrt(columns) / (high / np.sqrt(3))
    scales = step * random.uniform(0.5, 1.5, (rows, columns // _BLOCK, 1))
    values: NDArray[np.float32] = (scales.astype(np.float32) * steps).reshape(shape).astype(np.float32)
    return values
