"""JobRunner: failures of the engine, and many mixed requests. In virtual time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from contextlib import aclosing

import pytest

from gateway.config.tables import BreakerConfig
from gateway.engines.base import Emit, Prepared
from gateway.errors import (
    GatewayError,
)
from gateway.generation import Finished, Meter, Started, Usage
from gateway.lanes.lane import Lane
from tests.support.lanes import Engine, answer, assert_idle, config, request, running
from tests.support.virtual_time import in_virtual_time


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        ("EngineFailed", (1, 1)),  # the script raises it in a device call
        ("UpstreamFailed", (1, 1)),
        ("UpstreamRefused", (0, 0)),
        ("GatewayError", (0, 0)),
        ("DeadlineExceeded", (0, 0)),
        ("InvalidRequest", (0, 0)),
        ("ContextLengthExceeded", (0, 0)),
        ("QueueFull", (0, 0)),
        ("ModelNotReady", (0, 0)),
    ],
)
@in_virtual_time
async def test_engine_error_is_judged_by_its_cause(error: str, verdict: tuple[int, int]) -> None:
    async with running(
        config(faults=[{"error": error, "message": "from the script"}]), BreakerConfig(latency_ms=1000.0)
    ) as lane:
        with pytest.raises(GatewayError, match="from the script"):
            await answer(lane)
        assert lane.breaker.verdict == verdict


@in_virtual_time
async def test_unexpected_engine_exception_is_a_bug_without_blame(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Engine):
        async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
            emit(Started(prompt_tokens=1))
            raise TimeoutError("an exception of the engine") if prepared.generation.n == 2 else KeyError("oops")

    async with running(config(), BreakerConfig(latency_ms=1000.0), Raising(config())) as lane:
        for n in (1, 2):
            with pytest.raises(GatewayError, match="the gateway's log has the reason") as raised:
                await answer(lane, request(n=n))
            assert type(raised.value) is GatewayError
        assert lane.breaker.verdict == (0, 0)
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "test: the engine raised KeyError",
        "test: the engine raised TimeoutError",
    ]


@in_virtual_time
async def test_engine_that_ends_no_choice_has_failed() -> None:
    class EndsNoChoice(Engine):
        async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
            emit(Started(prompt_tokens=1))
            return Usage()

    async with running(config(), engine=EndsNoChoice(config())) as lane:
        with pytest.raises(GatewayError, match="stopped before it finished"):
            await answer(lane)
        assert lane.breaker.verdict == (0, 0)


async def _client(lane: Lane, dice: random.Random, i: int) -> str:
    """One client with random patience. Returns how its request ended."""
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
                    return "cancelled"
                if dice.random() < 0.02:
                    await asyncio.sleep(5)
    except GatewayError as error:
        return error.code or error.type
    raise AssertionError("the events ended without an end")


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
        tasks = [asyncio.create_task(_client(lane, dice, i)) for i in range(1000)]
        for task in dice.sample(tasks, 200):
            asyncio.get_running_loop().call_later(dice.random() * 25, task.cancel)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        endings = Counter(o if isinstance(o, str) else type(o).__name__ for o in outcomes)
        assert endings.total() == 1000
        assert {"finished", "cancelled", "CancelledError", "engine_failed", "deadline_exceeded"} <= set(endings), (
            endings
        )
        assert "AssertionError" not in endings
        assert_idle(lane)
        await asyncio.sleep(60)  # the probes close the breaker again
        assert lane.breaker.state == "closed"
        assert len(lane._tasks) == 1  # the loader
        assert asyncio.all_tasks() == {asyncio.current_task(), *lane._tasks}
