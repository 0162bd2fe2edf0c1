"""One timer for many waits: each has its limit, and none is cut by the limit of an earlier one."""

from __future__ import annotations

import asyncio

import pytest

from gateway.server.streams.patience import OutOfPatience, Patience
from tests.support.virtual_time import VirtualLoop, in_virtual_time, now


async def after(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "there"


@in_virtual_time
async def test_each_wait_has_the_whole_limit() -> None:
    patience = Patience(10)
    for _ in range(3):
        assert await patience.wait(after(9)) == "there"
    with pytest.raises(OutOfPatience):
        await patience.wait(after(11))
    assert now() == 37
    assert await patience.wait(after(9)) == "there"
    patience.end()


@in_virtual_time
async def test_many_short_waits_have_few_timers() -> None:
    patience, loop = Patience(10), asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    for _ in range(100):
        await patience.wait(after(0.5))
    assert loop.wake_ups <= 100 + 50 / 10
    patience.end()
    await asyncio.sleep(100)
    assert loop.wake_ups <= 101 + 50 / 10


@in_virtual_time
async def test_errors_and_cancellations_of_others_pass() -> None:
    patience = Patience(10)

    async def late() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await patience.wait(late())
    waiting = asyncio.create_task(patience.wait(after(9)))
    await asyncio.sleep(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    patience.end()


@in_virtual_time
async def test_without_a_limit_nothing_ends_a_wait() -> None:
    assert await Patience(None).wait(after(1_000_000)) == "there"
