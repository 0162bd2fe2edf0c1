"""A decoded request as a `Generation`: every default resolved, everything that contradicts itself refused."""

from __future__ import annotations

from typing import TypeVar

from gateway.config import Defaults
from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.generation import Chat, Generation
from gateway.routes.openai_api.parse_grammar import grammar_of
from gateway.routes.openai_api.parse_messages import messages_of, text_of
from gateway.routes.openai_api.parse_tools import tool_choice_of, tools_of
from gateway.routes.openai_api.wire import ChatRequest, GenerationFields
from gateway.sampling import Sampling
from gateway.server.body import check_depth

T = TypeVar("T")


def chat_generation(request: ChatRequest, defaults: Defaults, *, id: str) -> Generation:
    """Raises InvalidRequest, its `param` the field at fault."""
    _refuse_unsupported(request)
    check_stream_options(request)
    max_tokens = request.max_completion_tokens or request.max_tokens or defaults.max_tokens
    return Generation(
        id=id,
        model=request.model or "",
        prompt=chat_of(request),
        sampling=sampling_of(request, defaults),
        max_tokens=max_tokens,
        min_tokens=min_tokens_of(request, max_tokens),
        ignore_eos=bool(request.ignore_eos),
        stop=stop_of(request),
        n=request.n or 1,
        logprobs=_logprobs(request),
        grammar=grammar_of(request),
        prediction=text_of(request.prediction.content, "prediction.content") if request.prediction else None,
        background=request.service_tier == "flex",
    )


def chat_of(request: ChatRequest) -> Chat:
    check_depth(request.chat_template_kwargs, "chat_template_kwargs")
    tools = tools_of(request.tools)
    return Chat(
        messages=messages_of(request.messages),
        tools=tools,
        tool_choice=tool_choice_of(request, tools),
        reasoning_effort=request.reasoning_effort,
        template_kwargs=request.chat_template_kwargs or {},
    )


def sampling_of(request: GenerationFields, defaults: Defaults) -> Sampling:
    return Sampling(
        temperature=_or(request.temperature, defaults.temperature),
        top_p=_or(request.top_p, defaults.top_p),
        top_k=max(0, _or(request.top_k, defaults.top_k)),  # vLLM's -1 is off, as 0 is
        min_p=_or(request.min_p, defaults.min_p),
        repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
        seed=request.seed,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=request.logit_bias or {},
    )


def _or(given: T | None, default: T) -> T:
    return default if given is None else given


def stop_of(request: GenerationFields) -> tuple[str, ...]:
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())


def min_tokens_of(request: GenerationFields, max_tokens: int) -> int:
    if request.min_tokens is not None and request.min_tokens > max_tokens:
        raise InvalidRequest(f"'min_tokens' is more than the limit of {max_tokens} tokens.", param="min_tokens")
    return request.min_tokens or 0


def check_stream_options(request: GenerationFields) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")


def wants_usage(request: GenerationFields) -> bool:
    """Whether a stream ends with a chunk that counts the tokens."""
    return bool(request.stream_options and request.stream_options.include_usage)


def _logprobs(request: ChatRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise InvalidRequest("'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs")
    return None


def _refuse_unsupported(request: ChatRequest) -> None:
    for name, instead in (
        ("functions", "send 'tools'"),
        ("function_call", "send 'tool_choice'"),
        ("web_search_options", "this gateway does not search the web"),
        ("audio", "this model writes text only"),
    ):
        if getattr(request, name):
            raise UnsupportedParameter(f"Unsupported parameter: '{name}': {instead}.", param=name)
    if set(request.modalities or ()) - {"text"}:
        raise UnsupportedParameter(
            "Unsupported value for 'modalities': this model writes text only.", param="modalities"
        )
