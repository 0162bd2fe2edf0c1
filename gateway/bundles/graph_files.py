"""Checks the graph files of a bundle: each one is an ONNX graph, and the files it refers to are complete.

This module needs the `onnx` package, so only the worker process and the commands call it. `load_bundle` does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.bundles.bundle import Bundle
from gateway.bundles.genai_config import check_inside
from gateway.errors import BundleError

#: Bytes. A larger graph file holds its weights itself. It refers to few other files, and parsing it is slow.
_LARGEST_GRAPH = 256 * 1024 * 1024


def check_graph_files(bundle: Bundle) -> None:
    """Check every graph of the bundle and the files that it refers to.

    Raises BundleError when a graph, a file of constants or a compiled context is missing or incomplete.
    """
    for path in dict.fromkeys(bundle.graph_paths):
        _check_graph(path)


def has_open_rows(bundle: Bundle) -> bool:
    """True if the graphs leave the number of a cache's rows open, as Olive's do. They then serve `OPEN_ROWS`."""
    import onnx

    decoder = bundle.config.decoder
    if decoder.sliding_window is None or decoder.sliding_window.slide_key_value_cache:
        return False
    name = decoder.inputs.past_key_names.replace("%d", "0")
    graphs = (onnx.load(path, load_external_data=False).graph for path in bundle.graph_paths)
    keys = next((value for graph in graphs for value in graph.input if value.name == name), None)
    return keys is not None and not all(size.HasField("dim_value") for size in keys.type.tensor_type.shape.dim)


def _check_graph(path: Path) -> None:
    import onnx  # takes 0.2 s, and only this check needs it
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise BundleError(f"{path.parent.name} lacks {path.name}, which its genai_config.json names.")
    if path.stat().st_size > _LARGEST_GRAPH:
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
    """Yield (file, bytes it must have) for each constant that is stored outside the graph."""
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in entries:
            yield entries["location"], int(entries.get("offset", 0)) + int(entries.get("length", 0))


def _context_files(graph: Any) -> Iterator[tuple[str, int]]:
    """Yield (file, 1) for each compiled network that an EPContext node keeps in a separate file."""
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
