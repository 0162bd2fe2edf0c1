"""What a model server listed, kept for a day, or for an hour if something is missing. The file may be removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from gateway.bundles.json_file import read_record, write_record
from gateway.pull.catalog.ai_hub import Listed
from gateway.pull.catalog.entry import Entry
from gateway.pull.catalog.fetch import Unreadable

FRESH_S = 24 * 3600.0
FRESH_WITH_GAPS_S = 3600.0  # of a list from which something is missing
_FORM = 1  # of the file; another form is read again from the server


class _Kept(Struct, frozen=True):
    form: int
    server: str
    time_s: float  # since 1970
    entries: list[Entry]
    problems: list[str]


class Answer(Struct, frozen=True):
    """`problem`: why the server could not be read, "" if it could. `age_s`: of entries from the file, 0 if new."""

    entries: list[Entry]
    problems: list[str]
    problem: str = ""
    next_step: str = ""
    age_s: float = 0.0


def kept_or_read(file: Path, server: str, read: Callable[[], Listed], *, refresh: bool, now_s: float) -> Answer:
    """The entries of the file if it is of today, else those of the server, else those of an older file."""
    kept = read_record(file, _Kept)
    if kept and (kept.form, kept.server) != (_FORM, server):
        kept = None
    age_s = now_s - kept.time_s if kept else 0.0
    if kept and not refresh and 0 <= age_s < (FRESH_WITH_GAPS_S if kept.problems else FRESH_S):
        return Answer(kept.entries, kept.problems, age_s=age_s)
    try:
        listed = read()
    except Unreadable as error:
        entries = kept.entries if kept else []
        return Answer(entries, [], problem=str(error), next_step=error.next_step, age_s=age_s)
    write_record(file, _Kept(_FORM, server, now_s, listed.entries, listed.problems))
    return Answer(listed.entries, listed.problems)
