"""The history collects without a file, writes from a thread, and survives a file that cannot be written."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from gateway.monitoring.usage import history as history_module
from gateway.monitoring.usage.counts import Cell, Counts
from gateway.monitoring.usage.history import UsageHistory
from gateway.monitoring.usage.store import UsageStore
from gateway.state.database import StateError
from gateway.state.sqlite import SqliteDatabase
from tests.monitoring.usage.test_counts import record

AT = 500_000 * 3600.0


def path_of(kept: UsageHistory) -> Path:
    return Path(kept.store.database.label)


def history(folder: Path) -> UsageHistory:
    return UsageHistory(UsageStore(SqliteDatabase(folder / "state.sqlite", busy_s=0.05), 30))


def requests(kept: UsageHistory) -> int:
    return sum(counts["requests"] for counts in kept.rows(0).values())


def test_thread_writes_what_waits_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FLUSH_S", "_LAST_FLUSH_S"):
        monkeypatch.setattr(history_module, name, 600.0)
    kept = history(tmp_path)
    with kept.writing():
        for _ in range(3):
            kept.add(record(at=AT))
        assert not path_of(kept).exists()
    assert sum(counts["requests"] for counts in kept.store.rows(0).values()) == 3


def test_request_that_ends_during_the_last_write_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = history(tmp_path)
    write, writes = kept.store.add, 0

    def add_slowly(cells: dict[Cell, Counts]) -> None:
        nonlocal writes
        writes += 1
        write(cells)
        if writes == 1:
            kept.add(record(at=AT))

    monkeypatch.setattr(kept.store, "add", add_slowly)
    with kept.writing():
        kept.add(record(at=AT))
    assert sum(counts["requests"] for counts in kept.store.rows(0).values()) == 2


def test_reader_sees_what_is_not_written_yet(tmp_path: Path) -> None:
    kept = history(tmp_path)
    kept.add(record(at=AT))
    assert requests(kept) == 1
    kept.add(record(at=AT))
    assert requests(kept) == 2


def test_nothing_is_written_without_a_request(tmp_path: Path) -> None:
    with history(tmp_path).writing():
        pass
    assert list(tmp_path.iterdir()) == []


def test_file_that_cannot_be_written_is_one_warning_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = history(tmp_path)
    path_of(kept).mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            kept.add(record(at=AT))
            kept.flush()
        path_of(kept).rmdir()
        kept.add(record(at=AT, key="other"))
        kept.flush()
    [line] = caplog.messages
    assert line.startswith("the usage history is not written at present:") and line.endswith(
        "Answers are not affected."
    )
    assert requests(kept) == 4


def test_reader_gets_an_error_if_the_file_cannot_be_read(tmp_path: Path) -> None:
    kept = history(tmp_path)
    path_of(kept).mkdir()
    with pytest.raises(StateError):
        kept.rows(0)


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "_MOST_CELLS", 5)
    kept = history(tmp_path)
    path_of(kept).mkdir()
    for hour in range(20):
        kept.add(record(at=AT + 3600 * hour))
        kept.flush()
    path_of(kept).rmdir()
    assert sorted(cell.hour for cell in kept.rows(0)) == [500_015, 500_016, 500_017, 500_018, 500_019]
