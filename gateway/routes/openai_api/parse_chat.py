"""A `ChatRequest` becomes a `Generation`: defaults applied, contradictions refused.

Messages: text parts are joined, the role "developer" becomes "system", an image is refused or becomes a short text.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gateway.config.tables import Defaults
from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.generation import Chat, Generation, Message, ToolCall
from gateway.routes.openai_api.parse import check_stream_options, is_background, min_tokens_of
from gateway.routes.openai_api.parse_grammar import grammar_of
from gateway.routes.openai_api.parse_tools import chat_tool_choice, tools_of
from gateway.routes.openai_api.wire import ChatMessage, ChatRequest, ContentPart, FunctionCall
from gateway.routes.parse import arguments_text, limit_of, omitted, required, stop_of
from gateway.sampling import sampling_of
from gateway.server.body import check_depth


def chat_generation(request: ChatRequest, defaults: Defaults, *, id: str) -> Generation:
    """Raises InvalidRequest; its `param` names the field."""
    _refuse_unsupported(request)
    check_stream_options(request)
    max_tokens, is_default = _limit(request, defaults)
    return Generation(
        id=id,
        model=request.model or "",
        prompt=chat_of(request),
        sampling=sampling_of("openai", request, defaults),
        max_tokens=max_tokens,
        has_default_limit=is_default,
        min_tokens=min_tokens_of(request, max_tokens),
        ignore_eos=bool(request.ignore_eos),
        stop=stop_of(request.stop),
        n=request.n or 1,
        logprobs=_logprobs(request),
        grammar=grammar_of(request),
        prediction=text_of(request.prediction.content, "prediction.content") if request.prediction else None,
        background=is_background(request),
        truncation=defaults.truncation == "auto",
    )


def _limit(request: ChatRequest, defaults: Defaults) -> tuple[int, bool]:
    """The newer field wins if both are sent."""
    if request.max_completion_tokens is not None:
        return limit_of(request.max_completion_tokens, defaults.max_tokens, "max_completion_tokens")
    return limit_of(request.max_tokens, defaults.max_tokens, "max_tokens")


def chat_of(request: ChatRequest) -> Chat:
    check_depth(request.chat_template_kwargs, "chat_template_kwargs")
    tools = tools_of(request.tools, request.functions)
    return Chat(
        messages=messages_of(request.messages),
        tools=tools,
        tool_choice=chat_tool_choice(request, tools),
        reasoning_effort=request.reasoning_effort,
        template_kwargs=request.chat_template_kwargs or {},
    )


def messages_of(messages: list[ChatMessage]) -> tuple[Message, ...]:
    """Raises InvalidRequest for an image in the newest message of the user. An older one becomes a short text."""
    newest = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    made: list[Message] = []
    waiting: list[str] = []  # the calls without a result; a result without an id is that of the first
    for index, message in enumerate(messages):
        made.append(_message(message, index, waiting, is_newest=index == newest))
        waiting += [call.id for call in made[-1].tool_calls]
        if (answered := made[-1].tool_call_id) in waiting:
            waiting.remove(answered)
    return tuple(made)


def text_of(content: str | list[ContentPart | str] | None, param: str, *, is_newest: bool = True) -> str:
    """The text of a string or of a list of text parts, one line for each part.

    Raises InvalidRequest for None, with its path as `param` ("messages.0.content.1"); see `omitted` for other parts.
    """
    if isinstance(content, str):
        return content
    parts = enumerate(required(content, param))
    return "\n".join(_part(part, f"{param}.{index}", is_newest=is_newest) for index, part in parts)


def _message(message: ChatMessage, index: int, waiting: list[str], *, is_newest: bool) -> Message:
    param = f"messages.{index}"
    content = _content(message, param, is_newest=is_newest)
    match message.role:
        case "tool":
            id = required(message.tool_call_id or next(iter(waiting), None), f"{param}.tool_call_id")
            return Message(role="tool", content=content, name=message.name, tool_call_id=id)
        case "function":
            id = next(iter(waiting), "call_0")
            return Message(role="tool", content=content, name=message.name, tool_call_id=id)
        case "developer":
            return Message(role="system", content=content, name=message.name)
        case role:
            return Message(
                role=role,
                content=content,
                reasoning=message.reasoning_content
                or (message.reasoning if isinstance(message.reasoning, str) else None),
                name=message.name,
                tool_calls=tuple(_calls(message, index)),
            )


def _calls(message: ChatMessage, index: int) -> Iterator[ToolCall]:
    for position, call in enumerate(message.tool_calls or ()):
        id = call.id or f"call_{index}_{position}"
        if call.custom is not None and call.function is None:
            yield ToolCall(id, call.custom.name, msgspec.json.encode({"input": call.custom.input or ""}).decode())
        else:
            param = f"messages.{index}.tool_calls.{position}.function"
            yield _call(id, required(call.function, param), param)
    if message.function_call is not None:
        yield _call(f"call_{index}", message.function_call, f"messages.{index}.function_call")


def _call(id: str, function: FunctionCall, param: str) -> ToolCall:
    return ToolCall(id, function.name, arguments_text(function.arguments, f"{param}.arguments"))


def _content(message: ChatMessage, param: str, *, is_newest: bool) -> str | None:
    if message.content is None and message.role == "assistant":
        return message.refusal
    if message.content is None and message.role != "user":
        return ""  # a result or an instruction without text
    return text_of(message.content, f"{param}.content", is_newest=is_newest)


def _part(part: ContentPart | str, param: str, *, is_newest: bool) -> str:
    if isinstance(part, str):
        return part
    match part.type:
        case "text" | "input_text" | "output_text":
            return required(part.text, f"{param}.text")
        case "refusal":
            return required(part.refusal, f"{param}.refusal")
    return omitted(part.type, param, is_newest=is_newest)


def _logprobs(request: ChatRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise InvalidRequest("'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs")
    return None


def _refuse_unsupported(request: ChatRequest) -> None:
    if set(request.modalities or ()) - {"text"}:
        raise UnsupportedParameter(
            "Unsupported value for 'modalities': the model writes only text.", param="modalities"
        )
