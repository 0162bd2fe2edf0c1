"""An Ollama request becomes a `Generation`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from gateway.config.tables import Defaults
from gateway.generation import Chat, Generation, Grammar, Message, Prompt, Text, ToolCall, ToolChoice
from gateway.routes.ollama_api.keep_alive import keep_alive_s
from gateway.routes.ollama_api.wire import (
    OllamaCall,
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaRequest,
    Options,
)
from gateway.routes.openai_api.parse_tools import tools_of
from gateway.routes.parse import limit_of, omitted, refuse_parameters, schema_grammar, stop_of
from gateway.sampling import sampling_of
from gateway.server.body import check_depth


def chat_of(request: OllamaChatRequest) -> Chat:
    """Raises InvalidRequest; its `param` names the field."""
    tools = tools_of(request.tools)
    return Chat(
        messages=tuple(_messages(request.messages or ())),
        tools=tools,
        tool_choice=ToolChoice(mode="auto" if tools else "none"),
        reasoning_effort=_effort(request),
    )


def prompt_of(request: OllamaGenerateRequest) -> Prompt:
    """A chat with one user message; the plain text if the request is `raw` or has a suffix.

    Raises UnsupportedParameter.
    """
    refuse_parameters(
        [
            ("images", request.images, "the model reads only text"),
            ("template", request.template, "the gateway uses the model's own template"),
            ("context", request.context, "send the conversation to /api/chat"),
        ]
    )
    if request.raw or request.suffix:
        return Text(request.prompt or "", request.suffix or None)
    system = [Message(role="system", content=request.system)] if request.system else []
    user = Message(role="user", content=request.prompt or "")
    return Chat(messages=(*system, user), tool_choice=ToolChoice(mode="none"), reasoning_effort=_effort(request))


def generation_of(request: OllamaRequest, prompt: Prompt, defaults: Defaults, *, id: str) -> Generation:
    """Raises InvalidRequest; its `param` names the field."""
    options = request.options or Options()
    sent = -1 if options.num_predict == 0 else options.num_predict  # 0: no limit, as in Ollama
    max_tokens, is_default = limit_of(sent, defaults.max_tokens, "options.num_predict")
    return Generation(
        id=id,
        model=request.model,
        prompt=prompt,
        sampling=sampling_of("ollama", options, defaults),
        max_tokens=max_tokens,
        has_default_limit=is_default,
        stop=stop_of(options.stop),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        grammar=_grammar(request.format),
        truncation=request.truncate is not False,
        keep_alive_s=keep_alive_s(request.keep_alive),
    )


def _grammar(format: str | dict[str, Any] | None) -> Grammar | None:
    match format:
        case "json":
            return Grammar(kind="json_object", param="format")
        case dict() as schema:
            return schema_grammar(schema, "format", is_strict=False)
    return None


def _effort(request: OllamaRequest) -> str | None:
    match request.think:
        case False:
            return "none"
        case True:
            return "medium"
        case effort:
            return effort


def _messages(messages: Sequence[OllamaMessage]) -> Iterator[Message]:
    """A call without an id gets one. A result without an id gets that of the first call without a result."""
    unanswered: deque[str] = deque()
    newest = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    for index, message in enumerate(messages):
        content = message.content
        if message.images:
            image = omitted("image", f"messages.{index}.images", is_newest=index == newest)
            content = f"{image}\n{content}" if content else image
        calls = tuple(_call(call, index, position) for position, call in enumerate(message.tool_calls or ()))
        unanswered.extend(call.id for call in calls)
        yield Message(
            role=message.role,
            content=content if content or not calls else None,
            reasoning=message.thinking,
            name=message.tool_name,
            tool_calls=calls,
            tool_call_id=_answered(message, unanswered) if message.role == "tool" else None,
        )


def _answered(message: OllamaMessage, unanswered: deque[str]) -> str | None:
    id = message.tool_call_id
    if not id:
        return unanswered.popleft() if unanswered else None
    if id in unanswered:
        unanswered.remove(id)
    return id


def _call(call: OllamaCall, message: int, position: int) -> ToolCall:
    check_depth(call.function.arguments, f"messages.{message}.tool_calls.{position}.function.arguments")
    id = f"call_{message}_{position}" if call.id is UNSET or not call.id else call.id
    return ToolCall(id, call.function.name, msgspec.json.encode(call.function.arguments).decode())
