"""The breaker in a lane, and the prober that closes it. In virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import pytest

from gateway.activity import Activity
from gateway.config.tables import BreakerConfig
from gateway.engines.base import Emit, Prepared
from gateway.errors import (
    BreakerOpen,
    DeviceFailed,
)
from gateway.generation import Finished, Meter, Started, Usage
from gateway.lanes.lane import Lane
from tests.support.lanes import Engine, answer, answering, config, running
from tests.support.virtual_time import in_virtual_time, now


@in_virtual_time
async def test_hung_call_opens_breaker_before_it_ends() -> None:
    faults = [{"after": 2, "stall_s": 30.0}]
    breaker = BreakerConfig(latency_ms=1000.0, min_calls=1, probe_itself=False)
    async with running(config(faults=faults), breaker) as lane:
        hung = answering(lane)
        await asyncio.sleep(0.99)
        assert lane.breaker.state == "closed"
        await asyncio.sleep(0.02)
        assert lane.breaker.state == "open"
        with pytest.raises(BreakerOpen):
            await answer(lane)
        assert isinstance((await hung)[-1], Finished)


@in_virtual_time
async def test_queued_jobs_are_refused_when_breaker_opens() -> None:
    breaker = BreakerConfig(latency_ms=1000.0, min_calls=1, probe_itself=False)
    async with running(config(max_sequences=1, ttft_s=30.0), breaker) as lane:
        running_job = answering(lane)
        await asyncio.sleep(0.5)
        waiting = [answering(lane) for _ in range(5)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {BreakerOpen}
        assert 1.0 <= now() < 1.01
        await running_job


@in_virtual_time
async def test_open_breaker_uses_only_own_probes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ttft_s = [1.3] * 5 + [1.2] * 2 + [0.7] * 100  # five requests, two bad probes, then good probes
    engine = Engine(model := config(replies=["a"], ttft_s=ttft_s))
    async with running(model, BreakerConfig(latency_ms=1000.0), engine) as lane:
        for _ in range(5):
            await answer(lane)
        assert lane.breaker.state == "open"
        refused = 0
        while lane.breaker.state != "closed":
            with pytest.raises(BreakerOpen):
                await answer(lane)
            refused += 1
            await asyncio.sleep(1.0)
        assert refused == 34  # 3 * 10 s open, two bad probes and two good ones: 33.1 s
        assert engine.began[5:] == ["probe-test"] * 4
        await answer(lane)
    line = "test is slow (more than 1 s): requests are refused for 10 s (breaker open: "
    figures = "the last slow one did not end within 1 s of device time)"
    assert [record.message for record in caplog.records if "breaker" in record.message] == [
        f"{line}5 of its last 5 answers were slow or failed; {figures}",
        "test: breaker half-open: 2 good probes close it",
        f"{line}a probe was slow; {figures}",
        "test: breaker half-open: 2 good probes close it",
        f"{line}a probe was slow; {figures}",
        "test: breaker half-open: 2 good probes close it",
        "test: breaker closed",
    ]


@in_virtual_time
async def test_probes_close_breaker_after_restart() -> None:
    faults = [{"requests": [0], "stall_s": 1e9}]
    engine = Engine(model := config(faults=faults, watchdog_s=25.0, load_s=3.0))
    async with running(model, BreakerConfig(latency_ms=1000.0, min_calls=1), engine) as lane:
        with pytest.raises(DeviceFailed):
            await answer(lane)
        assert lane.breaker.state == "open"
        await asyncio.sleep(30)
        assert lane.status.is_ready
        assert lane.status.engine.restarts == 1
        await answer(lane)


@in_virtual_time
async def test_engine_exception_in_probe_does_not_stop_prober() -> None:
    class Raising(Engine):
        async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
            if 0 < len(self.began) < 3:
                self.began.append(prepared.generation.id)
                raise KeyError("oops")
            return await super().run(prepared, meter, emit)

    model = config(faults=[{"requests": [0], "error": "EngineFailed"}])
    async with running(model, BreakerConfig(latency_ms=1000.0, min_calls=1), Raising(model)) as lane:
        with pytest.raises(DeviceFailed):
            await answer(lane)
        await asyncio.sleep(11.5)  # open for 10 s, two probes that say nothing about the device, each with a pause
        assert lane.breaker.state == "half_open"
        await asyncio.sleep(1.5)
        assert lane.breaker.state == "closed"


@in_virtual_time
async def test_half_open_lane_sends_only_probes_to_engine() -> None:
    engine = Engine(model := config(max_sequences=8, faults=[{"requests": [0], "error": "EngineFailed"}], ttft_s=0.5))
    async with running(
        model, BreakerConfig(latency_ms=1000.0, min_calls=1, probes=3, probe_itself=False), engine
    ) as lane:
        with pytest.raises(DeviceFailed):
            await answer(lane)
        await asyncio.sleep(10)
        outcomes = await asyncio.gather(*(answer(lane) for _ in range(1000)), return_exceptions=True)
        assert Counter(type(outcome) for outcome in outcomes) == {list: 3, BreakerOpen: 997}
        assert len(engine.began) == 4
        assert lane.breaker.state == "closed"


@in_virtual_time
async def test_breaker_that_opens_during_close_starts_no_probes() -> None:
    class FailingWhenCancelled(Engine):
        async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
            emit(Started(prompt_tokens=1))
            try:
                await asyncio.sleep(100)
            finally:
                with Activity().device_call():
                    raise OSError("the pipe is gone")

    model = config()
    lane = Lane("test", model, FailingWhenCancelled(model), BreakerConfig(latency_ms=1e6, min_calls=1), clock=now)
    lane.start()
    await lane.tried()
    task = answering(lane)
    await asyncio.sleep(1)
    await lane.aclose()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], DeviceFailed)
    assert lane.breaker.state == "open"
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await lane.aclose()  # may be called again
