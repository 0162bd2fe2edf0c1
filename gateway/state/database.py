"""What the stores need of a database: a read, and a write that happens as a whole or not at all.

`SqliteDatabase` and `PostgresDatabase` take the same SQL: `?` for a value, BIGINT, TEXT and BYTEA, `ON CONFLICT`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Row = Sequence[Any]
#: Runs one statement. Returns its rows; [] for a statement without any.
Execute = Callable[[str, Sequence[Any]], Sequence[Row]]

_ROWS_AT_ONCE = 500  # of one INSERT; both databases take 32,000 values in a statement


class StateError(Exception):
    """The database cannot be read or written now. The message is for the user, without a password."""


class Database(Protocol):
    """Any thread may use it.

    Args:
        now: an expression in SQL: seconds since 1970, by the clock of the database.
    """

    now: str

    @property
    def label(self) -> str:
        """The file or the server, for messages. Without a password."""

    def read(self, sql: str, values: Sequence[Any] = ()) -> Sequence[Row]:
        """The rows of a SELECT; [] if nothing was ever written. Raises StateError."""

    def write(self, work: Callable[[Execute], T]) -> T:
        """The result of `work`, which runs in one transaction, and again in a new one if the first could not end.

        Raises StateError: nothing was written, except after a connection that was lost at the very end.
        """

    def close(self) -> None: ...


def insert(execute: Execute, sql: str, rows: Iterable[Row]) -> None:
    """Insert many rows with few statements.

    Args:
        sql: with `VALUES *`; the star becomes the rows.
    """
    remaining = iter(rows)
    while some := list(islice(remaining, _ROWS_AT_ONCE)):
        marks = ", ".join(f"({', '.join('?' * len(row))})" for row in some)
        execute(sql.replace("VALUES *", f"VALUES {marks}"), [value for row in some for value in row])


def marks(values: Sequence[Any]) -> str:
    """`?, ?, ?` for a list in SQL."""
    return ", ".join("?" * len(values))


def column(rows: Iterable[Row]) -> Iterator[Any]:
    """The first value of each row."""
    return (row[0] for row in rows)
