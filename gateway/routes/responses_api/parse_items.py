"""The items of a Responses request become the engine's messages. What the model cannot read is left out or refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast, get_args

import msgspec
from msgspec.structs import replace

from gateway.errors import InvalidRequest, NotFound, PreviousResponseNotFound, quote
from gateway.generation import Message, Role, ToolCall
from gateway.routes.parse import arguments_text, omitted, required
from gateway.routes.responses_api.parse_tools import full_name
from gateway.routes.responses_api.store import ConversationItem, Lookup
from gateway.routes.responses_api.wire import InputItem, InputPart, InputRole, ResponsesRequest
from gateway.server.body import check_depth
from gateway.server.ignored import note_ignored

LocatedItem = tuple[str, ConversationItem]  # the item's path in the request ("input.0"), and the item

MAX_REFERENCES = 1_000  # in one request
MAX_REFERENCED_BYTES = 8 * 2**20  # as in a body; a reference of 50 bytes can name an item of megabytes

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def located_items(request: ResponsesRequest, store: Lookup, owner: str) -> list[LocatedItem]:
    """The whole conversation: the items of the previous response, then those of the request, references resolved.

    Raises PreviousResponseNotFound, NotFound for an item that no stored response has, and InvalidRequest for more
    references than the limits allow.
    """
    items = [("previous_response_id", item) for item in _previous(request.previous_response_id, store, owner)]
    if isinstance(request.input, str):
        return [*items, ("input", ConversationItem(InputItem(role="user", content=request.input)))]
    references = _ReferenceBudget()
    for index, item in enumerate(request.input):
        param = f"input.{index}"
        if item.type == "item_reference":
            items.append((param, references.count(_referenced(item, param, store, owner))))
        else:
            items.append((param, ConversationItem(item)))
    return items


class _ReferenceBudget:
    """What the references of one request may still name."""

    def __init__(self) -> None:
        self._references, self._bytes = MAX_REFERENCES, MAX_REFERENCED_BYTES

    def count(self, item: ConversationItem) -> ConversationItem:
        """Raises InvalidRequest if this item is one too many."""
        self._references -= 1
        self._bytes -= item.size_bytes
        if self._references < 0 or self._bytes < 0:
            raise InvalidRequest(
                f"'input' has references to more than {MAX_REFERENCES} items, or to more than "
                f"{MAX_REFERENCED_BYTES >> 20} MiB. Send 'previous_response_id' instead.",
                param="input",
            )
        return item


def _previous(id: str | None, store: Lookup, owner: str) -> tuple[ConversationItem, ...]:
    if not id:
        return ()
    try:
        return store.get(owner, id).items
    except NotFound:
        raise PreviousResponseNotFound(
            f"Previous response with id {quote(id)} not found.", param="previous_response_id"
        ) from None


def _referenced(item: InputItem, param: str, store: Lookup, owner: str) -> ConversationItem:
    id = required(item.id, f"{param}.id")
    if (found := store.item(owner, id)) is None:
        raise NotFound(
            f"Item with id {quote(id)} not found. Items are not stored when 'store' is false: send the item itself.",
            param=f"{param}.id",
        )
    return found


def messages_of(items: Iterable[LocatedItem]) -> list[Message]:
    """The reasoning, text and calls of one assistant turn are separate items; a chat template needs one message.

    Raises InvalidRequest for an image in the newest message of the user. An older one becomes a short text.
    """
    located = list(items)
    newest = max((index for index, (_, item) in enumerate(located) if item.item.role == "user"), default=-1)
    turns: list[list[Message]] = []
    for index, (param, item) in enumerate(located):
        message = _message(item.item, param, is_newest=index == newest)
        if message is None:
            note_ignored(param, item.item.type or "")
        elif turns and _continues(turns[-1], message):
            turns[-1].append(message)
        else:
            turns.append([message])
    merged = (turn[0] if len(turn) == 1 else _merged(turn) for turn in turns)
    return [message for message in merged if not _is_reasoning(message)]


def _message(item: InputItem, param: str, *, is_newest: bool) -> Message | None:
    """One item as a separate message. A reasoning item becomes an assistant message with only `reasoning`.

    None: an item of a tool that another server ran, or of an unknown type.
    """
    match item.type:
        case None | "message":
            role = required(item.role, f"{param}.role")
            if role not in get_args(InputRole):
                raise InvalidRequest(f"Invalid value for '{param}.role': {quote(role)}.", param=f"{param}.role")
            content = _text(item.content, f"{param}.content", is_newest=is_newest)
            return Message(role="system" if role == "developer" else cast(Role, role), content=content)
        case "function_call":
            call_id, name = required(item.call_id, f"{param}.call_id"), required(item.name, f"{param}.name")
            call = ToolCall(
                call_id, full_name(item.namespace, name), arguments_text(item.arguments, f"{param}.arguments")
            )
            return Message(role="assistant", tool_calls=(call,))
        case "function_call_output":
            text = _text("" if item.output is None else item.output, f"{param}.output")
            return Message(role="tool", content=text, tool_call_id=required(item.call_id, f"{param}.call_id"))
        case "reasoning":
            return Message(role="assistant", reasoning=_reasoning(item, param))
        case str(kind) if item.call_id is not None and kind.endswith("_call"):
            return _other_call(item, kind, param)
        case str(kind) if item.call_id is not None and kind.endswith("_output"):
            return Message(role="tool", content=_output(item.output, param), tool_call_id=item.call_id)
    return None


def _reasoning(item: InputItem, param: str) -> str:
    content = item.content or item.summary or ""
    return _text(content, f"{param}.content")


def _other_call(item: InputItem, kind: str, param: str) -> Message:
    """A call of a tool that is no function, and that the client ran: a shell, a patch, any text as input."""
    sent = {"input": item.input, "action": item.action, "operation": item.operation, "arguments": item.arguments}
    arguments = {name: value for name, value in sent.items() if value is not None}
    check_depth(arguments, param)
    name = item.name or kind.removesuffix("_call")
    return Message(
        role="assistant", tool_calls=(ToolCall(item.call_id or "", name, msgspec.json.encode(arguments).decode()),)
    )


def _output(output: Any, param: str) -> str:
    """The output of this kind of call: its text, or JSON without what is an image."""
    if isinstance(output, str):
        return output
    if isinstance(output, dict) and "image_url" in output:
        return omitted(str(output.get("type", "image")), f"{param}.output")
    check_depth(output, f"{param}.output")
    return msgspec.json.encode(output).decode()


def _continues(turn: list[Message], message: Message) -> bool:
    """True if `message` is part of the same assistant turn: text after reasoning, or calls after anything."""
    if not turn[0].role == message.role == "assistant" or _is_reasoning(message):
        return False
    return bool(message.tool_calls) or (len(turn) == 1 and _is_reasoning(turn[0]))


def _merged(turn: list[Message]) -> Message:
    return replace(
        turn[0],
        content=next((message.content for message in turn if message.content is not None), None),
        reasoning=next((message.reasoning for message in turn if message.reasoning), None),
        tool_calls=tuple(call for message in turn for call in message.tool_calls),
    )


def _is_reasoning(message: Message) -> bool:
    return message.role == "assistant" and message.content is None and not message.tool_calls


def _text(content: Any, param: str, *, is_newest: bool = False) -> str:
    """`content`: a text or parts, decoded or not."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        raise InvalidRequest(f"Invalid value for '{param}': expected a text or a list of parts.", param=param)
    try:
        parts = msgspec.convert(required(content, param), list[InputPart])
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid value for '{param}': {error}.", param=param) from None
    return "\n".join(_part(part, f"{param}.{index}", is_newest=is_newest) for index, part in enumerate(parts))


def _part(part: InputPart, param: str, *, is_newest: bool) -> str:
    if part.type in _TEXT_PARTS:
        return required(part.text, f"{param}.text")
    if part.type == "refusal":
        return required(part.refusal, f"{param}.refusal")
    return omitted(required(part.type or None, f"{param}.type"), param, is_newest=is_newest)
