"""OpenAI's `tools` and `tool_choice` become the engine's. Ollama and /tokenize send tools in the same form."""

from __future__ import annotations

from gateway.generation import Tool, ToolChoice
from gateway.routes.openai_api.wire import (
    AllowedTool,
    AllowedTools,
    ChatRequest,
    FunctionDefinition,
    FunctionName,
    NamedChoice,
    ToolDefinition,
)
from gateway.routes.parse import Mode, function_tool, is_function, required, tool_choice_of
from gateway.server.ignored import note_ignored

#: The modes of all APIs.
_MODES: dict[str, Mode] = {"auto": "auto", "none": "none", "required": "required", "any": "required"}
_OTHER = ""  # the name of a tool that is left out; no function has it


def tools_of(
    definitions: list[ToolDefinition] | None, functions: list[FunctionDefinition] | None = None
) -> tuple[Tool, ...]:
    """The functions among `tools`, then the older `functions`. Tools of other types are left out."""
    located = [
        _function(definition, f"tools.{index}")
        for index, definition in enumerate(definitions or ())
        if is_function(definition.type, f"tools.{index}")
    ]
    located += [(function, f"functions.{index}") for index, function in enumerate(functions or ())]
    return tuple(_tool(function, param) for function, param in located)


def _function(definition: ToolDefinition, param: str) -> tuple[FunctionDefinition, str]:
    """The function and its path."""
    if definition.function is None and definition.name is not None:
        flat = FunctionDefinition(
            name=definition.name,
            description=definition.description,
            parameters=definition.parameters,
            strict=definition.strict,
        )
        return flat, param
    return required(definition.function, f"{param}.function"), f"{param}.function"


def _tool(function: FunctionDefinition, param: str) -> Tool:
    return function_tool(
        function.name,
        description=function.description,
        parameters=function.parameters or None,
        strict=function.strict,
        param=f"{param}.parameters",
    )


def chat_tool_choice(request: ChatRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    """From `tool_choice`, else from the older `function_call`. An older request gets one call."""
    choice = request.tool_choice if request.tool_choice is not None else request.function_call
    left_out = {_OTHER} if any(tool.type != "function" for tool in request.tools or ()) else set()
    match choice:
        case NamedChoice():
            mode, names = _named(choice)
        case FunctionName(name=name):
            mode, names = "required", (name,)
        case _:
            mode, names = _MODES[choice or "auto"], ()
    parallel = request.parallel_tool_calls is not False and not request.functions
    return tool_choice_of(mode, names, tools, parallel=parallel, left_out=left_out)


def _named(choice: NamedChoice) -> tuple[Mode, tuple[str, ...]]:
    match choice.type:
        case "function" | "tool":
            name = choice.name or required(choice.function, "tool_choice.function").name
            return "required", (name,)
        case "allowed_tools":
            allowed: AllowedTools = required(choice.allowed_tools, "tool_choice.allowed_tools")
            names = tuple(_allowed(tool, index) for index, tool in enumerate(allowed.tools))
            kept = tuple(name for name in names if name != _OTHER)
            return (allowed.mode, kept) if kept else ("none", ())
        case kind if kind in _MODES:
            return _MODES[kind], ()
        case kind:
            note_ignored("tool_choice", kind)
            return "auto", ()


def _allowed(tool: AllowedTool, index: int) -> str:
    param = f"tool_choice.allowed_tools.tools.{index}"
    return required(tool.function, f"{param}.function").name if is_function(tool.type, param) else _OTHER
