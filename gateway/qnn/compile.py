"""Compiles graphs of fixed shape for the NPU: small ONNX files beside binaries that load in a moment."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from gateway.child import run_in_child, serve_request
from gateway.errors import BundleError
from gateway.qnn.provider import NpuDevice, open_session, provider_version

#: The slowest compilation, which makes the fastest network.
_AHEAD_OF_TIME = {"htp_graph_finalization_optimization_mode": "3"}


class _Request(Struct, frozen=True, kw_only=True):
    graphs: tuple[str, ...]
    folder: str
    device: NpuDevice
    options: dict[str, str]
    share: bool
    fallback: bool


def compile_graphs(
    graphs: Sequence[Path],
    folder: Path,
    device: NpuDevice,
    *,
    options: dict[str, str] | None = None,
    share: bool = False,
    fallback: bool = False,
) -> list[Path]:
    """Compile `graphs` into `folder`; the compiled graphs' paths, in the same order.

    Args:
        options: provider options over the usual ones.
        share: one binary with one copy of the weights for all of them; NPUs load such, the emulator does not.
        fallback: what the NPU does not take may stay on the CPU; otherwise such a graph is refused.
    Raises BundleError when the NPU refuses a graph or the compiler crashes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request = _Request(
        graphs=tuple(str(graph.absolute()) for graph in graphs),
        folder=str(folder.absolute()),
        device=device,
        options=options or {},
        share=share,
        fallback=fallback,
    )
    run_in_child(__name__, request, ", ".join(graph.name for graph in graphs))
    return [folder / compiled_name(graph) for graph in graphs]


def compiled_once(graph: Path, device: NpuDevice, options: dict[str, str], progress: Callable[[str], None]) -> Path:
    """The compiled form of a graph that a bundle brings uncompiled; kept beside it for the next start.

    Prefers to run all of it on the NPU; what the NPU refuses stays on the CPU. `progress` is told when it compiles.
    """
    kept = graph.parent / "compiled" / f"{provider_version()}-{device.soc or 'this'}-{graph.stem}"
    compiled = kept / compiled_name(graph)
    if compiled.is_file() and compiled.stat().st_mtime >= graph.stat().st_mtime:
        return compiled
    progress(f"compiling {graph.name} for the NPU")
    shutil.rmtree(kept, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=_writable(graph.parent), prefix=".compiling-") as name:
        working = Path(name) / "compiled"
        try:
            compile_graphs([graph], working, device, options=options)
        except BundleError:
            compile_graphs([graph], working, device, options=options, fallback=True)
        kept.parent.mkdir(exist_ok=True)
        working.rename(kept)
    return compiled


def compiled_name(graph: Path) -> str:
    """ONNX Runtime names the binary after this: context_ctx.onnx has its network in context_ctx_qnn.bin."""
    return f"{graph.stem}_ctx.onnx"


def _writable(folder: Path) -> Path:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        raise BundleError(
            f"{folder.name} holds uncompiled graphs, and the compiled ones cannot be written there."
        ) from None
    return folder


def _compile(request: _Request) -> None:
    sessions = []  # those that share a binary must be alive together
    for index, name in enumerate(request.graphs):
        graph, compiled = Path(name), Path(request.folder) / compiled_name(Path(name))
        compiled.unlink(missing_ok=True)  # ONNX Runtime refuses to replace it
        entries = {
            "ep.context_enable": "1",
            "ep.context_embed_mode": "0",
            "ep.context_file_path": str(compiled),
        }
        if request.share:
            entries["ep.share_ep_contexts"] = "1"
            entries["ep.stop_share_ep_contexts"] = "1" if index == len(request.graphs) - 1 else "0"
        options = _AHEAD_OF_TIME | request.options
        session = open_session(graph, request.device, options, entries, fallback=request.fallback)
        if not compiled.is_file():
            raise BundleError(f"The NPU takes no part of {graph.name}.")
        if request.share:
            sessions.append(session)


if __name__ == "__main__":
    sys.exit(serve_request(_Request, _compile))
