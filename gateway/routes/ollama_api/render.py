"""Events become Ollama's reply: one JSON object, or one per line. The last has `done` and the durations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import UNSET

from gateway.errors import GatewayError
from gateway.generation import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    Generation,
    ReasoningDelta,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from gateway.routes.collect import Collected, CollectedChoice, arguments_of
from gateway.routes.ollama_api.wire import CalledFunction, OllamaCall, OllamaError, OllamaReply, OllamaReplyMessage
from gateway.routes.render import logprobs_of

Kind = Literal["chat", "generate"]

MEDIA_TYPE = "application/x-ndjson"

_json = msgspec.json.Encoder()


class OllamaRendering:
    """See `respond.Rendering`. As in Ollama, tool calls are sent complete, at the end."""

    media_type = MEDIA_TYPE

    def __init__(self, kind: Kind, generation: Generation) -> None:
        self._kind: Kind = kind
        self._with_logprobs = generation.logprobs is not None
        self._calls = CollectedChoice()
        self._reason: FinishReason = "stop"

    def whole(self, model: str, collected: Collected) -> OllamaReply:
        [choice] = collected.choices
        reply = reply_of(self._kind, model, choice.text, choice.reasoning, choice.tool_calls)
        self._add_logprobs(reply, choice.logprobs)
        return _finished(reply, choice.reason, collected.usage, collected.timings)

    def pieces(self, model: str, event: Event) -> Iterator[bytes]:
        match event:
            case TextDelta(text, _, logprobs) if text or logprobs:
                reply = reply_of(self._kind, model, text)
                self._add_logprobs(reply, logprobs)
                yield _line(reply)
            case ReasoningDelta(text) if text:
                yield _line(reply_of(self._kind, model, reasoning=text))
            case ToolCallDelta():
                self._calls.add_call(event)
            case ChoiceFinished(reason):
                self._reason = reason
                if self._calls.tool_calls:
                    yield _line(reply_of(self._kind, model, calls=self._calls.tool_calls))
            case Finished():
                yield _line(_finished(reply_of(self._kind, model), self._reason, event.usage, event.timings))

    def failed(self, error: GatewayError) -> bytes:
        return _json.encode(error_body(error)) + b"\n"

    def _add_logprobs(self, reply: OllamaReply, tokens: Iterable[TokenLogprob]) -> None:
        if self._with_logprobs:
            reply.logprobs = logprobs_of(tokens)


def reply_of(
    kind: Kind, model: str, text: str = "", reasoning: str = "", calls: Iterable[ToolCall] = ()
) -> OllamaReply:
    """A reply that is not yet done."""
    reply = OllamaReply(model=model, created_at=datetime.now(UTC).isoformat())
    if kind == "chat":
        made = [_call(call) for call in calls] or UNSET
        reply.message = OllamaReplyMessage(content=text, thinking=reasoning or UNSET, tool_calls=made)
    else:
        reply.response, reply.thinking = text, reasoning or UNSET
    return reply


def _call(call: ToolCall) -> OllamaCall:
    return OllamaCall(id=call.id, function=CalledFunction(name=call.name, arguments=arguments_of(call.arguments)))


def _finished(reply: OllamaReply, reason: FinishReason, usage: Usage, timings: Timings) -> OllamaReply:
    reply.done, reply.done_reason = True, "length" if reason == "length" else "stop"
    reply.total_duration = _nanoseconds(timings.total_s)
    reply.load_duration = _nanoseconds(timings.load_s)
    reply.prompt_eval_count = usage.prompt_tokens
    ttft_s = timings.total_s if timings.ttft_s is None else timings.ttft_s
    reply.prompt_eval_duration = _nanoseconds(max(0.0, ttft_s - timings.load_s - timings.queue_s))
    reply.eval_count = usage.completion_tokens
    reply.eval_duration = _nanoseconds(timings.total_s - ttft_s)
    return reply


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _line(reply: OllamaReply) -> bytes:
    return _json.encode(reply) + b"\n"


def error_body(error: GatewayError) -> OllamaError:
    return OllamaError(error=error.message)
