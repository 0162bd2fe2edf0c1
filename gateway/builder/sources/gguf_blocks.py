"""Unpacks GGUF's block formats into `Blocks`: scales, minimums and integers, exactly as stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gateway.builder.sources.source import Blocks

_Bytes = NDArray[np.uint8]


def _half(raw: _Bytes) -> NDArray[np.float32]:
    """The little-endian float16 in the first two bytes of each block, as float32."""
    return np.ascontiguousarray(raw[..., :2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(raw: _Bytes) -> _Bytes:
    """(..., 16) packed -> (..., 32): all low nibbles first, then all high nibbles."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _q4_0(raw: _Bytes) -> Blocks:
    scale = _half(raw)
    return Blocks(bits=4, scale=scale, minimum=-8 * scale, quants=_nibbles(raw[..., 2:]))


def _q4_1(raw: _Bytes) -> Blocks:
    return Blocks(bits=4, scale=_half(raw), minimum=_half(raw[..., 2:]), quants=_nibbles(raw[..., 4:]))


def _q8_0(raw: _Bytes) -> Blocks:
    scale = _half(raw)
    quants = np.ascontiguousarray(raw[..., 2:]).view(np.int8)
    return Blocks(bits=8, scale=scale, minimum=np.zeros_like(scale), quants=quants)


def _q4_k(raw: _Bytes) -> Blocks:
    """Super-blocks of 8 blocks: two float16 factors, 6-bit scales and minimums, 4-bit quants: 2 blocks in 32 bytes."""
    scales, minimums = _six_bit_pairs(raw[..., 4:16])
    pairs = raw[..., 16:].reshape(*raw.shape[:-1], 4, 32)
    quants = np.stack([pairs & 15, pairs >> 4], axis=-2)  # (..., 4, 2, 32)
    return Blocks(
        bits=4,
        scale=_flat(_half(raw)[..., None] * scales),
        minimum=_flat(-_half(raw[..., 2:])[..., None] * minimums),
        quants=quants.reshape(raw.shape[0], -1, 32),
    )


def _six_bit_pairs(raw: _Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(..., 12) -> 8 scales and 8 minimums. The upper two bits of the last four of each are in the first 8 bytes."""
    first, second, rest = raw[..., 0:4], raw[..., 4:8], raw[..., 8:12]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], axis=-1)
    minimums = np.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], axis=-1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _q6_k(raw: _Bytes) -> Blocks:
    """Super-blocks of 16 blocks of 16: low nibbles, upper two bits, int8 scales, one float16 factor for all."""
    low = raw[..., :128].reshape(*raw.shape[:-1], 2, 1, 64)
    high = raw[..., 128:192].reshape(*raw.shape[:-1], 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], axis=-2).reshape(*raw.shape[:-1], 2, 4, 32)
    upper = high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    quants = (nibbles | upper << 4).view(np.int8) - np.int8(32)
    scales = np.ascontiguousarray(raw[..., 192:208]).view(np.int8).astype(np.float32)
    scale = _flat(_half(raw[..., 208:])[..., None] * scales)
    return Blocks(bits=8, scale=scale, minimum=np.zeros_like(scale), quants=quants.reshape(raw.shape[0], -1, 16))


def _flat(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, super-blocks, blocks in each) -> (rows, blocks)."""
    return values.reshape(values.shape[0], -1)


#: format name -> (bytes per block, its reader). A reader gets (rows, blocks, bytes per block).
_FORMATS: dict[str, tuple[int, Callable[[_Bytes], Blocks]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q6_K": (210, _q6_k),
}


def unpack(format_name: str, rows: _Bytes) -> Blocks | None:
    """Unpack a GGUF tensor: uint8 (rows, bytes per row). None if `Blocks` cannot represent the format."""
    if format_name not in _FORMATS:
        return None
    size, read = _FORMATS[format_name]
    return read(rows.reshape(rows.shape[0], -1, size))
