"""A real PostgreSQL server in a temporary folder, for the tests that need one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.state.postgres import PostgresDatabase, postgres_url
from tests.support.server import wait_until

PASSWORD = "s3cret/with@signs"
_OTHER_USER = 65534  # has no rights
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


class Postgres:
    """One server, which can be stopped, frozen and started again. It listens on 127.0.0.1."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", **parameters: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"postgresql://gateway:s3cret%2Fwith%40signs@127.0.0.1:{self.port}/{database}?{query}".rstrip("?")

    def database(self, name: str = "postgres", timeout_s: float = 600.0) -> PostgresDatabase:
        return PostgresDatabase(postgres_url(self.url(name)), timeout_s=timeout_s)

    def fresh(self, name: str) -> str:
        """The URL of a new database."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', f'CREATE DATABASE "{name}"')
        return self.url(name)

    def execute(self, *statements: str, database: str = "postgres") -> list[Any]:
        """The rows of the last statement."""
        import pg8000.dbapi

        with closing(
            pg8000.dbapi.connect("gateway", "127.0.0.1", database, self.port, PASSWORD, timeout=60)
        ) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def start(self) -> None:
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "port": str(self.port),
            "fsync": "off",
        }
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [_program("postgres"), "-D", str(self.folder / "data"), *settings],
            stdout=log,
            stderr=log,
            cwd=self.folder,
            start_new_session=True,
            **_as_other_user(),
        )
        log.close()
        wait_until(self._answers, "PostgreSQL did not start")

    def stop(self) -> None:
        """At once, as a crash: the next start recovers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No process of the server runs meanwhile, and its connections stay open."""
        assert self._process is not None
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, text=True, check=True
        )
        processes = [self._process.pid, *map(int, children.stdout.split())]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except Exception:
            return False
        return True


@contextmanager
def patient(limit_s: float = 600.0) -> Iterator[None]:
    """A gateway waits that long for its database. The default: a busy machine is no fault of the database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.state.access._LIMIT_S", limit_s)
        patch.setattr("gateway.lanes.limits.shared_keys._WAIT_S", limit_s)
        patch.setattr(PostgresDatabase.__init__, "__kwdefaults__", {"timeout_s": limit_s})
        yield


def missing() -> str:
    """Why no server can be started here; "": one can."""
    if sys.platform == "win32":
        return "the tests of PostgreSQL need a POSIX system"
    if not (_program("postgres") and _program("initdb")):
        return "PostgreSQL is not installed: no postgres and initdb"
    try:
        import pg8000  # noqa: F401
    except ImportError:
        return "the extra `postgres` is not installed"
    return ""


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server with the user `gateway`; skipped with the reason where none can be started."""
    if reason := missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="npu-postgres-"))
    try:
        user = _as_other_user()
        if user:
            os.chown(folder, user["user"], user["group"])
        password = folder / "password"
        password.write_text(PASSWORD, encoding="utf-8")
        password.chmod(0o644)
        subprocess.run(
            [
                *(_program("initdb"), "-D", str(folder / "data"), "-U", "gateway", "--pwfile", str(password)),
                *("-A", "scram-sha-256", "--no-sync", "--no-locale", "-E", "UTF8"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **user,
        )
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        server = Postgres(folder, port)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _program(name: str) -> str:
    found = shutil.which(name)
    for pattern in () if found else _PLACES:
        root, _, rest = pattern.partition("*")
        base = Path(root).parent
        found = found or next((str(each) for each in sorted(base.glob(f"{Path(root).name}*{rest}/{name}"))), None)
    return found or ""


def _as_other_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": _OTHER_USER, "group": _OTHER_USER, "extra_groups": []}
