"""Samples the memory of a gateway and its child processes in a thread."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.commands.bench.report import Memory

if TYPE_CHECKING:
    import psutil

_SAMPLE_S = 0.05


class MemoryWatch:
    """`memory` has the largest values so far, in bytes. It samples until `stop`."""

    def __init__(self, pid: int) -> None:
        self.memory = Memory()
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __enter__(self) -> MemoryWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        while not self._over.wait(_SAMPLE_S):
            with suppress(psutil.Error):
                root = psutil.Process(self._pid)
                own, children = _resident(root), sum(map(_resident, root.children(recursive=True)))
                self.memory.peak_bytes = max(self.memory.peak_bytes, own + children)
                self.memory.gateway_bytes = max(self.memory.gateway_bytes, own)
                self.memory.worker_bytes = max(self.memory.worker_bytes, children)


def _resident(process: psutil.Process) -> int:
    import psutil

    try:
        return process.memory_info().rss
    except psutil.Error:  # the process has just ended
        return 0
