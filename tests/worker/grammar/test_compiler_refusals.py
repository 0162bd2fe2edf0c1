"""Grammars that the compiler refuses, and the reason in the error message."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.generation import Grammar
from gateway.worker.grammar.compiler import MAX_CHARACTERS, GrammarCompiler
from tests.support.structured import Schema, lark, regex, schema_grammar


def refusal(grammars: GrammarCompiler, grammar: Grammar) -> str:
    with pytest.raises(InvalidRequest) as caught:
        grammars.compile(grammar)
    assert caught.value.param == grammar.param
    return caught.value.message


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "hiccup"}, "Invalid type: hiccup"),
        ({"properties": {"a": {"type": "hiccup"}}}, "at '#/properties/a': Invalid type: hiccup"),
        (
            {"properties": {"a": {"items": {"not": {}, "uniqueItems": True}}}},
            """at '#/properties/a/items': unsupported keywords: "not", "uniqueItems\"""",
        ),
        ({"items": {"pattern": "(a"}}, "at '#/items': the regular expression is not supported: unclosed group"),
        ({"items": {"pattern": "(?=a)b"}}, "look-around"),
        ({"$ref": "#/$defs/x"}, "there is nothing at '#/$defs/x'"),
        ({"$ref": "#"}, "no token can follow"),
        ({"required": "a"}, "at '#/required': 'required' must be a list of strings, not \"a\""),
        ({"minimum": 5, "maximum": 3, "type": "integer"}, "minimum (5) is greater than maximum (3)"),
        ({"anyOf": [{"oneOf": [{"type": "string"}, {"minLength": 3}]}]}, "oneOf"),
        (False, "nothing matches the schema `false`"),
        (
            {"properties": {f"p{i}": {} for i in range(1000)}},
            "it has too many possible continuations at one position",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_schema_is_refused_with_reason(grammars: GrammarCompiler, schema: Any, what: str) -> None:
    message = refusal(grammars, schema_grammar(schema))
    assert message.startswith("The JSON schema cannot be used: ") and what in message and "\n" not in message


@pytest.mark.parametrize("source", ["{", "", "nonsense", "[" * 100_000])
def test_schema_that_is_not_json_is_refused(grammars: GrammarCompiler, source: str) -> None:
    assert "it is not JSON" in refusal(grammars, Grammar(kind="json_schema", source=source, param="p"))


def test_too_deep_schema_is_refused(grammars: GrammarCompiler) -> None:
    schema: Schema = {}
    for _ in range(200):
        schema = {"items": schema}
    assert "recursion limit" in refusal(grammars, schema_grammar(schema))


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("(a", "the regular expression is not supported: unclosed group"),
        ("(?=a)", "look-around"),
        ("(" * 5000 + "a" + ")" * 5000, "exceed the maximum number of nested"),
    ],
)
def test_bad_regex_is_refused_with_reason(grammars: GrammarCompiler, source: str, what: str) -> None:
    message = refusal(grammars, regex(source))
    assert what in message and len(message) < 300


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("", "no start rule found"),
        ("start: a", 'unknown name: "a"'),
        ('start: "a', "lexer error"),
        ("start: start", "no token can follow"),
        ("start: <|nope|>", 'unknown special token: "<|nope|>"'),
        ("start: %json x", "the text after %json is not JSON"),
        ('start: %json {"items": {"type": "hiccup"}}', "at '#/items': Invalid type: hiccup"),
        ('start: %json {"items": {"$ref": "#/x"}}', "at '#/items/$ref': there is nothing at '#/x'"),
        ('root ::= ("a"', "Expected ')'"),
        ("start: " + "(" * 5000, "too deeply nested"),
    ],
)
def test_bad_lark_grammar_is_refused_with_reason(grammars: GrammarCompiler, source: str, what: str) -> None:
    assert what in refusal(grammars, lark(source))


def test_too_long_grammar_is_refused(grammars: GrammarCompiler) -> None:
    assert str(MAX_CHARACTERS) in refusal(grammars, regex("a" * (MAX_CHARACTERS + 1)))
