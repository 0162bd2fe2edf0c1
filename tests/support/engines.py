"""An engine without a lane, for tests: its events as a list or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

from gateway.engines.base import Engine
from gateway.errors import EngineFailed, GatewayError
from gateway.generation import Event, Finished, Generation, Meter
from gateway.lanes.events.event_queue import EventQueue
from gateway.lanes.memory.loader import Loader


async def event_stream(
    engine: Engine, generation: Generation, meter: Meter | None = None
) -> AsyncGenerator[Event, None]:
    """The events of one request, with Finished (without timings) at the end. Close it to cancel the request."""
    events = EventQueue()

    async def run() -> None:
        try:
            prepared = await engine.prepare(generation)
            events.end(Finished(usage=await engine.run(prepared, meter or Meter(), events)))
        except Exception as error:
            events.end(error if isinstance(error, GatewayError) else EngineFailed(repr(error)))

    task = asyncio.create_task(run())
    try:
        while not isinstance(event := await events.get(), Finished):
            yield event
        yield event
    finally:
        task.cancel()
        await asyncio.wait([task])


async def events_of(engine: Engine, generation: Generation, meter: Meter | None = None) -> list[Event]:
    """All events of one request. Raises the error that the request failed with."""
    async with aclosing(event_stream(engine, generation, meter)) as events:
        return [event async for event in events]


@asynccontextmanager
async def kept_loaded(
    engine: Engine, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncIterator[Loader]:
    """The engine after the first attempt to load it. A loader starts it again after a loss; it is closed at the end."""
    loader = Loader("m", engine, time.monotonic, sleep)
    task = asyncio.create_task(loader.run())
    await loader.tried.wait()
    try:
        yield loader
    finally:
        task.cancel()
        await asyncio.wait([task])
        await engine.aclose()
