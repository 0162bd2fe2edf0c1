"""CPU time and memory of a process and all its descendants, and the CPU time that other processes use meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psutil

SAMPLE_S = 0.1


class Memory(NamedTuple):
    """Megabytes. `anonymous` is the part that is no view of a file."""

    resident: float = 0.0
    anonymous: float = 0.0


class Tree:
    """A process and its descendants. `refresh` looks for new ones, which takes longer than the other methods."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._all = [self._root]
        self.refresh()

    def refresh(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._all = [self._root, *self._root.children(recursive=True)]

    def cpu_s(self) -> float:
        """Also of descendants that have ended, where the system adds them to their parent."""
        used = 0.0
        for process in self._all:
            with suppress(psutil.Error):
                used += _sum(process.cpu_times())
        return used

    def memory(self) -> Memory:
        resident = anonymous = 0.0
        for process in self._all:
            with suppress(psutil.Error):
                found: Any = process.memory_info()
                resident += found.rss / 1e6
                anonymous += (getattr(found, "private", 0) or found.rss - getattr(found, "shared", 0)) / 1e6
        return Memory(resident, anonymous)


class PeakMemory:
    """The largest memory of a tree so far. Samples until `stop`."""

    def __init__(self, tree: Tree) -> None:
        self.peak = tree.memory()
        self._tree, self._over = tree, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.peak = Memory(*map(max, self.peak, self._tree.memory()))


class Elsewhere:
    """`cores`: what processes other than the measured ones used on average."""

    cores = 0.0


@contextmanager
def elsewhere(measured: list[Tree]) -> Iterator[Elsewhere]:
    """Compare the machine's CPU time with that of `measured` and of this process."""
    found, own = Elsewhere(), psutil.Process()

    def other_s() -> float:
        return _busy_s() - _sum(own.cpu_times()) - sum(tree.cpu_s() for tree in measured)

    before_s, began = other_s(), time.perf_counter()
    yield found
    for tree in measured:
        tree.refresh()
    found.cores = (other_s() - before_s) / (time.perf_counter() - began)


def _busy_s() -> float:
    times = psutil.cpu_times()
    waits = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is in `user` too
    return float(sum(value for name, value in times._asdict().items() if name not in waits))


def _sum(times: Any) -> float:
    return float(times.user + times.system + times.children_user + times.children_system)
