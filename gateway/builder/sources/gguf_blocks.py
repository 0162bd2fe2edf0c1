"""Unpacks GGUF's block formats into `Blocks`: scales, minimums and integers, with the values of the file.

The kernel has products of 2, 4 and 8 bits. With blocks of 16, 2 bits are slow: 35 ms for a row and 4096 x 2048 weights,
4 bits 0.2 ms. So the 2 and 3 bits of Q2_K and Q3_K become 4, and 5 and 6 bits become 8. IQ4's numbers are indices of
8-bit values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf.quants import IQ4_NL
from numpy.typing import NDArray

from gateway.builder.sources.source import Blocks

FLOATS = {"F32", "F16", "BF16", "F64"}
_Bytes = NDArray[np.uint8]
#: What a 4-bit number of IQ4_NL and IQ4_XS means
_IQ4_VALUES = np.array(IQ4_NL.kvalues, np.int8)


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


def _q5_0(raw: _Bytes) -> Blocks:
    return _eight_bit(_half(raw), _five_bits(raw[..., 2:]).view(np.int8) - np.int8(16))


def _q5_1(raw: _Bytes) -> Blocks:
    return _eight_bit(_half(raw), _five_bits(raw[..., 4:]).view(np.int8), _half(raw[..., 2:]))


def _five_bits(raw: _Bytes) -> _Bytes:
    """(..., 4 + 16) -> (..., 32): the fifth bits of all, then their nibbles."""
    fifth = np.unpackbits(np.ascontiguousarray(raw[..., :4]), axis=-1, bitorder="little")
    return _nibbles(raw[..., 4:]) | fifth << np.uint8(4)


def _q8_0(raw: _Bytes) -> Blocks:
    return _eight_bit(_half(raw), np.ascontiguousarray(raw[..., 2:]).view(np.int8))


def _iq4_nl(raw: _Bytes) -> Blocks:
    return _eight_bit(_half(raw), _IQ4_VALUES[_nibbles(raw[..., 2:])])


def _iq4_xs(raw: _Bytes) -> Blocks:
    """Super-blocks of 8 blocks: a float16 factor, the upper 2 and the lower 4 bits of the scales, indices of values."""
    upper = _fields(raw[..., 2:4], 2).reshape(*raw.shape[:-1], 8)
    lower = _fields(raw[..., 4:8], 4).reshape(*raw.shape[:-1], 8)
    scales = (lower | upper << 4).astype(np.float32) - 32
    quants = _IQ4_VALUES[_nibbles(raw[..., 8:].reshape(*raw.shape[:-1], 8, 16))]
    return _eight_bit(_flat(_half(raw)[..., None] * scales), quants.reshape(raw.shape[0], -1, 32))


def _q2_k(raw: _Bytes) -> Blocks:
    """Super-blocks of 16 blocks of 16: a byte with the 4-bit scale and minimum of each, 2-bit quants, two factors."""
    scales, minimums = (part.astype(np.float32) for part in (raw[..., :16] & 15, raw[..., :16] >> 4))
    return Blocks(
        bits=4,
        scale=_flat(_half(raw[..., 80:])[..., None] * scales),
        minimum=_flat(-_half(raw[..., 82:])[..., None] * minimums),
        quants=_two_bits(raw[..., 16:80]).reshape(raw.shape[0], -1, 16),
    )


def _q3_k(raw: _Bytes) -> Blocks:
    """Super-blocks of 16 blocks of 16: third bits, 2-bit quants, 6-bit scales, a float16 factor. Quants are -4..3.

    A scale can be negative. Its quants change their sign instead.
    """
    third = raw[..., None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    quants = _two_bits(raw[..., 32:96]).reshape(third.shape) | third << 2
    lower = np.concatenate([raw[..., 96:104] & 15, raw[..., 96:104] >> 4], axis=-1)
    upper = raw[..., None, 104:108] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    scales = (lower | upper.reshape(lower.shape) << 4).astype(np.float32) - 32
    scale = _flat(_half(raw[..., 108:])[..., None] * scales)
    quants = quants.reshape(raw.shape[0], -1, 16) + np.uint8(4)
    quants = np.where(scale[..., None] < 0, 16 - quants, quants)
    return Blocks(bits=4, scale=abs(scale), minimum=-8 * abs(scale), quants=quants)


def _two_bits(raw: _Bytes) -> _Bytes:
    """(..., 64) packed -> (..., 8, 32). Byte i of a half has the numbers of i, i + 32, i + 64, i + 96."""
    halves = raw.reshape(*raw.shape[:-1], 2, 1, 32)
    return (halves >> np.array([0, 2, 4, 6], np.uint8)[:, None] & np.uint8(3)).reshape(*raw.shape[:-1], 8, 32)


def _fields(raw: _Bytes, bits: int) -> _Bytes:
    """(..., bytes) -> (..., bytes, fields): the numbers of `bits` bits in each byte, the lowest first."""
    return raw[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)


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


def _q5_k(raw: _Bytes) -> Blocks:
    """As Q4_K, with the fifth bits between: bit n of byte i belongs to number i of block n."""
    scales, minimums = _six_bit_pairs(raw[..., 4:16])
    fifth = raw[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    pairs = raw[..., 48:].reshape(*raw.shape[:-1], 4, 32)
    quants = np.stack([pairs & 15, pairs >> 4], axis=-2).reshape(fifth.shape) | fifth << 4
    return _eight_bit(
        _flat(_half(raw)[..., None] * scales),
        quants.view(np.int8).reshape(raw.shape[0], -1, 32),
        _flat(-_half(raw[..., 2:])[..., None] * minimums),
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
    return _eight_bit(scale, quants.reshape(raw.shape[0], -1, 16))


def _flat(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, super-blocks, blocks in each) -> (rows, blocks)."""
    return values.reshape(values.shape[0], -1)


def _eight_bit(
    scale: NDArray[np.float32], quants: NDArray[np.int8], minimum: NDArray[np.float32] | None = None
) -> Blocks:
    return Blocks(bits=8, scale=scale, minimum=np.zeros_like(scale) if minimum is None else minimum, quants=quants)


#: format name -> bits of its numbers, if they are fewer than those of its `Blocks`
FEWER_BITS = {"Q2_K": 2, "Q3_K": 3, "IQ4_NL": 4, "IQ4_XS": 4, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q6_K": 6}

#: format name -> (bytes per block, its reader). A reader gets (rows, blocks, bytes per block).
_FORMATS: dict[str, tuple[int, Callable[[_Bytes], Blocks]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "IQ4_NL": (18, _iq4_nl),
    "IQ4_XS": (136, _iq4_xs),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}


def unpack(format_name: str, rows: _Bytes) -> Blocks | None:
    """Unpack a GGUF tensor: uint8 (rows, bytes per row). None if `Blocks` cannot represent the format."""
    if format_name not in _FORMATS:
        return None
    size, read = _FORMATS[format_name]
    return read(rows.reshape(rows.shape[0], -1, size))
