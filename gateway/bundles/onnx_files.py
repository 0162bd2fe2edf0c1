"""Checks that the files an ONNX graph refers to are there and as long as it says, before a runtime trips over them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.bundles.genai_config import check_inside
from gateway.errors import BundleError

_HOLDS_ITS_WEIGHTS = 256 * 1024 * 1024  # a graph file this large refers to little and is slow to parse


def check_onnx_file(path: Path) -> None:
    """Raises BundleError when the graph, a file of constants or a compiled context is missing or cut short."""
    import onnx  # a fifth of a second that only this check needs
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise BundleError(f"{path.parent.name} lacks {path.name}, which its genai_config.json names.")
    if path.stat().st_size > _HOLDS_ITS_WEIGHTS:
        return
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError as error:
        raise BundleError(f"{path.parent.name}: {path.name} is truncated or not an ONNX graph.") from error
    if not graph.node:
        raise BundleError(f"{path.parent.name}: {path.name} is truncated or not an ONNX graph.")
    for name, size in [*_constant_files(graph), *_context_files(graph)]:
        check_inside(path.parent, name)
        _check_size(path.parent / name, size, path.name)


def _constant_files(graph: Any) -> Iterator[tuple[str, int]]:
    """(file, bytes it must have) for each constant stored outside the graph."""
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in entries:
            yield entries["location"], int(entries.get("offset", 0)) + int(entries.get("length", 0))


def _context_files(graph: Any) -> Iterator[tuple[str, int]]:
    """(file, 1) for each compiled network that an EPContext node keeps beside the graph."""
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "EPContext" and "embed_mode" in attributes and attributes["embed_mode"].i == 0:
            name = attributes["ep_cache_context"].s.decode("utf-8") if "ep_cache_context" in attributes else ""
            if name:
                yield name, 1


def _check_size(path: Path, size: int, graph_name: str) -> None:
    if not path.is_file():
        raise BundleError(f"{path.parent.name} lacks {path.name}, which {graph_name} refers to.")
    if path.stat().st_size < size:
        raise BundleError(
            f"{path.parent.name}: {path.name} is truncated: {path.stat().st_size} bytes instead of {size} or more. "
            "Remove the folder and fetch it again."
        )
