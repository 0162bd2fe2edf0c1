"""Limits of numbers: exact where the library can hold them, else the nearest one outside."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.worker.grammar.json_schema import prepare
from gateway.worker.grammar.library import ByteVocabulary, error_of, matcher_of
from gateway.worker.grammar.numbers import LARGEST, SMALLEST, with_wider_limits

SAFE = 2**53 - 1  # JavaScript's Number.MAX_SAFE_INTEGER
VOCABULARY = ByteVocabulary(300, {})
TOKENIZER = VOCABULARY.tokenizer()


def accepts(schema: Any, text: str) -> bool:
    """True if `text` is a complete answer for the schema."""
    matcher = matcher_of(TOKENIZER, json.dumps({"grammars": [{"json_schema": prepare(schema)}]}))
    assert not error_of(matcher), error_of(matcher)
    ids = VOCABULARY(text)
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        ({"minimum": -SAFE, "maximum": SAFE}, [SAFE, -SAFE, 0], [SAFE + 1, -SAFE - 1]),
        ({"exclusiveMinimum": -SAFE, "exclusiveMaximum": SAFE}, [SAFE - 1, 1 - SAFE], [SAFE, -SAFE]),
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, [2**63 - 1, -(2**63), 7], []),
        ({"minimum": 0, "maximum": 2**64 - 1}, [2**64 - 1, 0], [-1]),
        ({"minimum": 0, "maximum": SAFE + 2}, [SAFE + 2, SAFE + 3], [SAFE + 5]),
        ({"minimum": -1e308, "maximum": 1e308}, [10**20], []),
        ({"minimum": 10**400}, [10**19], [5]),
        ({"minimum": 1, "maximum": 5}, [1, 5], [0, 6]),
    ],
    ids=str,
)
def test_integer_limits_are_exact_or_wider(limits: Any, inside: list[int], outside: list[int]) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"]}
    schema["$defs"] = {"n": {"type": "integer", **limits}}
    assert [accepts(schema, f'{{"a": {number}}}') for number in inside] == [True] * len(inside)
    assert [accepts(schema, f'{{"a": {number}}}') for number in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        ({"maximum": 0.30000000000000004}, ["0.25", "0.30000000000000004"], ["0.4", "0.30000000000000005"]),
        ({"minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}, ["1", "-2.5"], []),
        ({"minimum": 5e-324}, ["0.5", "1"], ["-1"]),
        ({"maximum": float("inf")}, ["3.5"], []),
        ({"minimum": 0.5, "maximum": 1e17}, ["100000000000000000"], ["0.4"]),
    ],
    ids=str,
)
def test_limits_of_numbers_are_exact_or_wider(limits: Any, inside: list[str], outside: list[str]) -> None:
    schema = {"type": "number", **limits}
    assert [accepts(schema, number) for number in inside] == [True] * len(inside)
    assert [accepts(schema, number) for number in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    ("limit", "lower", "upper"),
    [
        (SAFE, SAFE, SAFE),
        (2**56 + 1, None, None),
        (10**30, LARGEST, None),
        (-(10**30), None, -LARGEST),
        (1e-40, 0, SMALLEST),
        (-1e-40, -SMALLEST, 0),
        (0.1, 0.1, 0.1),
    ],
)
def test_limit_moves_only_outwards(limit: float, lower: float | None, upper: float | None) -> None:
    found = with_wider_limits({"minimum": limit, "maximum": limit})
    if limit != 2**56 + 1:
        assert (found.get("minimum"), found.get("maximum")) == (lower, upper)
    assert found.get("minimum", limit) <= limit <= found.get("maximum", limit)


def test_limit_of_draft_4_and_other_keywords_stay() -> None:
    schema = {"maximum": 3, "exclusiveMaximum": True, "const": SAFE, "type": "integer"}
    assert with_wider_limits(schema) == schema
    assert with_wider_limits({"const": None, "maximum": 10**30}) == {"const": None}


@pytest.mark.parametrize("number", [SAFE, -SAFE, 0.5, 123456789012345])
def test_constant_that_is_a_double_is_accepted(number: float) -> None:
    assert accepts({"const": number}, json.dumps(number)) and accepts({"enum": ["a", number]}, json.dumps(number))
