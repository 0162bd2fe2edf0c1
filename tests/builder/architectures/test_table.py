"""The table of architectures in docs/models.md: each family, each model of the tests, and tests that exist."""

from __future__ import annotations

import re

from gateway.builder.architectures.find import FAMILIES
from tests.builder.architectures import test_decoder, test_gguf, test_npu
from tests.builder.architectures.test_logits import LIMIT
from tests.builder.graphs import test_static
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
    folders, files, npu = ([name for row in ROWS for name in names(row[column])] for column in (3, 4, 5))
    assert sorted(folders) == sorted(npu) == sorted(CASES)
    assert sorted(files) == sorted(test_gguf.NAMES)
    for row in ROWS:
        assert {CASES[name]["model_type"].removesuffix("_text") for name in names(row[3])} == {row[0]}


def test_errors_are_below_the_limits_of_the_tests() -> None:
    """The tests have the limits, so a figure above one is not what they measure."""
    for row in ROWS:
        for cell, limit, unit in zip(row[3:], (LIMIT, LIMIT, test_npu.LIMIT), (1, 1, 0.01), strict=True):
            assert not names(cell) or float(cell.split()[0]) * unit < limit
    limits = [f"limit in the tests is {LIMIT:g}", f"limit is {test_npu.LIMIT:.0%}", f"less than {test_static.LIMIT:g}"]
    limits.append(f"below {test_decoder.LIMIT:.0%}")
    text = PAGE.replace("1e-4", f"{1e-4:g}").replace("1e-5", f"{1e-5:g}").replace(" %", "%")
    assert all(limit in text for limit in limits), limits


def test_named_tests_exist() -> None:
    named = re.findall(r"`tests/([\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) >= 7
    for file, name in named:
        path = ROOT / "tests" / file
        assert path.is_file() and (not name or f"def {name}(" in path.read_text(encoding="utf-8")), f"{file}::{name}"
