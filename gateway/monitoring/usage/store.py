"""The usage history in the database: numbers by hour, model, key and name, added by all gateways that share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice

from gateway.monitoring.usage.counts import Cell, Counts
from gateway.state.database import Database, Execute, column, insert

_DAY = 24  # hours
_MOST_ROWS = 1_000_000  # 64 MB
_ADD = """
INSERT INTO npu_usage (hour, model, key, name, number) VALUES *
ON CONFLICT (hour, model, key, name) DO UPDATE SET number = CASE
    WHEN npu_usage.number > 9007199254740991 - excluded.number THEN 9007199254740991
    ELSE npu_usage.number + excluded.number
END
"""
_ROWS = """
SELECT CAST(hour AS BIGINT), CAST(model AS TEXT), CAST(key AS TEXT), CAST(name AS TEXT), CAST(number AS BIGINT)
FROM npu_usage WHERE hour >= ?
"""  # SQLite takes any value in any column, and other programs can write to the file
_DAYS = "SELECT CAST(day AS BIGINT) FROM npu_days WHERE day IS NOT NULL"
_NOTE_DAY = """
INSERT INTO npu_days (day, written) VALUES (?, (SELECT coalesce(max(written), 0) + 1 FROM npu_days))
ON CONFLICT (day) DO UPDATE SET written = excluded.written
"""


class UsageStore:
    """Any thread may use it, one at a time.

    Args:
        days: the number of days with requests that are kept.
        max_rows: if that is not enough for `days`, the older half goes.
    """

    def __init__(self, database: Database, days: int, *, max_rows: int = _MOST_ROWS) -> None:
        self.database = database
        self.days = days
        self._max_rows = max_rows

    def add(self, cells: Mapping[Cell, Counts]) -> None:
        """Add the numbers. All or nothing is written. Raises StateError."""

        def write(execute: Execute) -> None:
            rows = sorted((*cell, name, number) for cell, counts in cells.items() for name, number in counts.items())
            insert(execute, _ADD, rows)  # sorted: two gateways lock the rows in the same order
            known = set(column(execute(_DAYS, ())))
            days = sorted({cell.hour // _DAY for cell in cells})
            for day in days:
                execute(_NOTE_DAY, (day,))
            if len(known.union(days)) > min(len(known), self.days):
                self._trim(execute)

        self.database.write(write)

    def rows(self, since_hour: int) -> dict[Cell, Counts]:
        """The numbers from this hour on. Empty if there is no file. Raises StateError."""
        found: dict[Cell, Counts] = {}
        for *cell, name, number in self.database.read(_ROWS, (since_hour,)):
            found.setdefault(Cell(*cell), Counter())[name] = number
        return found

    def _trim(self, execute: Execute) -> None:
        """Remove the days above `days`, and half of the others if there are too many rows."""
        days = list(column(execute(f"{_DAYS} ORDER BY written DESC", ())))
        [[rows]] = execute("SELECT count(*) FROM npu_usage", ())
        kept = min(self.days, len(days) // 2) if rows > self._max_rows else self.days
        for day in islice(days, kept, None):
            execute("DELETE FROM npu_usage WHERE hour BETWEEN ? AND ?", (day * _DAY, day * _DAY + _DAY - 1))
            execute("DELETE FROM npu_days WHERE day = ?", (day,))
