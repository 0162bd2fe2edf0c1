"""The verdict: one line with the symptom, its first cause and the next step."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gateway.commands.doctor.finding import CAUSES, SYMPTOMS, Finding, Symptom

_ORDER = list(CAUSES)


class Verdict(Struct, frozen=True, kw_only=True):
    """`symptom`: None if nothing is wrong. `cause`: a key of `CAUSES`; "" if none was found."""

    symptom: Symptom | None = None
    cause: str = ""
    because: str = ""
    step: str = ""

    def __str__(self) -> str:
        if self.symptom is None:
            return self.because
        step = f" Next step: {self.step}." if self.step else ""
        return f"{self.symptom[0].upper()}{self.symptom[1:]} because: {self.because}.{step}"


def verdict(findings: Sequence[Finding]) -> Verdict:
    """Take the most severe symptom that was seen, then the first cause that explains it."""
    seen = {finding.symptom for finding in findings}
    symptom = next((each for each in SYMPTOMS if each in seen), None)
    if symptom is None:
        return Verdict(because=_nothing_wrong(findings))
    faults = [finding for finding in findings if finding.cause and finding.level != "ok"]
    causes = [finding for finding in faults if symptom in CAUSES[finding.cause]]
    if not causes:
        shown = next(finding for finding in findings if finding.symptom == symptom)
        return Verdict(symptom=symptom, because=f"{shown.what}: {_short(shown)}", step=_step(shown))
    first = min(causes, key=lambda finding: _ORDER.index(finding.cause))
    return Verdict(symptom=symptom, cause=first.cause, because=_short(first), step=_step(first))


def _short(finding: Finding) -> str:
    return (finding.because or finding.detail).rstrip(".")


def _step(finding: Finding) -> str:
    return finding.step.rstrip(".")


def _nothing_wrong(findings: Sequence[Finding]) -> str:
    """With the measured speed, else with what must be done before it can be measured."""
    texts = [finding.because for finding in findings if finding.because and not finding.cause]
    return f"Nothing is wrong: {texts[-1]}." if texts else "Nothing is wrong that these checks find."
