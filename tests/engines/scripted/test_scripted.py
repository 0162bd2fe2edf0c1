"""ScriptedEngine, with a clock that only `sleep` advances."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import Any

import pytest

from gateway.config.tables import ScriptedModel
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import (
    ContextLengthExceeded,
    DeviceFailed,
    EngineFailed,
    GatewayError,
    ModelNotReady,
    UpstreamFailed,
    error_class,
)
from gateway.generation import (
    Chat,
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    Message,
    Meter,
    Started,
    TextDelta,
    TokenIds,
)
from tests.support.engines import event_stream, events_of
from tests.support.server import script_of


class Clock:
    """Only `sleep` advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now += seconds


def model(simulate: Any = None, max_sequences: int = 4, watchdog_s: float = 60.0, **script: Any) -> ScriptedModel:
    return ScriptedModel(
        simulate=simulate, max_sequences=max_sequences, watchdog_s=watchdog_s, script=script_of(**script)
    )


async def started(config: ScriptedModel) -> tuple[ScriptedEngine, Clock]:
    clock = Clock()
    engine = ScriptedEngine("m", config, clock=clock, sleep=clock.sleep)
    await engine.start()
    return engine, clock


def request(text: str = "one two three", **fields: Any) -> Generation:
    return Generation(id="r", model="m", prompt=Chat(messages=(Message(role="user", content=text),)), **fields)


def text_of(events: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.choice == choice)


def endings(events: list[Event]) -> list[ChoiceFinished]:
    return [event for event in events if isinstance(event, ChoiceFinished)]


async def test_reply_is_emitted_and_stop_token_counted() -> None:
    engine, _ = await started(model(replies=["Hello big world"]))
    meter = Meter()
    events = await events_of(engine, request(), meter)
    assert events[0] == Started(prompt_tokens=3)
    assert text_of(events) == "Hello big world"
    assert endings(events) == [ChoiceFinished("stop")]
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.completion_tokens == meter.completion_tokens == 4


async def test_answer_stops_at_max_tokens() -> None:
    engine, _ = await started(model(replies=["Hello big world"]))
    events = await events_of(engine, request(max_tokens=2))
    assert (text_of(events), endings(events)) == ("Hello big", [ChoiceFinished("length")])
    events = await events_of(engine, request(max_tokens=0))
    assert (text_of(events), endings(events)) == ("", [ChoiceFinished("length")])


async def test_stop_string_across_tokens_is_cut() -> None:
    engine, _ = await started(model(replies=["Hello big world"]))
    events = await events_of(engine, request(stop=("big w", "x")))
    assert (text_of(events), endings(events)) == ("Hello ", [ChoiceFinished("stop", stop="big w")])


async def test_each_choice_ends_once() -> None:
    engine, _ = await started(model(replies=["a b c", "d"]))
    events = await events_of(engine, request(n=3))
    assert [text_of(events, choice) for choice in range(3)] == ["a b c", "d", "a b c"]
    assert sorted(ending.choice for ending in endings(events)) == [0, 1, 2]


async def test_replies_and_times_are_used_in_turn() -> None:
    engine, clock = await started(model(replies=["a", "b"], ttft_s=[1.0, 2.0, 3.0]))
    for expected in ("a", "b", "a"):
        assert text_of(await events_of(engine, request())) == expected
    assert clock.now == 6.0


async def test_meter_follows_device_calls() -> None:
    engine, clock = await started(model(replies=["a b c"], ttft_s=1.0, token_s=0.25))
    meter, seen = Meter(clock=clock), []

    class Emit:
        def __call__(self, event: Event) -> None:
            if isinstance(event, TextDelta):
                seen.append((meter.completion_tokens, meter.device_s, meter.call_since))

        def begin(self) -> None: ...

        async def drain(self) -> None: ...

    await engine.run(await engine.prepare(request(max_tokens=3)), meter, Emit())
    assert seen == [(1, 1.0, None), (2, 1.25, None), (3, 1.5, None)]
    assert (meter.first_token_at, clock.now) == (1.0, 1.5)


async def test_running_call_is_in_meter() -> None:
    engine = ScriptedEngine("m", model(ttft_s=30.0))
    await engine.start()
    meter = Meter()
    task = asyncio.create_task(events_of(engine, request(), meter))
    async with asyncio.timeout(60):
        while meter.call_since is None:  # noqa: ASYNC110 (until the device call)
            await asyncio.sleep(0)
    assert meter.device_s_at(meter.call_since + 5.0) == 5.0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert meter.call_since is None
    assert not engine._device.locked()


