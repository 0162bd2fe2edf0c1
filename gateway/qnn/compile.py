"""Compiles graphs of fixed shape for the NPU ahead of time.

Each compiled graph is a small ONNX file and a context binary next to it. A context binary loads much faster than the
source graph, because the driver does not compile it again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from gateway.bundles.disk import cache_folder, free_bytes, require_space, write_error
from gateway.bundles.hashes import COMPILED_FOLDER, check_hashes, write_hashes
from gateway.bundles.origin import read_origin
from gateway.bundles.replace import exclusive, new_folder, remove_leftovers
from gateway.bundles.stamp import read_stamp
from gateway.child import run_in_child, serve_request
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import open_session, provider_version

_MOST_PARENTS = 4  # folders from a variant of a model package up to the folder that was pulled
_FULL_BYTES = 1024 * 1024  # free space of a full disk
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
    try:
        run_in_child(__name__, request, ", ".join(graph.name for graph in graphs))
    except BundleError as error:
        if free_bytes(folder) < _FULL_BYTES:  # the compiler reports a full disk as anything else, or crashes
            raise write_error(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise
    return [folder / compiled_name(graph) for graph in graphs]


def compile_cached(graph: Path, device: NpuDevice, options: dict[str, str], progress: Callable[[str], None]) -> Path:
    """The compiled form of a graph from a bundle without compiled graphs. Later calls reuse the files on disk.

    Compiles the whole graph for the NPU if possible, else with CPU fallback. Calls `progress` before it compiles. Of
    several programs one compiles, and the others wait. The files of a bundle that another program put there are in the
    user's cache folder.
    """
    folder, shown = _folder_for(graph)
    cached = folder / f"{provider_version()}-{device.soc or 'this'}-{graph.stem}"
    compiled = cached / compiled_name(graph)

    def is_current() -> bool:
        if not compiled.is_file() or compiled.stat().st_mtime < graph.stat().st_mtime:
            return False
        return folder.is_relative_to(graph.parent) or not check_hashes(cached, quick=True)  # no other check reads it

    if is_current():
        return compiled
    try:
        with exclusive(cached, lambda: progress(f"waiting for another program that compiles {graph.name}")):
            remove_leftovers(cached)
            if not is_current():
                _compile_into(cached, graph, device, options, progress)
    except BundleError as error:  # a client may see it: without the path
        raise BundleError(error.message.replace(str(folder), shown)) from error
    return compiled


def _folder_for(graph: Path) -> tuple[Path, str]:
    """Where the compiled form of a graph is, and its name in messages.

    Another program can put another bundle there, with older files. So the key has more than the path.
    """
    bundle, state = graph.parent, graph.stat()
    if any(read_stamp(folder) or read_origin(folder) for folder in (bundle, *bundle.parents[:_MOST_PARENTS])):
        return bundle / COMPILED_FOLDER, f"{bundle.name}/{COMPILED_FOLDER}"
    known = f"{bundle.absolute()}|{state.st_mtime_ns}|{state.st_size}"
    key = hashlib.sha256(os.fsencode(known)).hexdigest()[:16]
    name = f"{COMPILED_FOLDER}/{key}"
    return cache_folder() / name, f"the cache folder's {name}"


def _compile_into(
    cached: Path, graph: Path, device: NpuDevice, options: dict[str, str], progress: Callable[[str], None]
) -> None:
    require_space({cached.parent: _graph_bytes(graph)}, f"Compiling {graph.name} for the NPU")
    progress(f"compiling {graph.name} for the NPU")
    with new_folder(cached) as working:
        try:
            compile_graphs([graph], working, device, options=options)
        except BundleError:
            compile_graphs([graph], working, device, options=options, cpu_fallback=True)
        write_hashes(working)


def _graph_bytes(graph: Path) -> int:
    """The graph and the files of constants next to it, of which it may use some."""
    constants = (path for path in graph.parent.glob("*.data") if path.is_file())
    return sum(path.stat().st_size for path in {graph, *constants})


def compiled_name(graph: Path) -> str:
    """The file name of a compiled graph. ONNX Runtime derives the binary's name from it: x_ctx.onnx, x_ctx_qnn.bin."""
    return f"{graph.stem}_ctx.onnx"


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
