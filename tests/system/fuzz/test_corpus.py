"""Runs every fuzz target on the kept inputs (one file each) and on random bytes, without the fuzzer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.choose import DIALECT_NAMES
from tests.system.fuzz.targets import ENDPOINTS, FAMILIES, TARGETS

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*/*"))


def test_corpus_has_every_target_endpoint_and_family() -> None:
    assert {file.parent.name for file in FILES} == set(TARGETS)
    assert {file.read_bytes()[0] % len(ENDPOINTS) for file in FILES if file.parent.name == "requests"} == set(range(6))
    families = {file.read_bytes()[0] % len(FAMILIES) for file in FILES if file.parent.name == "dialects"}
    assert families == set(range(len(FAMILIES)))
    assert set(FAMILIES) == set(DIALECT_NAMES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_corpus_input_holds(file: Path) -> None:
    TARGETS[file.parent.name](file.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
@given(st.binary(max_size=200))
def test_random_bytes_hold(target: str, data: bytes) -> None:
    TARGETS[target](data)
