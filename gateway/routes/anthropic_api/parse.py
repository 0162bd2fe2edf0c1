"""Anthropic's messages, tools and switches as the engine's conversation; what is not text is refused by name."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.generation import Chat, Message, Tool, ToolCall, ToolChoice
from gateway.routes.anthropic_api.wire import (
    AnthropicTool,
    AnthropicToolChoice,
    ContentBlock,
    CountTokensRequest,
    InputMessage,
)
from gateway.routes.openai_api.parse_tools import tool_choice_of
from gateway.routes.openai_api.wire import ChatRequest, FunctionName, NamedChoice
from gateway.server.body import check_depth

Content = str | list[ContentBlock]


def chat_of(request: CountTokensRequest) -> Chat:
    """Raises InvalidRequest, its `param` the field at fault."""
    tools = tuple(_tool(tool, f"tools.{index}") for index, tool in enumerate(request.tools or ()))
    return Chat(
        messages=tuple(_messages(request)),
        tools=tools,
        tool_choice=_tool_choice(request.tool_choice or AnthropicToolChoice(type="auto"), tools),
        reasoning_effort=_effort(request),
    )


def _messages(request: CountTokensRequest) -> Iterator[Message]:
    if request.system:
        yield Message(role="system", content=_text(request.system, "system"))
    for index, message in enumerate(request.messages):
        param = f"messages.{index}.content"
        match message:
            case InputMessage(role="assistant"):
                yield _assistant(message.content, param)
            case InputMessage(role="user"):
                yield from _user(message.content, param)
            case InputMessage(role="system"):
                yield Message(role="system", content=_text(message.content, param))


def _assistant(content: Content, param: str) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for where, block in _blocks(content, param):
        match block:
            case ContentBlock(type="thinking", thinking=str(thought)):
                thoughts.append(thought)
            case ContentBlock(type="tool_use", id=str(id), name=str(name)):
                check_depth(block.input, f"{where}.input")
                calls.append(ToolCall(id, name, msgspec.json.encode(block.input or {}).decode()))
            case _:
                texts.append(_block_text(block, where))
    return Message(
        role="assistant",
        content="\n".join(texts) if texts or not calls else None,
        reasoning="\n".join(thoughts) or None,
        tool_calls=tuple(calls),
    )


def _user(content: Content, param: str) -> Iterator[Message]:
    """Results of tools are turns of their own."""
    texts: list[str] = []
    results: list[Message] = []
    for where, block in _blocks(content, param):
        match block:
            case ContentBlock(type="tool_result", tool_use_id=str(id)):
                result = _text(block.content or "", f"{where}.content")
                results.append(Message(role="tool", content=result, tool_call_id=id))
            case _:
                texts.append(_block_text(block, where))
    yield from results
    if texts or not results:
        yield Message(role="user", content="\n".join(texts))


def _text(content: Content, param: str) -> str:
    return "\n".join(_block_text(block, where) for where, block in _blocks(content, param))


def _blocks(content: Content, param: str) -> Iterator[tuple[str, ContentBlock]]:
    if isinstance(content, str):
        yield param, ContentBlock(type="text", text=content)
        return
    for index, block in enumerate(content):
        yield f"{param}.{index}", block


_NEEDED = {"text": "text", "thinking": "thinking", "tool_result": "tool_use_id"}


def _block_text(block: ContentBlock, param: str) -> str:
    """Raises InvalidRequest for a block that is not text, or not here."""
    if block.type == "text" and block.text is not None:
        return block.text
    missing = _NEEDED.get(block.type) or ("id" if block.id is None else "name")
    if block.type in (*_NEEDED, "tool_use") and getattr(block, missing) is None:
        raise InvalidRequest(f"Missing required parameter: '{param}.{missing}'.", param=f"{param}.{missing}")
    raise InvalidRequest(
        f"Invalid content block '{param}': this model reads text only, and no {block.type!r} here. Send it as text, or "
        "leave it out.",
        param=param,
    )


def _tool(tool: AnthropicTool, param: str) -> Tool:
    if tool.type not in (None, "custom"):
        raise UnsupportedParameter(
            f"Unsupported value for '{param}.type': {tool.type!r}; only tools that the client runs work here.",
            param=f"{param}.type",
        )
    schema = tool.input_schema
    if schema is None:
        raise InvalidRequest(f"Missing required parameter: '{param}.input_schema'.", param=f"{param}.input_schema")
    if schema.get("type", "object") != "object":
        raise InvalidRequest(f"'{param}.input_schema' must be of type 'object'.", param=f"{param}.input_schema")
    check_depth(schema, f"{param}.input_schema")
    return Tool(name=tool.name, description=tool.description or "", parameters=schema, strict=bool(tool.strict))


def _tool_choice(choice: AnthropicToolChoice, tools: tuple[Tool, ...]) -> ToolChoice:
    """Through OpenAI's, whose rules are the same."""
    request = ChatRequest(messages=[], parallel_tool_calls=not choice.disable_parallel_tool_use)
    match choice:
        case AnthropicToolChoice(type="any"):
            request.tool_choice = "required"
        case AnthropicToolChoice(type="tool", name=None):
            raise InvalidRequest("Missing required parameter: 'tool_choice.name'.", param="tool_choice.name")
        case AnthropicToolChoice(type="tool", name=str(name)):
            request.tool_choice = NamedChoice(type="function", function=FunctionName(name=name))
        case AnthropicToolChoice(type="auto" | "none" as mode):
            request.tool_choice = mode
    return tool_choice_of(request, tools)


def _effort(request: CountTokensRequest) -> str | None:
    """`thinking` and `output_config.effort` in OpenAI's words; None leaves it to the model's template."""
    if request.thinking is not None and request.thinking.type == "disabled":
        return "none"
    effort = request.output_config.effort if request.output_config else None
    if effort == "max":
        return "xhigh"
    return effort or ("medium" if request.thinking is not None else None)
