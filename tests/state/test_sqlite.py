"""The state in a file: power loss, and a file that is damaged, locked, full, read-only, newer or of another program."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from gateway.monitoring.usage.store import UsageStore
from gateway.state.database import StateError
from gateway.state.sqlite import SqliteDatabase
from tests.support.small_disk import small_disk
from tests.support.usage_store import DAY, NOW, fill, one, path_of, store, total


def test_gateways_that_begin_a_file_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(_: int) -> None:
        kept = UsageStore(SqliteDatabase(tmp_path / "state.sqlite", busy_s=60), 30)
        for _ in range(8):
            kept.add(one())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert total(store(tmp_path)) == 32


def test_written_numbers_survive_a_power_loss(tmp_path: Path) -> None:
    """What is on the disk when `add` returns is copied, while the write-ahead log is not yet part of the file."""
    kept = store(tmp_path)
    kept.add(one())
    with closing(sqlite3.connect(path_of(kept))) as reader:  # while a reader is there, the log stays
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM npu_usage").fetchall()
        kept.add(one())
        copies = tmp_path / "copies"
        copies.mkdir()
        assert (tmp_path / "state.sqlite-wal").stat().st_size > 0
        for name in ("state.sqlite", "state.sqlite-wal"):
            shutil.copyfile(tmp_path / name, copies / name)
    assert total(store(copies)) == 2


def test_torn_write_ahead_log_loses_only_the_last_write(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    with closing(sqlite3.connect(path_of(kept))) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM npu_usage").fetchall()
        kept.add(one())
        copies = tmp_path / "copies"
        copies.mkdir()
        shutil.copyfile(path_of(kept), copies / path_of(kept).name)
        log = (tmp_path / "state.sqlite-wal").read_bytes()
        (copies / "state.sqlite-wal").write_bytes(log[: len(log) - 100])
    assert total(store(copies)) == 1


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is no database. " * 500)


def _damaged_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x7f" * (len(content) - 4096)
    path.write_bytes(content)


def _of_another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")


def _without_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE npu_usage")


@pytest.mark.parametrize("damage", [_garbage, _damaged_page, _of_another_program, _without_table])
def test_damaged_file_is_put_aside_and_a_new_one_begins(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    kept = store(tmp_path)
    fill(kept, 2, per_day=100)
    assert callable(damage)
    damage(path_of(kept))
    before = path_of(kept).read_bytes()
    with caplog.at_level(logging.WARNING):
        kept.add(one())
    [line] = caplog.messages
    assert "damaged" in line and "state.damaged.sqlite" in line
    assert total(kept) == 1
    assert (tmp_path / "state.damaged.sqlite").read_bytes()[:100] == before[:100]


def test_reader_of_a_damaged_file_changes_nothing(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    _garbage(path_of(kept))
    before = path_of(kept).read_bytes()
    with pytest.raises(StateError, match="is damaged"):
        kept.rows(0)
    assert path_of(kept).read_bytes() == before


def test_locked_file_is_an_error_and_adds_nothing(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    with closing(sqlite3.connect(path_of(kept), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StateError, match="locked"):
            kept.add(one())
        other.execute("ROLLBACK")
    kept.add(one())
    assert total(kept) == 2


def test_file_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    with closing(sqlite3.connect(path_of(kept))) as connection:
        connection.execute("PRAGMA user_version = 2")
    before = path_of(kept).read_bytes()
    with pytest.raises(StateError, match="newer npu-gateway"):
        kept.add(one())
    assert path_of(kept).read_bytes() == before


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError):
        store(tmp_path / "file").add(one())
    (tmp_path / "state.sqlite").mkdir()
    with pytest.raises(StateError):
        store(tmp_path).add(one())


def test_full_and_read_only_disk_are_errors_and_lose_nothing_old(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 * 1024 * 1024) as disk:
        kept = store(disk.folder)
        kept.add(one())
        with suppress(OSError), (disk.folder / "ballast").open("wb", 0) as ballast:
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(StateError):
            kept.add(one())
        (disk.folder / "ballast").unlink()
        kept.add(one())
        before = total(kept)
        assert before == 2
        disk.make_read_only()
        with pytest.raises(StateError):
            kept.add(one())
        assert total(kept) == before


def test_removed_file_begins_again(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    path_of(kept).unlink()
    kept.add(one())
    assert total(kept) == 1


@pytest.mark.parametrize("name", ["state.sqlite-wal", "state.sqlite-shm"])
def test_garbage_next_to_the_file_costs_nothing(tmp_path: Path, name: str) -> None:
    kept = store(tmp_path)
    kept.add(one())
    (tmp_path / name).write_bytes(b"garbage " * 9000)
    kept.add(one())
    assert total(kept) == 2


@pytest.mark.skipif("sys.platform == 'win32'", reason="Windows has no named pipe in a folder")
def test_pipe_with_the_name_of_the_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state.sqlite")
    with pytest.raises(StateError):
        store(tmp_path).add(one())


def _old_file(folder: Path) -> Path:
    """The usage history as an older version wrote it."""
    file = folder / "usage.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA user_version = 1;"
            "CREATE TABLE usage (hour INTEGER, model TEXT, key TEXT, name TEXT, number INTEGER,"
            " PRIMARY KEY (hour, model, key, name)) WITHOUT ROWID;"
            "CREATE TABLE days (day INTEGER PRIMARY KEY, written INTEGER);"
            f"INSERT INTO usage VALUES ({NOW}, 'm', 'k', 'requests', 5); INSERT INTO days VALUES ({NOW // DAY}, 1)"
        )
    return file


def test_usage_file_of_an_older_version_is_taken_over_once(tmp_path: Path) -> None:
    old = _old_file(tmp_path)
    first, second = store(tmp_path), store(tmp_path)
    first.add(one())
    second.add(one())
    assert total(first) == 7 and not old.exists()
    _old_file(tmp_path)  # an older gateway still runs
    store(tmp_path).add(one())
    assert total(first) == 8 and old.exists()


def test_usage_file_that_cannot_be_read_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _garbage(_old_file(tmp_path))
    kept = store(tmp_path)
    with caplog.at_level(logging.WARNING):
        kept.add(one())
    assert total(kept) == 1 and (tmp_path / "usage.sqlite").exists()
    assert "cannot be read" in caplog.text


def test_two_gateways_that_start_at_once_take_the_usage_file_over_once(tmp_path: Path) -> None:
    _old_file(tmp_path)

    def write(_: int) -> None:
        UsageStore(SqliteDatabase(tmp_path / "state.sqlite", busy_s=60), 30).add(one())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert total(store(tmp_path)) == 9
