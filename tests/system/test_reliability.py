"""The tables of docs/reliability.md name existing tests."""

from __future__ import annotations

from tests.support.paths import ROOT
from tests.system.test_compatibility import TEST, missing

PAGE = ROOT / "docs" / "reliability.md"


def test_named_tests_exist() -> None:
    named = set(TEST.findall(PAGE.read_text(encoding="utf-8")))
    assert len(named) > 100
    assert missing(named) == []


def test_every_device_fault_names_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    faults = rows[: next(i for i, line in enumerate(rows) if line.startswith("| run "))]
    assert len(faults) > 5 and all(TEST.search(line) for line in faults[1:])
