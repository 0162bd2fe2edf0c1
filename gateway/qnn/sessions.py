"""The stages of a bundle on the NPU: how their graphs are opened, where their nodes went, how hard the NPU works.

1. A compiled graph that left nodes to the CPU on purpose keeps them there; any other graph that does not fit the NPU
   whole is refused. `placement` says where everything runs.
2. What only a real NPU has (memory shared with the host, mapped weights) is asked for there and given up in steps when
   the driver refuses: a 7B model fails to map on 16 GB machines and loads when it is copied.
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
from gateway.qnn.compile import compiled_once
from gateway.qnn.context import CompiledGraph, check_fits, read_compiled
from gateway.qnn.options import check_options, known_options
from gateway.qnn.provider import NpuDevice, host_memory, open_session, placement

_log = logging.getLogger(__name__)

#: What is asked of a real NPU's driver, less with every refusal.
_ATTEMPTS: tuple[dict[str, str], ...] = (
    {"enable_htp_shared_memory_allocator": "1"},
    {"enable_htp_shared_memory_allocator": "1", "disable_file_mapped_weights": "1"},
    {"disable_file_mapped_weights": "1"},
)
#: Options of a bundle that are about the machine it was made for.
_NOT_TAKEN_OVER = frozenset(
    {"backend_path", "backend_type", "soc_model", "htp_arch", "enable_htp_shared_memory_allocator", "op_affinity"}
)
_BUSY, _IDLE = "burst", "power_saver"


class NpuSessions:
    """Opens the NPU stages of one bundle.

    Args:
        device: what they run on.
        options: the user's provider options; they win over the bundle's and ours.
        progress: told what is being done, when it takes long.
    Raises ConfigError for an option that does not exist.
    """

    def __init__(self, device: NpuDevice, options: Mapping[str, str], progress: Callable[[str], None]) -> None:
        check_options(options, "provider_options")
        self._device = device
        self._options = dict(options)
        self._progress = progress
        self._attempts = list(_ATTEMPTS) if device.kind == "npu" else [{}]
        self.placement: Counter[str] = Counter()

    @property
    def memory(self) -> Any:
        """The device's memory that the host can write to, or None: then ordinary memory serves."""
        wanted = self._attempts[0] | self._options
        return host_memory() if wanted.get("enable_htp_shared_memory_allocator") == "1" else None

    def open(self, files: Mapping[Path, Mapping[str, str]]) -> dict[Path, ort.InferenceSession]:
        """A session for each graph file, by file; `files` gives the bundle's own provider options for each.

        Graphs that name the same binary share it. Raises BundleError.
        """
        graphs = {file: self._compiled(file) for file in files}
        named = Counter(binary for _, compiled in graphs.values() for binary in compiled.binaries)
        shared = [file for file, (_, graph) in graphs.items() if any(named[binary] > 1 for binary in graph.binaries)]
        sessions = {}
        for file, (path, compiled) in graphs.items():
            self._progress(f"loading {path.name}")
            entries = {"ep.share_ep_contexts": "1"} if file in shared else {}
            if shared and file == shared[-1]:
                entries["ep.stop_share_ep_contexts"] = "1"
            sessions[file] = self._session(path, compiled, files[file], entries)
        return sessions

    def _compiled(self, path: Path) -> tuple[Path, CompiledGraph]:
        compiled, name = read_compiled(path), path.name
        if compiled is None:
            path = compiled_once(path, self._device, self._options, self._progress)
            compiled = read_compiled(path)
        if compiled is None:
            raise BundleError(f"The NPU takes no part of {name}.")
        check_fits(path, compiled, self._device)
        return path, compiled

    def _session(
        self, path: Path, compiled: CompiledGraph, own: Mapping[str, str], entries: Mapping[str, str]
    ) -> ort.InferenceSession:
        taken_over = {name: value for name, value in known_options(own).items() if name not in _NOT_TAKEN_OVER}
        while True:
            options = taken_over | self._attempts[0] | self._options
            try:
                session = open_session(path, self._device, options, entries, fallback=compiled.other_nodes > 0)
            except BundleError:
                if len(self._attempts) == 1:
                    raise
                self._attempts.pop(0)
            else:
                self.placement.update(self._checked_placement(path, session))
                return session

    def _checked_placement(self, path: Path, session: ort.InferenceSession) -> dict[str, int]:
        placed = placement(session)
        if not placed.get("QNN"):
            raise BundleError(f"Nothing of {path.name} runs on the NPU, all of it would run on the CPU.")
        return placed


class PerformanceSwitch:
    """Holds the NPU in burst while it is used and lets it rest after `idle_s` seconds of silence.

    Use as a context manager around every run. Sessions start in burst, because they were opened that way.
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
        self.is_resting = False
        threading.Thread(target=self._watch, name="npu-rest", daemon=True).start()

    def __enter__(self) -> None:
        self._lock.acquire()
        if self.is_resting:
            self._switch(_BUSY)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._used = self._clock()
        self._lock.release()

    def rest_if_idle(self) -> None:
        """Switch to the saver if nothing ran for `idle_s`. A run under way is not waited for."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._sessions and not self.is_resting and self._clock() - self._used >= self._idle_s:
                self._switch(_IDLE)
        finally:
            self._lock.release()

    def close(self) -> None:
        """No switch happens after this returns."""
        self._closed.set()
        with self._lock:
            self._sessions = ()

    def _watch(self) -> None:
        while not self._closed.wait(self._idle_s / 2):
            self.rest_if_idle()

    def _switch(self, mode: str) -> None:
        try:
            for session in self._sessions:
                session.set_ep_dynamic_options({"ep.dynamic.qnn_htp_performance_mode": mode})
        except Exception as error:  # of no known kind; a driver that cannot switch still computes
            _log.warning("the NPU stays in its performance mode: %s", error)
            self._sessions = ()
        self.is_resting = mode == _IDLE
