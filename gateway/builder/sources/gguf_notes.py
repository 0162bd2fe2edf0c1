"""Says what a build makes of the number formats of a GGUF file: one sentence for each format that does not stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from gateway.builder.graphs import quantise
from gateway.builder.sources import gguf_blocks

_MEASURED_ROWS = 1024


def format_notes(tensors: Mapping[str, Any]) -> tuple[str, ...]:
    """The sentences, by format. `tensors`: of the file, by name."""
    found = {tensor.tensor_type.name: tensor for tensor in tensors.values() if len(tensor.shape) > 1}
    return tuple(note for name in sorted(found) if (note := _note(name, found[name])))


def _note(name: str, tensor: Any) -> str:
    rows = tensor.data[:_MEASURED_ROWS]
    if name in gguf_blocks.FLOATS:
        return ""
    if (blocks := gguf_blocks.unpack(name, rows)) is None:
        return f"{name} becomes 8-bit blocks with an error of {_error(_values(tensor, rows))}"
    if name not in gguf_blocks.FEWER_BITS:
        return ""
    sentence = f"{name} ({gguf_blocks.FEWER_BITS[name]} bits) becomes {blocks.bits}-bit blocks"
    if blocks.bits == 4 or (larger := quantise.in_larger_blocks(blocks, quantise.BLOCK)) is blocks:
        return f"{sentence} with the same values"
    values = blocks.values()
    error = _relative(larger.values() - values, values)
    return f'{sentence} with an error of {error}, or, with activations = "float", with the same values'


def _values(tensor: Any, rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(dequantize(rows, tensor.tensor_type), np.float32)


def _error(values: NDArray[np.float32]) -> str:
    return _relative(quantise.eight_bit(values).values() - values, values)


def _relative(rounding: NDArray[Any], values: NDArray[Any]) -> str:
    """The root mean square of the rounding, relative to that of the values."""
    return f"{np.linalg.norm(rounding) / max(float(np.linalg.norm(values)), 1e-30):.2%}"
