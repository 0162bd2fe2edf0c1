"""The published speed of a model that is on the disk, without a request to a server."""

from __future__ import annotations

import re
import time
from importlib.resources.abc import Traversable
from pathlib import Path

from gateway.bundles.identify import identify
from gateway.pull.catalog.ai_hub import Listed
from gateway.pull.catalog.entry import Entry, same_key
from gateway.pull.catalog.fetch import Unreadable
from gateway.pull.catalog.kept import kept_or_read
from gateway.pull.catalog.listed import listed_entries, with_speed
from gateway.pull.sources import find_sources
from gateway.qnn.chips import Chip

_NAME = re.compile(rb'"?model_(?:name|id)"?\s*:\s*["\']?([\w. -]{1,100})')
_START = 64 * 1024  # bytes of the metadata that have the name


def published_speed(root: Traversable, name: str, chip: Chip, cache: Path) -> float | None:
    """Tokens per second that are published for the model on the chip; None: nothing is published, or not known here.

    Args:
        root: the bundle: its metadata names the model.
        name: of the bundle, if it has no metadata.
        cache: the folder with the lists of the catalog.
    """
    names = [*_names(identify(root).root), name]
    keys = {same_key(each) for each in names}
    known = [
        entry
        for entry in _known(cache)
        if entry.chip == chip.name and keys & {same_key(entry.title), same_key(entry.id), same_key(entry.name)}
    ]
    made = [Entry(name=each, title=each, id=each, chip=chip.name, source="") for each in names]
    return next((speed for entry in (*known, *made) if (speed := with_speed(entry).tokens_per_s)), None)


def _names(root: Traversable) -> list[str]:
    for file in ("metadata.json", "metadata.yaml"):
        try:
            with root.joinpath(file).open("rb") as opened:
                return [found.decode().strip() for found in _NAME.findall(opened.read(_START))]
        except (OSError, KeyError):
            continue
    return []


def _known(cache: Path) -> list[Entry]:
    """The list in the repository, and what the last `npu-gateway catalog` has read."""
    sources = find_sources()
    kept = kept_or_read(cache / "ai-hub.json", sources.ai_hub, _offline, refresh=False, now_s=time.time())
    return [*listed_entries(sources), *kept.entries]


def _offline() -> Listed:
    raise Unreadable("is not read")
