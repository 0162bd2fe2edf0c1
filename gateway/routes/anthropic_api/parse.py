"""An Anthropic request becomes a `Generation`. What the model cannot read is left out or refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

import msgspec

from gateway.config.tables import Defaults
from gateway.errors import InvalidRequest, quote
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
    Mode,
    function_tool,
    limit_of,
    omitted,
    required,
    schema_grammar,
    stop_of,
    tool_choice_of,
)
from gateway.sampling import sampling_of
from gateway.server.body import check_depth
from gateway.server.ignored import note_ignored

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
        truncation=defaults.truncation == "auto",
    )


def _grammar(request: MessagesRequest) -> Grammar | None:
    if request.output_config is None or request.output_config.format is None:
        return None
    return schema_grammar(request.output_config.format.schema, "output_config.format.schema")


def chat_of(request: CountTokensRequest) -> Chat:
    """Raises InvalidRequest; its `param` names the field."""
    tools = tuple(_tools(request.tools or ()))
    left_out = frozenset(tool.name or "" for tool in request.tools or () if not _is_own(tool))
    return Chat(
        messages=tuple(_messages(request)),
        tools=tools,
        tool_choice=_tool_choice(request.tool_choice or AnthropicToolChoice(type="auto"), tools, left_out),
        reasoning_effort=_effort(request),
    )


def _messages(request: CountTokensRequest) -> Iterator[Message]:
    if request.system:
        yield Message(role="system", content=_text(request.system, "system"))
    newest = max((index for index, message in enumerate(request.messages) if message.role == "user"), default=-1)
    for index, message in enumerate(request.messages):
        param = f"messages.{index}.content"
        match message:
            case InputMessage(role="assistant"):
                yield _assistant(message.content, param)
            case InputMessage(role="user"):
                yield from _user(message.content, param, is_newest=index == newest)
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
                texts += _block_texts(block, path)
    return Message(
        role="assistant",
        content="\n".join(texts) if texts or not calls else None,
        reasoning="\n".join(reasoning) or None,
        tool_calls=tuple(calls),
    )


def _user(content: Content, param: str, *, is_newest: bool) -> Iterator[Message]:
    """Each tool result becomes a separate message, before the text."""
    texts: list[str] = []
    results: list[Message] = []
    for path, block in _blocks(content, param):
        match block:
            case ContentBlock(type="tool_result", tool_use_id=str(id)):
                result = _text(_content_of(block, path), f"{path}.content")
                results.append(Message(role="tool", content=result, tool_call_id=id))
            case _:
                texts += _block_texts(block, path, is_newest=is_newest)
    yield from results
    if texts or not results:
        yield Message(role="user", content="\n".join(texts))


def _text(content: Content, param: str) -> str:
    return "\n".join(text for path, block in _blocks(content, param) for text in _block_texts(block, path))


def _blocks(content: Content, param: str) -> Iterator[tuple[str, ContentBlock]]:
    if isinstance(content, str):
        yield param, ContentBlock(type="text", text=content)
        return
    for index, block in enumerate(content):
        yield f"{param}.{index}", block


#: The required field of each block type; a `tool_use` block requires `id` and `name`.
_REQUIRED = {"text": "text", "thinking": "thinking", "tool_result": "tool_use_id"}


def _block_texts(block: ContentBlock, param: str, *, is_newest: bool = False) -> list[str]:
    """What the model reads of a block; empty for what it needs not know, such as the reasoning of another server.

    Raises InvalidRequest for a block that lacks a field or is not allowed in this position, and for an image or a PDF
    in the newest turn of the user.
    """
    match block:
        case ContentBlock(type="text", text=str(text)):
            return [text]
        case ContentBlock(type="text" | "thinking" | "tool_result" | "tool_use"):
            raise _misplaced(block, param)
        case ContentBlock(type="image"):
            return [omitted(block.type, param, is_newest=is_newest)]
        case ContentBlock(type="document"):
            return [_document(block, param, is_newest=is_newest)]
        case ContentBlock(type="search_result"):
            heads = [text for text in (block.title, block.source) if isinstance(text, str)]
            return ["\n".join([*heads, _plain(_content_of(block, param), f"{param}.content")])]
        case ContentBlock(type="tool_reference", tool_name=str(name)):
            return [f"[tool {name}]"]
    note_ignored(param, block.type)
    return []


def _misplaced(block: ContentBlock, param: str) -> InvalidRequest:
    missing = _REQUIRED.get(block.type) or ("id" if block.id is None else "name")
    if getattr(block, missing) is None:
        return InvalidRequest(f"Missing required parameter: '{param}.{missing}'.", param=f"{param}.{missing}")
    return InvalidRequest(
        f"Invalid content block '{param}': a {quote(block.type)} block is not allowed here.", param=param
    )


def _document(block: ContentBlock, param: str, *, is_newest: bool) -> str:
    """The text of a document with its title. A PDF is left out or refused."""
    match block.source:
        case {"type": "text", "data": str(text)}:
            pass
        case {"type": "content", "content": content}:
            check_depth(content, f"{param}.source.content")
            try:
                text = _plain(msgspec.convert(content, Content), f"{param}.source.content")
            except msgspec.ValidationError as error:
                param = f"{param}.source.content"
                raise InvalidRequest(f"Invalid value for '{param}': {error}.", param=param) from None
        case _:
            return omitted(block.type, param, is_newest=is_newest)
    return f"{block.title}\n{text}" if block.title else text


def _plain(content: Content, param: str) -> str:
    """The text blocks inside a document or a search result, which have nothing else."""
    blocks = list(_blocks(content, param))
    for path, block in blocks:
        if block.text is None:
            note_ignored(path, block.type)
    return "\n".join(block.text for _, block in blocks if block.text is not None)


def _content_of(block: ContentBlock, param: str) -> Content:
    if isinstance(block.content, dict):
        param = f"{param}.content"
        raise InvalidRequest(f"Invalid value for '{param}': expected a text or a list of blocks.", param=param)
    return block.content or ""


def _is_own(tool: AnthropicTool) -> bool:
    """True for a tool that the client describes."""
    return tool.type in (None, "custom")


def _tools(tools: Sequence[AnthropicTool]) -> Iterator[Tool]:
    for index, tool in enumerate(tools):
        param = f"tools.{index}"
        if not _is_own(tool):
            note_ignored(param, tool.type or "")
            continue
        name, schema = required(tool.name, f"{param}.name"), required(tool.input_schema, f"{param}.input_schema")
        yield function_tool(
            name, description=tool.description, parameters=schema, strict=tool.strict, param=f"{param}.input_schema"
        )


def _tool_choice(choice: AnthropicToolChoice, tools: tuple[Tool, ...], left_out: Set[str]) -> ToolChoice:
    names: tuple[str, ...] = ()
    match choice.type:
        case "any":
            mode: Mode = "required"
        case "tool":
            mode, names = "required", (required(choice.name, "tool_choice.name"),)
        case "auto" | "none":
            mode = choice.type
    return tool_choice_of(mode, names, tools, parallel=not choice.disable_parallel_tool_use, left_out=left_out)


def _effort(request: CountTokensRequest) -> str | None:
    """`thinking` and `output_config.effort` as OpenAI's reasoning effort. None: the chat template decides."""
    if request.thinking is not None and request.thinking.type == "disabled":
        return "none"
    effort = request.output_config.effort if request.output_config else None
    if effort == "max":
        return "xhigh"
    return effort or ("medium" if request.thinking is not None else None)
