"""From a client's grammar to llguidance's JSON. It runs in the sandbox: each step can take long."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from gateway.errors import quote
from gateway.generation import TOOL, Grammar
from gateway.worker.grammar.json_schema import OPTIONS, prepare
from gateway.worker.grammar.library import readable
from gateway.worker.grammar.loose_schema import loosened
from gateway.worker.grammar.schema_shape import DEFINITIONS, Path, Schema, SchemaError, inner_schemas

#: Without it, each mask computes the whole text that the grammar forces: see forced.py.
_NO_FORCING = '%llguidance {"no_forcing": true}'
_SEARCH_S = 1.0  # of processor time, for the path of an error

#: In a Lark grammar: strings, comments and regular expressions, which can contain `%json` as text; and `%json`.
#: A string without its end is taken up to the end of its line, so that each character is read once.
_LARK_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*+"?|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])++/?|(?P<json>%json)')

#: Errors of a schema that is wrong, not only hard to enforce.
_MISTAKE = re.compile(
    r"Invalid type|Unsatisfiable|there is nothing|must be |is an object, not|expression is not supported: (?!look|back)"
)

#: The library's message for a grammar in its JSON; "" if the grammar compiles.
CompileError = Callable[[str], str]


def translate(grammar: Grammar, compile_error: CompileError) -> str:
    """The grammar in llguidance's JSON, compiled once. Raises SchemaError; in a schema, with the path of the part."""
    translated, schemas = _translated(grammar, None)
    message = compile_error(translated)
    if message and TOOL in grammar.source:  # the schema of a tool may be loosened
        translated, schemas = _translated(grammar, compile_error)
        message = compile_error(translated)
    if message:
        raise _located(schemas, message, lambda schema: compile_error(_of_schema(schema)))
    return translated


def _translated(grammar: Grammar, compile_error: CompileError | None) -> tuple[str, list[Schema]]:
    """The grammar in llguidance's JSON, and its schemas. `compile_error`: see `with_prepared_schemas`."""
    match grammar.kind:
        case "json_object":
            return _of_schema({"type": "object", "x-guidance": OPTIONS}), []
        case "json_schema":
            schema = _prepared(_decoded(grammar.source), compile_error)
            return _of_schema(schema), [schema]
        case "regex":
            return _of_lark(_lark_of_regex(grammar.source)), []
        case "lark":
            source, schemas = with_prepared_schemas(_lark(grammar.source), compile_error)
            return _of_lark(source), schemas


def with_prepared_schemas(source: str, compile_error: CompileError | None = None) -> tuple[str, list[Schema]]:
    """A Lark grammar with each of its `%json` schemas prepared, and these schemas.

    Args:
        compile_error: also compile each tool's schema, so that the error names the tool, or its schema is loosened.
    """
    parts: list[str] = []
    schemas: list[Schema] = []
    done = position = 0
    while found := _LARK_TOKEN.search(source, position):
        position = found.end()
        if found["json"]:
            schema, end = _schema_at(source, position)
            schemas.append(_prepared(schema, compile_error))
            parts += [source[done:position], " ", json.dumps(schemas[-1])]
            done = position = end
    return "".join([*parts, source[done:]]), schemas


def _prepared(schema: Any, compile_error: CompileError | None) -> Schema:
    """Raises SchemaError, with the name of the tool if it is a tool's schema."""
    tool = schema.get(TOOL) if isinstance(schema, dict) else None
    if not isinstance(tool, dict):
        return prepare(schema)
    own = {key: value for key, value in schema.items() if key != TOOL}
    try:
        return _checked(own, compile_error)
    except SchemaError as error:
        if tool.get("strict") or _MISTAKE.search(str(error)):
            where = f"in the schema of the tool {quote(str(tool['name']))}, " if "name" in tool else ""
            raise SchemaError(f"{where}{error}") from None
    return prepare(loosened(own, lambda tried: _is_refused(tried, compile_error)))


def _checked(schema: Schema, compile_error: CompileError | None) -> Schema:
    prepared = prepare(schema)
    if compile_error and (message := compile_error(_of_schema(prepared))):
        raise locate(prepared, message, lambda part: compile_error(_of_schema(part)))
    return prepared


def _is_refused(schema: Schema, compile_error: CompileError | None) -> bool:
    try:
        _checked(schema, compile_error)
    except SchemaError:
        return True
    return False


def _located(schemas: list[Schema], message: str, error_of: Callable[[Schema], str]) -> SchemaError:
    """The error of the first of the schemas that the library refuses, with its path."""
    for schema in schemas:
        if own := error_of(schema):
            return locate(schema, own, error_of)
    return SchemaError(message)


def locate(
    schema: Schema, message: str, error_of: Callable[[Schema], str], clock: Callable[[], float] = time.process_time
) -> SchemaError:
    """The library's message for `schema`, with the path of the smallest part that gives the same message.

    Goes from the schema to its parts. After `_SEARCH_S` of `clock`, the part found so far is the answer.
    """
    deadline = clock() + _SEARCH_S
    definitions = {key: schema[key] for key in DEFINITIONS if key in schema}
    path: Path = ()
    while schema:
        parts = sorted(inner_schemas(schema), key=lambda part: part[0][0] not in DEFINITIONS)
        for step, part in parts:
            if clock() > deadline:
                return SchemaError(message, path)
            if isinstance(part, dict) and error_of(definitions | part | {"x-guidance": OPTIONS}) == message:
                path, schema = (*path, *step), part
                break
        else:
            break
    return SchemaError(message, path)


def _decoded(source: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"it is not JSON: {error}") from None


def _schema_at(source: str, start: int) -> tuple[Any, int]:
    while source[start : start + 1].isspace():
        start += 1
    try:
        return json.JSONDecoder().raw_decode(source, start)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"the text after %json is not JSON: {error}") from None


def _of_lark(source: str) -> str:
    """The last directive wins, so a client's own cannot undo ours."""
    return json.dumps({"grammars": [{"lark_grammar": f"{source}\n{_NO_FORCING}\n"}]})


def _of_schema(schema: Schema) -> str:
    outer = {"lark_grammar": f"start: @schema\n{_NO_FORCING}\n"}
    return json.dumps({"grammars": [outer, {"name": "schema", "json_schema": schema}]})


def _lark_of_regex(source: str) -> str:
    grammar = json.loads(llguidance.LLMatcher.grammar_from_regex(source))
    return str(grammar["grammars"][0]["lark_grammar"])


def _lark(source: str) -> str:
    """The grammar in Lark notation; a GBNF grammar (llama.cpp) is translated."""
    if "::=" not in source:
        return source
    try:
        return str(any_to_lark(source))
    except Exception as error:  # GbnfToLarkError and others
        raise SchemaError(readable(str(error))) from None
