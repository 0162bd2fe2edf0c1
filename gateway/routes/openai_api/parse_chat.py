"""A `ChatRequest` becomes a `Generation`: defaults applied, contradictions refused."""

from __future__ import annotations

from gateway.config.tables import Defaults
from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.generation import Chat, Generation
from gateway.routes.openai_api.parse import check_stream_options, is_background, min_tokens_of
from gateway.routes.openai_api.parse_grammar import grammar_of
from gateway.routes.openai_api.parse_messages import messages_of, text_of
from gateway.routes.openai_api.parse_tools import chat_tool_choice, tools_of
from gateway.routes.openai_api.wire import ChatRequest
from gateway.routes.parse import refuse_parameters, stop_of
from gateway.sampling import sampling_of
from gateway.server.body import check_depth


def chat_generation(request: ChatRequest, defaults: Defaults, *, id: str) -> Generation:
    """Raises InvalidRequest; its `param` names the field."""
    _refuse_unsupported(request)
    check_stream_options(request)
    max_tokens = request.max_completion_tokens or request.max_tokens or defaults.max_tokens
    return Generation(
        id=id,
        model=request.model or "",
        prompt=chat_of(request),
        sampling=sampling_of("openai", request, defaults),
        max_tokens=max_tokens,
        min_tokens=min_tokens_of(request, max_tokens),
        ignore_eos=bool(request.ignore_eos),
        stop=stop_of(request.stop),
        n=request.n or 1,
        logprobs=_logprobs(request),
        grammar=grammar_of(request),
        prediction=text_of(request.prediction.content, "prediction.content") if request.prediction else None,
        background=is_background(request),
    )


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
