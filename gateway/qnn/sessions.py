"""Opens the NPU stages of a bundle and switches the NPU's performance mode.

1. If a compiled graph has nodes outside its networks, the CPU runs those. Every other graph must run on the NPU as a
   whole. `placement` reports where the nodes run.
2. A real NPU first gets options that the emulator does not have (memory shared with the host, file-mapped weights).
   Each refusal of the driver drops some of them: a 7B model cannot be mapped on a 16 GB machine, but can be copied.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import onnxruntime as ort

from gateway.errors import BundleError
from gateway.qnn.compile import compile_cached, no_npu_nodes_error
from gateway.qnn.context import CompiledGraph, check_compatible, read_compiled, require_binary
from gateway.qnn.device import NpuDevice
from gateway.qnn.driver_errors import explained
from gateway.qnn.options import check_options, known_options
from gateway.qnn.provider import host_memory, open_session, placement

_log = logging.getLogger(__name__)

#: Options for a real NPU, in the order in which they are tried.
_ATTEMPTS: tuple[dict[str, str], ...] = (
    {"enable_htp_shared_memory_allocator": "1"},
    {"enable_htp_shared_memory_allocator": "1", "disable_file_mapped_weights": "1"},
    {"disable_file_mapped_weights": "1"},
)
#: Options of a bundle that describe the machine it was made on, or that write files. The gateway ignores them.
_MACHINE_OPTIONS = frozenset(
    {
        "backend_path",
        "backend_type",
        "dump_json_qnn_graph",
        "enable_htp_shared_memory_allocator",
        "htp_arch",
        "json_qnn_graph_dir",
        "op_affinity",
        "profiling_file_path",
        "profiling_level",
        "soc_model",
    }
)
_BUSY, _IDLE = "burst", "power_saver"
_MODE = "ep.dynamic.qnn_htp_performance_mode"


class NpuSessions:
    """Opens the NPU stages of one bundle.

    Args:
        device: the device for all sessions.
        options: the user's provider options; they override the bundle's options and the defaults.
        progress: called with a description before a slow action.
        binaries: graph file -> its context binary, for binaries that are not next to the graph file.
    Raises ConfigError for an unknown option.
    """

    def __init__(
        self,
        device: NpuDevice,
        options: Mapping[str, str],
        progress: Callable[[str], None],
        binaries: Mapping[Path, Path] | None = None,
    ) -> None:
        check_options(options, "provider_options")
        self._device = device
        self._options = dict(options)
        self._progress = progress
        self._binaries = binaries or {}
        self._attempts = list(_ATTEMPTS) if device.kind == "npu" else [{}]
        self.placement: Counter[str] = Counter()

    @property
    def memory(self) -> Any:
        """The device memory that the host can access; None: use ordinary memory."""
        options = self._attempts[0] | self._options
        return host_memory() if options.get("enable_htp_shared_memory_allocator") == "1" else None

    def open(self, files: Mapping[Path, Mapping[str, str]]) -> dict[Path, ort.InferenceSession]:
        """Open one session per graph file. Graphs that name the same binary share it.

        Args:
            files: graph file -> the bundle's own provider options for it.
        Returns: graph file -> session.
        Raises BundleError when the NPU refuses a graph.
        """
        graphs = {file: self._compiled(file) for file in files}
        for each in {binary for _, compiled in graphs.values() for binary in compiled.binaries}:
            require_binary(each, self._device)
        uses = Counter(binary for _, compiled in graphs.values() for binary in compiled.binaries)
        shared = [file for file, (_, graph) in graphs.items() if any(uses[binary] > 1 for binary in graph.binaries)]
        sessions = {}
        for file, (path, compiled) in graphs.items():
            self._progress(f"loading {path.name}")
            session_config = {"ep.share_ep_contexts": "1"} if file in shared else {}
            if file in self._binaries:
                session_config["ep.context_file_path"] = str(self._binaries[file].with_name(file.name))
            if shared and file == shared[-1]:
                session_config["ep.stop_share_ep_contexts"] = "1"
            sessions[file] = self._session(path, compiled, files[file], session_config)
        return sessions

    def _compiled(self, path: Path) -> tuple[Path, CompiledGraph]:
        compiled, name = read_compiled(path, self._binaries.get(path)), path.name
        if compiled is None:
            path = compile_cached(path, self._device, self._options, self._progress)
            compiled = read_compiled(path)
        if compiled is None:
            raise no_npu_nodes_error(name)
        check_compatible(path, compiled, self._device)
        return path, compiled

    def _session(
        self,
        path: Path,
        compiled: CompiledGraph,
        bundle_options: Mapping[str, str],
        session_config: Mapping[str, str],
    ) -> ort.InferenceSession:
        usable = {name: value for name, value in known_options(bundle_options).items() if name not in _MACHINE_OPTIONS}
        cpu_fallback = compiled.cpu_nodes > 0
        while True:
            options = usable | self._attempts[0] | self._options
            try:
                session = open_session(path, self._device, options, session_config, cpu_fallback=cpu_fallback)
            except BundleError:
                if len(self._attempts) == 1:
                    raise
                self._attempts.pop(0)
            else:
                self.placement.update(_checked_placement(path, session))
                return session


def _checked_placement(path: Path, session: ort.InferenceSession) -> dict[str, int]:
    placed = placement(session)
    if not placed.get("QNN"):
        raise no_npu_nodes_error(path.name)
    return placed


class PerformanceSwitch:
    """Keeps the NPU in burst mode while it works. Switches to power-saver mode after `idle_s` seconds without a call.

    Enter it as a context manager around every device call. New sessions are in burst mode.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        sessions: Sequence[ort.InferenceSession],
        idle_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = sessions
        self._idle_s = idle_s
        self._clock = clock
        self._used = clock()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.is_saving_power = False
        threading.Thread(target=self._watch, name="npu-power-saver", daemon=True).start()

    def __enter__(self) -> None:
        self._lock.acquire()
        if self.is_saving_power:
            self._switch(_BUSY)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._used = self._clock()
        self._lock.release()

    def refusal(self) -> str:
        """Switch to burst mode now. Returns the driver's message, or "" if it accepts: at load it reports nothing."""
        with self._lock:
            try:
                for session in self._sessions:
                    session.set_ep_dynamic_options({_MODE: _BUSY})
            except Exception as error:  # no common base class
                return explained(str(error))
        return ""

    def save_power_if_idle(self) -> None:
        """Switch to power-saver mode if no call ran for `idle_s`. Returns at once while a call runs."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._sessions and not self.is_saving_power and self._clock() - self._used >= self._idle_s:
                self._switch(_IDLE)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Stop switching. After this returns, no session is used any more."""
        self._closed.set()
        with self._lock:
            self._sessions = ()

    def _watch(self) -> None:
        while not self._closed.wait(self._idle_s / 2):
            self.save_power_if_idle()

    def _switch(self, mode: str) -> None:
        try:
            for session in self._sessions:
                session.set_ep_dynamic_options({_MODE: mode})
        except Exception as error:  # no common base class; an NPU that cannot switch still computes
            _log.warning("the NPU cannot change its performance mode: %s", error)
            self._sessions = ()
        self.is_saving_power = mode == _IDLE
