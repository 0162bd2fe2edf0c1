"""OpenAI's `tools`, `tool_choice` and `parallel_tool_calls` as the engine's."""

from __future__ import annotations

from typing import Literal

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.generation import Tool, ToolChoice
from gateway.routes.openai_api.wire import AllowedTools, ChatRequest, FunctionDefinition, NamedChoice, ToolDefinition
from gateway.server.body import check_depth

Mode = Literal["auto", "none", "required"]


def tools_of(definitions: list[ToolDefinition] | None) -> tuple[Tool, ...]:
    return tuple(_tool(definition, f"tools.{index}") for index, definition in enumerate(definitions or ()))


def _tool(definition: ToolDefinition, param: str) -> Tool:
    if definition.type != "function":
        raise UnsupportedParameter(
            f"Unsupported value for '{param}.type': {definition.type!r}; only 'function' tools work here.",
            param=f"{param}.type",
        )
    if definition.function is None:
        raise InvalidRequest(f"Missing required parameter: '{param}.function'.", param=f"{param}.function")
    return function_tool(definition.function, f"{param}.function")


def function_tool(function: FunctionDefinition, param: str) -> Tool:
    description, strict = function.description or "", bool(function.strict)
    if not function.parameters:
        return Tool(name=function.name, description=description, strict=strict)
    if function.parameters.get("type", "object") != "object":
        raise InvalidRequest(
            f"Invalid schema for function '{function.name}': its parameters must be of type 'object'.",
            param=f"{param}.parameters",
        )
    check_depth(function.parameters, f"{param}.parameters")
    return Tool(name=function.name, description=description, parameters=function.parameters, strict=strict)


def tool_choice_of(request: ChatRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    """Which tools the model may or must call; without tools it can only be none.

    Raises InvalidRequest when a call is demanded without tools, or of a tool that is not among them.
    """
    parallel = request.parallel_tool_calls is not False
    mode: Mode
    names: tuple[str, ...]
    match request.tool_choice:
        case NamedChoice() as named:
            mode, names = _named(named)
        case "required":
            mode, names = "required", ()
        case choice:
            return ToolChoice(mode=(choice or "auto") if tools else "none", parallel=parallel)
    if not tools:
        raise InvalidRequest("'tool_choice' asks for a call, and the request has no 'tools'.", param="tool_choice")
    declared = {tool.name for tool in tools}
    if unknown := [name for name in names if name not in declared]:
        raise InvalidRequest(f"'tool_choice' names {unknown[0]!r}, which is not in 'tools'.", param="tool_choice")
    return ToolChoice(mode=mode, names=names, parallel=parallel)


def _named(choice: NamedChoice) -> tuple[Mode, tuple[str, ...]]:
    match choice:
        case NamedChoice(type="function", function=function) if function is not None:
            return "required", (function.name,)
        case NamedChoice(type="allowed_tools", allowed_tools=AllowedTools() as allowed):
            return allowed.mode, tuple(tool.function.name for tool in allowed.tools)
    raise InvalidRequest(
        f"Missing required parameter: 'tool_choice.{choice.type}'.", param=f"tool_choice.{choice.type}"
    )
