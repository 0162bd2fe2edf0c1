"""The memory of models that answer is measured again and again, and that of idle ones is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from gateway.config.tables import BreakerConfig
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.lanes.lane import Lane
from gateway.lanes.memory import growth
from gateway.lanes.memory.growth import Growth
from gateway.lanes.memory.manager import MemoryManager
from gateway.lanes.memory.needs import PROMPT_PROCESS
from gateway.monitoring.memory import Memory
from tests.support.routing import model
from tests.support.virtual_time import in_virtual_time, now


async def at_once(function: Callable[[Mapping[str, int]], Memory], workers: Mapping[str, int]) -> Memory:
    return function(workers)


@in_virtual_time
async def test_model_in_use_is_measured_and_an_idle_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure(workers: Mapping[str, int]) -> Memory:
        assert workers == {"a": 1}
        measured.append(len(measured) + 20)
        return Memory({"a": float(measured[-1])}, 0.0)

    monkeypatch.setattr(growth, "measure", measure)
    memory, table = MemoryManager(100_000_000_000, clock=now), model(memory_mb=10)
    lane = Lane(
        "a", table, ScriptedEngine("a", table, clock=now), BreakerConfig(enabled=False), clock=now, memory=memory
    )
    lane.start()
    await lane.tried()
    growing = asyncio.create_task(Growth(memory, lambda: {"a": 1}, at_once).run())
    await asyncio.sleep(3.0)
    assert measured == [20]
    with lane.uses.one():
        await asyncio.sleep(8.0)
    assert measured[1:] == [21, 22, 23, 24]
    await asyncio.sleep(30.0)  # the end of the use is a change too, so one more is measured
    assert measured[5:] == [25]
    assert lane.status.memory.need == lane.claim.bytes == 25_000_000 + PROMPT_PROCESS
    growing.cancel()
    await asyncio.gather(growing, return_exceptions=True)
    await lane.aclose()


@in_virtual_time
async def test_failure_is_logged_and_the_next_measurement_is_made(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Mapping[str, int]:
        raise OSError("broken")

    memory, table = MemoryManager(100_000_000_000), model(memory_mb=10)
    lane = Lane(
        "a", table, ScriptedEngine("a", table, clock=now), BreakerConfig(enabled=False), clock=now, memory=memory
    )
    lane.start()
    await lane.tried()
    with lane.uses.one():
        growing = asyncio.create_task(Growth(memory, fails).run())
        await asyncio.sleep(5.0)
    assert caplog.messages.count("the memory of the models could not be measured; it is tried again") == 2
    growing.cancel()
    await asyncio.gather(growing, return_exceptions=True)
    await lane.aclose()
