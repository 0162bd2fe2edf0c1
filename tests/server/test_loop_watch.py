"""The watch of the event loop: what it reports, and what it ignores. Most tests have their own clocks."""

from __future__ import annotations

import asyncio
import gc
import time
from types import CodeType
from typing import Any

import pytest

from gateway.server import loop_watch as module
from gateway.server.loop_watch import MAX_WALL_S, loop_watch

Reports = list[tuple[str, CodeType | None]]


class Clocks:
    """In place of the module `time`. They change only by the methods."""

    def __init__(self) -> None:
        self._cpu_s = self._wall_s = 0.0

    def thread_time(self) -> float:
        return self._cpu_s

    def perf_counter(self) -> float:
        return self._wall_s

    def use_processor(self, seconds: float) -> None:
        self._cpu_s += seconds
        self._wall_s += seconds

    def wait(self, seconds: float) -> None:
        self._wall_s += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(module, "time", clocks)
    return clocks


def reports_of(work: Any) -> Reports:
    """What the watch reports while `work` runs as a task."""
    reports: Reports = []
    with loop_watch(lambda what, code: reports.append((what, code))):
        asyncio.run(work())
    return reports


def test_processor_time_of_the_thread_itself_is_measured() -> None:
    async def work() -> None:
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass

    assert work.__code__ in [code for _, code in reports_of(work)]


def test_step_of_a_task_that_uses_the_processor_is_reported(clocks: Clocks) -> None:
    async def inner() -> None:
        clocks.use_processor(0.1)
        await asyncio.sleep(0)

    async def outer() -> None:
        await inner()

    [(what, code)] = reports_of(outer)
    assert "outer:" in what and "> " in what and "inner:" in what
    assert what.endswith("blocked the event loop: 100 ms of processor time, 100 ms")
    assert code is outer.__code__


def test_callback_that_uses_the_processor_is_reported(clocks: Clocks) -> None:
    def use_processor() -> None:
        clocks.use_processor(0.1)

    async def work() -> None:
        asyncio.get_running_loop().call_soon(use_processor)
        await asyncio.sleep(0)

    [(what, code)] = reports_of(work)
    assert "use_processor" in what and code is use_processor.__code__


def test_end_of_a_sleep_is_not_reported(clocks: Clocks) -> None:
    def _set_result_unless_cancelled() -> None:  # the name of asyncio's own, in which only a stopped machine uses time
        clocks.use_processor(0.1)

    async def work() -> None:
        asyncio.get_running_loop().call_soon(_set_result_unless_cancelled)
        await asyncio.sleep(0)

    assert reports_of(work) == []


def test_several_short_steps_are_not_reported(clocks: Clocks) -> None:
    async def work() -> None:
        for _ in range(10):
            clocks.use_processor(0.01)
            await asyncio.sleep(0)

    assert reports_of(work) == []


@pytest.mark.parametrize(("seconds", "count"), [(MAX_WALL_S - 1, 0), (MAX_WALL_S + 1, 1)])
def test_wait_of_a_callback_is_reported_only_above_the_limit_for_waits(
    clocks: Clocks, seconds: float, count: int
) -> None:
    async def work() -> None:
        clocks.wait(seconds)

    assert [code for _, code in reports_of(work)] == [work.__code__] * count


@pytest.mark.parametrize(("own_s", "count"), [(0.04, 0), (0.06, 1)])
def test_time_of_the_garbage_collector_is_not_counted(clocks: Clocks, own_s: float, count: int) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            clocks.use_processor(0.2)

    async def work() -> None:
        gc.disable()  # else another thread may collect the object
        try:
            for _ in range(2):
                Cycle()
                gc.collect()
                clocks.use_processor(own_s / 2)
        finally:
            gc.enable()

    reports = reports_of(work)
    assert [what[what.index(": ") :] for what, _ in reports if "work" in what] == [
        f": {1000 * own_s:.0f} ms of processor time, {1000 * (own_s + 0.4):.0f} ms"
    ] * count
    assert len(reports) == count


def test_watch_ends_with_its_block() -> None:
    plain = asyncio.Handle._run
    with loop_watch(lambda what, code: None):
        assert asyncio.Handle._run is not plain
    assert asyncio.Handle._run is plain
