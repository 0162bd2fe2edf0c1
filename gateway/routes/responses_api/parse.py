"""The Responses API's items, tools and switches as the engine's conversation; what is not text is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from msgspec.structs import replace

from gateway.errors import InvalidRequest, NotFound, PreviousResponseNotFound, UnsupportedParameter
from gateway.generation import Chat, Grammar, Message, Role, Tool, ToolCall, ToolChoice
from gateway.routes.openai_api.parse_grammar import schema_grammar
from gateway.routes.openai_api.parse_tools import function_tool, tool_choice_of
from gateway.routes.openai_api.wire import (
    AllowedTool,
    AllowedTools,
    ChatRequest,
    FunctionDefinition,
    FunctionName,
    NamedChoice,
)
from gateway.routes.responses_api.store import ResponseStore
from gateway.routes.responses_api.wire import (
    InputItem,
    InputPart,
    InputRole,
    ResponsesRequest,
    ResponseTool,
    ResponseToolChoice,
    ToolName,
)

T = TypeVar("T")

Placed = tuple[str, InputItem]  # an item, and where the request has it

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def placed_items(request: ResponsesRequest, store: ResponseStore, owner: str) -> list[Placed]:
    """The whole conversation: that of the previous response, then the request's own items, references resolved.

    Raises PreviousResponseNotFound, and NotFound for an item that no stored response has.
    """
    placed = [("previous_response_id", item) for item in _previous(request.previous_response_id, store, owner)]
    if isinstance(request.input, str):
        return [*placed, ("input", InputItem(role="user", content=request.input))]
    for index, item in enumerate(request.input):
        param = f"input.{index}"
        placed.append((param, _referred(item, param, store, owner) if item.type == "item_reference" else item))
    return placed


def _previous(id: str | None, store: ResponseStore, owner: str) -> tuple[InputItem, ...]:
    if id is None:
        return ()
    try:
        return store.get(owner, id).items
    except NotFound:
        raise PreviousResponseNotFound(
            f"Previous response with id '{id}' not found.", param="previous_response_id"
        ) from None


def _referred(item: InputItem, param: str, store: ResponseStore, owner: str) -> InputItem:
    id = _needed(item.id, f"{param}.id")
    if (found := store.item(owner, id)) is None:
        raise NotFound(
            f"Item with id '{id}' not found. Items are not kept when 'store' is false: send the item itself.",
            param=f"{param}.id",
        )
    return found


def chat_of(request: ResponsesRequest, placed: list[Placed]) -> Chat:
    """Raises InvalidRequest, its `param` the field at fault."""
    tools = tuple(_tools(request.tools or []))
    messages = list(_joined(_message(item, param) for param, item in placed))
    if not messages:
        raise InvalidRequest("'input' has no message to answer.", param="input")
    if request.instructions:
        messages.insert(0, Message(role="system", content=request.instructions))
    return Chat(
        messages=tuple(messages),
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
    )


def grammar_of(request: ResponsesRequest) -> Grammar | None:
    wanted = request.text.format if request.text else None
    match wanted.type if wanted else "text":
        case "text":
            return None
        case "json_object":
            return Grammar(kind="json_object", param="text.format")
        case "json_schema":
            param = "text.format.schema"
            return schema_grammar(_needed(wanted.schema if wanted else None, param), param)
        case kind:
            raise InvalidRequest(
                f"Invalid value for 'text.format.type': {kind!r} is none of 'text', 'json_object' and 'json_schema'.",
                param="text.format.type",
            )


# ---- items ---------------------------------------------------------------------------------------------------------


def _message(item: InputItem, param: str) -> Message:
    """One item as a turn of its own; a thought is an assistant's turn with nothing else."""
    match item.type:
        case None | "message":
            said: InputRole = _needed(item.role, f"{param}.role")
            role: Role = "system" if said == "developer" else said
            return Message(role=role, content=_text(item.content, f"{param}.content"))
        case "function_call":
            call_id, name = _needed(item.call_id, f"{param}.call_id"), _needed(item.name, f"{param}.name")
            call = ToolCall(call_id, name_within(item.namespace, name), item.arguments or "{}")
            return Message(role="assistant", tool_calls=(call,))
        case "function_call_output":
            text = _text(item.output, f"{param}.output")
            return Message(role="tool", content=text, tool_call_id=_needed(item.call_id, f"{param}.call_id"))
        case "reasoning":
            thought = _text(item.content or item.summary or "", f"{param}.content")
            return Message(role="assistant", reasoning=thought)
    raise UnsupportedParameter(
        f"Unsupported value for '{param}.type': {item.type!r}; this gateway takes messages, function calls, their "
        "outputs and reasoning.",
        param=f"{param}.type",
    )


