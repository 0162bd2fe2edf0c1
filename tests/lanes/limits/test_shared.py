"""Counters of two gateways on one database."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.lanes.limits.counters import Levels, Quota, Refusal
from gateway.lanes.limits.shared import SharedCounters
from gateway.state.access import Access
from gateway.state.sqlite import SqliteDatabase
from tests.support.manual_clock import ManualClock
from tests.support.postgres import patient

QUOTA = Quota(requests=60, tokens=600, concurrent=3)


class Database(SqliteDatabase):
    """Its clock is constant, so nothing here depends on time."""

    now = "1000.0"


def access(file: Path) -> Access:
    return Access(Database(file, busy_s=60, stays_open=True), "")


def counters(file: Path) -> SharedCounters:
    return SharedCounters(access(file), ManualClock())


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    with patient():
        yield


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[SharedCounters, SharedCounters]]:
    first, second = (counters(tmp_path / "state.sqlite") for _ in range(2))
    yield first, second
    for each in (first, second):
        await each.aclose()
        await each._access.aclose()


Pair = tuple[SharedCounters, SharedCounters]


async def written(counted: SharedCounters) -> None:
    """Wait until what was given back is in the database."""
    for known in counted._keys.values():
        if known.writing is not None:
            await known.writing
        async with known.lock:  # a write that has begun
            pass


def running(file: Path, shift_s: float = 0) -> int:
    """The requests in progress in the database. `shift_s`: make them older first."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE npu_running SET at = at - ?", (shift_s,))
        [[number]] = connection.execute("SELECT coalesce(sum(running), 0) FROM npu_running").fetchall()
    return int(number)


async def test_limits_hold_for_both_together(pair: Pair) -> None:
    a, b = pair
    assert [await each.take("k", QUOTA, 100) for each in (a, b, a)] == [None] * 3
    assert await b.take("k", QUOTA, 100) == Refusal("concurrent", None)
    assert await b.take("other", QUOTA, 100) is None
    a.give_back("k", QUOTA, tokens=40)
    await written(a)
    assert await b.take("k", QUOTA, 100) is None
    assert b.levels("k", QUOTA).tokens == 360 and b.levels("k", QUOTA).running == 3
    refusal = await a.take("k", Quota(tokens=400), 300)
    assert refusal is not None and refusal.limit == "tokens"


async def test_many_at_once_take_no_more_than_the_limit(pair: Pair) -> None:
    quota = Quota(requests=10, concurrent=7)
    taken = await asyncio.gather(*(each.take("k", quota, 0) for _ in range(15) for each in pair))
    assert taken.count(None) == 7
    for each in pair:
        while each._keys["k"].running:
            each.give_back("k", quota, requests=1)
        await written(each)
    taken = await asyncio.gather(*(each.take("k", quota, 0) for _ in range(15) for each in pair))
    assert taken.count(None) == 7


async def test_cancelled_take_counts_nothing(pair: Pair) -> None:
    a, b = pair
    task = asyncio.ensure_future(a.take("k", QUOTA, 100))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.gather(*(each for each in asyncio.all_tasks() if each is not asyncio.current_task()))
    await written(a)
    assert a.levels("k", QUOTA).requests == 0
    assert [await b.take("k", QUOTA, 100) for _ in range(3)] == [None] * 3


async def test_requests_of_a_killed_gateway_expire(tmp_path: Path, pair: Pair) -> None:
    killed = counters(tmp_path / "state.sqlite")
    assert [await killed.take("k", QUOTA, 0) for _ in range(3)] == [None] * 3
    assert await pair[0].take("k", QUOTA, 0) == Refusal("concurrent", None)
    assert running(tmp_path / "state.sqlite", shift_s=61) == 3
    assert await pair[0].take("k", QUOTA, 0) is None
    assert running(tmp_path / "state.sqlite") == 1
    killed._beat.cancel()  # type: ignore[union-attr]
    await killed._access.aclose()


async def test_requests_from_the_future_expire(tmp_path: Path, pair: Pair) -> None:
    """The clock was wrong when a gateway wrote them, and the gateway was killed."""
    assert [await each.take("k", QUOTA, 0) for each in pair] == [None] * 2
    with closing(sqlite3.connect(tmp_path / "state.sqlite")) as connection, connection:
        connection.execute("INSERT INTO npu_running VALUES ('k', 'killed', 3, 1000 + 86400)")
    assert await pair[0].take("k", QUOTA, 0) is None
    assert await pair[1].take("k", QUOTA, 0) == Refusal("concurrent", None)  # the two that run still count


@pytest.mark.parametrize("value", ["'abc'", "x'ff'", "NULL", "9e999", "-9e999", "1e308"])
async def test_damaged_values_are_replaced(tmp_path: Path, pair: Pair, value: str) -> None:
    """SQLite takes any value in any column."""
    file, quota = tmp_path / "state.sqlite", Quota(requests=60, tokens=600, concurrent=1)
    assert await pair[0].take("k", quota, 100) is None
    pair[0].give_back("k", quota)
    await written(pair[0])
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"UPDATE npu_limits SET requests = {value}, tokens = {value}, at = {value}")
        connection.execute(f"INSERT INTO npu_running VALUES ('k', 'other', {value}, {value})")
    refusal = await pair[0].take("k", quota, 100)
    if refusal is None:
        assert pair[0].levels("k", quota) == Levels(requests=1, tokens=100, running=1)
    else:
        assert value == "1e308" and refusal.wait_s is not None and refusal.wait_s <= 86400


async def test_requests_of_a_stopped_gateway_are_not_in_progress(tmp_path: Path, pair: Pair) -> None:
    for each in pair:
        await each.take("k", QUOTA, 0)
    await pair[0].aclose()
    assert running(tmp_path / "state.sqlite") == 1


async def test_gateway_counts_alone_while_the_database_fails(tmp_path: Path, pair: Pair) -> None:
    a, b = pair
    file = tmp_path / "state.sqlite"
    assert await b.take("k", QUOTA, 0) is None
    assert await a.take("k", QUOTA, 100) is None
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")
    await a._access.aclose()  # its connections
    a._access = access(file)
    assert [await a.take("k", QUOTA, 100) for _ in range(3)] == [None, None, Refusal("concurrent", None)]
    a.give_back("k", QUOTA)
    await written(a)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 1")
    a._access = access(file)
    assert await a.take("k", QUOTA, 0) == Refusal("concurrent", None)
    b.give_back("k", QUOTA)
    await written(b)
    assert await b.take("k", QUOTA, 0) is None
    assert b.levels("k", QUOTA).running == 3 and b.levels("k", QUOTA).tokens == 300