async def test_simulated_chip_has_published_timing() -> None:
    engine, clock = await started(model(simulate="x-elite", prompt_tokens=300, repeat=True))
    meter = Meter(clock=clock)
    await events_of(engine, request(max_tokens=198), meter)
    assert clock.now == pytest.approx(3 * 0.131 + 197 / 19.7)
    assert meter.first_token_at == pytest.approx(3 * 0.131)
    assert engine.status.device == "simulated"


async def test_device_serves_requests_in_turn() -> None:
    engine, clock = await started(model(replies=["a b c d"], ttft_s=1.0, token_s=1.0))
    order: list[str] = []

    async def follow(name: str) -> None:
        async for event in event_stream(engine, request()):
            if isinstance(event, TextDelta):
                order.append(name)

    await asyncio.gather(follow("x"), follow("y"))
    assert order == ["x", "y"] * 4
    assert clock.now == 10.0


async def test_requests_beyond_max_sequences_wait() -> None:
    engine, clock = await started(model(max_sequences=1, replies=["a b"], ttft_s=1.0))
    meters = [Meter(clock=clock) for _ in range(2)]
    await asyncio.gather(*(events_of(engine, request(), meter) for meter in meters))
    assert [meter.began_at for meter in meters] == [0.0, 1.0]


async def test_closed_stream_frees_slot() -> None:
    engine, _ = await started(model(max_sequences=1, repeat=True))
    async with aclosing(event_stream(engine, request(max_tokens=1000))) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    assert isinstance((await events_of(engine, request(max_tokens=1)))[-1], Finished)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"error": "UpstreamFailed"}, UpstreamFailed),
        ({"driver_code": 14001}, EngineFailed),
        ({"driver_code": -100301, "stall_s": 3.0}, EngineFailed),
    ],
)
async def test_fault_applies_to_its_request_and_token(fault: dict[str, Any], error: type[GatewayError]) -> None:
    engine, _ = await started(model(replies=["a b c"], faults=[{"requests": [1], "after": 2, **fault}]))
    assert text_of(await events_of(engine, request())) == "a b c"
    seen: list[Event] = []
    with pytest.raises(error, match=str(fault.get("driver_code", "script"))):
        async for event in event_stream(engine, request()):
            seen.append(event)
    assert text_of(seen) == "a b"
    assert text_of(await events_of(engine, request())) == "a b c"


async def test_watchdog_ends_hung_call_and_all_requests() -> None:
    hang = {"requests": [0], "after": 1, "stall_s": math.inf}
    engine, clock = await started(model(watchdog_s=5.0, load_s=2.0, faults=[hang]))
    results = await asyncio.gather(*(events_of(engine, request()) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [DeviceFailed] * 3
    assert (engine.status.state, engine.status.restarts) == ("restarting", 1)
    with pytest.raises(ModelNotReady):
        await events_of(engine, request())
    await clock.sleep(2.0)
    assert isinstance((await events_of(engine, request()))[-1], Finished)


async def test_load_takes_load_s_and_can_fail() -> None:
    clock = Clock()
    engine = ScriptedEngine("m", model(load_s=16.0), clock=clock, sleep=clock.sleep)
    assert engine.status.state == "loading"
    with pytest.raises(ModelNotReady):
        await events_of(engine, request())
    await engine.start()
    assert (clock.now, engine.status.state) == (16.0, "ready")
    await engine.aclose()
    assert engine.status.state == "closed"

    engine = ScriptedEngine("m", model(load_error="unknown chip"))
    with pytest.raises(EngineFailed, match="unknown chip"):
        await engine.start()
    assert (engine.status.state, engine.status.detail) == ("failed", "unknown chip")


async def test_context_limits_prompt_and_answer() -> None:
    engine, _ = await started(model(context_length=10, repeat=True))
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 10 tokens"):
        await events_of(engine, Generation(id="r", model="m", prompt=TokenIds(tuple(range(10)))))
    events = await events_of(engine, Generation(id="r", model="m", prompt=TokenIds(tuple(range(7))), max_tokens=64))
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.completion_tokens == 3


async def test_each_visible_token_has_one_logprob() -> None:
    engine, _ = await started(model(replies=["Hello big world"]))
    events = await events_of(engine, request(logprobs=1, stop=("orl",)))
    entries = [entry for event in events if isinstance(event, TextDelta) for entry in event.logprobs]
    assert [entry.token for entry in entries] == ["Hello", " big", " world"]
    assert all(entry.top[0].token == entry.token for entry in entries)


def test_error_class_is_found_by_name() -> None:
    assert error_class("ContextLengthExceeded") is ContextLengthExceeded
    assert error_class("Nonsense") is GatewayError
