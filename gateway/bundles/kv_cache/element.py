"""The element type of a graph's cache, read from the graph file without the `onnx` package, whose import takes 0.2 s.

An ONNX file is a protobuf message: ModelProto.graph = 7, GraphProto.input = 11, ValueInfoProto.name = 1 and .type = 2,
TypeProto.tensor_type = 1, TypeProto.Tensor.elem_type = 1.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

#: TensorProto.DataType -> bytes
_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 16: 2}
_GRAPH, _INPUT, _NAME, _TYPE, _TENSOR, _ELEMENT = 7, 11, 1, 2, 1, 1
_FIXED = {1: 8, 5: 4}  # wire type -> bytes


def element_bytes(graph: Path, name: str) -> int | None:
    """Bytes of an element of the input `name`. None: the graph has no input of that name and a known type.

    The file is mapped, so a graph that holds its weights is not read as a whole.
    """
    try:
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return next(filter(None, _input_bytes(data, name.encode())), None)
    except (OSError, ValueError, IndexError):  # missing, empty, truncated
        return None


def _input_bytes(data: mmap.mmap, name: bytes) -> Iterator[int | None]:
    for graph in _parts(data, (0, len(data)), _GRAPH):
        for value in _parts(data, graph, _INPUT):
            if any(data[start:end] == name for start, end in _parts(data, value, _NAME)):
                for kind in _parts(data, value, _TYPE):
                    for tensor in _parts(data, kind, _TENSOR):
                        yield from (_BYTES.get(element) for element, _ in _parts(data, tensor, _ELEMENT))


def _parts(data: mmap.mmap, span: tuple[int, int], wanted: int) -> Iterator[tuple[int, int]]:
    """The contents (start, end) of the fields with the number `wanted`; of a number (its value, 0)."""
    at, stop = span
    while at < stop:
        tag, at = _number(data, at)
        value, end = 0, at + _FIXED.get(tag & 7, 0)
        if tag & 7 in (0, 2):
            value, end = _number(data, at)
        if tag & 7 == 2:
            at, end = end, end + value
        if end > stop or tag & 7 in (3, 4, 6, 7):
            raise ValueError("not an ONNX graph")
        if tag >> 3 == wanted:
            yield (at, end) if tag & 7 == 2 else (value, 0)
        at = end


def _number(data: mmap.mmap, at: int) -> tuple[int, int]:
    """The variable-length number at `at`, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("not an ONNX graph")
