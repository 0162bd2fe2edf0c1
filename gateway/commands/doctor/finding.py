"""One line of the report, and the causes of trouble in the order in which they are the reason of others."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Level = Literal["ok", "note", "bad"]
Symptom = Literal["refused", "not on the NPU", "slow"]

_REFUSED: frozenset[Symptom] = frozenset({"refused"})
_SLOW: frozenset[Symptom] = frozenset({"slow", "refused"})  # slow answers open the breaker, which refuses
_ONLY_SLOW: frozenset[Symptom] = frozenset({"slow"})
_OFF_NPU: frozenset[Symptom] = frozenset({"not on the NPU", "slow"})
_ALL: frozenset[Symptom] = frozenset({"refused", "not on the NPU", "slow"})

#: cause -> the symptoms that it explains. The first one that was found and explains the symptom is the verdict: an x64
#: Python on an ARM64 machine finds no NPU library either, and a missing driver makes every bundle fail to load.
CAUSES: dict[str, frozenset[Symptom]] = {
    "interpreter": _ALL,
    "libraries": _ALL,
    "driver": _ALL,
    "configuration": _REFUSED,
    "port": _REFUSED,
    "bundle is missing": _REFUSED,
    "bundle is damaged": _REFUSED,
    "bundle is for another chip": _REFUSED | _OFF_NPU,
    "bundle needs a newer runtime": _REFUSED | _OFF_NPU,
    "memory": _SLOW,
    "load": _REFUSED | _OFF_NPU,
    "upstream": _REFUSED,
    "database": _REFUSED,
    "provider": _OFF_NPU,
    "no bundle for the NPU": _OFF_NPU,
    "partly on the CPU": _SLOW | _OFF_NPU,
    "burst": _SLOW,
    "budget": _SLOW,
    "threads": _SLOW,
    "memory pressure": _SLOW,
    "breaker": _REFUSED,
    "power": _ONLY_SLOW,  # as it is now: not a reason of answers before
    "busy": _ONLY_SLOW,
    "context": _ONLY_SLOW,
    "device": _ONLY_SLOW,
    "disk": _REFUSED,
}
SYMPTOMS: tuple[Symptom, ...] = ("refused", "not on the NPU", "slow")


class Finding(Struct, frozen=True):
    """One line of the report. A `bad` one makes the command fail; a `note` does not.

    Args:
        what: the check, for a person.
        cause: a key of `CAUSES`; "": it explains nothing.
        because: the cause in a few words, for the verdict; "": `detail`.
        step: the next step, for the verdict.
        shows: the symptom that is seen here; a bad finding without one shows "refused".
    """

    level: Level
    what: str
    detail: str
    cause: str = ""
    because: str = ""
    step: str = ""
    shows: Symptom | None = None

    @property
    def symptom(self) -> Symptom | None:
        return self.shows or ("refused" if self.level == "bad" else None)
