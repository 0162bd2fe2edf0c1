"""A lane over the scripted engine in virtual time, for tests of lanes/."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from gateway.config.tables import BreakerConfig, ScriptedModel
from gateway.engines.base import Emit, Prepared
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import BundleError
from gateway.generation import Event, Generation, Meter, Text, Usage
from gateway.lanes.lane import Lane
from tests.support.server import script_of
from tests.support.virtual_time import now

NO_BREAKER = BreakerConfig(enabled=False)


class Engine(ScriptedEngine):
    """The scripted engine. It also records its runs, and can fail to load.

    Args:
        load_faults: the number of attempts to load that fail.
    """

    def __init__(self, config: ScriptedModel, load_faults: int = 0) -> None:
        super().__init__("test", config, clock=now)
        self.open_runs = 0
        self.began: list[str] = []  # ids of the requests, in the order of their runs
        self.load_faults = load_faults

    async def start(self) -> None:
        if self.load_faults:
            self.load_faults -= 1
            raise BundleError("model.onnx is missing")
        await super().start()

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        self.open_runs += 1
        self.began.append(prepared.generation.id)
        try:
            return await super().run(prepared, meter, emit)
        finally:
            self.open_runs -= 1


def config(max_sequences: int = 4, queue: int = 32, watchdog_s: float = 60.0, **script: Any) -> ScriptedModel:
    return ScriptedModel(max_sequences=max_sequences, queue=queue, watchdog_s=watchdog_s, script=script_of(**script))


@asynccontextmanager
async def running(
    model: ScriptedModel, breaker: BreakerConfig = NO_BREAKER, engine: Engine | None = None
) -> AsyncIterator[Lane]:
    """A loaded lane. At the end nothing of any request may be left."""
    lane = Lane("test", model, engine or Engine(model), breaker, clock=now)
    lane.start()
    await lane.tried()
    try:
        yield lane
        await asyncio.sleep(0)
        assert_idle(lane)
    finally:
        await lane.aclose()
    assert not lane._tasks


def assert_idle(lane: Lane) -> None:
    assert (lane.queue.running, lane.queue.waiting) == (0, 0)
    assert isinstance(lane.engine, Engine)
    assert lane.engine.open_runs == 0


def request(id: str = "r", **fields: Any) -> Generation:
    return Generation(id=id, model="test", prompt=Text("one two three"), **fields)


async def answer(lane: Lane, generation: Generation | None = None) -> list[Event]:
    """All events of one request."""
    async with aclosing(lane.submit(generation or request())) as job:
        return [event async for event in job]


def answering(lane: Lane, *args: Any, **fields: Any) -> asyncio.Task[list[Event]]:
    """A task that sends one request and reads its events."""
    return asyncio.create_task(answer(lane, request(*args, **fields)))
