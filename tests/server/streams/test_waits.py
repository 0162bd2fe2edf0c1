"""Waits that a time limit or a disconnect ends."""

from __future__ import annotations

import asyncio

import pytest

from gateway.server.streams.waits import ClientDisconnected, Connected, Patience
from tests.support.virtual_time import in_virtual_time, now


async def never() -> dict[str, str]:
    return await asyncio.get_running_loop().create_future()


async def gone_after_a_second() -> dict[str, str]:
    await asyncio.sleep(1)
    return {"type": "http.disconnect"}


async def ends(patience: Patience, limit_s: float | None, wait_s: float) -> bool:
    """True if the limit has ended the wait."""
    patience.begin(limit_s)
    try:
        await asyncio.sleep(wait_s)
    except asyncio.CancelledError:
        if not patience.is_over():
            raise
        return True
    return False


@in_virtual_time
async def test_each_wait_has_its_own_limit() -> None:
    patience = Patience()
    assert [await ends(patience, 5, 4) for _ in range(3)] == [False] * 3 and now() == 12
    assert await ends(patience, 5, 9) and now() == 17
    assert await ends(patience, 60, 90) and now() == 77
    assert await ends(patience, 5, 9) and now() == 82
    assert not await ends(patience, None, 1000)
    patience.stop()


@in_virtual_time
async def test_many_waits_set_few_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), list[float]()
    call_at = loop.call_at
    monkeypatch.setattr(loop, "call_at", lambda when, *call: timers.append(when) or call_at(when, *call))
    patience = Patience()
    for _ in range(1000):
        patience.begin(15)
        patience.begin(60)
    assert len(timers) == 1
    patience.stop()


@in_virtual_time
async def test_a_cancelled_task_stays_cancelled() -> None:
    async def waits() -> None:
        await ends(Patience(), 5, 60)

    task = asyncio.ensure_future(waits())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@in_virtual_time
async def test_disconnect_ends_the_work_also_at_the_time_of_a_limit() -> None:
    cleaned = False
    with pytest.raises(ClientDisconnected):
        async with Connected(gone_after_a_second):
            try:
                await ends(Patience(), 1, 60)
                await asyncio.sleep(60)
            finally:
                cleaned = True
    assert cleaned and now() == 1
    current = asyncio.current_task()
    assert current is not None and not current.cancelling()


@in_virtual_time
async def test_work_that_ends_leaves_nothing_behind() -> None:
    async with Connected(never):
        await asyncio.sleep(1)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
