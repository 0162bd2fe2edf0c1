"""The state in a PostgreSQL database, which gateways on several machines share.

The driver is pg8000, which is Python only: it runs on Windows on ARM, for which no other driver has a wheel. Its one
timeout is that of the socket, so a server that hangs, or that no packet reaches, ends each step after `timeout_s`.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from gateway.state.database import Execute, Row, StateError
from gateway.state.schema import TABLES, VERSION

T = TypeVar("T")

_SSL_MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")
_PARAMETERS = ("host", "sslmode", "sslrootcert")
_MOST_IDLE = 4
_LOCK = 7_361_092_755  # any number: gateways that make the tables take this lock
_UNDEFINED_TABLE, _DEADLOCK, _SERIALIZATION = "42P01", "40P01", "40001"
#: Not `to_regclass`, which remembers in a connection that there was none.
_HAS_TABLES = "SELECT 1 FROM pg_catalog.pg_class WHERE relname = 'npu_state' AND pg_catalog.pg_table_is_visible(oid)"
_BEGIN = "BEGIN; SET LOCAL statement_timeout = {0}; SET LOCAL lock_timeout = {0}"


class PostgresUrl(NamedTuple):
    user: str
    password: str
    host: str  # or the folder of a Unix socket
    port: int
    database: str
    sslmode: str
    sslrootcert: str | None


def postgres_url(text: str) -> PostgresUrl:
    """The parts of `postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require`.

    Raises ValueError: what is wrong, without the text, which has a password.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or 5432
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError("it must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from None
    if unknown := next((name for name in query if name not in _PARAMETERS), None):
        raise ValueError(f"it can have the parameters {', '.join(_PARAMETERS)}, not {unknown[:100]!r}")
    user, database = unquote(parts.username or ""), unquote(parts.path.removeprefix("/"))
    if parts.scheme not in ("postgresql", "postgres") or parts.fragment or not user or "\0" in unquote(text):
        raise ValueError("it must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    sslmode = query.get("sslmode", "prefer")
    if sslmode not in _SSL_MODES:
        raise ValueError(f"its sslmode must be one of {', '.join(_SSL_MODES)}")
    host = query.get("host") or unquote(parts.hostname or "") or "localhost"
    return PostgresUrl(
        user, unquote(parts.password or ""), host, port, database or user, sslmode, query.get("sslrootcert") or None
    )


class PostgresDatabase:
    """One database. Connections are made when they are needed, and up to four are kept.

    Args:
        timeout_s: of each step: to connect, to wait for a lock, to get the reply to a statement.

    Raises:
        StateError: the driver is not installed.
    """

    now = "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"

    def __init__(self, url: PostgresUrl, *, timeout_s: float = 2.0) -> None:
        try:
            import pg8000.dbapi
        except ImportError:
            raise StateError("the package pg8000 is missing; install it: pip install 'npu-gateway[postgres]'") from None
        self._driver: Any = pg8000.dbapi
        self._url = url
        self._timeout_s = timeout_s
        self._idle: list[Any] = []
        self._guard = threading.Lock()  # of `_idle`

    @property
    def label(self) -> str:
        return f"the PostgreSQL database {self._url.database!r} at {self._url.host}:{self._url.port}"

    def read(self, sql: str, values: Sequence[Any] = ()) -> Sequence[Row]:
        return self.write(lambda execute: execute(sql, values))

    def write(self, work: Callable[[Execute], T]) -> T:
        try:
            try:
                return self._write(work)
            except self._driver.DatabaseError as error:
                if _sqlstate(error) not in (_DEADLOCK, _SERIALIZATION, _UNDEFINED_TABLE):
                    raise
            return self._write(work)  # of a database whose tables were removed, all connections begin again
        except (self._driver.Error, OSError, ssl.SSLError) as error:
            raise StateError(f"{self.label}: {_text(error)}") from None

    def close(self) -> None:
        with self._guard:
            idle, self._idle = self._idle, []
        for connection in idle:
            _close(connection)

    def _write(self, work: Callable[[Execute], T]) -> T:
        connection = self._begun()
        try:
            result = work(_executor(connection))
            connection.cursor().execute("COMMIT")
        except self._driver.DatabaseError as error:
            self._end(connection)
            if _sqlstate(error) == _UNDEFINED_TABLE:
                self.close()
            raise
        except BaseException:
            _close(connection)
            raise
        self._keep(connection)
        return result

    def _begun(self) -> Any:
        """A connection in a new transaction. One that was lost while it was idle is replaced."""
        begin = _BEGIN.format(int(self._timeout_s * 1000))
        while True:
            with self._guard:
                connection = self._idle.pop() if self._idle else None
            is_new = connection is None
            connection = connection or self._connect()
            try:
                connection.cursor().execute(begin)
                return connection
            except BaseException as error:
                _close(connection)
                if is_new or not isinstance(error, self._driver.Error | OSError):
                    raise

    def _end(self, connection: Any) -> None:
        try:
            connection.cursor().execute("ROLLBACK")
        except (self._driver.Error, OSError):
            _close(connection)
        else:
            self._keep(connection)

    def _keep(self, connection: Any) -> None:
        with self._guard:
            if is_kept := len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)
        if not is_kept:
            _close(connection)

    def _connect(self) -> Any:
        connection = self._open()
        try:
            connection.autocommit = True  # the transactions are ours
            self._prepare(connection)
        except BaseException:
            _close(connection)
            raise
        return connection

    def _open(self) -> Any:
        url = self._url
        opened = _opened_socket(url, self._timeout_s)
        try:
            return self._driver.connect(
                url.user,
                host=url.host,
                sock=opened,  # the driver closes its own not in each case
                password=url.password or None,
                database=url.database,
                ssl_context=False if _is_folder(url.host) else _ssl_context(url),
                application_name="npu-gateway",
            )
        except BaseException:
            opened.close()
            raise

    def _prepare(self, connection: Any) -> None:
        """Make the tables. One of several gateways that come at once does it."""
        execute = _executor(connection)
        execute(_BEGIN.format(int(self._timeout_s * 1000)), ())
        if not execute(_HAS_TABLES, ()):
            execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
            if not execute(_HAS_TABLES, ()):
                for table in (*TABLES, "CREATE TABLE npu_state (version BIGINT)"):
                    execute(table, ())
                execute("INSERT INTO npu_state VALUES (?)", (VERSION,))
        [[version]] = execute("SELECT max(version) FROM npu_state", ())
        execute("COMMIT", ())
        if version is None or version > VERSION:
            raise StateError(f"{self.label} is of a newer npu-gateway. Use that version, or another database.")


def _executor(connection: Any) -> Execute:
    def execute(sql: str, values: Sequence[Any]) -> Sequence[Row]:
        cursor = connection.cursor()
        cursor.execute(sql.replace("?", "%s"), tuple(values))
        return cursor.fetchall() if cursor.description else []

    return execute


def _is_folder(host: str) -> bool:
    """True for the folder of a Unix socket."""
    return host.startswith("/")


def _opened_socket(url: PostgresUrl, timeout_s: float) -> socket.socket:
    if not _is_folder(url.host):
        opened = socket.create_connection((url.host, url.port), timeout_s)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return opened
    if sys.platform == "win32":
        raise OSError("Windows has no Unix sockets; give a host name")
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.settimeout(timeout_s)
    try:
        opened.connect(f"{url.host}/.s.PGSQL.{url.port}")
    except OSError:
        opened.close()
        raise
    return opened


def _ssl_context(url: PostgresUrl) -> ssl.SSLContext | bool | None:
    """What pg8000 takes: False for no TLS, None for "prefer"."""
    if url.sslmode in ("disable", "prefer"):
        return False if url.sslmode == "disable" else None
    context = ssl.create_default_context(cafile=url.sslrootcert)
    context.check_hostname = url.sslmode == "verify-full"
    if url.sslmode == "require":
        context.verify_mode = ssl.CERT_NONE
    return context


def _sqlstate(error: Exception) -> str:
    details = error.args[0] if error.args else None
    return str(details.get("C", "")) if isinstance(details, dict) else ""


def _text(error: Exception) -> str:
    """The server's message, or the driver's, as one line."""
    details = error.args[0] if error.args else None
    text = str(details.get("M", "")) if isinstance(details, dict) else str(error.__cause__ or error)
    return re.sub(r"\s+", " ", text).strip()[:300] or type(error).__name__


def _close(connection: Any) -> None:
    with suppress(Exception):  # it can be lost already
        connection.close()
