"""Unread events of several requests are limited together."""

from __future__ import annotations

import asyncio
import gc

import pytest

from gateway.errors import DeadlineExceeded
from gateway.generation import ReasoningDelta, Started, TextDelta, TokenLogprob, ToolCallDelta
from gateway.lanes.events.event_queue import EventQueue
from gateway.lanes.events.unread import UnreadEvents, weight

TOP = tuple(TokenLogprob("a", (97,), -1.0) for _ in range(20))
SCORED = TextDelta("a", logprobs=(TokenLogprob("a", (97,), -1.0, TOP),))

CALL = ("arguments", "name")


def test_each_log_probability_counts() -> None:
    assert weight(TextDelta("a")) == 1
    assert weight(SCORED) == 1 + 21
    assert weight(Started(prompt_tokens=1, prompt_logprobs=SCORED.logprobs)) == 1 + 21


@pytest.mark.parametrize("text", ["", "x" * 99, "x" * 100_000])
def test_long_text_counts_by_its_length(text: str) -> None:
    for event in (TextDelta(text), ReasoningDelta(text), *(ToolCallDelta(index=0, **{key: text}) for key in CALL)):
        assert weight(event) == 1 + len(text) // 100
    assert weight(TextDelta(text, logprobs=SCORED.logprobs)) == 1 + 21 + len(text) // 100


def test_garbage_collector_skips_unread_log_probabilities() -> None:
    events = [TextDelta("a", logprobs=(TokenLogprob("a", (97,), -1.0, (TOP[0], TOP[1])),)) for _ in range(10)]
    gc.collect()
    seen = [events[0], events[0].logprobs, events[0].logprobs[0], events[0].logprobs[0].top]
    assert not any(map(gc.is_tracked, seen))


def test_request_that_is_furthest_behind_ends_and_others_continue() -> None:
    async def run() -> None:
        shared, cancelled = UnreadEvents(limit=100), list[str]()
        stalled, slow, quick = (EventQueue(shared) for _ in range(3))
        stalled.on_overflow = lambda: cancelled.append("stalled")
        for _ in range(3):
            stalled(SCORED)
        slow(SCORED)
        assert not cancelled
        for _ in range(50):
            quick(SCORED)  # the limit passes here, and the request with the most is not this one
            assert await quick.get() is SCORED
        assert cancelled == ["stalled"]
        stalled(SCORED)  # the engine may still send some
        with pytest.raises(DeadlineExceeded, match="Read faster"):
            await stalled.get()
        assert await slow.get() is SCORED
        assert (stalled.unread, slow.unread, quick.unread) == (0, 0, 0)

    asyncio.run(run())


def test_closed_queue_holds_nothing() -> None:
    async def run() -> None:
        shared = UnreadEvents(limit=100)
        for _ in range(50):
            queue = EventQueue(shared)
            queue.on_overflow = lambda: pytest.fail("what a closed queue held still counts")
            queue(SCORED)
            queue.close()
            queue(SCORED)
            assert queue.unread == 0

    asyncio.run(run())


def test_many_dropped_events_are_freed_in_several_turns() -> None:
    async def run() -> None:
        queue = EventQueue()
        for _ in range(20_000):
            queue(TextDelta("a", logprobs=(TokenLogprob("a", (97,), -1.0, TOP),)))
        before = len(asyncio.get_running_loop()._ready)  # type: ignore[attr-defined]
        queue.close()
        assert len(asyncio.get_running_loop()._ready) == before + 1  # type: ignore[attr-defined]
        assert queue.unread == 0

    asyncio.run(run())
