"""Where a model that was pulled comes from, and how fast its publisher says that it is."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.bundles.json_file import read_record

ORIGIN_FILE = ".pulled.json"  # hidden: not part of the bundle's hashes


class Origin(Struct, frozen=True, kw_only=True):
    """The content of `.pulled.json`.

    Args:
        source: what the user wrote.
        chip: the chip that it was pulled for; "": it was not pulled from the catalog.
        published_tokens_per_s: the published speed on this chip; None: unknown.
    """

    source: str
    url: str
    licence: str = ""
    chip: str = ""
    published_tokens_per_s: float | None = None


def read_origin(path: Path) -> Origin | None:
    """The origin of a pulled folder or file. None: it was not pulled."""
    return read_record(origin_file(path), Origin)


def write_origin(path: Path, origin: Origin) -> None:
    origin_file(path).write_bytes(msgspec.json.encode(origin))


def origin_file(path: Path) -> Path:
    """In a folder, or next to a file."""
    return path / ORIGIN_FILE if path.is_dir() else path.with_name(f".{path.name}{ORIGIN_FILE}")
