"""From a client's grammar to the library's: one pass over the text, and the path of an error."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher

from gateway.generation import Grammar
from gateway.worker.grammar.schema_shape import SchemaError
from gateway.worker.grammar.translate import locate, translate, with_prepared_schemas

SCHEMA = '{"type": "integer"}'


def compiles(grammar: str) -> str:
    return ""


@pytest.mark.parametrize(
    ("source", "count"),
    [
        (f"start: %json {SCHEMA}", 1),
        (f"start: %json\n {SCHEMA} %json{SCHEMA}", 2),
        (f'start: "%json {SCHEMA}"', 0),
        (f"start: /%json {SCHEMA}/", 0),
        (f"start: // %json {SCHEMA}\n %json {SCHEMA}", 1),
        (f"start: # %json {SCHEMA}\n %json {SCHEMA}", 1),
        (f'start: "a\n %json {SCHEMA}', 1),
        (f"start: /a\n %json {SCHEMA}", 1),
        ('start: %json {"const": "%json #/"} "b"', 1),
    ],
)
def test_json_is_found_outside_strings_comments_and_expressions(source: str, count: int) -> None:
    text, schemas = with_prepared_schemas(source)
    assert len(schemas) == count == text.count("x-guidance")


#: Sizes of 250 KB, each with a part that a scan could read again from each of its positions.
HOSTILE = {
    "escaped_quotes": 'start: "' + '\\"' * 125_000,
    "quotes_with_backslash": '"\\' * 80_000,
    "open_strings": '"x\n' * 80_000,
    "slashes": "start: /" + "\\/" * 125_000,
    "open_expressions": "/x\n" * 80_000,
    "hashes": "#" * 250_000,
    "json_words": '"%json' * 40_000,
    "many_schemas": "%json {}" * 30_000,
    "spaces": "%json" + " " * 250_000 + "{}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_scan_time_grows_with_length_only(source: str) -> None:
    """In processor time: a linear scan takes under a second, a quadratic one of 250 KB takes minutes."""
    started = time.process_time()
    with suppress(SchemaError):
        with_prepared_schemas(source)
    assert time.process_time() - started < 20


@given(st.text('"\\/%json#\n x{}', max_size=40))
def test_any_text_is_scanned_or_refused(source: str) -> None:
    try:
        text, schemas = with_prepared_schemas(source)
    except SchemaError:
        return
    assert schemas or text == source


def test_error_of_second_schema_has_its_path() -> None:
    def second_fails(grammar: str) -> str:
        return "bad" if "hiccup" in grammar else ""

    source = f'start: %json {SCHEMA} %json {{"items": {{"type": "hiccup"}}}}'
    with pytest.raises(SchemaError, match="at '#/items': bad"):
        translate(Grammar(kind="lark", source=source), second_fails)


class TestLocate:
    SCHEMA: ClassVar[dict[str, Any]] = {
        "properties": {"a": {"items": {"$ref": "#/$defs/bad"}}, "b": {"type": "hiccup"}},
        "$defs": {"bad": {"anyOf": [{"type": "string"}, {"type": "hiccup"}]}},
    }

    @staticmethod
    def error_of(schema: Any) -> str:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
        return str(LLMatcher.validate_grammar(grammar)).split("\n")[0]

    def test_locate_finds_smallest_wrong_subschema(self) -> None:
        message = self.error_of(self.SCHEMA)
        assert str(locate(self.SCHEMA, message, self.error_of)) == "at '#/$defs/bad/anyOf/1': Invalid type: hiccup"

    def test_locate_without_same_message_gives_root(self) -> None:
        assert str(locate(self.SCHEMA, "Other error", self.error_of)) == "at '#': Other error"

    def test_locate_after_time_limit_gives_root(self) -> None:
        checked: list[Any] = []

        def error_of(schema: Any) -> str:
            checked.append(schema)
            return ""

        assert str(locate(self.SCHEMA, "Invalid type", error_of, iter([0, 9]).__next__)) == "at '#': Invalid type"
        assert checked == []
