"""A Responses request becomes a `Generation`."""

from __future__ import annotations

from gateway.config.tables import Defaults
from gateway.errors import InvalidRequest
from gateway.generation import Chat, Generation, Grammar, Message
from gateway.routes.parse import limit_of, refuse_parameters, required, schema_grammar, unknown_format
from gateway.routes.responses_api.parse_items import LocatedItem, messages_of
from gateway.routes.responses_api.parse_tools import response_tool_choice, tools_of
from gateway.routes.responses_api.wire import ResponsesRequest
from gateway.sampling import sampling_of
from gateway.server.ignored import note_ignored

_LOGPROBS = "message.output_text.logprobs"


def response_generation(
    request: ResponsesRequest, items: list[LocatedItem], defaults: Defaults, *, id: str
) -> Generation:
    """`items`: from `located_items`. Raises InvalidRequest; its `param` names the field."""
    _refuse_unsupported(request)
    _note_ignored(request)
    max_tokens, is_default = limit_of(request.max_output_tokens, defaults.max_tokens, "max_output_tokens")
    return Generation(
        id=id,
        model=request.model or "",
        prompt=_chat(request, items),
        sampling=sampling_of("responses", request, defaults),
        max_tokens=max_tokens,
        has_default_limit=is_default,
        logprobs=_logprobs(request),
        grammar=_grammar(request),
        background=request.service_tier == "flex",
        truncation=(request.truncation or defaults.truncation) == "auto",
    )


def _chat(request: ResponsesRequest, items: list[LocatedItem]) -> Chat:
    tools = tuple(tools_of(request.tools or []))
    messages = messages_of(items)
    if not messages:
        raise InvalidRequest("'input' has no message to answer.", param="input")
    if request.instructions:
        messages.insert(0, Message(role="system", content=request.instructions))
    return Chat(
        messages=tuple(messages),
        tools=tools,
        tool_choice=response_tool_choice(request, tools),
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
    )


def _grammar(request: ResponsesRequest) -> Grammar | None:
    format = request.text.format if request.text else None
    if format is None:
        return None
    match format.type:
        case "text":
            return None
        case "json_object":
            return Grammar(kind="json_object", param="text.format")
        case "json_schema":
            param = "text.format.schema"
            return schema_grammar(required(format.schema, param), param, is_strict=bool(format.strict))
        case kind:
            raise unknown_format(kind, "text.format.type")


def _logprobs(request: ResponsesRequest) -> int | None:
    is_wanted = request.top_logprobs is not None or _LOGPROBS in (request.include or ())
    return (request.top_logprobs or 0) if is_wanted else None


def _note_ignored(request: ResponsesRequest) -> None:
    """Note the known fields, and values of them, that have no effect."""
    if request.text and request.text.verbosity not in (None, "medium"):
        note_ignored("text.verbosity", "not supported")
    if request.reasoning and request.reasoning.summary:
        note_ignored("reasoning.summary", "the reasoning is complete")
    for index, name in enumerate(request.include or ()):
        if name != _LOGPROBS:
            note_ignored(f"include.{index}", name)


def _refuse_unsupported(request: ResponsesRequest) -> None:
    refuse_parameters(
        [
            ("background", request.background, "keep the connection open instead"),
            ("conversation", request.conversation, "send 'previous_response_id'"),
            ("prompt", request.prompt, "send 'instructions' and 'input'"),
        ]
    )
