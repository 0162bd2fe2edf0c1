"""What the fuzzer has found worth keeping is tried again, without the fuzzer; each file is one input."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.system.fuzz.targets import DOORS, FAMILIES, TARGETS

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*/*"))


def test_every_target_has_a_corpus() -> None:
    assert {file.parent.name for file in FILES} == set(TARGETS)
    assert {file.read_bytes()[0] % len(DOORS) for file in FILES if file.parent.name == "requests"} == set(range(6))
    assert {file.read_bytes()[0] % 8 for file in FILES if file.parent.name == "dialects"} == set(range(len(FAMILIES)))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_an_input_of_the_corpus(file: Path) -> None:
    TARGETS[file.parent.name](file.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
@given(st.binary(max_size=200))
def test_any_bytes(target: str, data: bytes) -> None:
    TARGETS[target](data)
