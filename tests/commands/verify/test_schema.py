"""The small judge of JSON schemas agrees with a complete one."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from gateway.commands.verify.schema import misfit

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "b": {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}},
        "c": {"type": "object", "properties": {"d": {"type": "boolean"}}, "required": ["d"]},
    },
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1}, {"a": True}, {"a": 1.5}, {"a": "1"}, {}, [], None, "x", {"a": 1, "z": 1}, {"a": 1, "b": ["x", "y"]},
        {"a": 1, "b": ["x", "z"]}, {"a": 1, "b": [1]}, {"a": 1, "b": {}}, {"a": 1, "c": {"d": True}},
        {"a": 1, "c": {"d": 1}}, {"a": 1, "c": {}}, {"a": 1, "c": {"d": False, "e": 2}},
    ],
    ids=str,
)  # fmt: skip
def test_verdict_is_that_of_a_complete_validator(value: Any) -> None:
    assert (not misfit(value, SCHEMA)) == jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
