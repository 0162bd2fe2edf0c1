"""A `ChatRequest` becomes a `Generation`: defaults applied, contradictions refused.

Messages: text parts are joined, the role "developer" becomes "system", images are refused.
"""

from __future__ import annotations

from gateway.config.tables import Defaults
from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.generation import Chat, Generation, Message, ToolCall
from gateway.routes.openai_api.parse import check_stream_options, is_background, min_tokens_of
from gateway.routes.openai_api.parse_grammar import grammar_of
from gateway.routes.openai_api.parse_tools import chat_tool_choice, tools_of
from gateway.routes.openai_api.wire import ChatMessage, ChatRequest, ContentPart
from gateway.routes.parse import limit_of, not_text, refuse_parameters, required, stop_of
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
    )


def _limit(request: ChatRequest, defaults: Defaults) -> tuple[int, bool]:
    """The newer field wins if both are sent."""
    if request.max_completion_tokens is not None:
        return limit_of(request.max_completion_tokens, defaults.max_tokens, "max_completion_tokens")
    return limit_of(request.max_tokens, defaults.max_tokens, "max_tokens")


def chat_of(request: ChatRequest) -> Chat:
    check_depth(request.chat_template_kwargs, "chat_template_kwargs")
    tools = tools_of(request.tools)
    return Chat(
        messages=messages_of(request.messages),
        tools=tools,
        tool_choice=chat_tool_choice(request.tool_choice, tools, parallel=request.parallel_tool_calls is not False),
        reasoning_effort=request.reasoning_effort,
        template_kwargs=request.chat_template_kwargs or {},
    )


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
        reasoning=message.reasoning_content or message.reasoning,
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


def _logprobs(request: ChatRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise InvalidRequest("'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs")
    return None


def _refuse_unsupported(request: ChatRequest) -> None:
    refuse_parameters(
        [
            ("functions", request.functions, "send 'tools'"),
            ("function_call", request.function_call, "send 'tool_choice'"),
            ("web_search_options", request.web_search_options, "the gateway does not search the web"),
            ("audio", request.audio, "the model writes only text"),
        ]
    )
    if set(request.modalities or ()) - {"text"}:
        raise UnsupportedParameter(
            "Unsupported value for 'modalities': the model writes only text.", param="modalities"
        )
