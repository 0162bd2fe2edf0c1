"""EventQueue: backpressure, the first content, and the end."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import EngineFailed
from gateway.generation import ChoiceFinished, Finished, Started, TextDelta, Usage
from gateway.lanes.events.event_queue import _MAX_BEHIND, EventQueue
from tests.support.virtual_time import in_virtual_time

FINISHED = Finished(usage=Usage())


@in_virtual_time
async def test_emit_never_waits_and_keeps_order() -> None:
    events = EventQueue()
    for i in range(2 * _MAX_BEHIND):
        events(TextDelta(str(i)))
    events.end(FINISHED)
    assert [await events.get() for _ in range(2 * _MAX_BEHIND)] == [TextDelta(str(i)) for i in range(2 * _MAX_BEHIND)]
    assert await events.get() is FINISHED


@pytest.mark.parametrize(("text", "count"), [("x", _MAX_BEHIND), ("x" * 99_900, 5)])
@in_virtual_time
async def test_drain_waits_while_reader_is_behind(text: str, count: int) -> None:
    """In events, or in characters."""
    events = EventQueue()
    for _ in range(count - 1):
        events(TextDelta(text))
    await events.drain()
    events(TextDelta(text))
    draining = asyncio.ensure_future(events.drain())
    await asyncio.sleep(1)
    assert not draining.done()
    await events.get()
    await asyncio.sleep(0)
    assert draining.done()


@in_virtual_time
async def test_cancelled_get_loses_no_event() -> None:
    events = EventQueue()
    read = asyncio.ensure_future(events.get())
    await asyncio.sleep(0)
    events(TextDelta("x"))
    read.cancel()  # after the event has arrived, before the reader has run
    await asyncio.wait([read])
    assert await events.get() == TextDelta("x")


@in_virtual_time
async def test_on_content_is_called_once_before_first_content() -> None:
    events, calls = EventQueue(), []
    events.on_content = lambda: calls.append(events.has_content)
    events(Started(prompt_tokens=1))
    assert (calls, events.has_content) == ([], False)
    events(TextDelta("x"))
    events(ChoiceFinished("stop"))
    assert (calls, events.finished_choices) == ([True], 1)


@in_virtual_time
async def test_content_that_the_engine_holds_back_counts_as_the_first() -> None:
    events, calls = EventQueue(), []
    events.on_content = lambda: calls.append(events.has_content)
    events.begin()
    assert calls == [True] and events.poll() is None
    events(TextDelta("x"))
    assert calls == [True] and events.poll() == TextDelta("x")


@in_virtual_time
async def test_error_end_is_raised_after_the_events() -> None:
    events = EventQueue()
    events(TextDelta("x"))
    events.end(EngineFailed("gone"))
    assert await events.get() == TextDelta("x")
    with pytest.raises(EngineFailed, match="gone"):
        await events.get()
