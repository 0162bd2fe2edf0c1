"""The watch of the event loop: what it reports, and what it ignores."""

from __future__ import annotations

import asyncio
import gc
import time
from types import CodeType
from typing import Any

import pytest

from gateway.server import loop_watch as module
from gateway.server.loop_watch import loop_watch

Reports = list[tuple[str, CodeType | None]]


def use_processor(seconds: float) -> None:
    """Until the thread has used it, however busy the machine is."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def reports_of(work: Any) -> Reports:
    """What the watch reports while `work` runs as a task."""
    reports: Reports = []
    with loop_watch(lambda what, code: reports.append((what, code))):
        asyncio.run(work())
    return reports


def test_step_of_a_task_that_uses_the_processor_is_reported() -> None:
    async def inner() -> None:
        use_processor(0.1)
        await asyncio.sleep(0)

    async def outer() -> None:
        await inner()

    [(what, code)] = reports_of(outer)
    assert "outer:" in what and "> " in what and "inner:" in what and "blocked the event loop" in what
    assert code is outer.__code__


def test_callback_that_uses_the_processor_is_reported() -> None:
    async def work() -> None:
        asyncio.get_running_loop().call_soon(use_processor, 0.1)
        await asyncio.sleep(0)

    [(what, code)] = reports_of(work)
    assert "use_processor" in what and code is use_processor.__code__


def test_end_of_a_sleep_is_not_reported() -> None:
    def _set_result_unless_cancelled() -> None:  # the name of asyncio's own, in which only a stopped machine uses time
        use_processor(0.1)

    async def work() -> None:
        asyncio.get_running_loop().call_soon(_set_result_unless_cancelled)
        await asyncio.sleep(0)

    assert reports_of(work) == []


def test_several_short_steps_are_not_reported() -> None:
    async def work() -> None:
        for _ in range(10):
            use_processor(0.01)
            await asyncio.sleep(0)

    assert reports_of(work) == []


def test_wait_of_a_callback_is_reported_only_above_the_limit_for_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        time.sleep(0.2)  # uses no processor time, as a thread that waits for its turn on a busy machine  # noqa: ASYNC251

    assert reports_of(work) == []
    monkeypatch.setattr(module, "MAX_WALL_S", 0.1)
    [(what, _)] = reports_of(work)
    assert "work" in what


def test_time_of_the_garbage_collector_is_not_counted() -> None:
    heap: Any = [[] for _ in range(1_000_000)]

    async def work() -> None:
        before = time.thread_time()
        while time.thread_time() - before < 0.2:
            gc.collect()

    assert reports_of(work) == []
    assert len(heap) == 1_000_000


def test_watch_ends_with_its_block() -> None:
    plain = asyncio.Handle._run
    with loop_watch(lambda what, code: None):
        assert asyncio.Handle._run is not plain
    assert asyncio.Handle._run is plain
