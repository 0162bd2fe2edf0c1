"""The state in a real PostgreSQL: connections that are lost, tables, locks, rights. Skipped where none is installed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from gateway.monitoring.usage.counts import Cell, Counts
from gateway.monitoring.usage.store import UsageStore
from gateway.state.database import StateError
from gateway.state.postgres import PostgresDatabase, PostgresUrl, postgres_url
from tests.support.postgres import Postgres, postgres_server

NOW = 500_000


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as running:
        yield running


@pytest.fixture
def name(server: Postgres, request: pytest.FixtureRequest) -> str:
    server.fresh(request.node.originalname)
    return str(request.node.originalname)


@pytest.fixture
def database(server: Postgres, name: str) -> Iterator[PostgresDatabase]:
    with closing(server.database(name)) as made:
        yield made


def cells(number: int, first: int = 0) -> dict[Cell, Counts]:
    return {Cell(NOW + index, "m", "k"): Counter(requests=1) for index in range(first, first + number)}


def total(database: PostgresDatabase) -> int:
    return sum(counts["requests"] for counts in UsageStore(database, 30).rows(0).values())


def test_gateways_that_start_at_once_make_the_tables_once(server: Postgres, name: str) -> None:
    def start(_: int) -> None:
        with closing(server.database(name)) as own:
            UsageStore(own, 30).add(cells(1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, range(8)))
    with closing(server.database(name)) as own:
        assert total(own) == 8
    assert server.execute("SELECT * FROM npu_state", database=name) == [[1]]


def test_writers_of_the_same_rows_lose_nothing(database: PostgresDatabase) -> None:
    """In another order each. The rows are written in one order, else two writers would wait for each other."""
    orders = (cells(50), dict(reversed(cells(50).items())))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda order: [UsageStore(database, 30).add(order) for _ in range(10)], orders))
    assert total(database) == 1000


def test_lost_connections_are_made_again(server: Postgres, database: PostgresDatabase) -> None:
    UsageStore(database, 30).add(cells(2))
    server.stop()
    with pytest.raises(StateError, match=r"(?i)connection refused"):
        total(database)
    server.start()
    assert total(database) == 2
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'npu-gateway'"
    server.execute(end)
    assert total(database) == 2


def test_removed_tables_are_made_again(server: Postgres, name: str, database: PostgresDatabase) -> None:
    UsageStore(database, 30).add(cells(2))
    server.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public", database=name)
    UsageStore(database, 30).add(cells(1))
    assert total(database) == 1


def test_database_of_a_newer_version_is_left_alone(server: Postgres, name: str, database: PostgresDatabase) -> None:
    UsageStore(database, 30).add(cells(1))
    server.execute("UPDATE npu_state SET version = 99", database=name)
    with closing(server.database(name)) as later, pytest.raises(StateError, match="newer npu-gateway"):
        UsageStore(later, 30).add(cells(1))
    assert server.execute("SELECT sum(number) FROM npu_usage", database=name)[0][0] == 1


def test_lock_of_another_program_ends_the_wait(server: Postgres, name: str, database: PostgresDatabase) -> None:
    UsageStore(database, 30).add(cells(1))
    with (
        closing(server.database(name)) as other,
        closing(server.database(name, timeout_s=0.2)) as waiting,
    ):

        def locked(execute: object) -> None:
            execute("LOCK TABLE npu_usage IN ACCESS EXCLUSIVE MODE", ())  # type: ignore[operator]
            with pytest.raises(StateError, match=r"timeout|timed out"):
                total(waiting)

        other.write(locked)
        assert total(other) == 1


def test_user_without_rights_and_wrong_password_are_one_line(server: Postgres, name: str) -> None:
    server.execute("DROP ROLE IF EXISTS guest", "CREATE ROLE guest LOGIN PASSWORD 'guest-word'")
    url = postgres_url(server.url(name))
    guest = url._replace(user="guest", password="guest-word")
    for wrong, message in (
        (guest, "permission denied"),
        (url._replace(password="pass-word"), "password authentication failed"),
        (url._replace(database="no"), "does not exist"),
        (url._replace(sslmode="require"), "refuses SSL"),
        (url._replace(host="/nowhere"), "file or directory"),
        (url._replace(host="name.invalid"), "PostgreSQL"),
    ):
        with (
            closing(PostgresDatabase(wrong, timeout_s=600)) as database,
            pytest.raises(StateError, match=message) as info,
        ):
            database.read("SELECT 1")
        assert "\n" not in str(info.value) and not any(word in str(info.value) for word in ("guest-word", "pass-word"))


def test_unix_socket_is_a_host(server: Postgres, name: str) -> None:
    url = postgres_url(f"{server.url(name)}?host={server.folder}")
    with closing(PostgresDatabase(url, timeout_s=600)) as database:
        assert list(database.read("SELECT 7")) == [[7]]


def test_all_types_come_back_as_they_went_in(database: PostgresDatabase) -> None:
    text, data = "é 🎉 ' % %s ? \\ \" $1 :x", bytes(range(256)) * 10
    row = ("id", "owner", 2**53, 7, data)
    database.write(lambda execute: execute("INSERT INTO npu_responses VALUES (?, ?, ?, ?, ?)", row))
    assert list(database.read("SELECT * FROM npu_responses")) == [list(row)]
    UsageStore(database, 30).add({Cell(NOW, text, text): Counter(requests=2**40)})
    assert UsageStore(database, 30).rows(0) == {Cell(NOW, text, text): {"requests": 2**40}}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("postgresql://u:p@h/d", ("u", "p", "h", 5432, "d", "prefer", None)),
        ("postgres://u@h:1", ("u", "", "h", 1, "u", "prefer", None)),
        ("postgresql://u%40x:p%2F%25@[::1]:2/d%20e?sslmode=disable", ("u@x", "p/%", "::1", 2, "d e", "disable", None)),
        ("postgresql://u@/d?host=/run/pg&sslrootcert=c", ("u", "", "/run/pg", 5432, "d", "prefer", "c")),
    ],
)
def test_url_is_read(text: str, parts: tuple[object, ...]) -> None:
    assert postgres_url(text) == PostgresUrl(*parts)  # type: ignore[arg-type]
