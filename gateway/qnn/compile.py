"""Compiles graphs of fixed shape for the NPU ahead of time.

Each compiled graph is a small ONNX file and a context binary next to it. A context binary loads much faster than the
source graph, because the driver does not compile it again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from gateway.child import run_in_child, serve_request
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import open_session, provider_version

#: The slowest compilation and the fastest network.
_COMPILE_OPTIONS = {"htp_graph_finalization_optimization_mode": "3"}


class _Request(Struct, frozen=True, kw_only=True):
    graphs: tuple[str, ...]
    folder: str
    device: NpuDevice
    options: dict[str, str]
    share_weights: bool
    cpu_fallback: bool


def compile_graphs(
    graphs: Sequence[Path],
    folder: Path,
    device: NpuDevice,
    *,
    options: dict[str, str] | None = None,
    share_weights: bool = False,
    cpu_fallback: bool = False,
) -> list[Path]:
    """Compile `graphs` into `folder` in a child process.

    Args:
        options: provider options that override the defaults.
        share_weights: write one binary with one copy of the weights for all graphs. A real NPU loads it, the
            emulator does not.
        cpu_fallback: leave the nodes that the NPU refuses on the CPU; otherwise refuse the whole graph.
    Returns: the paths of the compiled graphs, in the order of `graphs`.
    Raises BundleError when the NPU refuses a graph or the compiler crashes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request = _Request(
        graphs=tuple(str(graph.absolute()) for graph in graphs),
        folder=str(folder.absolute()),
        device=device,
        options=options or {},
        share_weights=share_weights,
        cpu_fallback=cpu_fallback,
    )
    run_in_child(__name__, request, ", ".join(graph.name for graph in graphs))
    return [folder / compiled_name(graph) for graph in graphs]


def compile_cached(graph: Path, device: NpuDevice, options: dict[str, str], progress: Callable[[str], None]) -> Path:
    """The compiled form of a graph from a bundle without compiled graphs. Later calls reuse the files on disk.

    Compiles the whole graph for the NPU if possible, else with CPU fallback. Calls `progress` before it compiles.
    """
    cached = graph.parent / "compiled" / f"{provider_version()}-{device.soc or 'this'}-{graph.stem}"
    compiled = cached / compiled_name(graph)
    if compiled.is_file() and compiled.stat().st_mtime >= graph.stat().st_mtime:
        return compiled
    progress(f"compiling {graph.name} for the NPU")
    shutil.rmtree(cached, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=_writable(graph.parent), prefix=".compiling-") as name:
        working = Path(name) / "compiled"
        try:
            compile_graphs([graph], working, device, options=options)
        except BundleError:
            compile_graphs([graph], working, device, options=options, cpu_fallback=True)
        cached.parent.mkdir(exist_ok=True)
        working.rename(cached)
    return compiled


def compiled_name(graph: Path) -> str:
    """The file name of a compiled graph. ONNX Runtime derives the binary's name from it: x_ctx.onnx, x_ctx_qnn.bin."""
    return f"{graph.stem}_ctx.onnx"


def _writable(folder: Path) -> Path:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        raise BundleError(
            f"{folder.name} has graphs that are not compiled, and the gateway cannot write the compiled graphs there."
        ) from None
    return folder


def _compile(request: _Request) -> None:
    sessions = []  # sessions that share a binary must exist at the same time
    for index, name in enumerate(request.graphs):
        graph, compiled = Path(name), Path(request.folder) / compiled_name(Path(name))
        compiled.unlink(missing_ok=True)  # ONNX Runtime does not overwrite it
        session_config = {
            "ep.context_enable": "1",
            "ep.context_embed_mode": "0",
            "ep.context_file_path": str(compiled),
        }
        if request.share_weights:
            session_config["ep.share_ep_contexts"] = "1"
            session_config["ep.stop_share_ep_contexts"] = "1" if index == len(request.graphs) - 1 else "0"
        options = _COMPILE_OPTIONS | request.options
        session = open_session(graph, request.device, options, session_config, cpu_fallback=request.cpu_fallback)
        if not compiled.is_file():
            raise no_npu_nodes_error(graph.name)
        if request.share_weights:
            sessions.append(session)


def no_npu_nodes_error(name: str) -> BundleError:
    return BundleError(f"The NPU takes no node of {name}, so the CPU would run all of it.")


if __name__ == "__main__":
    sys.exit(serve_request(_Request, _compile))
