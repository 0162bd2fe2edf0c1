"""Stored responses of gateways whose database fails, and works again."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from gateway.errors import NotFound, Unavailable
from gateway.routes.responses_api.responses import Responses
from gateway.routes.responses_api.wire import InputItem, ResponsesRequest
from gateway.state.access import Access
from gateway.state.sqlite import SqliteDatabase
from tests.routes.responses_api.test_store import item, response_with_id
from tests.support.lost_file import put_back, take_away
from tests.support.manual_clock import ManualClock
from tests.support.postgres import patient


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    with patient():
        yield


class Two:
    """Two gateways on one file, and the clock of both."""

    def __init__(self, folder: Path, max_bytes: int = 2**30) -> None:
        self.file = folder / "state.sqlite"
        self.clock = ManualClock()
        self.accesses = [
            Access(SqliteDatabase(self.file, busy_s=60, max_bytes=max_bytes), "", clock=self.clock) for _ in "ab"
        ]
        self.a, self.b = map(Responses, self.accesses)

    def fail(self) -> None:
        take_away(self.file)

    def work(self) -> None:
        put_back(self.file)
        self.clock.now += 60

    async def aclose(self) -> None:
        for access in self.accesses:
            await access.aclose()


async def test_responses_of_a_gateway_continue_from_its_memory_while_the_database_fails(tmp_path: Path) -> None:
    two = Two(tmp_path)
    for id, gateway in (("resp_a", two.a), ("resp_b", two.b)):
        await gateway.put("me", response_with_id(id), (item("x", f"item_{id}"),))
    two.fail()
    await two.a.put("me", response_with_id("resp_late"), (item("late", "item_late"),))
    for id in ("resp_a", "resp_late"):
        assert (await two.a.get("me", id)).id == id
    with pytest.raises(Unavailable) as info:
        await two.a.get("me", "resp_b")
    assert info.value.retry_after_s == 5
    view = await two.a.view("me", ResponsesRequest(input=[InputItem(type="item_reference", id="item_resp_b")]))
    assert view.item("me", "item_late") is not None
    with pytest.raises(Unavailable):
        view.item("me", "item_resp_b")
    with pytest.raises(Unavailable):
        await two.a.delete("me", "resp_a")
    two.work()
    assert (await two.a.get("me", "resp_b")).id == "resp_b" and (await two.a.get("me", "resp_late")).id == "resp_late"
    with pytest.raises(NotFound):
        await two.b.get("me", "resp_late")
    for id in ("resp_a", "resp_late"):
        await two.a.delete("me", id)
    for id in ("resp_a", "resp_late"):
        with pytest.raises(NotFound):
            await two.a.get("me", id)
    await two.aclose()


async def test_deleted_response_is_not_read_from_the_memory_of_its_gateway(tmp_path: Path) -> None:
    two = Two(tmp_path)
    await two.a.put("me", response_with_id("resp_a"), ())
    await two.b.delete("me", "resp_a")
    with pytest.raises(NotFound):
        await two.a.get("me", "resp_a")
    await two.aclose()


async def test_full_database_loses_no_response_of_its_gateway(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two = Two(tmp_path, max_bytes=48 * 4096)
    for number in range(9):
        text = "".join(sha256(b"%d %d" % (number, part)).hexdigest() for part in range(1000))
        await two.a.put("me", response_with_id(f"resp_{number}", text), ())
        two.clock.now += 60
    for number in range(9):
        assert (await two.a.get("me", f"resp_{number}")).id == f"resp_{number}"
    assert [line.partition(":")[0] for line in caplog.messages] == ["the shared state cannot be written"]
    await two.aclose()
