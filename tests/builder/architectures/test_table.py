"""The table of architectures in docs/models.md: each family, each model of the tests, and tests that exist."""

from __future__ import annotations

import re

from gateway.builder.architectures.find import FAMILIES
from tests.builder.architectures.test_gguf import NAMES
from tests.builder.architectures.test_logits import LIMIT
from tests.support.architectures.cases import CASES
from tests.support.paths import ROOT

PAGE = (
    (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("## Architectures\n")[2].partition("\n## ")[0]
)
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")][2:]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_each_family_has_a_row() -> None:
    assert [row[0] for row in ROWS] == [family.name.removesuffix("_text") for family in FAMILIES]


def test_cells_name_every_model_of_the_tests() -> None:
    folders, files = ([name for row in ROWS for name in names(row[column])] for column in (3, 4))
    assert set(folders) >= set(CASES)
    assert {name for row in ROWS for name in names(row[5])} == set(CASES)
    assert set(files) >= set(NAMES)
    for row in ROWS:
        assert {CASES[name]["model_type"].removesuffix("_text") for name in names(row[3]) if name in CASES} <= {row[0]}


def test_named_tests_and_limit_exist() -> None:
    named = re.findall(r"`tests/([\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) >= 6
    for file, name in named:
        path = ROOT / "tests" / file
        assert path.is_file() and (not name or f"def {name}(" in path.read_text(encoding="utf-8"))
    assert f"limit in the tests is {LIMIT:.0e}".replace("e-04", "e-4") in PAGE
