"""Work on the database for the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.state import access as access_module
from gateway.state.access import Access
from gateway.state.database import Database, StateError
from gateway.state.sqlite import SqliteDatabase
from tests.support.manual_clock import ManualClock


class Broken:
    """Counts its calls, and fails while `is_down`."""

    def __init__(self) -> None:
        self.calls, self.is_down = 0, True

    def __call__(self, database: Database) -> int:
        self.calls += 1
        if self.is_down:
            raise StateError("it is down")
        return self.calls


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def access(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Access]:
    monkeypatch.setattr(access_module, "_LIMIT_S", 600.0)  # a busy machine is no fault of the database
    made = Access(SqliteDatabase(tmp_path / "x.sqlite"), "Answers go on.", clock=clock)
    yield made
    await made.aclose()


async def failures(access: Access, work: Broken, number: int) -> int:
    results = await asyncio.gather(*(access.read(work) for _ in range(number)), return_exceptions=True)
    return sum(isinstance(result, StateError) for result in results)


async def test_one_request_tries_a_database_that_fails(
    access: Access, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    work = Broken()
    with caplog.at_level(logging.INFO):
        assert await failures(access, work, 1) == 1
        for pause in (2, 4, 8, 16, 30, 30):
            clock.now += pause - 0.1
            assert await failures(access, work, 5) == 5
            calls = work.calls
            clock.now += 0.2
            assert await failures(access, work, 5) == 5 and work.calls == calls + 1
        work.is_down = False
        clock.now += 31
        assert await failures(access, work, 5) == 4
        assert await failures(access, work, 5) == 0
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_work_that_hangs_ends_after_the_limit(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "_LIMIT_S", 0.01)
    end = threading.Event()
    with pytest.raises(StateError, match="did not answer"):
        await access.read(lambda database: end.wait(60))
    end.set()


async def test_read_of_a_full_database_does_not_hide_that_it_is_full(
    access: Access, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    work = Broken()
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            with pytest.raises(StateError):
                await access.write(work)
            assert await access.read(lambda database: 7) == 7
            clock.now += 31
    assert [record.levelname for record in caplog.records] == ["WARNING"]
