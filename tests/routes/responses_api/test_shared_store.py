"""Responses in the database: limits, expiry, items of several responses, a damaged row."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from gateway.errors import NotFound
from gateway.routes.responses_api import shared_store
from gateway.routes.responses_api.shared_store import SharedStore
from gateway.state.sqlite import SqliteDatabase
from tests.routes.responses_api.test_store import item, response_with_id
from tests.support.manual_clock import ManualClock

DAY_S = 86_400.0


class Kept:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.clock.now = 1e9
        self.file = folder / "state.sqlite"
        self.database = SqliteDatabase(self.file, busy_s=0.05)
        self.store = SharedStore(30, self.clock)

    def put(self, id: str, *items: str, owner: str = "me", text: str = "x") -> None:
        self.clock.now += 1
        self.store.put(
            self.database, owner, response_with_id(id, text), tuple(item(f"of {id}", each) for each in items)
        )

    def has(self, *ids: str, owner: str = "me") -> list[bool]:
        return [self._has(id, owner) for id in ids]

    def item(self, id: str) -> object:
        found = self.store.view(self.database, "me", None, [id]).item("me", id)
        return found and found.item.content

    def count(self, table: str) -> int:
        [[number]] = self.database.read(f"SELECT count(*) FROM {table}")
        return int(number)

    def _has(self, id: str, owner: str) -> bool:
        try:
            return bool(self.store.view(self.database, owner, id, ()).get(owner, id))
        except NotFound:
            return False


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_response_comes_back_as_it_was(kept: Kept) -> None:
    kept.put("resp_a", "item_1", text="é\0🎉")
    stored = kept.store.view(kept.database, "me", "resp_a", ()).get("me", "resp_a")
    expected = response_with_id("resp_a", "é\0🎉")
    expected.created_at = stored.response.created_at
    assert msgspec.json.encode(stored.response) == msgspec.json.encode(expected)
    assert stored.items[0].item.content == "of resp_a" and len(stored.items) == 2
    kept.put("resp_a", text="again")
    assert kept.count("npu_responses") == 1 and kept.item("item_1") is None


def test_items_are_measured_by_the_thread_that_stores_them(kept: Kept) -> None:
    conversation = (item("item_1", "x"), item("item_2", "y"))
    kept.store.put(kept.database, "me", response_with_id("resp_a", "z"), conversation)
    assert all(each.size_bytes for each in conversation)


def test_number_and_bytes_of_a_key_are_limited(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_store, "MAX_RESPONSES", 2)
    for id in ("resp_a", "resp_b", "resp_c"):
        kept.put(id, f"item_{id}")
    kept.put("resp_d", owner="you")
    assert kept.has("resp_a", "resp_b", "resp_c") == [False, True, True] and kept.has("resp_d", owner="you") == [True]
    assert kept.item("item_resp_a") is None and kept.item("item_resp_b") == "of resp_b"
    monkeypatch.setattr(shared_store, "MAX_BYTES", 18_000)
    monkeypatch.setattr(shared_store, "_OLDEST", 1)
    kept.put("resp_e", text="x" * 8400)
    assert kept.has("resp_b", "resp_c", "resp_e") == [False, False, True]
    monkeypatch.setattr(shared_store, "MAX_RESPONSE_BYTES", 1000)
    kept.put("resp_f", text="x" * 1000)
    assert kept.has("resp_e", "resp_f") == [True, False]


def test_responses_expire_and_are_deleted(kept: Kept) -> None:
    kept.put("resp_a", "item_1")
    kept.clock.now += 29 * DAY_S
    assert kept.has("resp_a") == [True]
    kept.clock.now += DAY_S
    assert kept.has("resp_a") == [False] and kept.item("item_1") is None
    assert not kept.store.delete(kept.database, "me", "resp_a")
    kept.put("resp_b", owner="you")
    assert kept.count("npu_responses") == 1 and kept.count("npu_items") == 1


def test_item_of_several_responses_is_found_until_the_last_is_deleted(kept: Kept) -> None:
    for id in ("resp_a", "resp_b", "resp_c"):
        kept.put(id, "item_1")
    assert kept.item("item_1") == "of resp_c"
    assert kept.store.delete(kept.database, "me", "resp_c")
    assert kept.item("item_1") == "of resp_b"
    for id in ("resp_a", "resp_b"):
        kept.store.delete(kept.database, "me", id)
    assert kept.item("item_1") is None and kept.count("npu_items") == 0


@pytest.mark.parametrize("body", ["x'00'", "'text'", "NULL", "1.5"])
def test_damaged_row_counts_as_deleted(kept: Kept, body: str, caplog: pytest.LogCaptureFixture) -> None:
    kept.put("resp_a")
    kept.put("resp_b")
    with closing(sqlite3.connect(kept.file)) as connection, connection:
        connection.execute(
            f"UPDATE npu_responses SET body = {body} WHERE stored = (SELECT min(stored) FROM npu_responses)"
        )
    assert kept.has("resp_a", "resp_b") == [False, True] and "cannot be read" in caplog.text


def test_row_that_becomes_too_large_counts_as_deleted(
    kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its JSON is right: spaces follow."""
    monkeypatch.setattr(shared_store, "_MAX_READ_BYTES", 100_000)
    kept.put("resp_a")
    kept.put("resp_b")
    with closing(sqlite3.connect(kept.file)) as connection, connection:
        first = "stored = (SELECT min(stored) FROM npu_responses)"
        [[packed]] = connection.execute(f"SELECT body FROM npu_responses WHERE {first}")
        body = zlib.compress(zlib.decompress(packed).ljust(100_002))
        connection.execute(f"UPDATE npu_responses SET body = ? WHERE {first}", (body,))
    assert kept.has("resp_a", "resp_b") == [False, True] and "too large" in caplog.text


@pytest.mark.parametrize("size", ["'text'", "x'ff'", "NULL"])
def test_damaged_size_stops_no_response_from_being_stored(
    kept: Kept, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_store, "MAX_RESPONSES", 1)
    kept.put("resp_a", "item_1")
    with closing(sqlite3.connect(kept.file)) as connection, connection:
        connection.execute(f"UPDATE npu_responses SET size = {size}")
    assert kept.item("item_1") == "of resp_a"
    kept.put("resp_b")
    assert kept.has("resp_a", "resp_b") == [False, True]
