"""Local engines, requests and answers, for tests of engines/local/."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from gateway.config.tables import LocalModel
from gateway.engines.local.engine import LocalEngine
from gateway.engines.local.process import Entry
from gateway.generation import (
    Chat,
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    Message,
    TextDelta,
    TokenIds,
    TokenLogprob,
    Usage,
)
from gateway.sampling import Sampling
from gateway.worker.main import worker_main
from tests.support.manual_clock import ManualClock

GREEDY = Sampling(temperature=0.0)
PROMPT = TokenIds(tuple(range(40, 60)))


def make(
    bundle: Path, entry: Entry = worker_main, clock: Callable[[], float] = time.monotonic, **fields: Any
) -> LocalEngine:
    model = LocalModel(path=bundle.name, threads=1, **fields)
    return LocalEngine("m", model, bundle.parent, entry=entry, clock=clock)


def request(prompt: Any = PROMPT, **fields: Any) -> Generation:
    options: dict[str, Any] = {"sampling": GREEDY, "ignore_eos": True, "max_tokens": 24} | fields
    return Generation(id="r", model="m", prompt=prompt, **options)


def chat(content: str) -> Chat:
    return Chat(messages=(Message(role="user", content=content),))


def text_of(events: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.choice == choice)


def endings(events: list[Event]) -> list[ChoiceFinished]:
    return [event for event in events if isinstance(event, ChoiceFinished)]


def usage(events: list[Event]) -> Usage:
    assert isinstance(events[-1], Finished)
    return events[-1].usage


def logprobs(events: list[Event]) -> list[TokenLogprob]:
    return [entry for event in events if isinstance(event, TextDelta) for entry in event.logprobs]


async def until_text(events: AsyncGenerator[Event, None]) -> None:
    async for event in events:
        if isinstance(event, TextDelta):
            return


async def until(condition: Callable[[], bool]) -> None:
    """Poll `condition` for at most 60 s."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (another process changes it)
            await asyncio.sleep(0.02)


async def advance_until(clock: ManualClock, step_s: float, condition: Callable[[], bool]) -> None:
    """Advance the watchdog's clock in steps until `condition`, for at most 60 s of real time."""
    async with asyncio.timeout(60):
        while not condition():
            clock.now += step_s
            await asyncio.sleep(0.02)


async def until_ready(engine: LocalEngine) -> None:
    await until(lambda: engine.status.state == "ready")
