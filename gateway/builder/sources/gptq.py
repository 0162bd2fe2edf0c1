"""Reads the matrices of a Hugging Face folder that GPTQ or AWQ has quantised: integers, scales and zeros as stored.

Both store a matrix as int32 numbers of several integers, the first in the lowest bits: weight = scale * (quant - zero).

    GPTQ  qweight (inputs / n, outputs), qzeros (groups, outputs / n), scales (groups, outputs), g_idx (inputs,)
    AWQ   qweight (inputs, outputs / n), qzeros and scales the same, the outputs of a number in `_AWQ_ORDER`

A zero of GPTQ is stored less one, unless its format is "gptq_v2".
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.builder.sources.safetensors_file import Weights
from gateway.builder.sources.source import Blocks
from gateway.errors import BundleError, cut

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output of each nibble
_LARGEST_BLOCK, _SMALLEST_BLOCK = 128, 16
_NEXT_STEP = "Use the model's weights in bf16 or f16, a GPTQ or AWQ folder with 4 bits, or a GGUF file."


class Quantisation(Struct, frozen=True, kw_only=True):
    """The keys of `quantization_config` that say how the matrices are stored."""

    quant_method: str = ""
    bits: int = 0
    group_size: int = 128
    checkpoint_format: str = "gptq"
    version: str = "gemm"
    zero_point: bool = True
    dynamic: dict[str, Any] | None = None


_Stored = Mapping[str, NDArray[Any]]
_Matrix = NDArray[np.uint8]
_INTEGERS = ("qweight", "qzeros")


class PackedMatrices:
    """The quantised matrices of a folder. Others, which the quantiser left out, are in floating point."""

    def __init__(self, weights: Weights, settings: Quantisation) -> None:
        self._weights = weights
        self._settings = settings
        self._read = _gptq if settings.quant_method == "gptq" else _awq

    def __contains__(self, name: str) -> bool:
        return f"{_stem(name)}.qweight" in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """(rows, columns) of "NAME.weight". Raises BundleError if its integers are no matrix."""
        stem, each = _stem(name), 32 // self._settings.bits
        stored = self._weights.shape(f"{stem}.qweight")
        if len(stored) != 2:
            raise _damaged(stem)
        inputs, outputs = stored
        return (outputs, inputs * each) if self._settings.quant_method == "gptq" else (outputs * each, inputs)

    def blocks(self, name: str, rows: slice) -> Blocks:
        """The blocks of "NAME.weight", or of some rows of it. Raises BundleError if they cannot be represented."""
        stem = _stem(name)
        parts = {part: f"{stem}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
        stored = {part: self._weights.stored(full) for part, full in parts.items() if full in self._weights}
        if lacking := {"qweight", "qzeros", "scales"} - stored.keys():
            raise BundleError(f"The folder lacks {stem}.{min(lacking)}. Download the missing *.safetensors files.")
        self._check(stem, stored, *self.shape(name))
        quants, zeros = self._read(stored, self._settings, stem)
        scales = stored["scales"].T.astype(np.float32)
        if quants.shape[1] % scales.shape[1]:
            raise BundleError(f"{stem} has a last group that is shorter than the others. {_NEXT_STEP}")
        return _blocks(quants[rows], zeros[rows], scales[rows], self._settings.bits)

    def _check(self, stem: str, stored: _Stored, outputs: int, inputs: int) -> None:
        """Raise BundleError if the parts do not belong together."""
        groups = len(stored["scales"])
        zeros = (groups, outputs * self._settings.bits // 32)
        sizes = {"scales": (groups, outputs), "qzeros": zeros, "g_idx": (inputs,)}
        fits = all(stored[part].shape == size for part, size in sizes.items() if part in stored)
        if not 0 < groups <= inputs or not fits or {stored[part].dtype.name for part in _INTEGERS} != {"int32"}:
            raise _damaged(stem)


def read_quantisation(content: Mapping[str, Any]) -> Quantisation | None:
    """The content of config.json -> how its matrices are quantised. None: they are not. Raises BundleError."""
    stated = content.get("quantization_config")
    if not stated:
        return None
    if not isinstance(stated, Mapping):
        raise BundleError(f"The quantization_config in config.json is wrong: it is no object. {_NEXT_STEP}")
    method = cut(str(stated.get("quant_method", "unknown")), 100)
    if method not in ("gptq", "awq"):
        raise BundleError(f"Weights that are quantised by {method!r} cannot be read. {_NEXT_STEP}")
    try:
        settings = msgspec.convert(stated, Quantisation, strict=False)
    except msgspec.ValidationError as error:
        raise BundleError(f"The quantization_config in config.json is wrong: {error}. {_NEXT_STEP}") from error
    if problem := _problem(settings):
        raise BundleError(f"{method.upper()} weights with {problem} cannot be read. {_NEXT_STEP}")
    return settings


def _problem(settings: Quantisation) -> str:
    """What is not supported; "": nothing."""
    is_gptq = settings.quant_method == "gptq"
    if settings.bits not in ((4, 8) if is_gptq else (4,)):
        return f"{settings.bits} bits"
    if settings.group_size != -1 and (settings.group_size <= 0 or settings.group_size % _SMALLEST_BLOCK):
        return f"groups of {settings.group_size}"
    if is_gptq and settings.checkpoint_format not in ("gptq", "gptq_v2"):
        return f"the format {cut(settings.checkpoint_format, 100)!r}"
    if is_gptq and any(not pattern.startswith("-:") for pattern in settings.dynamic or {}):
        return "other settings for some layers"
    if not is_gptq and settings.version.lower() != "gemm":
        return f"the version {cut(settings.version, 100)!r}"
    return "" if is_gptq or settings.zero_point else "no zeros"


def _damaged(stem: str) -> BundleError:
    return BundleError(
        f"{stem} is damaged: the sizes or types of its integers, zeros and scales do not belong together. Download the "
        "*.safetensors files again."
    )


def _gptq(stored: _Stored, settings: Quantisation, stem: str) -> tuple[_Matrix, NDArray[np.int32]]:
    """Quants (outputs, inputs) and zeros (outputs, groups)."""
    quants = _unpacked(stored["qweight"].T, settings.bits)
    group = quants.shape[1] // stored["scales"].shape[0]
    if "g_idx" in stored and not np.array_equal(stored["g_idx"], np.arange(quants.shape[1]) // group):
        raise BundleError(
            f"{stem} has its groups in the order of the activations (`desc_act`), which is not supported. "
            f"Use a folder that was made with `desc_act` false. {_NEXT_STEP}"
        )
    offset = 0 if settings.checkpoint_format == "gptq_v2" else 1
    zeros = _unpacked(stored["qzeros"], settings.bits).T.astype(np.int32) + offset
    return quants, zeros & (2**settings.bits - 1)  # a zero of 0 is stored as -1


def _awq(stored: _Stored, settings: Quantisation, stem: str) -> tuple[_Matrix, NDArray[np.int32]]:
    """Quants (outputs, inputs) and zeros (outputs, groups)."""
    quants, zeros = (_in_awq_order(_unpacked(stored[part], 4)) for part in ("qweight", "qzeros"))
    return quants.T, zeros.T.astype(np.int32)


def _in_awq_order(columns: _Matrix) -> _Matrix:
    return columns.reshape(len(columns), -1, 8)[..., np.argsort(_AWQ_ORDER)].reshape(columns.shape)


def _unpacked(numbers: NDArray[np.int32], bits: int) -> _Matrix:
    """(rows, columns) of int32 -> (rows, columns * 32 / bits), the lowest bits first."""
    raw = np.ascontiguousarray(numbers).astype("<i4", copy=False).view(np.uint8)
    return raw if bits == 8 else np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)


def _blocks(quants: _Matrix, zeros: NDArray[np.int32], scales: NDArray[np.float32], bits: int) -> Blocks:
    """Long groups become several blocks with the same scale, because the kernel has none of more than 256."""
    rows, columns = quants.shape
    group = columns // scales.shape[1]
    size = gcd(group, _LARGEST_BLOCK)
    scale = np.repeat(scales, group // size, axis=1)
    zero = np.repeat(zeros, group // size, axis=1)
    blocked = np.ascontiguousarray(quants).reshape(rows, columns // size, size)
    if bits == 4:
        return Blocks(bits=4, scale=scale, minimum=-zero.astype(np.float32) * scale, quants=blocked)
    signed = (blocked ^ np.uint8(128)).view(np.int8)
    return Blocks(bits=8, scale=scale, minimum=(128 - zero).astype(np.float32) * scale, quants=signed)


def _stem(name: str) -> str:
    return name.removesuffix(".weight")
