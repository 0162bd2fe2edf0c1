"""The items of a Responses request become the engine's messages. Content that is not text is refused."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from gateway.errors import NotFound, PreviousResponseNotFound, UnsupportedParameter
from gateway.generation import Message, ToolCall
from gateway.routes.parse import not_text, required
from gateway.routes.responses_api.parse_tools import full_name
from gateway.routes.responses_api.store import ResponseStore
from gateway.routes.responses_api.wire import InputItem, InputPart, InputRole, ResponsesRequest

LocatedItem = tuple[str, InputItem]  # the item's path in the request ("input.0"), and the item

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def located_items(request: ResponsesRequest, store: ResponseStore, owner: str) -> list[LocatedItem]:
    """The whole conversation: the items of the previous response, then those of the request, references resolved.

    Raises PreviousResponseNotFound, and NotFound for an item that no stored response has.
    """
    items = [("previous_response_id", item) for item in _previous(request.previous_response_id, store, owner)]
    if isinstance(request.input, str):
        return [*items, ("input", InputItem(role="user", content=request.input))]
    for index, item in enumerate(request.input):
        param = f"input.{index}"
        items.append((param, _referenced(item, param, store, owner) if item.type == "item_reference" else item))
    return items


def _previous(id: str | None, store: ResponseStore, owner: str) -> tuple[InputItem, ...]:
    if id is None:
        return ()
    try:
        return store.get(owner, id).items
    except NotFound:
        raise PreviousResponseNotFound(
            f"Previous response with id '{id}' not found.", param="previous_response_id"
        ) from None


def _referenced(item: InputItem, param: str, store: ResponseStore, owner: str) -> InputItem:
    id = required(item.id, f"{param}.id")
    if (found := store.item(owner, id)) is None:
        raise NotFound(
            f"Item with id '{id}' not found. Items are not stored when 'store' is false: send the item itself.",
            param=f"{param}.id",
        )
    return found


def messages_of(items: Iterable[LocatedItem]) -> list[Message]:
    """The reasoning, text and calls of one assistant turn are separate items; a chat template needs one message."""
    messages: list[Message] = []
    for param, item in items:
        message = _message(item, param)
        if messages and _continues(messages[-1], message):
            messages[-1] = _merged(messages[-1], message)
        else:
            messages.append(message)
    return [message for message in messages if not _is_reasoning(message)]


def _message(item: InputItem, param: str) -> Message:
    """One item as a separate message. A reasoning item becomes an assistant message with only `reasoning`."""
    match item.type:
        case None | "message":
            role: InputRole = required(item.role, f"{param}.role")
            content = _text(item.content, f"{param}.content")
            return Message(role="system" if role == "developer" else role, content=content)
        case "function_call":
            call_id, name = required(item.call_id, f"{param}.call_id"), required(item.name, f"{param}.name")
            call = ToolCall(call_id, full_name(item.namespace, name), item.arguments or "{}")
            return Message(role="assistant", tool_calls=(call,))
        case "function_call_output":
            text = _text(item.output, f"{param}.output")
            return Message(role="tool", content=text, tool_call_id=required(item.call_id, f"{param}.call_id"))
        case "reasoning":
            reasoning = _text(item.content or item.summary or "", f"{param}.content")
            return Message(role="assistant", reasoning=reasoning)
    raise UnsupportedParameter(
        f"Unsupported value for '{param}.type': {item.type!r}; the gateway supports messages, function calls, their "
        "outputs and reasoning.",
        param=f"{param}.type",
    )


def _continues(last: Message, message: Message) -> bool:
    """True if `message` is part of the same assistant turn: text after reasoning, or calls after anything."""
    if not last.role == message.role == "assistant" or _is_reasoning(message):
        return False
    return bool(message.tool_calls) or _is_reasoning(last)


def _merged(last: Message, message: Message) -> Message:
    return replace(
        last,
        content=message.content if last.content is None else last.content,
        reasoning=last.reasoning or message.reasoning,
        tool_calls=(*last.tool_calls, *message.tool_calls),
    )


def _is_reasoning(message: Message) -> bool:
    return message.role == "assistant" and message.content is None and not message.tool_calls


def _text(content: str | list[InputPart] | None, param: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{param}.{index}") for index, part in enumerate(required(content, param)))


def _part(part: InputPart, param: str) -> str:
    if part.type in _TEXT_PARTS:
        return required(part.text, f"{param}.text")
    if part.type == "refusal":
        return required(part.refusal, f"{param}.refusal")
    raise not_text(part.type, param)
