"""Clients take turns at a lock."""

from __future__ import annotations

import asyncio

from gateway.engines.local.turns import Turns


async def served(turns: Turns, order: list[str], name: str) -> None:
    async with turns.turn(name[0]):
        order.append(name)
        await asyncio.sleep(0)


async def test_clients_take_turns_and_requests_of_a_client_keep_their_order() -> None:
    turns, order = Turns(), list[str]()
    names = ["a1", "a2", "a3", "b1", "b2", "c1"]
    await asyncio.gather(*(served(turns, order, name) for name in names))
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2"]
    await served(turns, order, "d1")
    assert order[-1] == "d1"


async def test_cancelled_request_is_skipped() -> None:
    turns, order = Turns(), list[str]()
    tasks = [asyncio.create_task(served(turns, order, name)) for name in ("a1", "b1", "c1")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["a1", "c1"]


async def test_request_that_is_cancelled_when_its_turn_comes_passes_it_on() -> None:
    turns, order = Turns(), list[str]()
    async with turns.turn("a"):
        tasks = [asyncio.create_task(served(turns, order, name)) for name in ("b1", "c1")]
        await asyncio.sleep(0)
    tasks[0].cancel()  # its turn has come, but it has not run yet
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["c1"]
    await served(turns, order, "d1")
    assert order == ["c1", "d1"]
