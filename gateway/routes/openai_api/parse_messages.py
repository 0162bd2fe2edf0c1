"""OpenAI's chat messages as the engine's: parts joined, developer read as system, what is not text refused."""

from __future__ import annotations

from gateway.errors import InvalidRequest
from gateway.generation import Message, ToolCall
from gateway.routes.openai_api.wire import ChatMessage, ContentPart


def messages_of(messages: list[ChatMessage]) -> tuple[Message, ...]:
    return tuple(_message(message, f"messages.{index}") for index, message in enumerate(messages))


def text_of(content: str | list[ContentPart], param: str) -> str:
    """The text of a string or of a list of text parts, one part a line.

    Raises InvalidRequest for any other part, with its place as `param` ("messages.0.content.1").
    """
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{param}.{index}") for index, part in enumerate(content))


def _message(message: ChatMessage, param: str) -> Message:
    if message.role == "tool" and message.tool_call_id is None:
        raise InvalidRequest(f"Missing required parameter: '{param}.tool_call_id'.", param=f"{param}.tool_call_id")
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
    if message.content is not None:
        return text_of(message.content, f"{param}.content")
    if message.role == "assistant":
        return message.refusal
    raise InvalidRequest(f"Missing required parameter: '{param}.content'.", param=f"{param}.content")


def _part(part: ContentPart, param: str) -> str:
    match part:
        case ContentPart(type="text", text=str(text)):
            return text
        case ContentPart(type="refusal", refusal=str(text)):
            return text
        case ContentPart(type="text" | "refusal"):
            raise InvalidRequest(f"Missing required parameter: '{param}.{part.type}'.", param=f"{param}.{part.type}")
    raise InvalidRequest(
        f"Invalid content part '{param}': this model reads text only, not {part.type!r}. Send it as text, or leave it "
        "out.",
        param=param,
    )
