"""Reads what a context binary contains, through the public QNN System API. It needs no NPU and loads no network.

1. The API gives pointers into its own memory. Everything is copied before its handle is freed.
2. The library refuses truncated files and files of another kind. A file with damage inside its header can crash the
   process, so untrusted files are read in a child process.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from ctypes import POINTER, byref, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from msgspec import Struct

from gateway.errors import BundleError
from gateway.qnn.system_api import GraphFields, InfoV3, Metadata, SystemInfo, TensorFields, system_functions


class Tensor(Struct, frozen=True):
    """An input or an output of a graph: value = (code - zero_point) * scale.

    `dtype` is a numpy type name. `scale` is None if the tensor has no scale, or one for each channel.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int = 0


class Graph(Struct, frozen=True):
    """One compiled graph. The order of the tensors is the order in the binary."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class BinaryInfo(Struct, frozen=True):
    """What a context binary states about itself.

    Args:
        build: the QAIRT build that made it ("v2.51.0.260501...").
        soc: the chip number, 60 for Snapdragon X Elite; None if it is not stated.
        architecture: the Hexagon version, 73 for Snapdragon X Elite; None if it is not stated.
        graphs: by name, in the order of the binary.
    """

    build: str
    soc: int | None
    architecture: int | None
    graphs: dict[str, Graph]


def read_binary(path: Path) -> BinaryInfo:
    """Read a context binary. Raises BundleError if the file is missing, damaged or no context binary."""
    where = f"{path.parent.name}/{path.name}"
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as data:
            return _read(data, where)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise BundleError(f"{where} cannot be read: {error}. Download the bundle again.") from error


_MAX_GRAPHS, _MAX_TENSORS, _MAX_RANK = 4096, 65536, 16


_DTYPES = {
    0x0008: "int8",
    0x0016: "int16",
    0x0032: "int32",
    0x0064: "int64",
    0x0108: "uint8",
    0x0116: "uint16",
    0x0132: "uint32",
    0x0164: "uint64",
    0x0216: "float16",
    0x0232: "float32",
    0x0264: "float64",
    0x0308: "int8",
    0x0316: "int16",
    0x0332: "int32",
    0x0408: "uint8",
    0x0416: "uint16",
    0x0432: "uint32",
    0x0508: "bool",
}
_DEFINED, _SCALE_OFFSET = 1, 0


def _read(data: mmap.mmap, where: str) -> BinaryInfo:
    functions, handle = system_functions(), c_void_p()
    info, size = POINTER(SystemInfo)(), c_uint64()
    view = (ctypes.c_char * len(data)).from_buffer(data)
    try:
        if functions.create(byref(handle)):
            raise BundleError("The QNN System library gives no handle.")
        status = functions.get_binary_info(handle, ctypes.addressof(view), len(data), byref(info), byref(size))
        if status or not info:
            raise _damaged(where)
        return _copied(info.contents, where)
    finally:
        if handle:
            functions.free(handle)
        del view  # the map cannot be closed while it is in use


def _copied(any_info: SystemInfo, where: str) -> BinaryInfo:
    if any_info.version not in (1, 2, 3):
        raise BundleError(f"{where} was made by a newer QAIRT than this gateway knows. Update npu-gateway.")
    newest = any_info.version == 3
    info: Any = any_info.info.v3 if newest else any_info.info.v1
    graphs = (_graph(item.graph, where) for item in _items(info.graphs, info.graph_count, _MAX_GRAPHS, where))
    return BinaryInfo(
        build=(info.build or b"").decode("utf-8", "replace"),
        soc=(info.soc or None) if newest else None,
        architecture=_architecture(info) if newest else None,
        graphs={graph.name: graph for graph in graphs},
    )


def _architecture(info: InfoV3) -> int | None:
    if not info.metadata or info.metadata_size < ctypes.sizeof(Metadata) or info.metadata.contents.version != 1:
        return None
    return info.metadata.contents.architecture or None


def _graph(graph: GraphFields, where: str) -> Graph:
    def tensors(first: Any, count: int) -> tuple[Tensor, ...]:
        return tuple(_tensor(item.tensor, where) for item in _items(first, count, _MAX_TENSORS, where))

    return Graph(
        (graph.name or b"").decode("utf-8", "replace"),
        tensors(graph.inputs, graph.input_count),
        tensors(graph.outputs, graph.output_count),
    )


def _tensor(tensor: TensorFields, where: str) -> Tensor:
    shape = tuple(_items(tensor.shape, tensor.rank, _MAX_RANK, where))
    scale, zero_point = None, 0
    quantisation = tensor.quantisation
    if quantisation.defined == _DEFINED and quantisation.kind == _SCALE_OFFSET:
        scale = quantisation.encoding.scale_offset.scale
        zero_point = -quantisation.encoding.scale_offset.offset
    name = (tensor.name or b"").decode("utf-8", "replace")
    return Tensor(name, shape, _DTYPES.get(tensor.dtype, f"0x{tensor.dtype:04x}"), scale, zero_point)


def _items(first: Any, count: int, limit: int, where: str) -> Iterator[Any]:
    if count > limit or (count and not first):
        raise _damaged(where)
    return (first[index] for index in range(count))


def _damaged(where: str) -> BundleError:
    return BundleError(f"{where} is damaged or no context binary for the NPU. Download the bundle again.")
