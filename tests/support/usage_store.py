"""A usage history in a file, and the numbers of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from gateway.monitoring.usage.counts import Cell, Counts
from gateway.monitoring.usage.store import UsageStore
from gateway.state.sqlite import SqliteDatabase

DAY = 24
NOW = 500_000


def one(hour: int = NOW, model: str = "m", key: str = "k", **numbers: int) -> dict[Cell, Counts]:
    return {Cell(hour, model, key): Counter(numbers or {"requests": 1})}


def store(folder: Path, days: int = 30, **options: int) -> UsageStore:
    return UsageStore(SqliteDatabase(folder / "state.sqlite", busy_s=0.05), days, **options)


def path_of(kept: UsageStore) -> Path:
    return Path(kept.database.label)


def fill(kept: UsageStore, days: int, *, per_day: int = 1) -> None:
    """Numbers of many days, in order."""
    for day in range(days):
        hour = NOW + day * DAY
        kept.add({Cell(hour, f"model-{index}", "k"): Counter(requests=1) for index in range(per_day)})


def total(kept: UsageStore) -> int:
    return sum(counts["requests"] for counts in kept.rows(0).values())