def _joined(turns: Iterator[Message]) -> Iterator[Message]:
    """What one assistant turn thought, said and called are items of their own, and one message to a template."""
    last: Message | None = None
    for turn in turns:
        if last is not None and _goes_on(last, turn):
            last = replace(
                last,
                content=turn.content if last.content is None else last.content,
                reasoning=last.reasoning or turn.reasoning,
                tool_calls=(*last.tool_calls, *turn.tool_calls),
            )
            continue
        if last is not None and not _is_thought(last):
            yield last
        last = turn
    if last is not None and not _is_thought(last):
        yield last


def _goes_on(last: Message, turn: Message) -> bool:
    """A thought begins a turn, a text is only said before calls, and calls follow anything of an assistant's."""
    if not last.role == turn.role == "assistant" or _is_thought(turn):
        return False
    return bool(turn.tool_calls) or _is_thought(last)


def _is_thought(turn: Message) -> bool:
    return turn.role == "assistant" and turn.content is None and not turn.tool_calls


def _text(content: str | list[InputPart] | None, param: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{param}.{index}") for index, part in enumerate(_needed(content, param)))


def _part(part: InputPart, param: str) -> str:
    if part.type in _TEXT_PARTS:
        return _needed(part.text, f"{param}.text")
    if part.type == "refusal":
        return _needed(part.refusal, f"{param}.refusal")
    raise InvalidRequest(
        f"Invalid content part '{param}': this model reads text only, not {part.type!r}. Send it as text, or leave it "
        "out.",
        param=param,
    )


def _needed(value: T | None, param: str) -> T:
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    return value


# ---- tools ---------------------------------------------------------------------------------------------------------


def name_within(namespace: str | None, name: str) -> str:
    """What a model, which knows no namespaces, calls a function."""
    return f"{namespace}__{name}" if namespace else name


def _tools(tools: list[ResponseTool]) -> Iterator[Tool]:
    for index, tool in enumerate(tools):
        param = f"tools.{index}"
        if tool.type != "namespace":
            yield _tool(tool, param)
            continue
        namespace = _needed(tool.name, f"{param}.name")
        for inner_index, inner in enumerate(_needed(tool.tools or None, f"{param}.tools")):
            yield _tool(inner, f"{param}.tools.{inner_index}", namespace)


def _tool(tool: ResponseTool, param: str, namespace: str | None = None) -> Tool:
    if tool.type != "function":
        raise UnsupportedParameter(
            f"Unsupported value for '{param}.type': {tool.type!r}; only 'function' tools work here.",
            param=f"{param}.type",
        )
    definition = FunctionDefinition(
        name=name_within(namespace, _needed(tool.name, f"{param}.name")),
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
    )
    return function_tool(definition, param)


def _tool_choice(request: ResponsesRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    """Through the chat's, whose rules are the same."""
    choice = request.tool_choice
    chat = ChatRequest(
        messages=[],
        parallel_tool_calls=request.parallel_tool_calls,
        tool_choice=_named(choice) if isinstance(choice, ResponseToolChoice) else choice,
    )
    return tool_choice_of(chat, tools)


def _named(choice: ResponseToolChoice) -> NamedChoice:
    match choice.type:
        case "function":
            function = FunctionName(name=_needed(choice.name, "tool_choice.name"))
            return NamedChoice(type="function", function=function)
        case "allowed_tools":
            tools = _needed(choice.tools, "tool_choice.tools")
            allowed = AllowedTools(
                mode=_needed(choice.mode, "tool_choice.mode"),
                tools=[_allowed(tool, f"tool_choice.tools.{index}") for index, tool in enumerate(tools)],
            )
            return NamedChoice(type="allowed_tools", allowed_tools=allowed)
    raise UnsupportedParameter(
        f"Unsupported value for 'tool_choice.type': {choice.type!r}; only 'function' tools work here.",
        param="tool_choice.type",
    )


def _allowed(tool: ToolName, param: str) -> AllowedTool:
    if tool.type != "function":
        raise UnsupportedParameter(
            f"Unsupported value for '{param}.type': {tool.type!r}; only 'function' tools work here.",
            param=f"{param}.type",
        )
    return AllowedTool(function=FunctionName(name=_needed(tool.name, f"{param}.name")))
