"""Job: deadlines, cancelled requests, and readers that stall. In virtual time."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from gateway.config.tables import BreakerConfig
from gateway.errors import (
    DeadlineExceeded,
    FirstTokenTooLate,
)
from gateway.generation import Finished, TextDelta
from tests.support.lanes import answer, answering, assert_idle, config, request, running
from tests.support.virtual_time import in_virtual_time, now


@pytest.mark.parametrize(
    ("script", "message", "after_s"),
    [
        ({"ttft_s": 30.0}, "did not give a first token", 5.0),
        ({"token_s": 1.0, "repeat": True}, "did not finish its answer", 5.0),
        ({"ttft_s": 30.0}, r"within 0\.002 s", 0.002),
    ],
    ids=["no first token", "no end", "milliseconds"],
)
@in_virtual_time
async def test_deadline_ends_request(script: dict[str, Any], message: str, after_s: float) -> None:
    async with running(config(**script)) as lane:
        with pytest.raises(DeadlineExceeded, match=message):
            await answer(lane, request(timeout_s=after_s))
        assert now() == pytest.approx(after_s)


@in_virtual_time
async def test_deadline_includes_time_in_queue() -> None:
    async with running(config(max_sequences=1, ttft_s=30.0), BreakerConfig(latency_ms=60_000)) as lane:
        first = answering(lane)
        with pytest.raises(DeadlineExceeded):
            await answer(lane, request(timeout_s=5.0))
        await first
        assert lane.breaker.verdict == (0, 1)  # the request that only waited is not judged


@in_virtual_time
async def test_ttft_limit_ends_request_without_first_token() -> None:
    async with running(config(ttft_s=3.0, token_s=1.0, repeat=True)) as lane:
        with pytest.raises(DeadlineExceeded, match=r"first token within 2\.0 s"):
            await answer(lane, request(ttft_timeout_s=2.0))
        with pytest.raises(FirstTokenTooLate, match=r"needs about 4\.0 s"):  # two times the 2 s that it has seen
            await answer(lane, request(ttft_timeout_s=3.9))
        events = await answer(lane, request(ttft_timeout_s=4.0, max_tokens=20))  # takes 22 s in all
        assert isinstance(events[-1], Finished)
        with pytest.raises(DeadlineExceeded, match=r"finish its answer within 10\.0 s"):
            await answer(lane, request(ttft_timeout_s=4.0, timeout_s=10.0))


@in_virtual_time
async def test_closed_job_stops_device_and_is_not_judged() -> None:
    async with running(config(token_s=0.1, repeat=True), BreakerConfig(latency_ms=1000.0, min_calls=1)) as lane:
        async with aclosing(lane.submit(request())) as job:
            async for event in job:
                if isinstance(event, TextDelta):
                    break
        assert_idle(lane)
        assert lane.breaker.verdict == (0, 0)


@in_virtual_time
async def test_closed_queued_job_leaves_queue() -> None:
    async with running(config(max_sequences=1, ttft_s=1.0)) as lane:
        first = answering(lane)
        second = answering(lane)
        await asyncio.sleep(0.5)
        assert lane.queue.waiting == 1
        second.cancel()
        await asyncio.wait([second])
        assert lane.queue.waiting == 0
        await first


@in_virtual_time
async def test_job_cancelled_before_first_step_leaves_nothing() -> None:
    async with running(config(max_sequences=1)) as lane:
        for steps in range(4):
            task = answering(lane)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert_idle(lane)


@pytest.mark.parametrize("cancel_at", range(12))
@in_virtual_time
async def test_job_cancelled_at_any_step_leaves_nothing(cancel_at: int) -> None:
    async with running(config(max_sequences=1, replies=["a b"]), BreakerConfig(latency_ms=1000.0)) as lane:
        tasks = [answering(lane) for _ in range(3)]
        for _ in range(cancel_at):
            await asyncio.sleep(0)
        for task in tasks[:2]:
            task.cancel()
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[2][-1], Finished)


@in_virtual_time
async def test_unread_job_frees_its_slot() -> None:
    async with running(config(max_sequences=1, queue=0)) as lane:
        for _ in range(100):
            job = lane.submit(request())
            await asyncio.wait([job.task])
            assert lane.queue.running == 0
            await job.aclose()
        await answer(lane)


@in_virtual_time
async def test_stalled_reader_holds_no_slot() -> None:
    async with running(config(max_sequences=1, token_s=0.01, repeat=True)) as lane:
        job = lane.submit(request(max_tokens=1000))
        await anext(job)
        await asyncio.sleep(20)
        assert lane.queue.running == 0
        await answer(lane)
        assert isinstance([event async for event in job][-1], Finished)


@in_virtual_time
async def test_deadline_ends_endless_answer_of_stalled_reader() -> None:
    async with running(config(token_s=0.01, repeat=True, context_length=100_000)) as lane:
        job = lane.submit(request(max_tokens=50_000, timeout_s=100))
        await anext(job)
        await asyncio.sleep(101)
        assert lane.queue.running == 0
        unread = 0
        with pytest.raises(DeadlineExceeded):
            async for _ in job:
                unread += 1
        assert unread <= 4096


@in_virtual_time
async def test_cancelled_read_loses_no_event_and_does_not_cancel_job() -> None:
    async with running(config(replies=["a b"], token_s=1.0)) as lane, aclosing(lane.submit(request())) as job:
        events = [await anext(job), await anext(job)]
        for _ in range(3):  # the next token comes in 1 s
            read = asyncio.ensure_future(anext(job))
            await asyncio.sleep(0.1)
            read.cancel()
            await asyncio.wait([read])
        events += [event async for event in job]
    assert [type(event).__name__ for event in events] == [
        "Started",
        "TextDelta",
        "TextDelta",
        "ChoiceFinished",
        "Finished",
    ]
