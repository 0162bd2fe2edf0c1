"""The memory of the gateway's processes, for the live view. Reading it takes milliseconds, so a thread does it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import psutil
from msgspec import Struct

_FRESH_S = 1.0


class Memory(Struct, frozen=True):
    """Resident megabytes. A page of memory that several processes share counts for each of them."""

    models: dict[str, float]  # the worker of each model, with its child processes
    gateway: float  # the gateway itself and its other child processes


class MemoryReader:
    """Reads at most once a second, however many clients read.

    Args:
        workers: the process of each model that has one, by name.
        clock: seconds, monotonic.
    """

    def __init__(self, workers: Callable[[], Mapping[str, int]], clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._reading: asyncio.Task[Memory] | None = None
        self._read_at = 0.0

    async def read(self) -> Memory:
        """The memory now, or at most one second ago."""
        now = self._clock()
        is_old = now - self._read_at >= _FRESH_S
        if self._reading is None or (self._reading.done() and is_old):
            self._read_at = now
            self._reading = asyncio.create_task(asyncio.to_thread(measure, dict(self._workers())))
        return await asyncio.shield(self._reading)


def measure(workers: Mapping[str, int]) -> Memory:
    """The memory of this process and of all processes below it now. Each counts for the worker that it is below."""
    own = psutil.Process()
    owners = {pid: name for name, pid in workers.items()}
    models: dict[str, float] = {}
    gateway = own.memory_info().rss / 1e6
    for process in own.children(recursive=True):  # parents first
        with suppress(psutil.Error):  # it has just ended
            owner = owners.get(process.pid) or owners.get(process.ppid())
            megabytes = process.memory_info().rss / 1e6
            if owner is None:
                gateway += megabytes
            else:
                owners[process.pid] = owner
                models[owner] = models.get(owner, 0.0) + megabytes
    return Memory({name: round(megabytes, 1) for name, megabytes in models.items()}, round(gateway, 1))
