"""MemoryReader and measure, with real processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from gateway.monitoring import memory
from gateway.monitoring.memory import Memory, MemoryReader, measure
from tests.support.manual_clock import ManualClock

#: A process that starts a second one. Both wait when the second one has written a line.
_CHILD = "print(1, flush=True); input()"
_PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {_CHILD!r}]); input()"


@pytest.fixture
def worker() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


def test_children_count_for_their_worker(worker: int) -> None:
    measured = measure({"m": worker, "gone": 2**22 + 1})
    child = psutil.Process(worker).children()[0]
    both = psutil.Process(worker).memory_info().rss + child.memory_info().rss
    assert measured.models.keys() == {"m"}
    assert measured.models["m"] == pytest.approx(both / 1e6, rel=0.3)
    without = measure({})
    assert without.models == {} and without.gateway > measured.gateway


async def test_memory_is_read_once_a_second_for_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, reads = ManualClock(), list[object]()

    def fake(workers: object) -> Memory:
        reads.append(workers)
        return Memory({}, float(len(reads)))

    monkeypatch.setattr(memory, "measure", fake)
    reader = MemoryReader(dict, clock)
    clock.now += 10.0
    assert {each.gateway for each in await asyncio.gather(*(reader.read() for _ in range(5)))} == {1.0}
    clock.now += 0.9
    assert (await reader.read()).gateway == 1.0
    clock.now += 0.2
    assert (await reader.read()).gateway == 2.0
