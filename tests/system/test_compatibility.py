"""The table of docs/compatibility.md: its tests exist, its rows are in order."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

from tests.support.paths import ROOT, TESTS

PAGE = ROOT / "docs" / "compatibility.md"
ROW = re.compile(r"^\| *(\d+) *\|([^|]*)\|([^|]*)\|$", re.MULTILINE)
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def rows() -> list[tuple[int, str, str]]:
    found = ROW.findall(PAGE.read_text(encoding="utf-8"))
    return [(int(number), behaviour.strip(), tests) for number, behaviour, tests in found]


@cache
def named_in(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def missing(named: Iterable[tuple[str, str]]) -> list[str]:
    """Those of the tests, each (file, name), that do not exist."""
    return [
        f"tests/{file}::{name}"
        for file, name in sorted(named)
        if not ((TESTS / file).is_file() and name in named_in(TESTS / file))
    ]


def test_each_row_names_existing_tests() -> None:
    for number, behaviour, tests in rows():
        named = TEST.findall(tests)
        assert behaviour and named, f"row {number} names no test"
        assert TEST.sub("", tests).replace("<br>", "").strip() == "", f"row {number}: the last column has tests only"
        assert missing(named) == [], f"row {number}"


def test_rows_are_valid_unique_and_in_order() -> None:
    numbers = [number for number, _, _ in rows()]
    assert numbers and all(before < after for before, after in pairwise(numbers))
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    table = list(takewhile(lambda line: line.startswith("|"), lines[lines.index("|---|---|---|") + 1 :]))
    assert len(table) == len(numbers)
