"""OpenAI's chat messages become the engine's: text parts joined, "developer" read as "system", images refused."""

from __future__ import annotations

from gateway.generation import Message, ToolCall
from gateway.routes.openai_api.wire import ChatMessage, ContentPart
from gateway.routes.parse import not_text, required


def messages_of(messages: list[ChatMessage]) -> tuple[Message, ...]:
    return tuple(_message(message, f"messages.{index}") for index, message in enumerate(messages))


def text_of(content: str | list[ContentPart] | None, param: str) -> str:
    """The text of a string or of a list of text parts, one line for each part.

    Raises InvalidRequest for None and for any other part, with its path as `param` ("messages.0.content.1").
    """
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{param}.{index}") for index, part in enumerate(required(content, param)))


def _message(message: ChatMessage, param: str) -> Message:
    if message.role == "tool":
        required(message.tool_call_id, f"{param}.tool_call_id")
    return Message(
        role="system" if message.role == "developer" else message.role,
        content=_content(message, param),
        reasoning=message.reasoning_content,
        name=message.name,
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, call.function.arguments or "{}") for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id,
    )


def _content(message: ChatMessage, param: str) -> str | None:
    if message.content is None and message.role == "assistant":
        return message.refusal
    return text_of(message.content, f"{param}.content")


def _part(part: ContentPart, param: str) -> str:
    match part.type:
        case "text":
            return required(part.text, f"{param}.text")
        case "refusal":
            return required(part.refusal, f"{param}.refusal")
    raise not_text(part.type, param)
