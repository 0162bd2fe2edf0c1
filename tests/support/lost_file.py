"""A database in a file that cannot be opened for a time."""

from __future__ import annotations

from pathlib import Path


def take_away(file: Path) -> None:
    """Put a folder in its position."""
    file.rename(file.with_name("kept"))
    file.mkdir()


def put_back(file: Path) -> None:
    file.rmdir()
    file.with_name("kept").rename(file)
