"""Work that ends when its client disconnects."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress

import pytest

from gateway.server.streams.waits import ClientDisconnected, Connected
from tests.support.virtual_time import in_virtual_time, now


async def never() -> dict[str, str]:
    return await asyncio.get_running_loop().create_future()


async def gone_after_a_second() -> dict[str, str]:
    await asyncio.sleep(1)
    return {"type": "http.disconnect"}


@in_virtual_time
async def test_disconnect_ends_the_work_also_at_the_time_of_a_limit() -> None:
    cleaned = False
    with pytest.raises(ClientDisconnected):
        async with Connected(gone_after_a_second):
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await asyncio.sleep(60)
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


async def ended_work() -> weakref.ref[Connected]:
    connected = Connected(never)
    async with connected:
        await asyncio.sleep(1)
    return weakref.ref(connected)


@in_virtual_time
async def test_request_is_freed_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        connected = await ended_work()
        await asyncio.sleep(0)
        assert connected() is None
    finally:
        gc.enable()
