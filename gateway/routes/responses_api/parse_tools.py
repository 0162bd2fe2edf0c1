"""The tools and the tool choice of a Responses request become the engine's."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.generation import Tool, ToolChoice
from gateway.routes.parse import Mode, check_function_type, function_tool, required, tool_choice_of
from gateway.routes.responses_api.wire import ResponsesRequest, ResponseTool, ResponseToolChoice, ToolName


def full_name(namespace: str | None, name: str) -> str:
    """The name under which the model knows a function of a namespace."""
    return f"{namespace}__{name}" if namespace else name


def tools_of(tools: list[ResponseTool]) -> Iterator[Tool]:
    for index, tool in enumerate(tools):
        param = f"tools.{index}"
        if tool.type != "namespace":
            yield _tool(tool, param)
            continue
        namespace = required(tool.name, f"{param}.name")
        for inner_index, inner in enumerate(required(tool.tools or None, f"{param}.tools")):
            yield _tool(inner, f"{param}.tools.{inner_index}", namespace)


def _tool(tool: ResponseTool, param: str, namespace: str | None = None) -> Tool:
    check_function_type(tool.type, param)
    return function_tool(
        full_name(namespace, required(tool.name, f"{param}.name")),
        description=tool.description,
        parameters=tool.parameters or None,
        strict=tool.strict,
        param=f"{param}.parameters",
    )


def response_tool_choice(request: ResponsesRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    choice = request.tool_choice
    mode, names = _named(choice) if isinstance(choice, ResponseToolChoice) else (choice or "auto", ())
    return tool_choice_of(mode, names, tools, parallel=request.parallel_tool_calls is not False)


def _named(choice: ResponseToolChoice) -> tuple[Mode, tuple[str, ...]]:
    if choice.type == "allowed_tools":
        allowed = required(choice.tools, "tool_choice.tools")
        mode: Mode = required(choice.mode, "tool_choice.mode")
        return mode, tuple(_allowed(tool, f"tool_choice.tools.{index}") for index, tool in enumerate(allowed))
    check_function_type(choice.type, "tool_choice")
    return "required", (required(choice.name, "tool_choice.name"),)


def _allowed(tool: ToolName, param: str) -> str:
    check_function_type(tool.type, param)
    return required(tool.name, f"{param}.name")
