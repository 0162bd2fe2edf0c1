"""The tables of docs/reliability.md name existing tests."""

from __future__ import annotations

import pytest

from tests.support.paths import ROOT, TESTS
from tests.system.test_compatibility import TEST, named_in

PAGE = ROOT / "docs" / "reliability.md"


@pytest.mark.parametrize(("file", "name"), sorted(set(TEST.findall(PAGE.read_text(encoding="utf-8")))))
def test_named_test_exists(file: str, name: str) -> None:
    assert (TESTS / file).is_file() and name in named_in(TESTS / file), f"there is no tests/{file}::{name}"


def test_every_device_fault_names_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    faults = rows[: next(i for i, line in enumerate(rows) if line.startswith("| run "))]
    assert len(faults) > 5 and all(TEST.search(line) for line in faults[1:])
