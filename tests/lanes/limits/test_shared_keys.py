"""The keys of the database as one gateway knows them. The clock is a number."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from gateway.config.tables import KeyLimits
from gateway.errors import Unavailable
from gateway.lanes.limits.shared_keys import SharedKeys
from gateway.state.access import Access
from gateway.state.keys import add_key, revoke_key
from gateway.state.sqlite import SqliteDatabase
from tests.support.lost_file import put_back, take_away
from tests.support.manual_clock import ManualClock
from tests.support.postgres import patient


class Gateway:
    def __init__(self, file: Path) -> None:
        self.clock = ManualClock()
        self.database = SqliteDatabase(file, busy_s=0.05)
        self.access = Access(self.database, "", clock=self.clock)
        self.limits: list[Mapping[str, KeyLimits]] = []
        self.keys = SharedKeys(self.access, self.limits.append, self.clock)
        self.file = file

    def add(self, name: str, **limits: object) -> bytes:
        key = add_key(self.database, name, limits)
        assert key is not None
        return key.encode()

    async def name(self, key: bytes) -> str | None:
        await self.keys.fresh(key)
        return self.keys.name_of(key)

    def fail(self) -> None:
        take_away(self.file)

    def work(self) -> None:
        put_back(self.file)


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    with patient():
        yield


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    made = Gateway(tmp_path / "state.sqlite")
    yield made
    await made.access.aclose()


async def test_keys_are_read_by_a_request_that_finds_them_old(gateway: Gateway) -> None:
    anna = gateway.add("anna", requests_per_minute=5)
    assert await gateway.name(anna) == "anna" and await gateway.name(b"other") is None
    assert gateway.limits == [{"anna": KeyLimits(requests_per_minute=5)}]
    revoke_key(gateway.database, "anna")
    gateway.clock.now += 1.9
    assert await gateway.name(anna) == "anna"
    gateway.clock.now += 0.2
    assert await gateway.name(anna) is None and gateway.limits[1:] == [{}]


async def test_new_key_counts_after_half_a_second(gateway: Gateway) -> None:
    assert await gateway.name(b"other") is None
    anna = gateway.add("anna")
    assert await gateway.name(anna) is None
    gateway.clock.now += 0.6
    assert await gateway.name(anna) == "anna"


async def test_wrong_keys_read_the_database_twice_a_second_at_most(gateway: Gateway) -> None:
    gateway.add("anna")
    reads = 0
    read = gateway.database.read

    def counted(*arguments: object) -> object:
        nonlocal reads
        reads += 1
        return read(*arguments)  # type: ignore[arg-type]

    gateway.database.read = counted  # type: ignore[assignment, method-assign]
    for _ in range(100):
        await gateway.name(b"wrong")
        gateway.clock.now += 0.01
    assert reads <= 3


async def test_database_that_was_never_read_lets_no_key_through(gateway: Gateway) -> None:
    anna = gateway.add("anna")
    gateway.fail()
    for _ in range(3):
        with pytest.raises(Unavailable, match="cannot be read now"):
            await gateway.name(anna)
    gateway.work()
    gateway.clock.now += 40
    assert await gateway.name(anna) == "anna"


async def test_keys_that_were_read_count_while_the_database_fails(gateway: Gateway) -> None:
    anna = gateway.add("anna")
    assert await gateway.name(anna) == "anna"
    gateway.fail()
    gateway.clock.now += 1000
    assert await gateway.name(anna) == "anna" and await gateway.name(b"other") is None
    gateway.work()
    revoke_key(gateway.database, "anna")
    gateway.clock.now += 40
    assert await gateway.name(anna) is None


async def test_limits_of_a_newer_version_let_no_model_through(gateway: Gateway) -> None:
    anna = gateway.add("anna", images_per_minute=5)
    assert await gateway.name(anna) == "anna"
    assert gateway.limits == [{"anna": KeyLimits(models=())}]


@pytest.mark.parametrize("limits", ["'{'", "'[]'", "NULL", "x'ff'", "3"])
async def test_key_with_damaged_limits_uses_no_model_and_the_others_count(gateway: Gateway, limits: str) -> None:
    anna, ben, carl = (gateway.add(name) for name in ("anna", "ben", "carl"))
    with closing(sqlite3.connect(gateway.file)) as connection, connection:
        connection.execute(f"UPDATE npu_keys SET limits = {limits}, created = 'x' WHERE name = 'anna'")
        connection.execute("INSERT INTO npu_keys VALUES (NULL, NULL, NULL, NULL, NULL)")
    revoke_key(gateway.database, "carl")
    assert [await gateway.name(key) for key in (anna, ben, carl)] == ["anna", "ben", None]
    assert gateway.limits == [{"anna": KeyLimits(models=()), "ben": KeyLimits()}]
