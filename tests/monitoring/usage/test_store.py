"""The usage history on the disk: sums, bounds, and a file that is damaged, locked, full or of another program."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from gateway.monitoring.usage.counts import Cell, Counts
from gateway.monitoring.usage.report import report_of
from gateway.monitoring.usage.store import UsageError, UsageStore
from tests.support.small_disk import small_disk

DAY = 24
NOW = 500_000


def one(hour: int = NOW, model: str = "m", key: str = "k", **numbers: int) -> dict[Cell, Counts]:
    return {Cell(hour, model, key): Counter(numbers or {"requests": 1})}


def store(folder: Path, days: int = 30, **options: float) -> UsageStore:
    return UsageStore(folder / "usage.sqlite", days, busy_s=0.05, **options)  # type: ignore[arg-type]


def fill(kept: UsageStore, days: int, *, per_day: int = 1) -> None:
    """Numbers of many days, in order."""
    for day in range(days):
        hour = NOW + day * DAY
        kept.add({Cell(hour, f"model-{index}", "k"): Counter(requests=1) for index in range(per_day)})


def total(kept: UsageStore) -> int:
    return sum(counts["requests"] for counts in kept.rows(0).values())


def test_two_gateways_add_to_the_same_numbers(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path)
    first.add(one(requests=1, prompt_tokens=5))
    second.add(one(requests=2, completion_tokens=7) | one(NOW - 1, "other", ""))
    expected = {"requests": 3, "prompt_tokens": 5, "completion_tokens": 7}
    assert (
        first.rows(0) == second.rows(0) == {Cell(NOW, "m", "k"): expected, Cell(NOW - 1, "other", ""): {"requests": 1}}
    )
    assert first.rows(NOW) == {Cell(NOW, "m", "k"): expected}


def test_gateways_that_begin_a_file_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(_: int) -> None:
        kept = UsageStore(tmp_path / "usage.sqlite", 30, busy_s=60)
        for _ in range(8):
            kept.add(one())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert total(store(tmp_path)) == 32


def test_no_file_is_no_usage(tmp_path: Path) -> None:
    assert store(tmp_path / "nowhere").rows(0) == {}
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["'; DROP TABLE usage; --", "ключ 東京 🎉", '"', "%s\\", "a" * 200, "-"])
def test_hostile_names_are_only_names(tmp_path: Path, name: str) -> None:
    kept = store(tmp_path)
    kept.add(one(model=name, key=name))
    assert list(kept.rows(0)) == [Cell(NOW, name, name)]


def test_written_numbers_survive_a_power_loss(tmp_path: Path) -> None:
    """What is on the disk when `add` returns is copied, while the write-ahead log is not yet part of the file."""
    kept = store(tmp_path)
    kept.add(one())
    with closing(sqlite3.connect(kept.path)) as reader:  # while a reader is there, the log stays
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM usage").fetchall()
        kept.add(one())
        copies = tmp_path / "copies"
        copies.mkdir()
        assert (tmp_path / "usage.sqlite-wal").stat().st_size > 0
        for name in ("usage.sqlite", "usage.sqlite-wal"):
            shutil.copyfile(tmp_path / name, copies / name)
    assert total(store(copies)) == 2


def test_torn_write_ahead_log_loses_only_the_last_write(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    with closing(sqlite3.connect(kept.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM usage").fetchall()
        kept.add(one())
        copies = tmp_path / "copies"
        copies.mkdir()
        shutil.copyfile(kept.path, copies / kept.path.name)
        log = (tmp_path / "usage.sqlite-wal").read_bytes()
        (copies / "usage.sqlite-wal").write_bytes(log[: len(log) - 100])
    assert total(store(copies)) == 1


def test_days_are_bounded_and_the_file_shrinks(tmp_path: Path) -> None:
    kept = store(tmp_path, days=3)
    fill(kept, 3, per_day=200)
    largest = kept.path.stat().st_size
    for day in range(3, 9):
        kept.add(one(NOW + day * DAY))
    assert sorted({cell.hour // DAY for cell in kept.rows(0)}) == [(NOW + day * DAY) // DAY for day in (6, 7, 8)]
    assert kept.path.stat().st_size < largest / 2


@pytest.mark.parametrize("jump", [-NOW, 700_000], ids=["to 1970", "to 2106"])
def test_clock_that_jumps_and_comes_back_costs_one_day(tmp_path: Path, jump: int) -> None:
    kept = store(tmp_path, days=5)
    fill(kept, 5)
    kept.add(one(NOW + jump))
    later = NOW + 5 * DAY
    kept.add(one(later))
    days = sorted({cell.hour // DAY for cell in kept.rows(0)})
    real = [NOW // DAY + day for day in range(6)]
    assert set(real[2:]) < set(days) and len(days) == 5
    fill(kept, 10)
    assert (NOW + jump) // DAY not in [cell.hour // DAY for cell in kept.rows(0)]


def test_largest_size_removes_the_older_days(tmp_path: Path) -> None:
    kept = store(tmp_path, days=1000, max_bytes=64 * 4096)
    fill(kept, 100, per_day=100)
    assert kept.path.stat().st_size <= 64 * 4096
    days = sorted({cell.hour // DAY for cell in kept.rows(0)})
    assert days[-1] == NOW // DAY + 99 and 10 < len(days) < 70 and days == list(range(days[0], days[-1] + 1))


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
        connection.execute("DROP TABLE usage")


@pytest.mark.parametrize("damage", [_garbage, _damaged_page, _of_another_program, _without_table])
def test_damaged_file_is_put_aside_and_a_new_one_begins(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    kept = store(tmp_path)
    fill(kept, 2, per_day=100)
    assert callable(damage)
    damage(kept.path)
    before = kept.path.read_bytes()
    with caplog.at_level(logging.WARNING):
        kept.add(one())
    [line] = caplog.messages
    assert "damaged" in line and "usage.damaged.sqlite" in line
    assert total(kept) == 1
    assert (tmp_path / "usage.damaged.sqlite").read_bytes()[:100] == before[:100]


def test_reader_of_a_damaged_file_changes_nothing(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    _garbage(kept.path)
    before = kept.path.read_bytes()
    with pytest.raises(UsageError, match="is damaged"):
        kept.rows(0)
    assert kept.path.read_bytes() == before


def test_locked_file_is_an_error_and_adds_nothing(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    with closing(sqlite3.connect(kept.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UsageError, match="locked"):
            kept.add(one())
        other.execute("ROLLBACK")
    kept.add(one())
    assert total(kept) == 2


def test_file_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    with closing(sqlite3.connect(kept.path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    before = kept.path.read_bytes()
    with pytest.raises(UsageError, match="newer npu-gateway"):
        kept.add(one())
    assert kept.path.read_bytes() == before


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        store(tmp_path / "file").add(one())
    (tmp_path / "usage.sqlite").mkdir()
    with pytest.raises(UsageError):
        store(tmp_path).add(one())


def test_full_and_read_only_disk_are_errors_and_lose_nothing_old(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 * 1024 * 1024) as disk:
        kept = store(disk.folder)
        kept.add(one())
        with suppress(OSError), (disk.folder / "ballast").open("wb", 0) as ballast:
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(UsageError):
            kept.add(one())
        (disk.folder / "ballast").unlink()
        kept.add(one())
        before = total(kept)
        assert before == 2
        disk.make_read_only()
        with pytest.raises(UsageError):
            kept.add(one())
        assert total(kept) == before


def test_removed_file_begins_again(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    kept.path.unlink()
    kept.add(one())
    assert total(kept) == 1


def test_values_of_any_type_are_numbers_and_names(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    with closing(sqlite3.connect(kept.path)) as connection:
        rows = [
            (NOW, 3, 2.5, None, "x"),
            (NOW, b"\xff", "k", "x", 1),
            (NOW, "m", "k", "ttft 999999999", 2**62),
            (NOW, "m", "k", "ttft x", 1),
        ]
        connection.executemany("INSERT INTO usage VALUES (?, ?, ?, coalesce(?, 'n'), ?)", rows)
        connection.execute("INSERT INTO usage VALUES (9e15, 'm', 'k', 'requests', 1)")
        connection.commit()
    kept.add(one())
    report = report_of(kept.rows(0), 1, NOW * 3600.0)
    assert report.total.requests == 2 and report.total.ttft_p50_ms is None


@pytest.mark.parametrize("name", ["usage.sqlite-wal", "usage.sqlite-shm"])
def test_garbage_next_to_the_file_costs_nothing(tmp_path: Path, name: str) -> None:
    kept = store(tmp_path)
    kept.add(one())
    (tmp_path / name).write_bytes(b"garbage " * 9000)
    kept.add(one())
    assert total(kept) == 2


@pytest.mark.skipif("sys.platform == 'win32'")
def test_pipe_with_the_name_of_the_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "usage.sqlite")
    with pytest.raises(UsageError):
        store(tmp_path).add(one())
