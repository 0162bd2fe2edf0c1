"""The small list of models without an index, and published speeds of models that AI Hub's index has no speed for."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from gateway.pull.catalog.entry import Entry, same_key
from gateway.pull.sources import Sources

_FILE = Path(__file__).with_name("listed.json")


class _Speed(Struct, frozen=True):
    name: str
    chip: str
    tokens_per_s: float
    ttft_ms: tuple[float, float] | None = None


class _Listed(Struct, frozen=True, forbid_unknown_fields=True):
    entries: list[Entry]
    speeds: list[_Speed]


def listed_entries(sources: Sources) -> list[Entry]:
    """The models of the list, with the addresses of these servers."""
    servers = asdict(sources)
    return [
        replace(entry, url=entry.url.format(**servers), export=entry.export.format(**servers))
        for entry in _read().entries
    ]


def with_speed(entry: Entry) -> Entry:
    """The entry with its published speed, if it has none. X Plus gets none: nothing is published for it."""
    if entry.tokens_per_s is not None:
        return entry
    for speed in _read().speeds:
        if speed.chip == entry.chip and same_key(speed.name) == same_key(entry.title):
            return replace(entry, tokens_per_s=speed.tokens_per_s, ttft_ms=speed.ttft_ms)
    return entry


@cache
def _read() -> _Listed:
    return msgspec.json.decode(_FILE.read_bytes(), type=_Listed)
