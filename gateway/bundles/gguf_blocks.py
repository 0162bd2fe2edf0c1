"""GGUF's block formats unpacked into `Blocks`: scales, minimums and integers, exactly as stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gateway.bundles.source import Blocks

_Bytes = NDArray[np.uint8]


def _half(raw: _Bytes) -> NDArray[np.float32]:
    """The little-endian float16 in the first two bytes of each block."""
    return np.ascontiguousarray(raw[..., :2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(raw: _Bytes) -> _Bytes:
    """(..., 16) packed -> (..., 32): all the low halves first, then all the high ones."""
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


#: format name -> (bytes per block, its reader); raw blocks come as (rows, blocks, bytes per block)
_FORMATS: dict[str, tuple[int, Callable[[_Bytes], Blocks]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q8_0": (34, _q8_0),
}


def unpack(format_name: str, rows: _Bytes) -> Blocks | None:
    """`rows`: uint8 (rows, bytes per row) of a GGUF tensor; None for a format that is not made of such blocks."""
    if format_name not in _FORMATS:
        return None
    size, read = _FORMATS[format_name]
    return read(rows.reshape(rows.shape[0], -1, size))
