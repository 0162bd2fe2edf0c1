"""The state in one SQLite file, which several gateways of one machine can share.

The file of the data folder is opened and closed for each operation, so that it can be removed, restored or opened by
another program at any time, also on Windows. Writes are in the write-ahead log and on the disk when `write` returns,
after 24 ms. The file of `[state] url` is written for each request, so it stays open, and a write takes 0.1 ms: a power
failure can lose the last seconds. A file that was replaced is opened again.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from gateway.state.database import Execute, Row, StateError
from gateway.state.schema import FROM_USAGE_FILE, TABLES, VERSION

T = TypeVar("T")

FILE = "state.sqlite"
USAGE_FILE = "usage.sqlite"  # of older versions, in the same folder
_PAGE = 4096
_BUSY_PAUSE_S = 0.02
_CORRUPT = {"SQLITE_CORRUPT", "SQLITE_NOTADB"}

_log = logging.getLogger(__name__)


class SqliteDatabase:
    """One file.

    Args:
        path: the file; its folder is made.
        busy_s: how long to wait for another gateway that writes, in seconds.
        max_bytes: of the file.
        stays_open: for a file that is used for each request; see above.
    """

    now = "((julianday('now') - 2440587.5) * 86400.0)"

    def __init__(
        self, path: Path, *, busy_s: float = 5.0, max_bytes: int = 4 * 2**30, stays_open: bool = False
    ) -> None:
        self.path = path
        self._stays_open = stays_open
        self._idle: list[_Open] = []
        self._guard = threading.Lock()  # of `_idle`
        self._busy_s = busy_s
        self._max_bytes = max_bytes

    @property
    def label(self) -> str:
        return str(self.path)

    def read(self, sql: str, values: Sequence[Any] = ()) -> Sequence[Row]:
        try:
            with _errors(self.path):
                if not self.path.exists():
                    return []
                if self._stays_open:
                    with self._open() as connection:
                        return connection.execute(sql, values).fetchall()
                with closing(self._connect_to_read()) as connection:
                    if _value(connection, "user_version") == 0:  # it is being made now
                        return []
                    self._refuse_newer(connection)
                    return connection.execute(sql, values).fetchall()
        except _Damaged as error:
            raise StateError(f"{self.path} is damaged ({error}). A gateway begins a new one when it writes.") from error

    def write(self, work: Callable[[Execute], T]) -> T:
        """See `Database`. A damaged file is put aside, and a new one begun."""
        try:
            return self._write(work)
        except _Damaged as error:
            aside = self._put_aside(error)
            _log.warning("the file %s is damaged (%s). A new one begins; the old is %s", self.path, error, aside)
            return self._write(work)

    def close(self) -> None:
        with self._guard:
            idle, self._idle = self._idle, []
        for each in idle:
            each.connection.close()

    def _write(self, work: Callable[[Execute], T]) -> T:
        with _errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)  # only this user reads it; SQLite's own files get the same rights
            with self._open() as connection:
                with _transaction(connection):
                    result = work(lambda sql, values: connection.execute(sql, values).fetchall())
                if _value(connection, "freelist_count") * 4 > _value(connection, "page_count"):
                    with suppress(sqlite3.Error):  # the next write tries it again
                        connection.executescript("PRAGMA incremental_vacuum")  # `execute` frees one page
                return result

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection of the file that has the name now. It is kept for the next operation, or closed."""
        used = self._idle_connection() or _Open(self._connect(), _identity(self.path))
        try:
            yield used.connection
        except BaseException:
            used.connection.close()
            raise
        if self._stays_open:
            with self._guard:
                self._idle.append(used)
        else:
            used.connection.close()

    def _idle_connection(self) -> _Open | None:
        while True:
            with self._guard:
                found = self._idle.pop() if self._idle else None
            if found is None or found.file == _identity(self.path):
                return found
            found.connection.close()

    def _connect(self) -> sqlite3.Connection:
        """SQLite does not wait while two gateways change the journal mode of a new file, so this does."""
        end = time.monotonic() + self._busy_s
        while True:
            connection = sqlite3.connect(self.path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
            connection.text_factory = _text
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
        self._refuse_newer(connection)
        if version == 0:
            if tables:
                raise _Damaged("it is the file of another program")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only before there is a table
        connection.execute("PRAGMA journal_mode = WAL").fetchone()  # readers and a writer at once
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if self._stays_open else 'FULL'}")
        connection.execute("PRAGMA journal_size_limit = 1048576").fetchone()
        connection.execute(f"PRAGMA max_page_count = {self._max_bytes // _PAGE}").fetchone()
        if version == 0:
            self._begin(connection)

    def _refuse_newer(self, connection: sqlite3.Connection) -> None:
        if _value(connection, "user_version") > VERSION:
            raise StateError(f"{self.path} is from a newer npu-gateway. Remove it, or use that version.")

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Make the tables, with the usage history of the older version. One of several gateways does it."""
        old = self.path.with_name(USAGE_FILE)
        has_old = old != self.path and old.is_file() and _is_read(connection, old, "ATTACH ? AS old", str(old))
        with _transaction(connection):
            if _value(connection, "user_version") != 0:
                return
            for table in TABLES:
                connection.execute(table)
            connection.execute("SAVEPOINT old")
            if has_old and not (has_old := all(_is_read(connection, old, each) for each in FROM_USAGE_FILE)):
                connection.execute("ROLLBACK TO old")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        if has_old:
            connection.execute("DETACH old")
            with suppress(OSError):  # an older gateway has it open: it stays, and is not read again
                for suffix in ("", "-wal", "-shm"):
                    old.with_name(old.name + suffix).unlink(missing_ok=True)

    def _connect_to_read(self) -> sqlite3.Connection:
        uri = self.path.absolute().as_uri()
        connection = sqlite3.connect(f"{uri}?mode=ro", timeout=self._busy_s, isolation_level=None, uri=True)
        connection.text_factory = _text
        return connection

    def _put_aside(self, error: Exception) -> Path:
        self.close()  # Windows renames no file that is open
        aside = self.path.with_name(f"{self.path.stem}.damaged{self.path.suffix}")
        try:
            self.path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        except OSError as problem:
            raise StateError(f"{self.path} is damaged ({error}) and cannot be renamed: {problem.strerror}") from error
        return aside


class _Open(NamedTuple):
    connection: sqlite3.Connection
    file: tuple[int, int]


class _Damaged(Exception):
    """The file is not one of a gateway."""


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as StateError and _Damaged."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name in _CORRUPT or name.startswith("SQLITE_CORRUPT_") or re.match(r"no \w+ (table|column)", str(error)):
            raise _Damaged(str(error)) from error
        raise StateError(f"{path}: {error}") from error
    except OSError as error:
        raise StateError(f"{path}: {error.strerror or error}") from error


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


def _is_read(connection: sqlite3.Connection, old: Path, statement: str, *values: str) -> bool:
    """Run a statement that reads the file of the older version. False: it cannot be read, which is logged."""
    try:
        connection.execute(statement, values)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_FULL", "SQLITE_IOERR")):
            raise
        _log.warning("the usage history %s cannot be read (%s) and stays as it is; a new one begins", old, error)
        return False
    return True


def _identity(file: Path) -> tuple[int, int]:
    """Other numbers for another file with the same name."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _value(connection: sqlite3.Connection, pragma: str) -> int:
    [value] = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)
