"""When the wait for a server's first content is given up, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from gateway.engines.upstream.targets.silence import PATIENCE_S, Silence
from tests.support.virtual_time import in_virtual_time, now

PROBE_S = 3.0


class Server:
    """Answers probes or not, after PROBE_S."""

    def __init__(self, *, hangs: bool) -> None:
        self.hangs = hangs
        self.probes: list[float] = []
        self.silence = Silence(self.is_silent)

    async def is_silent(self) -> bool:
        self.probes.append(now())
        await asyncio.sleep(PROBE_S)
        return self.hangs

    async def wait(self, seconds: float) -> float:
        """A request whose content comes after `seconds`. Returns when it ended."""
        async with self.silence.limited():
            await asyncio.sleep(seconds)
        return now()


@in_virtual_time
async def test_hang_ends_the_wait_after_one_probe() -> None:
    server = Server(hangs=True)
    with pytest.raises(TimeoutError):
        await server.wait(1000)
    assert (now(), server.probes) == (PATIENCE_S + PROBE_S, [PATIENCE_S])
    await server.silence.aclose()


@in_virtual_time
async def test_all_requests_that_wait_end_together() -> None:
    server = Server(hangs=True)
    first = asyncio.create_task(server.wait(1000))
    await asyncio.sleep(1)
    second = asyncio.create_task(server.wait(1000))
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError, TimeoutError]
    assert (now(), server.probes) == (PATIENCE_S + PROBE_S, [PATIENCE_S])
    await server.silence.aclose()


@in_virtual_time
async def test_long_prompt_is_not_a_hang() -> None:
    server = Server(hangs=False)
    assert await server.wait(60) == 60
    assert server.probes == [5, 13, 21, 29, 37, 45, 53]
    await server.silence.aclose()


@in_virtual_time
async def test_server_that_sends_to_others_is_not_probed() -> None:
    server = Server(hangs=True)
    waiting = asyncio.create_task(server.wait(30))
    for _ in range(30):
        server.silence.heard()
        await asyncio.sleep(1)
    assert await waiting == 30 and server.probes == []
    await server.silence.aclose()


@in_virtual_time
async def test_byte_during_the_probe_counts_as_an_answer() -> None:
    server = Server(hangs=True)
    waiting = asyncio.create_task(server.wait(10))
    await asyncio.sleep(PATIENCE_S + 1)
    server.silence.heard()
    assert await waiting == 10 and server.probes == [PATIENCE_S]
    await server.silence.aclose()


@in_virtual_time
async def test_nothing_runs_when_no_request_waits() -> None:
    server = Server(hangs=True)
    assert await server.wait(1) == 1
    await asyncio.sleep(2 * PATIENCE_S)
    assert asyncio.all_tasks() == {asyncio.current_task()} and server.probes == []
    await server.silence.aclose()
