"""Keywords that say nothing are left out; the schema of a tool that is not strict is loosened."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.dialects import lark
from gateway.generation import TOOL, Grammar, Tool
from gateway.worker.grammar.json_schema import OPTIONS, prepare
from gateway.worker.grammar.library import ByteVocabulary, matcher_of
from gateway.worker.grammar.trial import Trial, first_error, read

VOCABULARY = ByteVocabulary(300, {})
TOKENIZER = VOCABULARY.tokenizer()
NUMBERS = {"type": "object", "additionalProperties": {"type": "integer"}}


def trial(source: str, kind: Any = "lark") -> Trial:
    return read(Grammar(kind=kind, source=source, param="tools"), lambda text: first_error(TOKENIZER, text))


def accepts(grammar: str, text: str) -> bool:
    matcher, ids = matcher_of(TOKENIZER, grammar), VOCABULARY(text)
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


def forced(*tools: Tool) -> Trial:
    """The grammar of a required call of one of `tools`."""
    rules = lark.call_rules(tools, lambda name, rule: lark.json_call(name, rule, "arguments"), all_strict=True)
    return trial(f"start: call\n{rules}")


def call(arguments: Any, name: str = "f") -> str:
    return json.dumps({"name": name, "arguments": arguments})


@pytest.mark.parametrize(
    "keyword",
    [
        {"propertyNames": {"type": "string"}},
        {"propertyNames": {"type": "string", "description": "a name"}},
        {"propertyNames": {}},
        {"propertyNames": True},
        {"$comment": "x"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://a.example/b"},
        {"title": "t", "description": "d", "default": {}, "examples": [{}], "deprecated": True},
        {"readOnly": True, "writeOnly": False, "contentEncoding": "base64", "contentMediaType": "text/plain"},
        {"format": "unknown-format", "nullable": True, "x-order": 1, "example": {}},
        {"if": {"required": ["a"]}},
        {"then": {"required": ["a"]}},
        {"minContains": 2},
        {"uniqueItems": False},
        {"dependentRequired": {}, "dependentSchemas": {}},
        {"unevaluatedProperties": False},
        {"unevaluatedItems": True},
    ],
    ids=str,
)
def test_keyword_without_an_effect_is_accepted(keyword: Any) -> None:
    made = trial(
        json.dumps({"type": "object", "properties": {"a": NUMBERS | keyword}, "required": ["a"]}), "json_schema"
    )
    assert made.error == ""
    assert accepts(made.grammar, '{"a": {"x": 1}}') and not accepts(made.grammar, '{"a": {"x": "1"}}')


@pytest.mark.parametrize(
    ("names", "inside", "outside"),
    [
        ({"pattern": "^[a-c]+$"}, ["abc"], ["abd"]),
        ({"type": "string", "enum": ["x", "y.z"]}, ["x", "y.z"], ["yaz", "xx"]),
        ({"const": "x"}, ["x"], ["y"]),
    ],
    ids=str,
)
def test_rule_for_property_names_is_enforced(names: Any, inside: Sequence[str], outside: Sequence[str]) -> None:
    made = trial(json.dumps(NUMBERS | {"propertyNames": names}), "json_schema")
    assert made.error == ""
    assert [accepts(made.grammar, json.dumps({name: 1})) for name in inside] == [True] * len(inside)
    assert [accepts(made.grammar, json.dumps({name: 1})) for name in outside] == [False] * len(outside)
    assert not accepts(made.grammar, json.dumps({inside[0]: "1"}))


@pytest.mark.parametrize(
    "names",
    [{"maxLength": 3}, False, {"type": "integer", "pattern": "^a"}, {"const": "x", "enum": ["y"]}],
    ids=str,
)
def test_other_rule_for_property_names_is_refused(names: Any) -> None:
    assert trial(json.dumps(NUMBERS | {"propertyNames": names}), "json_schema").error.endswith(
        'unsupported keywords: "propertyNames"'
    )


def test_unevaluated_properties_close_a_schema_that_stands_alone() -> None:
    closed = {"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}
    assert prepare(closed)["additionalProperties"] is False
    combined = trial(json.dumps({"allOf": [{"type": "object"}], "unevaluatedProperties": False}), "json_schema")
    assert "unevaluatedProperties" in combined.error


UNENFORCEABLE: dict[str, Any] = {
    "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "not": {"type": "integer", "not": {"const": 3}},
    "if": {"type": "integer", "if": {"minimum": 3}, "then": {"maximum": 5}},
    "contains": {"type": "array", "contains": {"const": 1}},
    "look-around": {"type": "string", "pattern": "^(?!x)a+$"},
    "regex": {"type": "string", "format": "regex"},
    "oneOf": {"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]},
    "reference": {"$ref": "https://a.example/b.json"},
    "multipleOf": {"type": "number", "multipleOf": 0.07},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "minProperties": {"type": "object", "minProperties": 4},
}


@pytest.mark.parametrize("inner", UNENFORCEABLE.values(), ids=UNENFORCEABLE)
def test_required_call_of_a_tool_that_is_not_strict_keeps_what_can_be_enforced(inner: Any) -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}, "x": inner}, "required": ["n"]}
    made = forced(Tool(name="f", parameters=parameters), Tool(name="g"))
    assert made.error == ""
    assert accepts(made.grammar, call({"n": 1})) and accepts(made.grammar, call({}, "g"))
    assert not accepts(made.grammar, call({"n": "1"})) and not accepts(made.grammar, call({})), "the rest is enforced"
    assert not accepts(made.grammar, '"text"') and not accepts(made.grammar, call({"n": 1}, "h")), (
        "the call is enforced"
    )


def test_list_without_unique_items_stays_a_list_of_integers() -> None:
    parameters = {"type": "object", "properties": {"x": UNENFORCEABLE["uniqueItems"]}, "required": ["x"]}
    made = forced(Tool(name="f", parameters=parameters))
    assert accepts(made.grammar, call({"x": [1, 1]})) and not accepts(made.grammar, call({"x": ["a"]}))


@pytest.mark.parametrize(
    ("inner", "kept", "refused"),
    [
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}, "aa", 1),
        ({"type": "string", "pattern": "^(?!x)a+$", "minLength": 2}, "xb", "x"),
        ({"type": "string", "pattern": r"\bfoo\b"}, "foo", 1),
        ({"type": "string", "pattern": r"^(a)\1$"}, "aa", 1),
    ],
    ids=str,
)
def test_answer_that_is_not_strict_keeps_the_rest_of_its_schema(inner: Any, kept: Any, refused: Any) -> None:
    for schema, wrapped in ((inner, lambda value: value), ({"properties": {"a": inner}}, lambda value: {"a": value})):
        made = trial(json.dumps(schema | {TOOL: {"strict": False}}), "json_schema")
        assert made.error == ""
        assert accepts(made.grammar, json.dumps(wrapped(kept))) and not accepts(
            made.grammar, json.dumps(wrapped(refused))
        )


@pytest.mark.parametrize("inner", UNENFORCEABLE.values(), ids=UNENFORCEABLE)
def test_error_of_a_strict_tool_names_the_tool_and_the_path(inner: Any) -> None:
    parameters = {"type": "object", "properties": {"x": inner}}
    error = forced(Tool(name="g"), Tool(name="f", parameters=parameters, strict=True)).error
    assert error.startswith("in the schema of the tool 'f', at '#/properties/x")


@pytest.mark.parametrize("inner", [{"type": "hiccup"}, {"$ref": "#/$defs/none"}, {"pattern": "("}, {"minimum": "1"}])
def test_wrong_schema_is_refused_also_if_the_tool_is_not_strict(inner: Any) -> None:
    error = forced(Tool(name="f", parameters={"type": "object", "properties": {"x": inner}})).error
    assert error.startswith("in the schema of the tool 'f', at '#/properties/x")


def test_schema_of_an_answer_that_is_not_strict_is_loosened() -> None:
    schema = {"type": "object", "properties": {"x": UNENFORCEABLE["not"]}, "required": ["x"]}
    loose = trial(json.dumps(schema | {TOOL: {"strict": False}}), "json_schema")
    assert accepts(loose.grammar, '{"x": 3}') and not accepts(loose.grammar, '{"x": "3"}')
    assert trial(json.dumps(schema), "json_schema").error.startswith("at '#/properties/x'")


def test_marker_does_not_reach_the_library() -> None:
    made = forced(Tool(name="f", parameters=NUMBERS, strict=True))
    assert made.error == "" and TOOL not in made.grammar
    assert prepare(NUMBERS) == NUMBERS | {"x-guidance": OPTIONS}
