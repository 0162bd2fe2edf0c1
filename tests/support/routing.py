"""A router over scripted engines in virtual time, for tests of routing and fallbacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from gateway.config.tables import BreakerConfig, Config, ScriptedModel, ServerConfig
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import GatewayError
from gateway.generation import Event, Finished, Generation, Started, Text, TextDelta
from gateway.lanes.answer import RoutedAnswer
from gateway.lanes.lane import Lane
from gateway.lanes.router import Router
from tests.support.server import script_of
from tests.support.virtual_time import now

BREAKER = BreakerConfig(latency_ms=1000.0, min_calls=1, probe_itself=False)


@contextmanager
def noted(endings: list[str]) -> Iterator[None]:
    """Append how the request inside has ended: "ok", "cancelled", or the code of its error."""
    try:
        yield
        endings.append("ok")
    except GatewayError as error:
        endings.append(error.code or error.type)
    except asyncio.CancelledError:
        endings.append("cancelled")
        raise


def model(reply: str = "fine", fallback: str | None = None, **fields: Any) -> ScriptedModel:
    own = {name: fields.pop(name) for name in list(fields) if name in ScriptedModel.__struct_fields__}
    return ScriptedModel(fallback=fallback, script=script_of(replies=[reply], **fields), **own)


@asynccontextmanager
async def routing(
    models: dict[str, ScriptedModel], *, default_model: str | None = None, server: ServerConfig | None = None
) -> AsyncIterator[Router]:
    config = Config(models=models, default_model=default_model, server=server or ServerConfig(), breaker=BREAKER)
    lanes = {
        name: Lane(name, table, ScriptedEngine(name, table, clock=now), table.breaker or config.breaker, clock=now)
        for name, table in models.items()
    }
    router = Router(config, lanes, now)
    await router.start()
    await router.tried()
    try:
        yield router
        await asyncio.sleep(0)
        assert [(lane.running, lane.waiting) for lane in router.status()] == [(0, 0)] * len(models)
    finally:
        await router.aclose()


def request(name: str = "main", **fields: Any) -> Generation:
    return Generation(id="req-1", model=name, prompt=Text("one two three"), **fields)


async def read(answer: RoutedAnswer) -> list[Event]:
    try:
        return [event async for event in answer]
    finally:
        await answer.aclose()


async def answer_of(router: Router, generation: Generation) -> tuple[str, str]:
    """The model that answered, and its text."""
    answer = await router.open(generation)
    events = await read(answer)
    assert [isinstance(event, Started) for event in events] == [True] + [False] * (len(events) - 1)
    assert isinstance(events[-1], Finished)
    return answer.model, "".join(event.text for event in events if isinstance(event, TextDelta))
