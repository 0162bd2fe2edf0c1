"""The usage history on the disk: one SQLite file for all gateways of this user.

Each operation opens the file and closes it, so that the file can be removed, restored or opened by another program at
any time, also on Windows. Writes are in the write-ahead log and on the disk when `add` returns.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal

from gateway.monitoring.usage.counts import Cell, Counts

FILE = "usage.sqlite"
_VERSION = 1
_PAGE = 4096
_DAY = 24  # hours
_BUSY_PAUSE_S = 0.02
_CORRUPT = {"SQLITE_CORRUPT", "SQLITE_NOTADB"}
_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS usage (
        hour INTEGER, model TEXT, key TEXT, name TEXT, number INTEGER,
        PRIMARY KEY (hour, model, key, name)
    ) WITHOUT ROWID
    """,
    # The order in which days were last written: the oldest goes first, whatever a clock that was set wrongly says.
    "CREATE TABLE IF NOT EXISTS days (day INTEGER PRIMARY KEY, written INTEGER)",
)
_ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET number = min(number + excluded.number, 9007199254740991)
"""
_ROWS = """
SELECT CAST(hour AS INTEGER), CAST(model AS TEXT), CAST(key AS TEXT), CAST(name AS TEXT), CAST(number AS INTEGER)
FROM usage WHERE hour >= ?
"""  # SQLite takes any value in any column, and other programs can write to the file
_NOTE_DAY = """
INSERT INTO days VALUES (?, (SELECT coalesce(max(written), 0) + 1 FROM days))
ON CONFLICT DO UPDATE SET written = excluded.written
"""
_OLD_DAYS = "SELECT day FROM days ORDER BY written DESC LIMIT -1 OFFSET ?"

_log = logging.getLogger(__name__)


class UsageError(Exception):
    """The file cannot be read or written now. The message is a sentence for the user."""


class UsageStore:
    """Numbers by hour, model, key and name. Any thread may use it, one at a time.

    Args:
        path: the file; its folder is made.
        days: the number of days with requests that are kept.
        busy_s: how long to wait for another gateway that writes, in seconds.
        max_bytes: of the file. If that is not enough for `days`, the older half goes.
    """

    def __init__(self, path: Path, days: int, *, busy_s: float = 5.0, max_bytes: int = 64 * 1024 * 1024) -> None:
        self.path = path
        self.days = days
        self._busy_s = busy_s
        self._max_bytes = max_bytes

    def add(self, cells: Mapping[Cell, Counts]) -> None:
        """Add the numbers. A damaged file is put aside, and a new one begun. All or nothing is written.

        Raises UsageError: locked, full, read-only, or written by a newer version.
        """
        try:
            self._add(cells)
        except _Damaged as error:
            aside = self._put_aside(error)
            _log.warning(
                "the usage history %s is damaged (%s). A new one begins; the old is %s", self.path, error, aside
            )
            self._add(cells)

    def rows(self, since_hour: int) -> dict[Cell, Counts]:
        """The numbers from this hour on. Empty if there is no file. Raises UsageError."""
        try:
            return self._rows(since_hour)
        except _Damaged as error:
            raise UsageError(f"{self.path} is damaged ({error}). A gateway begins a new one when it writes.") from error

    def _rows(self, since_hour: int) -> dict[Cell, Counts]:
        found: dict[Cell, Counts] = {}
        with _errors(self.path):
            if not self.path.exists():
                return {}
            with closing(self._connect_to_read()) as connection:
                if _value(connection, "user_version") == 0:  # it is being made now
                    return {}
                for *cell, name, number in connection.execute(_ROWS, (since_hour,)):
                    found.setdefault(Cell(*cell), Counter())[name] = number
        return found

    def _add(self, cells: Mapping[Cell, Counts]) -> None:
        with _errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)  # only this user reads it; SQLite's own files get the same rights
            with closing(self._connect()) as connection:
                with _transaction(connection):
                    self._write(connection, cells)
                self._trim(connection)

    def _write(self, connection: sqlite3.Connection, cells: Mapping[Cell, Counts]) -> None:
        rows = ((*cell, name, number) for cell, counts in cells.items() for name, number in counts.items())
        connection.executemany(_ADD, rows)
        connection.executemany(_NOTE_DAY, [(day,) for day in sorted({cell.hour // _DAY for cell in cells})])

    def _trim(self, connection: sqlite3.Connection) -> None:
        """Remove the days above `days`, and half of the others in a file that is nearly as large as it may be."""
        kept = self.days
        if _value(connection, "page_count") - _value(connection, "freelist_count") > self._max_bytes // _PAGE * 3 // 4:
            [count] = connection.execute("SELECT count(*) FROM days").fetchone()
            kept = min(kept, count // 2)
        if old := connection.execute(_OLD_DAYS, (kept,)).fetchall():
            with _transaction(connection):
                connection.executemany("DELETE FROM usage WHERE hour BETWEEN 24 * ?1 AND 24 * ?1 + 23", old)
                connection.executemany("DELETE FROM days WHERE day = ?", old)
            connection.execute("PRAGMA incremental_vacuum").fetchall()

    def _connect(self) -> sqlite3.Connection:
        """SQLite does not wait while two gateways change the journal mode of a new file, so this does."""
        end = time.monotonic() + self._busy_s
        while True:
            connection = sqlite3.connect(self.path, timeout=self._busy_s, isolation_level=None)
            try:
                self._prepare(connection)
                return connection
            except BaseException as error:
                connection.close()
                is_busy = getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
                if not is_busy or time.monotonic() >= end:
                    raise
                time.sleep(_BUSY_PAUSE_S)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection, "DEFERRED"):  # another gateway can begin the same file at this moment
            version = _value(connection, "user_version")
            [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if version > _VERSION:
            raise UsageError(f"{self.path} is from a newer npu-gateway. Remove it, or use that version.")
        if version == 0:
            if tables:
                raise _Damaged("it is the file of another program")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only before there is a table
        connection.execute("PRAGMA journal_mode = WAL").fetchone()  # readers and a writer at once
        connection.execute("PRAGMA synchronous = FULL")  # NORMAL could lose more than the last write at a power loss
        connection.execute("PRAGMA journal_size_limit = 1048576").fetchone()
        connection.execute(f"PRAGMA max_page_count = {self._max_bytes // _PAGE}").fetchone()
        if version == 0:
            with _transaction(connection):
                for table in _TABLES:
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _connect_to_read(self) -> sqlite3.Connection:
        uri = self.path.absolute().as_uri()
        connection = sqlite3.connect(f"{uri}?mode=ro", timeout=self._busy_s, isolation_level=None, uri=True)
        connection.text_factory = lambda value: value.decode("utf-8", "replace")
        return connection

    def _put_aside(self, error: Exception) -> Path:
        aside = self.path.with_name(f"{self.path.stem}.damaged{self.path.suffix}")
        try:
            self.path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        except OSError as problem:
            raise UsageError(f"{self.path} is damaged ({error}) and cannot be renamed: {problem.strerror}") from error
        return aside


class _Damaged(Exception):
    """The file is not a usage history."""


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as UsageError and _Damaged."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name in _CORRUPT or name.startswith("SQLITE_CORRUPT_") or name == "SQLITE_ERROR":
            raise _Damaged(str(error)) from error
        raise UsageError(f"{path}: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


@contextmanager
def _transaction(
    connection: sqlite3.Connection, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
) -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # after an error of the disk SQLite has rolled back itself
            connection.execute("ROLLBACK")
        raise


def _value(connection: sqlite3.Connection, pragma: str) -> int:
    [value] = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)
