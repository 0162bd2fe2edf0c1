"""An Anthropic request becomes a `Generation`. Content that is not text is refused."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gateway.config.tables import Defaults
from gateway.errors import InvalidRequest, UnsupportedParameter, quote
from gateway.generation import Chat, Generation, Grammar, Message, Tool, ToolCall, ToolChoice
from gateway.routes.anthropic_api.wire import (
    AnthropicTool,
    AnthropicToolChoice,
    ContentBlock,
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
)
from gateway.routes.parse import (
    function_tool,
    limit_of,
    required,
    schema_grammar,
    stop_of,
    tool_choice_of,
)
from gateway.sampling import sampling_of
from gateway.server.body import check_depth

Content = str | list[ContentBlock]


def messages_generation(request: MessagesRequest, defaults: Defaults, *, id: str) -> Generation:
    """Raises InvalidRequest; its `param` names the field."""
    max_tokens, _ = limit_of(request.max_tokens, defaults.max_tokens, "max_tokens")
    return Generation(
        id=id,
        model=request.model,
        prompt=chat_of(request),
        sampling=sampling_of("anthropic", request, defaults),
        max_tokens=max_tokens,
        stop=stop_of(request.stop_sequences),
        grammar=_grammar(request),
    )


def _grammar(request: MessagesRequest) -> Grammar | None:
    if request.output_config is None or request.output_config.format is None:
        return None
    return schema_grammar(request.output_config.format.schema, "output_config.format.schema")


def chat_of(request: CountTokensRequest) -> Chat:
    """Raises InvalidRequest; its `param` names the field."""
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
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    for path, block in _blocks(content, param):
        match block:
            case ContentBlock(type="thinking", thinking=str(text)):
                reasoning.append(text)
            case ContentBlock(type="tool_use", id=str(id), name=str(name)):
                check_depth(block.input, f"{path}.input")
                calls.append(ToolCall(id, name, msgspec.json.encode(block.input or {}).decode()))
            case _:
                texts.append(_block_text(block, path))
    return Message(
        role="assistant",
        content="\n".join(texts) if texts or not calls else None,
        reasoning="\n".join(reasoning) or None,
        tool_calls=tuple(calls),
    )


def _user(content: Content, param: str) -> Iterator[Message]:
    """Each tool result becomes a separate message, before the text."""
    texts: list[str] = []
    results: list[Message] = []
    for path, block in _blocks(content, param):
        match block:
            case ContentBlock(type="tool_result", tool_use_id=str(id)):
                result = _text(block.content or "", f"{path}.content")
                results.append(Message(role="tool", content=result, tool_call_id=id))
            case _:
                texts.append(_block_text(block, path))
    yield from results
    if texts or not results:
        yield Message(role="user", content="\n".join(texts))


def _text(content: Content, param: str) -> str:
    return "\n".join(_block_text(block, path) for path, block in _blocks(content, param))


def _blocks(content: Content, param: str) -> Iterator[tuple[str, ContentBlock]]:
    if isinstance(content, str):
        yield param, ContentBlock(type="text", text=content)
        return
    for index, block in enumerate(content):
        yield f"{param}.{index}", block


#: The required field of each block type; a `tool_use` block requires `id` and `name`.
_REQUIRED = {"text": "text", "thinking": "thinking", "tool_result": "tool_use_id"}


def _block_text(block: ContentBlock, param: str) -> str:
    """Raises InvalidRequest for a block that lacks a field, is not text, or is not allowed in this position."""
    if block.type == "text" and block.text is not None:
        return block.text
    missing = _REQUIRED.get(block.type) or ("id" if block.id is None else "name")
    if block.type in (*_REQUIRED, "tool_use") and getattr(block, missing) is None:
        required(None, f"{param}.{missing}")
    raise InvalidRequest(
        f"Invalid content block '{param}': a {quote(block.type)} block is not allowed here. The model reads only text.",
        param=param,
    )


def _tool(tool: AnthropicTool, param: str) -> Tool:
    if tool.type not in (None, "custom"):
        raise UnsupportedParameter(
            f"Unsupported value for '{param}.type': {quote(tool.type)}; only tools that the client runs are supported.",
            param=f"{param}.type",
        )
    param = f"{param}.input_schema"
    schema = required(tool.input_schema, param)
    return function_tool(tool.name, description=tool.description, parameters=schema, strict=tool.strict, param=param)


def _tool_choice(choice: AnthropicToolChoice, tools: tuple[Tool, ...]) -> ToolChoice:
    parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "any":
            return tool_choice_of("required", (), tools, parallel=parallel)
        case "tool":
            return tool_choice_of("required", (required(choice.name, "tool_choice.name"),), tools, parallel=parallel)
        case mode:
            return tool_choice_of(mode, (), tools, parallel=parallel)


def _effort(request: CountTokensRequest) -> str | None:
    """`thinking` and `output_config.effort` as OpenAI's reasoning effort. None: the chat template decides."""
    if request.thinking is not None and request.thinking.type == "disabled":
        return "none"
    effort = request.output_config.effort if request.output_config else None
    if effort == "max":
        return "xhigh"
    return effort or ("medium" if request.thinking is not None else None)
