"""What a schema becomes before the library sees it, and how mistakes in one are told."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any, ClassVar

import pytest
from llguidance import LLMatcher

from gateway.worker.grammar.json_schema import OPTIONS, SchemaError, locate, prepare

WORD = {"type": "string"}


def prepared(schema: Any) -> Any:
    result = prepare(schema)
    assert result.pop("x-guidance") == OPTIONS
    return result


def message(schema: Any) -> str:
    with pytest.raises(SchemaError) as caught:
        prepare(schema)
    return str(caught.value)


def test_an_object_that_lists_its_properties_gets_no_others() -> None:
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
def test_an_object_stays_open_where_it_says_so_or_closing_could_contradict(schema: Any) -> None:
    assert prepared(schema) == schema


def test_what_has_properties_is_an_object_and_what_has_items_an_array() -> None:
    found = prepared({"properties": {"a": {"items": WORD}, "b": {"enum": [1], "items": WORD}, "c": {"minimum": 1}}})
    assert found["type"] == "object" and found["properties"]["a"]["type"] == "array"
    assert "type" not in found["properties"]["b"] and "type" not in found["properties"]["c"]
    untyped = {"anyOf": [{"type": "null"}], "items": WORD}
    assert prepared(untyped) == untyped


def test_the_schema_itself_is_left_alone() -> None:
    schema = {"properties": {"a": {"format": "date", "uniqueItems": False, "x-guidance": {"lenient": True}}}}
    before = json.dumps(schema)
    found = prepared(schema)
    assert json.dumps(schema) == before
    assert found["properties"]["a"].keys() == {"pattern"}


def test_property_names_that_are_keywords_are_only_names() -> None:
    names = {"properties": WORD, "items": WORD, "$ref": WORD, "format": {"format": "date-time"}, "enum": WORD}
    found = prepared({"properties": names})["properties"]
    assert found.keys() == names.keys() and found["items"] == WORD


def test_true_is_any_value() -> None:
    assert prepared(True) == {} == prepared({})


def test_a_format_beside_a_pattern_keeps_both() -> None:
    found = prepared({"format": "date", "pattern": "^20", "allOf": [WORD]})
    assert found["pattern"] == "^20"
    assert found["allOf"][0] == WORD and found["allOf"][1].keys() == {"pattern"}


@pytest.mark.parametrize("name", ["int32", "binary", "credit-card"])
def test_a_format_that_nobody_defines_is_an_annotation(name: str) -> None:
    assert prepared({"type": "string", "format": name}) == {"type": "string"}


def test_dates_are_days_of_the_calendar() -> None:
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
def test_moments_are_moments(text: str, fits: bool) -> None:
    assert bool(re.match(prepared({"format": "date-time"})["pattern"], text)) is fits


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (False, "nothing matches the schema `false`"),
        (3, "a JSON schema is an object, not 3"),
        (["a"], 'a JSON schema is an object, not ["a"]'),
        ({"properties": {"a": {"format": "regex"}}}, "at '#/properties/a': the format 'regex' cannot be enforced"),
        ({"items": {"minProperties": 2}}, "at '#/items': 'minProperties' cannot be more than"),
        ({"anyOf": [WORD, {"const": 2**63 + 1}]}, "at '#/anyOf/1/const': the number 9223372036854775809 has more"),
        ({"enum": [{"a": [0.1 + 0.2]}]}, "at '#/enum': the number 0.30000000000000004 has more digits"),
        ({"maximum": 10**400}, "at '#/maximum': the number 1000"),
        ({"$defs": {"a/b": {"multipleOf": 0.07}}}, "at '#/$defs/a~1b/multipleOf': the number 0.07 cannot be kept"),
        ({"items": {"multipleOf": 65537}, "multipleOf": 65539}, "'multipleOf' numbers are too large together"),
        ({"prefixItems": [{"$ref": "#/$defs/x"}]}, "at '#/prefixItems/0/$ref': there is nothing at '#/$defs/x'"),
        ({"$ref": "https://a.example/b.json"}, "leads out of the schema; nothing is fetched"),
        ({"properties": {"a": {"$ref": 3}}}, "at '#/properties/a': '$ref' is a string"),
    ],
    ids=str,
)
def test_what_could_not_be_kept_is_refused_with_its_path(schema: Any, said: str) -> None:
    assert said in message(schema)


@pytest.mark.parametrize("target", ["#", "#/$defs/a~1b", "#/$defs/a%20b", "#/$defs/list/0", "#anchor"])
def test_references_that_lead_somewhere(target: str) -> None:
    prepare({"items": {"$ref": target}, "$defs": {"a/b": {"$anchor": "anchor"}, "a b": {}, "list": [{}]}})


def test_multiples_that_32_bits_hold() -> None:
    prepare({"items": {"multipleOf": 0.01}, "multipleOf": 0.25, "prefixItems": [{"multipleOf": 60}]})


def test_depth_is_no_crash() -> None:
    schema: Any = {}
    for _ in range(5000):
        schema = {"items": schema}
    assert message(schema) == "it is nested too deeply"


class TestLocate:
    SCHEMA: ClassVar[dict[str, Any]] = {
        "properties": {"a": {"items": {"$ref": "#/$defs/bad"}}, "b": {"type": "hiccup"}},
        "$defs": {"bad": {"anyOf": [{"type": "string"}, {"type": "hiccup"}]}},
    }

    @staticmethod
    def complaint(schema: Any) -> str:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
        return str(LLMatcher.validate_grammar(grammar)).split("\n")[0]

    def test_the_smallest_subschema_that_is_wrong_alone(self) -> None:
        said = self.complaint(self.SCHEMA)
        assert str(locate(self.SCHEMA, said, self.complaint)) == "at '#/$defs/bad/anyOf/1': Invalid type: hiccup"

    def test_another_complaint_is_another_mistake(self) -> None:
        assert str(locate(self.SCHEMA, "All is wrong", self.complaint)) == "All is wrong"

    def test_the_search_is_given_up(self) -> None:
        asked: list[Any] = []

        def complaint(schema: Any) -> str:
            asked.append(schema)
            return ""

        assert str(locate(self.SCHEMA, "Invalid type", complaint, seconds=-1)) == "Invalid type"
        assert asked == []
