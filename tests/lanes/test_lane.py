"""Lane: what it admits, in which order, and what an answer has. In virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing

import msgspec
import pytest

from gateway.config.tables import BreakerConfig
from gateway.errors import (
    ContextLengthExceeded,
    ModelNotReady,
    QueueFull,
)
from gateway.generation import ChoiceFinished, Finished, Started, Text, TextDelta
from gateway.lanes.lane import Lane
from tests.support.lanes import NO_BREAKER, Engine, answer, answering, assert_idle, config, request, running
from tests.support.virtual_time import in_virtual_time, now


@in_virtual_time
async def test_answer_starts_with_started_and_ends_with_finished_and_timings() -> None:
    async with running(config(replies=["a b c"], ttft_s=0.5, token_s=0.1)) as lane:
        events = await answer(lane)
    assert isinstance(events[0], Started)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "a b c"
    assert isinstance(events[-2], ChoiceFinished)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.usage.prompt_tokens == 3
    assert finished.timings.queue_s == 0.0
    assert finished.timings.ttft_s == pytest.approx(0.5)
    assert finished.timings.total_s == pytest.approx(0.8)
    assert finished.timings.device_s == pytest.approx(0.8)


@in_virtual_time
async def test_slot_and_permit_are_free_before_finished_is_readable() -> None:
    async with running(config(), BreakerConfig(latency_ms=1000.0)) as lane, aclosing(lane.submit(request())) as events:
        async for event in events:
            if isinstance(event, Finished):
                assert lane.queue.running == 0
                assert lane.breaker.verdict == (0, 1)


@in_virtual_time
async def test_timings_include_time_in_admission_queue() -> None:
    async with running(config(max_sequences=1, replies=["a"], ttft_s=2.0)) as lane:
        answers = await asyncio.gather(answer(lane), answer(lane))
    waits = [events[-1].timings.queue_s for events in answers if isinstance(events[-1], Finished)]
    assert waits == pytest.approx([0.0, 2.0])


@in_virtual_time
async def test_prompt_over_the_context_does_not_wait_for_a_slot() -> None:
    model = config(max_sequences=1, replies=["a"], ttft_s=10.0, context_length=10)
    async with running(model) as lane:
        other = answering(lane)
        await asyncio.sleep(1)
        with pytest.raises(ContextLengthExceeded):
            await answer(lane, msgspec.structs.replace(request(), prompt=Text("word " * 11)))
        assert (now(), lane.queue.running) == (1.0, 1)
        await other


@in_virtual_time
async def test_loading_lane_refuses_with_model_not_ready() -> None:
    model = config(load_s=5.0)
    lane = Lane("test", model, Engine(model), NO_BREAKER, clock=now)
    lane.start()
    with pytest.raises(ModelNotReady, match="test is loading") as caught:
        await answer(lane)
    assert caught.value.retry_after_s
    await lane.tried()
    assert isinstance((await answer(lane))[-1], Finished)
    await lane.aclose()
    with pytest.raises(ModelNotReady, match=r"test is shut down\."):
        await answer(lane)


@in_virtual_time
async def test_full_queue_refuses_with_seconds_until_it_is_empty() -> None:
    async with running(config(max_sequences=2, queue=4, replies=["a"], ttft_s=3.0)) as lane:
        await answer(lane)  # 3 s of service are measured
        waiting = [answering(lane) for _ in range(6)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull, match="2 running and 4 waiting requests") as caught:
            await answer(lane)
        refused_at = now()
        await asyncio.gather(*waiting)
        assert caught.value.retry_after_s == pytest.approx(now() - refused_at, rel=0.01)
        await answer(lane)


@in_virtual_time
async def test_queue_of_zero_serves_one_request_for_each_slot() -> None:
    async with running(config(max_sequences=2, queue=0, replies=["a"], ttft_s=3.0)) as lane:
        outcomes = await asyncio.gather(*(answer(lane) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, list, QueueFull]


@in_virtual_time
async def test_thousand_concurrent_requests_fill_slots_and_queue() -> None:
    async with running(config(max_sequences=4, queue=32, ttft_s=1.0)) as lane:
        outcomes = await asyncio.gather(*(answer(lane) for _ in range(1000)), return_exceptions=True)
    assert Counter(type(outcome) for outcome in outcomes) == {list: 36, QueueFull: 964}


@in_virtual_time
async def test_interactive_requests_run_in_order_before_background() -> None:
    engine = Engine(model := config(max_sequences=1, replies=["a"], ttft_s=1.0))
    async with running(model, engine=engine) as lane:
        kinds = [("1", False), ("b1", True), ("2", False), ("b2", True), ("3", False)]
        await asyncio.gather(*(answer(lane, request(id, background=background)) for id, background in kinds))
    assert engine.began == ["1", "2", "3", "b1", "b2"]


@in_virtual_time
async def test_background_requests_leave_one_slot_free() -> None:
    engine = Engine(model := config(max_sequences=3, replies=["a"], ttft_s=1.0))
    async with running(model, engine=engine) as lane:
        background = [answering(lane, f"b{i}", background=True) for i in range(4)]
        await asyncio.sleep(0.01)
        assert engine.began == ["b0", "b1"]
        chat = answering(lane, "chat")
        await asyncio.sleep(0.01)
        assert engine.began == ["b0", "b1", "chat"]
        await asyncio.gather(chat, *background)


@in_virtual_time
async def test_closed_lane_ends_every_job_with_an_error() -> None:
    model = config(max_sequences=2, ttft_s=10.0)
    lane = Lane("test", model, Engine(model), NO_BREAKER, clock=now)
    lane.start()
    await lane.tried()
    tasks = [answering(lane) for _ in range(5)]
    await asyncio.sleep(1)
    late = answering(lane)
    await asyncio.sleep(0)  # accepted; its task has not made a step
    await lane.aclose()
    outcomes = await asyncio.gather(*tasks, late, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ModelNotReady}
    assert_idle(lane)


@in_virtual_time
async def test_crowd_of_one_client_refuses_no_other_client() -> None:
    engine = Engine(model := config(max_sequences=4, queue=32, replies=["a"], ttft_s=10.0))
    async with running(model, engine=engine) as lane:
        await answer(lane, request(client="a"))  # 10 s of service are measured
        crowd = [answering(lane, f"a{number}", client="a") for number in range(40)]
        await asyncio.sleep(1.0)
        others = [answering(lane, client, client=client) for client in "bcdef"]
        outcomes = await asyncio.gather(*crowd, *others, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, QueueFull)]
    assert all(isinstance(outcome, list) for outcome in outcomes[-5:])
    assert len(refused) == 4 + 5  # over the limit, and evicted for the others
    assert all(error.retry_after_s is not None and error.retry_after_s > 0 for error in refused)
    assert "another client needed a position" in outcomes[35].message  # the newest in the queue
    assert {*"bcdef"} <= {*engine.began[5:13]}  # turns with the crowd


@pytest.mark.parametrize("takes_turns", [True, False])
@in_virtual_time
async def test_other_client_starts_at_once_if_the_engine_takes_turns(takes_turns: bool) -> None:
    engine = Engine(model := config(max_sequences=2, replies=["a"], ttft_s=10.0))
    async with running(model, engine=engine) as lane:
        engine.takes_turns = takes_turns  # another engine can answer after a start
        crowd = [answering(lane, client="a") for _ in range(6)]
        await asyncio.sleep(1.0)
        other = answering(lane, client="b")
        await asyncio.sleep(1.0)
        assert lane.queue.running == (3 if takes_turns else 2)
        await asyncio.gather(*crowd, other)
