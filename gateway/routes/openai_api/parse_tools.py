"""OpenAI's `tools` and `tool_choice` become the engine's. Ollama and /tokenize send tools in the same form."""

from __future__ import annotations

from typing import Literal

from gateway.generation import Tool, ToolChoice
from gateway.routes.openai_api.wire import AllowedTools, NamedChoice, ToolDefinition
from gateway.routes.parse import Mode, check_function_type, function_tool, required, tool_choice_of


def tools_of(definitions: list[ToolDefinition] | None) -> tuple[Tool, ...]:
    return tuple(_tool(definition, f"tools.{index}") for index, definition in enumerate(definitions or ()))


def _tool(definition: ToolDefinition, param: str) -> Tool:
    check_function_type(definition.type, param)
    function = required(definition.function, f"{param}.function")
    return function_tool(
        function.name,
        description=function.description,
        parameters=function.parameters or None,
        strict=function.strict,
        param=f"{param}.function.parameters",
    )


def chat_tool_choice(
    choice: Literal["none", "auto", "required"] | NamedChoice | None, tools: tuple[Tool, ...], *, parallel: bool
) -> ToolChoice:
    mode, names = _named(choice) if isinstance(choice, NamedChoice) else (choice or "auto", ())
    return tool_choice_of(mode, names, tools, parallel=parallel)


def _named(choice: NamedChoice) -> tuple[Mode, tuple[str, ...]]:
    if choice.type == "function":
        return "required", (required(choice.function, "tool_choice.function").name,)
    allowed: AllowedTools = required(choice.allowed_tools, "tool_choice.allowed_tools")
    return allowed.mode, tuple(tool.function.name for tool in allowed.tools)
