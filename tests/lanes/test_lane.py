"""The lane over the scripted engine, in virtual time: what is admitted, in which order, and how everything ends."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from gateway.config import BreakerConfig, ScriptedModel
from gateway.engines.base import Emit, Prepared
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import (
    BreakerOpen,
    BundleError,
    DeadlineExceeded,
    EngineFailed,
    FirstTokenTooLate,
    GatewayError,
    ModelNotReady,
    QueueFull,
)
from gateway.generation import ChoiceFinished, Event, Finished, Generation, Meter, Started, Text, TextDelta, Usage
from gateway.lanes.lane import Lane
from tests.support.server import script_of
from tests.support.virtual_time import in_virtual_time, now

NO_BREAKER = BreakerConfig(enabled=False)


class Engine(ScriptedEngine):
    """The scripted engine, that also counts its open streams and can fail to load for a while."""

    def __init__(self, config: ScriptedModel, load_faults: int = 0) -> None:
        super().__init__("test", config, clock=now)
        self.open_runs = 0
        self.began: list[str] = []
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
    """A loaded lane; at the end nothing of any request may be left."""
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


async def ask(lane: Lane, generation: Generation | None = None) -> list[Event]:
    async with aclosing(lane.submit(generation or request())) as events:
        return [event async for event in events]


def asking(lane: Lane, *args: Any, **fields: Any) -> asyncio.Task[list[Event]]:
    return asyncio.create_task(ask(lane, request(*args, **fields)))


# --- an answer


@in_virtual_time
async def test_answer_starts_with_started_and_ends_with_finished_and_timings() -> None:
    async with running(config(replies=["a b c"], ttft_s=0.5, token_s=0.1)) as lane:
        events = await ask(lane)
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
    async with running(config(), BreakerConfig()) as lane, aclosing(lane.submit(request())) as events:
        async for event in events:
            if isinstance(event, Finished):
                assert lane.queue.running == 0
                assert lane.breaker.verdict == (0, 1)


@in_virtual_time
async def test_timings_include_time_in_admission_queue() -> None:
    async with running(config(max_sequences=1, replies=["a"], ttft_s=2.0)) as lane:
        answers = await asyncio.gather(ask(lane), ask(lane))
    waits = [events[-1].timings.queue_s for events in answers if isinstance(events[-1], Finished)]
    assert waits == pytest.approx([0.0, 2.0])


# --- refusals


@in_virtual_time
async def test_loading_lane_refuses_with_model_not_ready() -> None:
    model = config(load_s=5.0)
    lane = Lane("test", model, Engine(model), NO_BREAKER, clock=now)
    lane.start()
    with pytest.raises(ModelNotReady, match="test is loading") as caught:
        await ask(lane)
    assert caught.value.retry_after_s
    await lane.tried()
    assert isinstance((await ask(lane))[-1], Finished)
    await lane.aclose()
    with pytest.raises(ModelNotReady, match=r"test is shut down\."):
        await ask(lane)


@in_virtual_time
async def test_failed_load_is_retried_with_exponential_backoff(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(config(), load_faults=3)
    async with running(config(), engine=engine) as lane:
        assert lane.status.engine.state == "failed"
        assert lane.status.engine.detail == "model.onnx is missing"
        with pytest.raises(ModelNotReady, match=r"test could not be loaded: model\.onnx is missing"):
            await ask(lane)
        assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
            "test cannot be loaded: model.onnx is missing; it is tried again; `npu-gateway doctor` looks for the reason"
        ]
        await asyncio.sleep(0.5 + 1 + 2 - 0.01)
        assert lane.status.engine.state == "failed"
        await asyncio.sleep(0.02)
        assert lane.status.is_ready
        await ask(lane)


@in_virtual_time
async def test_full_queue_refuses_with_seconds_until_it_is_empty() -> None:
    async with running(config(max_sequences=2, queue=4, replies=["a"], ttft_s=3.0)) as lane:
        await ask(lane)  # 3 s of service are measured
        waiting = [asking(lane) for _ in range(6)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull, match="2 requests running and 4 waiting") as caught:
            await ask(lane)
        refused_at = now()
        await asyncio.gather(*waiting)
        assert caught.value.retry_after_s == pytest.approx(now() - refused_at, rel=0.01)
        await ask(lane)


@in_virtual_time
async def test_queue_of_zero_serves_one_request_for_each_slot() -> None:
    async with running(config(max_sequences=2, queue=0, replies=["a"], ttft_s=3.0)) as lane:
        outcomes = await asyncio.gather(*(ask(lane) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, list, QueueFull]


@in_virtual_time
async def test_thousand_concurrent_requests_fill_slots_and_queue() -> None:
    async with running(config(max_sequences=4, queue=32, ttft_s=1.0)) as lane:
        outcomes = await asyncio.gather(*(ask(lane) for _ in range(1000)), return_exceptions=True)
    assert Counter(type(outcome) for outcome in outcomes) == {list: 36, QueueFull: 964}


@in_virtual_time
async def test_request_with_ttft_limit_below_wait_is_refused_at_once() -> None:
    async with running(config(max_sequences=1, replies=["a"], ttft_s=3.0)) as lane:
        await ask(lane)
        first = asking(lane)
        await asyncio.sleep(0.5)
        began = now()
        said = r"test is busy and would begin its answer in about 5\.5 s; the limit for the first token is 4 s\."
        with pytest.raises(QueueFull, match=said) as caught:
            await ask(lane, request(ttft_timeout_s=4.0))
        assert caught.value.retry_after_s == pytest.approx(1.5)
        assert now() == began
        await asyncio.sleep(caught.value.retry_after_s)
        await asyncio.gather(first, ask(lane, request(ttft_timeout_s=4.0001)))


# --- forecasts


def chip(max_sequences: int = 1) -> ScriptedModel:
    """The published times of a chip: 131 ms for each 128 tokens of a prompt, 51 ms for a token."""
    script = script_of(replies=["a b c"], repeat=True)
    return ScriptedModel(simulate="x-elite", max_sequences=max_sequences, queue=100, script=script)


def prompt_of(tokens: int, **fields: Any) -> Generation:
    return Generation(id="r", model="test", prompt=Text("a " * (tokens - 1) + "a"), **fields)


async def predicted_and_true(lane: Lane, generation: Generation) -> tuple[float | None, float]:
    """Seconds to the first token."""
    began = now()
    async with aclosing(lane.submit(generation)) as job:
        async for _ in job:
            pass
    assert job.meter.first_token_at is not None
    return job.predicted_ttft_s, job.meter.first_token_at - began


@in_virtual_time
async def test_predicted_ttft_equals_measured_ttft() -> None:
    async with running(chip()) as lane:
        assert (await predicted_and_true(lane, prompt_of(40)))[0] is None  # nothing was measured yet
        await ask(lane, prompt_of(300))
        for tokens in (1, 128, 129, 1500, 4000):
            predicted_s, true_s = await predicted_and_true(lane, prompt_of(tokens))
            assert predicted_s == pytest.approx(true_s, rel=0.001)


@in_virtual_time
async def test_predicted_ttft_includes_admission_queue() -> None:
    async with running(chip()) as lane:
        for tokens in (40, 300):
            await ask(lane, prompt_of(tokens))
        line = [(700, 60, 0.0), (10, 5, 0.5), (1300, 64, 0.6), (128, 1, 3.0), (129, 40, 3.1)]

        async def come(tokens: int, max_tokens: int, after_s: float) -> tuple[float | None, float]:
            await asyncio.sleep(after_s)
            return await predicted_and_true(lane, prompt_of(tokens, max_tokens=max_tokens))

        outcomes = await asyncio.gather(*(come(*arrival) for arrival in line))
        for predicted_s, true_s in outcomes:
            assert predicted_s == pytest.approx(true_s, rel=0.02)
        assert outcomes[-1][1] > 6


@in_virtual_time
async def test_predicted_ttft_is_close_with_concurrent_requests() -> None:
    dice = random.Random(0)

    async def come(lane: Lane) -> float:
        await asyncio.sleep(dice.random() * 600)
        generation = prompt_of(dice.randint(1, 2000), max_tokens=dice.randint(1, 100))
        predicted_s, true_s = await predicted_and_true(lane, generation)
        return (predicted_s or 0.0) / true_s

    async with running(chip(max_sequences=4)) as lane:
        for tokens in (40, 300):
            await ask(lane, prompt_of(tokens))
        ratios = sorted(await asyncio.gather(*(come(lane) for _ in range(150))))
        assert 0.8 < ratios[75] < 1.25
        assert 0.5 < ratios[15] < ratios[135] < 2.0


@in_virtual_time
async def test_too_long_prompt_is_refused_without_retry() -> None:
    async with running(chip()) as lane:
        for tokens in (40, 300):
            await ask(lane, prompt_of(tokens))
        began = now()
        said = (
            r"test needs about 1\.0 s for the 1000 new tokens of this prompt; the limit for the first token is 0\.9 s"
        )
        with pytest.raises(FirstTokenTooLate, match=said) as caught:
            await ask(lane, prompt_of(1000, ttft_timeout_s=0.9))
        assert now() == began
        assert (caught.value.retry_after_s, caught.value.should_retry) == (None, False)
        await ask(lane, prompt_of(1000, ttft_timeout_s=1.1))


@in_virtual_time
async def test_refusals_end_after_device_is_fast_again() -> None:
    async with running(config(replies=["a"], ttft_s=[5.0] * 5 + [0.1] * 20)) as lane:
        for _ in range(5):
            await ask(lane)
        refusals = 0
        while True:
            try:
                await ask(lane, request(ttft_timeout_s=1.0))
                break
            except FirstTokenTooLate:
                refusals += 1
                await asyncio.sleep(1.0)
        assert 20 < refusals < 40
        for _ in range(10):
            await ask(lane, request(ttft_timeout_s=1.0))


# --- order


@in_virtual_time
async def test_interactive_requests_run_in_order_before_background() -> None:
    engine = Engine(model := config(max_sequences=1, replies=["a"], ttft_s=1.0))
    async with running(model, engine=engine) as lane:
        kinds = [("1", False), ("b1", True), ("2", False), ("b2", True), ("3", False)]
        await asyncio.gather(*(ask(lane, request(id, background=background)) for id, background in kinds))
    assert engine.began == ["1", "2", "3", "b1", "b2"]


@in_virtual_time
async def test_background_requests_leave_one_slot_free() -> None:
    engine = Engine(model := config(max_sequences=3, replies=["a"], ttft_s=1.0))
    async with running(model, engine=engine) as lane:
        background = [asking(lane, f"b{i}", background=True) for i in range(4)]
        await asyncio.sleep(0.01)
        assert engine.began == ["b0", "b1"]
        chat = asking(lane, "chat")
        await asyncio.sleep(0.01)
        assert engine.began == ["b0", "b1", "chat"]
        await asyncio.gather(chat, *background)


# --- deadlines


@pytest.mark.parametrize(
    ("script", "said", "after_s"),
    [
        ({"ttft_s": 30.0}, "did not give a first token", 5.0),
        ({"token_s": 1.0, "repeat": True}, "did not finish its answer", 5.0),
    ],
)
@in_virtual_time
async def test_deadline_ends_request(script: dict[str, Any], said: str, after_s: float) -> None:
    async with running(config(**script)) as lane:
        with pytest.raises(DeadlineExceeded, match=said):
            await ask(lane, request(timeout_s=5.0))
        assert now() == pytest.approx(after_s)


@in_virtual_time
async def test_deadline_includes_time_in_queue() -> None:
    async with running(config(max_sequences=1, ttft_s=30.0), BreakerConfig(latency_ms=60_000)) as lane:
        first = asking(lane)
        with pytest.raises(DeadlineExceeded):
            await ask(lane, request(timeout_s=5.0))
        await first
        assert lane.breaker.verdict == (0, 1)  # whoever waited in vain says nothing about the device


@in_virtual_time
async def test_ttft_limit_ends_request_without_first_token() -> None:
    async with running(config(ttft_s=3.0, token_s=1.0, repeat=True)) as lane:
        with pytest.raises(DeadlineExceeded, match=r"first token within 2\.0 s"):
            await ask(lane, request(ttft_timeout_s=2.0))
        with pytest.raises(FirstTokenTooLate, match=r"needs about 4\.0 s"):  # that it has seen, twice over
            await ask(lane, request(ttft_timeout_s=3.9))
        events = await ask(lane, request(ttft_timeout_s=4.0, max_tokens=20))  # takes 22 s in all
        assert isinstance(events[-1], Finished)
        with pytest.raises(DeadlineExceeded, match=r"finish its answer within 10\.0 s"):
            await ask(lane, request(ttft_timeout_s=4.0, timeout_s=10.0))


# --- clients that leave, and readers that stall


@in_virtual_time
async def test_closed_job_stops_device_and_is_not_judged() -> None:
    async with running(config(token_s=0.1, repeat=True), BreakerConfig(min_calls=1)) as lane:
        async with aclosing(lane.submit(request())) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        assert_idle(lane)
        assert lane.breaker.verdict == (0, 0)


@in_virtual_time
async def test_closed_queued_job_leaves_queue() -> None:
    async with running(config(max_sequences=1, ttft_s=1.0)) as lane:
        first = asking(lane)
        second = asking(lane)
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
            task = asking(lane)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert_idle(lane)


@in_virtual_time
async def test_unread_job_frees_its_slot() -> None:
    async with running(config(max_sequences=1, queue=0)) as lane:
        for _ in range(100):
            job = lane.submit(request())
            await asyncio.wait([job.task])
            assert lane.queue.running == 0
            await job.aclose()
        await ask(lane)


@in_virtual_time
async def test_stalled_reader_holds_no_slot() -> None:
    async with running(config(max_sequences=1, token_s=0.01, repeat=True)) as lane:
        events = lane.submit(request(max_tokens=1000))
        await anext(events)
        await asyncio.sleep(20)
        assert lane.queue.running == 0
        await ask(lane)
        assert isinstance([event async for event in events][-1], Finished)


@in_virtual_time
async def test_deadline_ends_endless_answer_of_stalled_reader() -> None:
    async with running(config(token_s=0.01, repeat=True, context_length=100_000)) as lane:
        events = lane.submit(request(max_tokens=50_000, timeout_s=100))
        await anext(events)
        await asyncio.sleep(101)
        assert lane.queue.running == 0
        unread = 0
        with pytest.raises(DeadlineExceeded):
            async for _ in events:
                unread += 1
        assert unread <= 4096


# --- failures


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        ("EngineFailed", (1, 1)),
        ("UpstreamFailed", (1, 1)),
        ("GatewayError", (1, 1)),
        ("InvalidRequest", (0, 0)),
        ("ContextLengthExceeded", (0, 0)),
        ("QueueFull", (0, 0)),
        ("ModelNotReady", (0, 0)),
    ],
)
@in_virtual_time
async def test_engine_error_is_judged_by_its_cause(error: str, verdict: tuple[int, int]) -> None:
    async with running(config(faults=[{"error": error, "message": "as told"}]), BreakerConfig()) as lane:
        with pytest.raises(GatewayError, match="as told"):
            await ask(lane)
        assert lane.breaker.verdict == verdict


@in_virtual_time
async def test_unexpected_engine_exception_becomes_engine_failed(caplog: pytest.LogCaptureFixture) -> None:
    class Mistaken(Engine):
        async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
            emit(Started(prompt_tokens=1))
            raise TimeoutError("of the engine's own") if prepared.generation.n == 2 else KeyError("oops")

    async with running(config(), BreakerConfig(), Mistaken(config())) as lane:
        for n in (1, 2):
            with pytest.raises(EngineFailed, match="the gateway's log has the reason"):
                await ask(lane, request(n=n))
        assert lane.breaker.verdict == (2, 2)
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "test: the engine raised KeyError",
        "test: the engine raised TimeoutError",
    ]


@in_virtual_time
async def test_engine_that_ends_no_choice_has_failed() -> None:
    class Short(Engine):
        async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
            emit(Started(prompt_tokens=1))
            return Usage()

    async with running(config(), engine=Short(config())) as lane:
        with pytest.raises(EngineFailed, match="stopped before it finished"):
            await ask(lane)


@in_virtual_time
async def test_closed_lane_ends_every_job_with_an_error() -> None:
    model = config(max_sequences=2, ttft_s=10.0)
    lane = Lane("test", model, Engine(model), NO_BREAKER, clock=now)
    lane.start()
    await lane.tried()
    tasks = [asking(lane) for _ in range(5)]
    await asyncio.sleep(1)
    late = asking(lane)
    await asyncio.sleep(0)  # accepted; its task has not made a step
    await lane.aclose()
    outcomes = await asyncio.gather(*tasks, late, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ModelNotReady}
    assert_idle(lane)


@in_virtual_time
async def test_breaker_that_opens_during_close_starts_no_probes() -> None:
    class Unwilling(Engine):
        async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
            emit(Started(prompt_tokens=1))
            try:
                await asyncio.sleep(100)
            finally:
                raise EngineFailed("the pipe is gone")

    model = config()
    lane = Lane("test", model, Unwilling(model), BreakerConfig(latency_ms=1e6, min_calls=1), clock=now)
    lane.start()
    await lane.tried()
    task = asking(lane)
    await asyncio.sleep(1)
    await lane.aclose()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], EngineFailed)
    assert lane.breaker.state == "open"
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await lane.aclose()  # once more does no harm


# --- the breaker


@in_virtual_time
async def test_hung_call_opens_breaker_before_it_ends() -> None:
    faults = [{"after": 2, "stall_s": 30.0}]
    breaker = BreakerConfig(min_calls=1, probe_itself=False)
    async with running(config(faults=faults), breaker) as lane:
        hung = asking(lane)
        await asyncio.sleep(0.99)
        assert lane.breaker.state == "closed"
        await asyncio.sleep(0.02)
        assert lane.breaker.state == "open"
        with pytest.raises(BreakerOpen):
            await ask(lane)
        assert isinstance((await hung)[-1], Finished)


@in_virtual_time
async def test_queued_jobs_are_refused_when_breaker_opens() -> None:
    breaker = BreakerConfig(min_calls=1, probe_itself=False)
    async with running(config(max_sequences=1, ttft_s=30.0), breaker) as lane:
        running_one = asking(lane)
        await asyncio.sleep(0.5)
        waiting = [asking(lane) for _ in range(5)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {BreakerOpen}
        assert 1.0 <= now() < 1.01
        await running_one


@in_virtual_time
async def test_open_breaker_uses_only_own_probes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    ttft_s = [1.3] * 5 + [1.2] * 2 + [0.7] * 100  # five requests, two bad probes, good ones from then on
    engine = Engine(model := config(replies=["a"], ttft_s=ttft_s))
    async with running(model, BreakerConfig(), engine) as lane:
        for _ in range(5):
            await ask(lane)
        assert lane.breaker.state == "open"
        refused = 0
        while lane.breaker.state != "closed":
            with pytest.raises(BreakerOpen):
                await ask(lane)
            refused += 1
            await asyncio.sleep(1.0)
        assert refused == 34  # three times 10 s from the moment it is slow, two bad probes, two good ones: 33.1 s
        assert engine.began[5:] == ["probe-test"] * 4
        await ask(lane)
    assert [record.message for record in caplog.records if "breaker" in record.message] == [
        "test: breaker open: 5 of its last 5 answers were slow or failed; refusing for 10 s",
        "test: breaker half-open: 2 good probes close it",
        "test: breaker open: a probe was slow; refusing for 10 s",
        "test: breaker half-open: 2 good probes close it",
        "test: breaker open: a probe was slow; refusing for 10 s",
        "test: breaker half-open: 2 good probes close it",
        "test: breaker closed",
    ]


@in_virtual_time
async def test_probes_close_breaker_after_restart() -> None:
    faults = [{"requests": [0], "stall_s": 1e9}]
    engine = Engine(model := config(faults=faults, watchdog_s=25.0, load_s=3.0))
    async with running(model, BreakerConfig(min_calls=1), engine) as lane:
        with pytest.raises(EngineFailed):
            await ask(lane)
        assert lane.breaker.state == "open"
        await asyncio.sleep(30)
        assert lane.status.is_ready
        assert lane.status.engine.restarts == 1
        await ask(lane)


@in_virtual_time
async def test_engine_exception_in_probe_does_not_stop_prober() -> None:
    class Mistaken(Engine):
        async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
            if len(self.began) < 3:
                self.began.append(prepared.generation.id)
                raise KeyError("oops")
            return await super().run(prepared, meter, emit)

    async with running(config(), BreakerConfig(min_calls=1), Mistaken(config())) as lane:
        with pytest.raises(EngineFailed):
            await ask(lane)
        await asyncio.sleep(31)
        assert lane.breaker.state == "closed"


@in_virtual_time
async def test_half_open_lane_sends_only_probes_to_engine() -> None:
    engine = Engine(model := config(max_sequences=8, faults=[{"requests": [0], "error": "EngineFailed"}], ttft_s=0.5))
    async with running(model, BreakerConfig(min_calls=1, probes=3, probe_itself=False), engine) as lane:
        with pytest.raises(EngineFailed):
            await ask(lane)
        await asyncio.sleep(10)
        outcomes = await asyncio.gather(*(ask(lane) for _ in range(1000)), return_exceptions=True)
        assert Counter(type(outcome) for outcome in outcomes) == {list: 3, BreakerOpen: 997}
        assert len(engine.began) == 4
        assert lane.breaker.state == "closed"


# --- nothing leaks


async def _visitor(lane: Lane, dice: random.Random, i: int) -> str:
    """One client with its own manners; how its request ended."""
    await asyncio.sleep(dice.random() * 20)
    generation = request(
        str(i),
        max_tokens=dice.randint(1, 30),
        timeout_s=dice.choice([None, 0.0, 0.3, 5.0]),
        ttft_timeout_s=dice.choice([None, None, 0.2]),
        background=dice.random() < 0.3,
    )
    patience = dice.choice([0, 1, 3, 1000])
    seen = 0
    try:
        async with aclosing(lane.submit(generation)) as events:
            async for event in events:
                assert not isinstance(event, Started) or seen == 0
                seen += 1
                if isinstance(event, Finished):
                    return "finished"
                if seen > patience:
                    return "left"
                if dice.random() < 0.02:
                    await asyncio.sleep(5)
    except GatewayError as error:
        return error.code or error.type
    raise AssertionError("a stream ended without an ending")


@pytest.mark.parametrize("seed", range(3))
@in_virtual_time
async def test_thousand_mixed_requests_leave_nothing(seed: int) -> None:
    dice = random.Random(seed)
    names = ["EngineFailed", "InvalidRequest", "UpstreamFailed", "ModelNotReady"]
    faults = [
        {"requests": dice.sample(range(800), 8), "after": dice.randint(0, 5), "error": name}
        for name in names
        for _ in range(5)
    ] + [{"requests": dice.sample(range(800), 6), "after": dice.randint(0, 5), "stall_s": 1e9}]
    model = config(
        max_sequences=4, queue=8, watchdog_s=2.0, load_s=0.5, ttft_s=0.02, token_s=0.002, repeat=True, faults=faults
    )
    breaker = BreakerConfig(latency_ms=1000, open_s=0.5, min_calls=3)
    async with running(model, breaker) as lane:
        tasks = [asyncio.create_task(_visitor(lane, dice, i)) for i in range(1000)]
        for task in dice.sample(tasks, 200):
            asyncio.get_running_loop().call_later(dice.random() * 25, task.cancel)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        endings = Counter(o if isinstance(o, str) else type(o).__name__ for o in outcomes)
        assert endings.total() == 1000
        assert {"finished", "left", "CancelledError", "engine_failed", "deadline_exceeded"} <= set(endings), endings
        assert "AssertionError" not in endings
        assert_idle(lane)
        await asyncio.sleep(60)  # the probes close the breaker again
        assert lane.breaker.state == "closed"
        assert len(lane._tasks) == 1  # the loader
        assert asyncio.all_tasks() == {asyncio.current_task(), *lane._tasks}


@pytest.mark.parametrize("cancel_at", range(12))
@in_virtual_time
async def test_job_cancelled_at_any_step_leaves_nothing(cancel_at: int) -> None:
    async with running(config(max_sequences=1, replies=["a b"]), BreakerConfig()) as lane:
        tasks = [asking(lane) for _ in range(3)]
        for _ in range(cancel_at):
            await asyncio.sleep(0)
        for task in tasks[:2]:
            task.cancel()
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[2][-1], Finished)
