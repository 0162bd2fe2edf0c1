"""Parse helpers that several APIs share. They take plain values, not the structs of one API.

Each raises InvalidRequest (or UnsupportedParameter) with `param`: the path of the field, for example "tools.0.type".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec

from gateway.errors import InvalidRequest, UnsupportedParameter, quote
from gateway.generation import UNLIMITED, Grammar, Tool, ToolChoice
from gateway.routes.wire import Json
from gateway.server.body import check_depth

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


def limit_of(sent: int | None, default: int | Literal["context"], param: str) -> tuple[int, bool]:
    """The token limit of the answer, and True if it is the default. Raises InvalidRequest for 0."""
    if sent is None:
        return UNLIMITED if default == "context" else default, True
    if sent == 0:
        raise InvalidRequest(
            f"Invalid value for '{param}': expected a positive number, or -1 for no limit.", param=param
        )
    return UNLIMITED if sent < 0 else sent, False


# ---- tools ---------------------------------------------------------------------------------------------------------


def function_tool(
    name: str, *, description: str | None, parameters: Json | None, strict: bool | None, param: str
) -> Tool:
    """A tool of the engine. `parameters`: its JSON schema, from the field `param`; None: no arguments."""
    if parameters is None:
        return Tool(name=name, description=description or "", strict=bool(strict))
    if parameters.get("type", "object") != "object":
        raise InvalidRequest(
            f"Invalid schema for function {quote(name)}: '{param}' must be of type 'object'.", param=param
        )
    check_depth(parameters, param)
    return Tool(name=name, description=description or "", parameters=parameters, strict=bool(strict))


def check_function_type(kind: str, param: str) -> None:
    """Only functions that the client runs are supported, not hosted tools such as web search."""
    if kind != "function":
        raise UnsupportedParameter(
            f"Unsupported value for '{param}.type': {quote(kind)}; the gateway supports only 'function' tools.",
            param=f"{param}.type",
        )


def tool_choice_of(mode: Mode, names: tuple[str, ...], tools: tuple[Tool, ...], *, parallel: bool) -> ToolChoice:
    """Which of `tools` the model may or must call. Without tools the mode is "none".

    Raises InvalidRequest if a call is required without tools, or if `names` has a tool that `tools` lacks.
    """
    if mode != "required" and not names:
        return ToolChoice(mode=mode if tools else "none", parallel=parallel)
    if not tools:
        raise InvalidRequest("'tool_choice' requires a tool call, but the request has no 'tools'.", param="tool_choice")
    known = {tool.name for tool in tools}
    if unknown := [name for name in names if name not in known]:
        raise InvalidRequest(f"'tool_choice' names {quote(unknown[0])}, which is not in 'tools'.", param="tool_choice")
    return ToolChoice(mode=mode, names=names, parallel=parallel)


# ---- grammar -------------------------------------------------------------------------------------------------------


def schema_grammar(schema: Json, param: str) -> Grammar:
    check_depth(schema, param)
    return Grammar(kind="json_schema", source=msgspec.json.encode(schema).decode(), param=param)


def unknown_format(kind: str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for '{param}': {quote(kind)} is not one of 'text', 'json_object' and 'json_schema'.",
        param=param,
    )
