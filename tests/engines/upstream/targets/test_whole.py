"""A server that breaks in the middle of its answer. A client that gets no stream has nothing yet: another answers."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from gateway.engines.upstream.hedge import ENOUGH
from gateway.engines.upstream.targets import health
from gateway.engines.upstream.targets.target import Target
from gateway.errors import UpstreamFailed, UpstreamRefused
from gateway.generation import Event, Meter, Started
from tests.engines.upstream.targets.test_pool import (
    GOOD,
    Script,
    cancel,
    hang,
    impatient_with,
    request,
    servers,
    status,
    text_of,
    until,
)
from tests.support.engines import event_stream, events_of
from tests.support.hostile import chunk, stream

HALF = stream(*(chunk(content="half ") for _ in range(5)), done=False)


@pytest.fixture(autouse=True)
def without_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is down stays so, however slow the machine is."""
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 1e6)
    monkeypatch.setattr(health, "MOST_PAUSE_S", 1e6)


async def hang_after_half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HALF)
    await hang(reader, writer)


BREAKS: list[bytes] = [
    HALF,
    HALF + b'data: {"error": {"message": "out of memory"}}\n\n',
    HALF + b'data: {"error": {"message": "no", "code": 400}}\n\n',
    HALF + b"data: garbage\n\n",
]


@pytest.mark.parametrize("bad", [*BREAKS, hang_after_half])
async def test_whole_answer_that_breaks_is_given_by_another_server(
    bad: bytes | Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bad is hang_after_half:  # on a slow machine it is given up before its content; the rest is the same
        impatient_with(monkeypatch, 1)
    asked_at: list[float] = []

    async def good(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked_at.append(time.monotonic())
        writer.write(GOOD)

    async with servers(bad, good) as (engine, (_, second)):
        engine.targets[1].running = 1
        meter = Meter()
        events = await events_of(engine, request(is_whole=True), meter)
        assert text_of(events) == "good" and sum(isinstance(event, Started) for event in events) == 1
        assert len(second.bodies) == 1
        assert meter.route.text() == f"{engine.targets[1].address};reason=failover;attempts=2"
        assert meter.completion_tokens == 1 and meter.call_since is None
        assert meter.first_token_at is not None and meter.first_token_at >= asked_at[0]
        assert [target.running for target in engine.targets] == [0, 1]
        assert [target.health.state for target in engine.targets] == ["down", "up"]


@pytest.mark.parametrize("bad", BREAKS)
async def test_stream_that_breaks_is_not_begun_again(bad: bytes) -> None:
    async with servers(bad, GOOD) as (engine, (_, second)):
        engine.targets[1].running = 1
        events: list[Event] = []
        with pytest.raises(UpstreamFailed):
            async for event in event_stream(engine, request()):
                events.append(event)
        assert text_of(events) == "half " * 5 and second.bodies == []


async def test_whole_answers_that_all_break_are_one_error_that_counts_and_no_event() -> None:
    async with servers(HALF, HALF) as (engine, found):
        events, meter = list[Event](), Meter()
        with pytest.raises(UpstreamFailed) as caught:
            async for event in event_stream(engine, request(is_whole=True), meter):
                events.append(event)
        assert events == [] and not isinstance(caught.value, UpstreamRefused)
        assert [len(each.bodies) for each in found] == [1, 1]
        assert (meter.completion_tokens, meter.first_token_at) == (0, None)
        assert meter.device_s > 0, "a model has worked for it, so that it counts against the limits of its key"
        assert engine.status.is_down


async def test_first_content_is_reported_when_it_comes_and_shown_at_the_end() -> None:
    class Reader:
        def __init__(self) -> None:
            self.events: list[Event] = []
            self.has_begun = asyncio.Event()

        def __call__(self, event: Event) -> None:
            self.events.append(event)

        def begin(self) -> None:
            self.has_begun.set()

        async def drain(self) -> None: ...

    reader, meter = Reader(), Meter()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HALF)
        await asyncio.wait_for(reader.has_begun.wait(), 60)
        assert reader.events == [] and meter.first_token_at is not None
        writer.write(GOOD.partition(b"\r\n\r\n")[2])

    async with servers(answer, answer) as (engine, _):
        usage = await engine.run(await engine.prepare(request(is_whole=True)), meter, reader)
        assert text_of(reader.events) == "half " * 5 + "good" and usage.completion_tokens == 6


async def test_server_that_lost_the_race_is_asked_again_if_the_winner_breaks() -> None:
    """With `hedge`: the first server is late, the second one has the first content, and breaks."""
    calls, left = itertools.count(), asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(calls):
            writer.write(GOOD)
        else:
            await hang(reader, writer)
            left.set()

    async def breaks(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HALF)
        await writer.drain()
        await asyncio.wait_for(left.wait(), 60)

    async with servers(late, breaks, hedge=True) as (engine, (first, second)):
        assert engine.hedging is not None
        engine.targets[1].running = 1
        for _ in range(ENOUGH):
            engine.hedging.answered(engine.targets[0], 0.01)
        while not engine.hedging.has_credit():
            engine.hedging.earn()
        meter = Meter()
        events = await events_of(engine, request(is_whole=True), meter)
        assert text_of(events) == "good" and meter.completion_tokens == 1
        assert (len(first.bodies), len(second.bodies)) == (2, 1)
        assert meter.route.text() == f"{engine.targets[0].address};reason=failover;attempts=2"
        assert [target.health.state for target in engine.targets] == ["up", "down"]
        assert [target.running for target in engine.targets] == [0, 1]


async def test_client_that_leaves_closes_an_answer_that_is_held_back() -> None:
    async with servers(hang_after_half, hang_after_half) as (engine, (first, second)):
        meter = Meter()
        task = asyncio.create_task(events_of(engine, request(is_whole=True), meter))
        await until(lambda: meter.completion_tokens == 5)
        await cancel([task])
        assert [target.running for target in engine.targets] == [0, 0]
        await until(lambda: first.open == second.open == 0)


async def test_server_that_is_up_again_is_not_put_out_for_its_old_failure() -> None:
    """The first one fails, the second one breaks in the middle, the third one answers."""
    calls = itertools.count()
    recovered: list[Target] = []

    async def in_turn(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match next(calls):
            case 0:
                writer.write(status("500 X"))
            case 1:
                writer.write(HALF)
                await writer.drain()
                await until(lambda: any(target.health.is_out for target in engine.targets))
                recovered.extend(target for target in engine.targets if target.health.answered())
            case _:
                writer.write(GOOD)

    async with servers(in_turn, in_turn, in_turn) as (engine, _):
        assert text_of(await events_of(engine, request(is_whole=True))) == "good"
        assert [target.health.state for target in recovered] == ["up"]
