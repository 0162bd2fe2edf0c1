"""The tools and the tool choice of a Responses request become the engine's."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.generation import Tool, ToolChoice
from gateway.routes.parse import Mode, function_tool, is_function, required, tool_choice_of
from gateway.routes.responses_api.wire import ResponsesRequest, ResponseTool, ResponseToolChoice


def full_name(namespace: str | None, name: str) -> str:
    """The name under which the model knows a function of a namespace."""
    return f"{namespace}__{name}" if namespace else name


def tools_of(tools: list[ResponseTool]) -> Iterator[Tool]:
    for index, tool in enumerate(tools):
        param = f"tools.{index}"
        if tool.type == "namespace":
            namespace = required(tool.name, f"{param}.name")
            for inner_index, inner in enumerate(tool.tools or ()):
                yield from _tool(inner, f"{param}.tools.{inner_index}", namespace)
        else:
            yield from _tool(tool, param)


def _tool(tool: ResponseTool, param: str, namespace: str | None = None) -> Iterator[Tool]:
    """A function; nothing for another tool."""
    if is_function(tool.type, param):
        yield _function(tool, param, namespace)


def _function(tool: ResponseTool, param: str, namespace: str | None) -> Tool:
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
    left_out = frozenset(tool.name or tool.type for tool in request.tools or () if tool.type != "function")
    parallel = request.parallel_tool_calls is not False
    return tool_choice_of(mode, names, tools, parallel=parallel, left_out=left_out)


def _named(choice: ResponseToolChoice) -> tuple[Mode, tuple[str, ...]]:
    if choice.type == "allowed_tools":
        allowed = list(enumerate(required(choice.tools, "tool_choice.tools")))
        mode: Mode = required(choice.mode, "tool_choice.mode")
        functions = [(tool, f"tool_choice.tools.{index}") for index, tool in allowed]
        names = tuple(
            required(tool.name, f"{param}.name") for tool, param in functions if is_function(tool.type, param)
        )
        return (mode, names) if names else ("none", ())
    if not is_function(choice.type, "tool_choice"):
        return "auto", ()
    return "required", (required(choice.name, "tool_choice.name"),)
