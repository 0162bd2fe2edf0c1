"""Parse helpers that several APIs share. They take plain values, not the structs of one API.

Each raises InvalidRequest (or UnsupportedParameter) with `param`: the path of the field, for example "tools.0.type".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from typing import Any, Literal, TypeVar

import msgspec

from gateway.errors import InvalidRequest, UnsupportedParameter, quote
from gateway.generation import TOOL, UNLIMITED, Grammar, Tool, ToolChoice
from gateway.routes.wire import Json
from gateway.server.body import check_depth, with_whole_characters
from gateway.server.ignored import note_ignored

_NOT_ENFORCED = {"not", "if", "uniqueItems", "contains", "propertyNames", "unevaluatedProperties", "unevaluatedItems"}
_SAYS_NOTHING: tuple[Any, ...] = (False, {}, {"type": "string"})
_NOT_ENFORCED |= {"dependencies", "dependentRequired", "dependentSchemas"}
#: Look-around, word boundaries and references back to a group.
_NO_GRAMMAR = re.compile(r"\(\?<?[=!]|\\[bB1-9]|\\k<|\(\?P=")

T = TypeVar("T")

Mode = Literal["auto", "none", "required"]


def required(value: T | None, param: str) -> T:
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    return value


def refuse_parameters(sent: Iterable[tuple[str, object, str]]) -> None:
    """`sent`: for each parameter that the gateway does not support, its name, its value and what to do instead."""
    for name, value, instead in sent:
        if value:
            raise UnsupportedParameter(f"Unsupported parameter: '{name}': {instead}.", param=name)


def not_text(kind: str, param: str) -> InvalidRequest:
    """The error for an image, a sound or a file."""
    return InvalidRequest(
        f"Invalid content part '{param}': the model reads only text, not {quote(kind)}. Send it as text, or remove it.",
        param=param,
    )


def stop_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """The different stop strings. An empty one has no effect."""
    strings = [stop] if isinstance(stop, str) else stop or []
    return tuple(dict.fromkeys(text for text in strings if text))


def omitted(kind: str, param: str, *, is_newest: bool = False) -> str:
    """The text in place of content that the model cannot read: a client sends its history again and again.

    Raises InvalidRequest in the newest turn of the user, whose answer needs it.
    """
    if is_newest:
        raise not_text(kind, param)
    note_ignored(param, kind)
    shown = kind if re.fullmatch(r"[a-zA-Z0-9_.-]{1,40}", kind) else "content"
    return f"[{shown} omitted: the model reads only text]"


def limit_of(sent: int | None, default: int | Literal["context"], param: str) -> tuple[int, bool]:
    """The token limit of the answer, and True if it is the default. Raises InvalidRequest for 0."""
    if sent is None:
        return UNLIMITED if default == "context" else default, True
    if sent == 0:
        raise InvalidRequest(
            f"Invalid value for '{param}': expected a positive number, or -1 for no limit.", param=param
        )
    return UNLIMITED if sent < 0 else sent, False


def arguments_text(arguments: str | Json | None, param: str) -> str:
    """The arguments of a call that the client sends back, as JSON in a text. Raises InvalidRequest if too deep."""
    if isinstance(arguments, dict):
        check_depth(arguments, param)
        return msgspec.json.encode(arguments).decode()
    text = arguments or "{}"
    return with_whole_characters(text.encode()).decode() if "\\u" in text else text


# ---- tools ---------------------------------------------------------------------------------------------------------


def function_tool(
    name: str, *, description: str | None, parameters: Json | None, strict: bool | None, param: str
) -> Tool:
    """A tool of the engine. `parameters`: its JSON schema, from the field `param`; None: no arguments."""
    if parameters is None:
        return Tool(name=name, description=description or "", strict=bool(strict))
    if parameters.get("type") not in (None, "object"):
        raise InvalidRequest(
            f"Invalid schema for function {quote(name)}: '{param}' must be of type 'object'.", param=param
        )
    check_depth(parameters, param)
    return Tool(name=name, description=description or "", parameters=parameters, strict=bool(strict))


def is_function(kind: str, param: str) -> bool:
    """False for a tool that another server runs (web search), or that has no JSON arguments: it is left out."""
    if kind != "function":
        note_ignored(param, kind)
    return kind == "function"


def tool_choice_of(
    mode: Mode, names: tuple[str, ...], tools: tuple[Tool, ...], *, parallel: bool, left_out: Set[str] = frozenset()
) -> ToolChoice:
    """Which of `tools` the model may or must call. Without tools the mode is "none".

    Args:
        left_out: the names of tools that were left out; a choice of one is left out too.

    Raises InvalidRequest if a call is required without tools, or if `names` has a tool that the request lacks.
    """
    if left_out and (not tools or set(names) & left_out):
        names = tuple(name for name in names if name not in left_out)
        if mode == "required" and not (names and tools):
            note_ignored("tool_choice", "its tool is left out")
            mode, names = "auto", ()
    if mode != "required" and not names:
        return ToolChoice(mode=mode if tools else "none", parallel=parallel)
    if not tools:
        raise InvalidRequest("'tool_choice' requires a tool call, but the request has no 'tools'.", param="tool_choice")
    known = {tool.name for tool in tools}
    if unknown := [name for name in names if name not in known]:
        raise InvalidRequest(f"'tool_choice' names {quote(unknown[0])}, which is not in 'tools'.", param="tool_choice")
    return ToolChoice(mode=mode, names=names, parallel=parallel)


# ---- grammar -------------------------------------------------------------------------------------------------------


def schema_grammar(schema: Json, param: str, *, is_strict: bool = True) -> Grammar:
    """A grammar for JSON of a schema. If it is not strict, what no grammar can enforce is noted and left out."""
    check_depth(schema, param)
    if not is_strict:
        for keyword in sorted(set(_not_enforced(schema))):
            note_ignored(param, keyword)
        schema = schema | {TOOL: {"strict": False}}
    return Grammar(kind="json_schema", source=msgspec.json.encode(schema).decode(), param=param)


def _not_enforced(schema: Any) -> Iterator[str]:
    """The keywords of a schema and its parts that no grammar enforces."""
    if isinstance(schema, list):
        for inner in schema:
            yield from _not_enforced(inner)
    elif isinstance(schema, dict):
        yield from (key for key, value in schema.items() if key in _NOT_ENFORCED and value not in _SAYS_NOTHING)
        yield from _not_enforced_values(schema)
        for key, value in schema.items():
            if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
                yield from _not_enforced(list(value.values()))
            elif key not in ("enum", "const", "default", "examples"):
                yield from _not_enforced(value)


def _not_enforced_values(schema: Json) -> Iterator[str]:
    """The keywords that a grammar enforces, with values that none enforces."""
    if _NO_GRAMMAR.search(str(schema.get("pattern"))):
        yield "pattern"
    if not str(schema.get("$ref", "#")).startswith("#"):
        yield "$ref"
    if schema.get("format") == "regex":
        yield "format"
    match schema.get("oneOf"):
        case [dict(), *_] as branches if "discriminator" not in schema and not _are_disjoint(branches):
            yield "oneOf"


def _are_disjoint(branches: list[Any]) -> bool:
    """True if the branches differ in their type, or in the constant of a property."""
    known = [branch for branch in branches if isinstance(branch, dict)]
    inner = [branch["properties"] if isinstance(branch.get("properties"), dict) else {} for branch in known]
    marks = [[branch.get("type") for branch in known]]
    marks += [[_constant(each.get(name)) for each in inner] for name in inner[0]]
    return any(all(isinstance(mark, str) for mark in each) and len(set(each)) == len(branches) for each in marks)


def _constant(schema: Any) -> Any:
    match schema:
        case {"const": value} | {"enum": [value]}:
            return value
    return None


def unknown_format(kind: str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for '{param}': {quote(kind)} is not one of 'text', 'json_object' and 'json_schema'.",
        param=param,
    )
