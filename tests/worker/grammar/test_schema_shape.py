"""Every keyword with every wrong type, at every depth: the schema compiles, or is refused with a path."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.worker.grammar.json_schema import prepare
from gateway.worker.grammar.library import ByteVocabulary, error_of, matcher_of
from gateway.worker.grammar.schema_shape import SchemaError, check_shape
from gateway.worker.grammar.trial import first_error, read
from tests.support.structured import SCHEMAS, schema_grammar

KEYWORDS = [
    "$ref", "$id", "id", "$schema", "$anchor", "$defs", "definitions", "format", "pattern", "minLength",
    "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const", "anyOf", "allOf", "oneOf",
    "prefixItems", "items", "additionalItems", "additionalProperties", "properties", "patternProperties",
    "required", "type", "uniqueItems", "title", "description", "default", "examples", "deprecated",
    "readOnly", "not", "if", "then", "else", "contains", "propertyNames", "dependentSchemas", "x-guidance",
    "unknown",
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, 10**30, 2**64, "", "x", "#", "#/$defs/a", "#/properties/9999999999999/\u0661",
    "(", "date", "\ud800", [], {}, [[]], [None], ["a", 1], [{}], {"a": 1}, {"a": None}, {"a": ["b"]}, [["date"]],
    {"type": ["object", {}]}, [{"format": ["date"]}], {"x": {"required": "x"}}, [float("nan")], float("inf"),
]  # fmt: skip

ERROR = "at '#"
VOCABULARY = ByteVocabulary(384, {1: "<|im_start|>"})
TOKENIZER = VOCABULARY.tokenizer()


def positions(schema: Any) -> list[Any]:
    """All objects in a schema, also those that are no schemas."""
    inside = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return [schema] * isinstance(schema, dict) + [each for value in inside for each in positions(value)]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    schema = json.loads(json.dumps(draw(st.sampled_from(list(SCHEMAS.values())))))
    for _ in range(draw(st.integers(1, 3))):
        draw(st.sampled_from(positions(schema)))[draw(st.sampled_from(KEYWORDS))] = deepcopy(
            draw(st.sampled_from(VALUES))
        )
    return schema


def outcome(schema: Any) -> str:
    """The error message, with the library's own compiler; "" if the schema compiles."""
    return read(schema_grammar(schema), lambda grammar: first_error(TOKENIZER, grammar)).error


@settings(max_examples=600, derandomize=True)
@given(mutated())
def test_mutated_schema_compiles_or_is_refused_with_its_path(schema: Any) -> None:
    error = outcome(schema)
    assert error == "" or error.startswith((ERROR, "it is not JSON")), error


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"properties": {"p": {"anyOf": [s]}}}], ids=["root", "nested"])
def test_keyword_takes_or_refuses_every_value(keyword: str, wrap: Any) -> None:
    for value in VALUES:
        error = outcome(wrap({keyword: value}))
        assert error == "" or error.startswith((ERROR, "it is not JSON")), (value, error)


def test_wrong_type_is_named_with_keyword_and_value() -> None:
    with pytest.raises(SchemaError) as caught:
        check_shape({"properties": {"a/b": {"items": {"format": ["date"] * 100}}}})
    message = str(caught.value)
    assert message.startswith("at '#/properties/a~1b/items/format': 'format' must be a string, not [\"date\", ")
    assert len(message) < 200


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": None}, '{"a": 1}', '{"a": "1"}'),
        ({"type": "object", "properties": None, "additionalProperties": None, "enum": None}, '{"a": 1}', "1"),
        ({"type": "string", "pattern": None, "minLength": 2.0, "maxLength": 3.0}, '"abc"', '"abcd"'),
        ({"type": "string", "minLength": 1, "maxLength": 2**53 - 1}, '"a"', '""'),
        ({"type": "array", "items": {"type": "null"}, "minItems": 1.0, "maxItems": 10**20}, "[null]", "[]"),
        ({"const": None, "title": None}, "null", "1"),
    ],
    ids=str,
)
def test_null_keywords_and_odd_counts_are_read(schema: Any, inside: str, outside: str) -> None:
    grammar = json.dumps({"grammars": [{"json_schema": prepare(schema)}]})
    assert not error_of(matcher_of(TOKENIZER, grammar))
    for text, is_right in ((inside, True), (outside, False)):
        matcher, ids = matcher_of(TOKENIZER, grammar), VOCABULARY(text)
        assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == is_right
