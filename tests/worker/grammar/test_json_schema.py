"""The preparation of schemas for the library, and the errors of bad schemas."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import pytest

from gateway.worker.grammar.json_schema import OPTIONS, prepare
from gateway.worker.grammar.schema_shape import SchemaError

WORD = {"type": "string"}


def prepared(schema: Any) -> Any:
    result = prepare(schema)
    assert result.pop("x-guidance") == OPTIONS
    return result


def message(schema: Any) -> str:
    with pytest.raises(SchemaError) as caught:
        prepare(schema)
    return str(caught.value)


def test_object_with_properties_is_closed() -> None:
    inner = {"properties": {"b": WORD}}
    found = prepared({"type": "object", "properties": {"a": inner}, "$defs": {"x": inner}})
    assert found["additionalProperties"] is False
    assert found["properties"]["a"]["additionalProperties"] is False
    assert found["$defs"]["x"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": WORD}, "additionalProperties": WORD},
        {"type": "object", "properties": {"a": WORD}, "patternProperties": {"^x": WORD}},
        {"type": "object", "properties": {"a": WORD}, "required": ["a", "z"]},
        {"type": "object", "properties": {"a": WORD}, "minProperties": 1},
        {"allOf": [{"properties": {"a": WORD}}, {"properties": {"b": WORD}}]},
        {"$ref": "#/$defs/x", "properties": {"a": WORD}, "$defs": {"x": {"properties": {"b": WORD}}}},
        {"anyOf": [{"required": ["b"]}], "properties": {"a": WORD}},
        {"oneOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": WORD}}]},
    ],
    ids=json.dumps,
)
def test_object_stays_open_if_closing_could_contradict(schema: Any) -> None:
    assert prepared(schema) == schema


def test_missing_type_follows_from_properties_and_items() -> None:
    found = prepared({"properties": {"a": {"items": WORD}, "b": {"enum": [1], "items": WORD}, "c": {"minimum": 1}}})
    assert found["type"] == "object" and found["properties"]["a"]["type"] == "array"
    assert "type" not in found["properties"]["b"] and "type" not in found["properties"]["c"]
    untyped = {"anyOf": [{"type": "null"}], "items": WORD}
    assert prepared(untyped) == untyped


def test_prepare_does_not_change_its_argument() -> None:
    schema = {"properties": {"a": {"format": "date", "uniqueItems": False, "x-guidance": {"lenient": True}}}}
    before = json.dumps(schema)
    found = prepared(schema)
    assert json.dumps(schema) == before
    assert found["properties"]["a"].keys() == {"pattern"}


def test_property_names_equal_to_keywords_are_names() -> None:
    names = {"properties": WORD, "items": WORD, "$ref": WORD, "format": {"format": "date-time"}, "enum": WORD}
    found = prepared({"properties": names})["properties"]
    assert found.keys() == names.keys() and found["items"] == WORD


def test_true_schema_permits_any_value() -> None:
    assert prepared(True) == {} == prepared({})


def test_format_and_pattern_are_both_kept() -> None:
    found = prepared({"format": "date", "pattern": "^20", "allOf": [WORD]})
    assert found["pattern"] == "^20"
    assert found["allOf"][0] == WORD and found["allOf"][1].keys() == {"pattern"}


@pytest.mark.parametrize("name", ["int32", "binary", "credit-card"])
def test_undefined_format_is_removed(name: str) -> None:
    assert prepared({"type": "string", "format": name}) == {"type": "string"}


def test_date_pattern_equals_calendar() -> None:
    pattern = re.compile(prepared({"format": "date"})["pattern"])
    days = {f"{y:04}-{m:02}-{d:02}" for y in range(2100) for m in range(14) for d in range(33)}
    for day in days:
        try:
            datetime.date.fromisoformat(day)
        except ValueError:
            assert not pattern.match(day), day
        else:
            assert pattern.match(day), day


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("2024-02-29T23:59:59Z", True),
        ("2024-02-29T00:00:00.5+05:30", True),
        ("2023-02-29T00:00:00Z", False),
        ("2024-01-01T00:00:60Z", False),
        ("2024-01-01T24:00:00Z", False),
        ("2024-01-01T00:00:00", False),
    ],
)
def test_date_time_pattern(text: str, fits: bool) -> None:
    assert bool(re.match(prepared({"format": "date-time"})["pattern"], text)) is fits


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (False, "nothing matches the schema `false`"),
        (3, "a JSON schema is an object, not 3"),
        (["a"], 'a JSON schema is an object, not ["a"]'),
        ({"properties": {"a": {"format": "regex"}}}, "at '#/properties/a': the format 'regex' cannot be enforced"),
        ({"items": {"minProperties": 2}}, "at '#/items': 'minProperties' cannot be above"),
        ({"anyOf": [WORD, {"const": 2**63 + 1}]}, "at '#/anyOf/1/const': the number 9223372036854775809 has more"),
        ({"enum": [{"a": [0.1 + 0.2]}]}, "at '#/enum': the number 0.30000000000000004 has more digits"),
        ({"const": 10**400}, "at '#/const': the number 1000"),
        ({"$defs": {"a/b": {"multipleOf": 0.07}}}, "at '#/$defs/a~1b/multipleOf': the number 0.07 has no exact"),
        ({"items": {"multipleOf": 65537}, "multipleOf": 65539}, "'multipleOf' numbers are too large together"),
        ({"prefixItems": [{"$ref": "#/$defs/x"}]}, "at '#/prefixItems/0/$ref': there is nothing at '#/$defs/x'"),
        ({"$ref": "https://a.example/b.json"}, "is outside the schema, and the gateway fetches nothing"),
        ({"properties": {"a": {"$ref": 3}}}, "at '#/properties/a/$ref': '$ref' must be a string, not 3"),
    ],
    ids=str,
)
def test_unenforceable_keyword_is_refused_with_path(schema: Any, expected: str) -> None:
    assert expected in message(schema)


@pytest.mark.parametrize("target", ["#", "#/$defs/a~1b", "#/$defs/a%20b", "#/$defs/list/0", "#anchor"])
def test_reference_to_existing_part_is_accepted(target: str) -> None:
    prepare({"items": {"$ref": target}, "$defs": {"a/b": {"$anchor": "anchor"}, "a b": {}, "list": [{}]}})


def test_multiples_within_32_bits_are_accepted() -> None:
    prepare({"items": {"multipleOf": 0.01}, "multipleOf": 0.25, "prefixItems": [{"multipleOf": 60}]})


def test_deep_schema_is_refused() -> None:
    schema: Any = {}
    for _ in range(5000):
        schema = {"items": schema}
    assert message(schema) == "it is nested too deeply"
