"""From `[state] url` to a database."""

from __future__ import annotations

from pathlib import Path

from gateway.state.database import Database
from gateway.state.postgres import PostgresDatabase, postgres_url
from gateway.state.sqlite import FILE, SqliteDatabase

SQLITE = "sqlite:///"  # and a path


def open_database(url: str, folder: Path) -> Database:
    """The database of `url`; "": the file in `folder`. Nothing is read, written or connected before it is used.

    Raises StateError: the driver for it is missing.
    """
    if not url:
        return SqliteDatabase(folder / FILE)
    if url.startswith(SQLITE):
        return SqliteDatabase(Path(url.removeprefix(SQLITE)), stays_open=True)
    return PostgresDatabase(postgres_url(url))


def check_url(url: str) -> None:
    """Raises ValueError: what is wrong with the URL, without its text."""
    if url.startswith(SQLITE):
        if not url.removeprefix(SQLITE):
            raise ValueError("it must have the path of a file after sqlite:///")
    elif url:
        if not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("it must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
        postgres_url(url)
