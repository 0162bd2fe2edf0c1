"""The usage history in the database: sums and bounds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.monitoring.usage.counts import Cell
from gateway.monitoring.usage.report import report_of
from tests.support.usage_store import DAY, NOW, fill, one, path_of, store


def test_two_gateways_add_to_the_same_numbers(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path)
    first.add(one(requests=1, prompt_tokens=5))
    second.add(one(requests=2, completion_tokens=7) | one(NOW - 1, "other", ""))
    expected = {"requests": 3, "prompt_tokens": 5, "completion_tokens": 7}
    assert (
        first.rows(0) == second.rows(0) == {Cell(NOW, "m", "k"): expected, Cell(NOW - 1, "other", ""): {"requests": 1}}
    )
    assert first.rows(NOW) == {Cell(NOW, "m", "k"): expected}


def test_no_file_is_no_usage(tmp_path: Path) -> None:
    assert store(tmp_path / "nowhere").rows(0) == {}
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["'; DROP TABLE npu_usage; --", "ключ 東京 🎉", '"', "%s\\", "a" * 200, "-"])
def test_hostile_names_are_only_names(tmp_path: Path, name: str) -> None:
    kept = store(tmp_path)
    kept.add(one(model=name, key=name))
    assert list(kept.rows(0)) == [Cell(NOW, name, name)]


def test_days_are_bounded_and_the_file_shrinks(tmp_path: Path) -> None:
    kept = store(tmp_path, days=3)
    fill(kept, 3, per_day=1000)
    largest = path_of(kept).stat().st_size
    for day in range(3, 9):
        kept.add(one(NOW + day * DAY))
    assert sorted({cell.hour // DAY for cell in kept.rows(0)}) == [(NOW + day * DAY) // DAY for day in (6, 7, 8)]
    assert path_of(kept).stat().st_size < largest / 2


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


def test_largest_number_of_rows_removes_the_older_days(tmp_path: Path) -> None:
    kept = store(tmp_path, days=1000, max_rows=2000)
    fill(kept, 40, per_day=100)
    days = sorted({cell.hour // DAY for cell in kept.rows(0)})
    assert days[-1] == NOW // DAY + 39 and 5 < len(days) <= 21 and days == list(range(days[0], days[-1] + 1))


def test_values_of_any_type_are_numbers_and_names(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(one())
    with closing(sqlite3.connect(path_of(kept))) as connection:
        rows = [
            (NOW, 3, 2.5, None, "x"),
            (NOW, b"\xff", "k", "x", 1),
            (NOW, "m", "k", "ttft 999999999", 2**62),
            (NOW, "m", "k", "ttft x", 1),
        ]
        connection.executemany("INSERT INTO npu_usage VALUES (?, ?, ?, coalesce(?, 'n'), ?)", rows)
        connection.execute("INSERT INTO npu_usage VALUES (9e15, 'm', 'k', 'requests', 1)")
        connection.commit()
    kept.add(one())
    report = report_of(kept.rows(0), 1, NOW * 3600.0)
    assert report.total.requests == 2 and report.total.ttft_p50_ms is None
