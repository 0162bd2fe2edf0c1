"""The usage of the last days as a report: totals, and by day, model and key."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import asdict

from gateway.monitoring.usage.counts import Cell, Counts, quantile

MAX_DAYS = 3660
DIMENSIONS = ("day", "model", "key")


class Usage(Struct, frozen=True, kw_only=True):
    """The requests of a day, a model or a key. Times in milliseconds; None: no answer had a first token, or a second.

    Args:
        name: the day "2026-11-30" in the gateway's time zone, the model or the key; "": see `UsageReport`.
        refused: before an answer began: breaker open, queue full, model not ready, a wrong request.
        failed: while the answer was made.
        endings: requests by finish reason or error code.
    """

    name: str = ""
    requests: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    per_token_p50_ms: float | None = None
    per_token_p95_ms: float | None = None
    endings: dict[str, int] = {}


class UsageRow(Usage, frozen=True, kw_only=True):
    """The requests of a day, a model and a key together. None: of all days, models or keys. `name` is empty."""

    day: str | None = None
    model: str | None = None
    key: str | None = None


class UsageReport(Struct, frozen=True, kw_only=True):
    """The body of /gateway/usage.

    Args:
        days: that were requested; today is one of them.
        since: the first day.
        by_day: the days with requests, the newest first.
        by_model: the most used first. "": requests for a model that does not exist.
        by_key: by the name of the API key, the most used first. "": requests without a key.
        rows: by all that `by` names together, the newest day first, then the most used; empty without `by`.
    """

    days: int
    since: str
    total: Usage
    by_day: list[Usage]
    by_model: list[Usage]
    by_key: list[Usage]
    rows: list[UsageRow] = []


class Selection(NamedTuple):
    """What a report is about.

    Args:
        by: what `rows` are grouped by, of DIMENSIONS.
        model, key: only requests of this one; None: of all.
    """

    by: tuple[str, ...] = ()
    model: str | None = None
    key: str | None = None


_ALL = Selection()


def dimensions_of(text: str) -> tuple[str, ...]:
    """`day,model` as names of DIMENSIONS, each once. Raises ValueError: the first other name."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in DIMENSIONS]:
        raise ValueError(unknown[0])
    return tuple(dict.fromkeys(names))


def first_hour(days: int, now: float) -> int:
    """The hour since 1970 when the first of the last `days` days began, in local time. Today is one of them."""
    today = time.localtime(now)
    try:
        start = time.mktime((today.tm_year, today.tm_mon, today.tm_mday - days + 1, 0, 0, 0, 0, 0, -1))
    except (OverflowError, ValueError):  # before 1970
        return 0
    return max(0, int(start // 3600))


def report_of(rows: Mapping[Cell, Counts], days: int, now: float, selection: Selection = _ALL) -> UsageReport:
    """The report of rows from `first_hour(days, now)` on. Days after tomorrow are from a clock that was wrong."""
    rows = {cell: counts for cell, counts in rows.items() if cell.hour <= now // 3600 + 24 and _is_in(cell, selection)}
    return UsageReport(
        days=days,
        since=_day(first_hour(days, now)),
        total=_total(rows),
        by_day=sorted(_grouped(rows, lambda cell: _day(cell.hour)), key=lambda usage: usage.name, reverse=True),
        by_model=sorted(_grouped(rows, lambda cell: cell.model), key=_busiest_first),
        by_key=sorted(_grouped(rows, lambda cell: cell.key), key=_busiest_first),
        rows=_joined(rows, selection.by) if selection.by else [],
    )


def _is_in(cell: Cell, selection: Selection) -> bool:
    return selection.model in (None, cell.model) and selection.key in (None, cell.key)


def _joined(rows: Mapping[Cell, Counts], by: tuple[str, ...]) -> list[UsageRow]:
    """One row for each combination that has requests."""
    days: dict[int, str] = {}  # to format a day takes longer than all else
    groups: dict[tuple[str, ...], Counts] = {}
    for cell, counts in rows.items():
        values = {"model": cell.model, "key": cell.key}
        if "day" in by:
            values["day"] = days.get(cell.hour) or days.setdefault(cell.hour, _day(cell.hour))
        groups.setdefault(tuple(values[name] for name in by), Counter()).update(counts)
    found = [
        UsageRow(**asdict(_usage("", counts)) | dict(zip(by, group, strict=True))) for group, counts in groups.items()
    ]
    found.sort(key=lambda row: (-row.requests, row.model or "", row.key or ""))
    return sorted(found, key=lambda row: row.day or "", reverse=True)


def _total(rows: Mapping[Cell, Counts]) -> Usage:
    [usage] = _grouped(rows, lambda cell: "") or [Usage()]
    return usage


def _busiest_first(usage: Usage) -> tuple[int, str]:
    return -usage.requests, usage.name


def _day(hour: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(hour * 3600))


def _grouped(rows: Mapping[Cell, Counts], name_of: Callable[[Cell], str]) -> list[Usage]:
    groups: dict[str, Counts] = {}
    for cell, counts in rows.items():
        groups.setdefault(name_of(cell), Counter()).update(counts)
    return [_usage(name, counts) for name, counts in groups.items()]


def _usage(name: str, counts: Counts) -> Usage:
    sums = {key: counts[key] for key in Usage.__struct_fields__ if key in counts}
    return Usage(
        name=name,
        ttft_p50_ms=quantile(counts, "ttft", 0.5),
        ttft_p95_ms=quantile(counts, "ttft", 0.95),
        per_token_p50_ms=quantile(counts, "token", 0.5),
        per_token_p95_ms=quantile(counts, "token", 0.95),
        endings={key.removeprefix("ending "): number for key, number in counts.items() if key.startswith("ending ")},
        **sums,
    )
