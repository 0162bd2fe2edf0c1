"""Events become an Anthropic message: one reply, or a stream of named events with one content block open at a time."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.errors import ContextLengthExceeded, GatewayError
from gateway.generation import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    Generation,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from gateway.routes.anthropic_api.wire import (
    AnthropicError,
    AnthropicErrorDetail,
    AnthropicMessage,
    AnthropicUsage,
    BlockDelta,
    BlockStart,
    BlockStop,
    InputPiece,
    MessageDelta,
    MessageStart,
    MessageStop,
    Ping,
    ReplyBlock,
    StopDelta,
    StreamEvent,
    TextBlock,
    TextPiece,
    ThinkingBlock,
    ThinkingPiece,
    ToolUseBlock,
)
from gateway.routes.collect import Collected, CollectedChoice, arguments_of
from gateway.server.sse import MEDIA_TYPE, frame

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicRendering:
    """See `respond.Rendering`."""

    media_type = MEDIA_TYPE

    def __init__(self, generation: Generation) -> None:
        self._id = generation.id
        self._index = -1  # of the newest block
        self._open: type[ReplyBlock] | None = None
        self._end = StopDelta(stop_reason="end_turn")

    def whole(self, model: str, collected: Collected) -> AnthropicMessage:
        [choice] = collected.choices
        end = _end(choice.reason, choice.stop)
        return AnthropicMessage(
            id=self._id,
            model=model,
            content=list(_blocks(choice)),
            usage=_usage(collected.usage),
            stop_reason=end.stop_reason,
            stop_sequence=end.stop_sequence,
        )

    def pieces(self, model: str, event: Event) -> Iterator[bytes]:
        for stream_event in self._stream_events(model, event):
            yield frame(stream_event, event=_name(stream_event))

    def failed(self, error: GatewayError) -> bytes:
        return frame(error_body(error), event="error")

    def _stream_events(self, model: str, event: Event) -> Iterator[StreamEvent]:
        match event:
            case Started():
                usage = _usage(Usage(prompt_tokens=event.prompt_tokens, cached_tokens=event.cached_tokens))
                yield MessageStart(AnthropicMessage(id=self._id, model=model, content=[], usage=usage))
                yield Ping()
            case TextDelta(text) if text:
                yield from self._in_block(TextBlock())
                yield BlockDelta(self._index, TextPiece(text))
            case ReasoningDelta(text) if text:
                yield from self._in_block(ThinkingBlock())
                yield BlockDelta(self._index, ThinkingPiece(text))
            case ToolCallDelta():
                if event.id is not None:
                    yield from self._begin(ToolUseBlock(id=event.id, name=event.name or "", input={}))
                if event.arguments:
                    yield BlockDelta(self._index, InputPiece(event.arguments))
            case ChoiceFinished(reason, _, stop):
                yield from self._close()
                self._end = _end(reason, stop)
            case Finished():
                yield MessageDelta(self._end, _usage(event.usage))
                yield MessageStop()

    def _in_block(self, block: TextBlock | ThinkingBlock) -> Iterator[StreamEvent]:
        if self._open is not type(block):
            yield from self._begin(block)

    def _begin(self, block: ReplyBlock) -> Iterator[StreamEvent]:
        yield from self._close()
        self._index, self._open = self._index + 1, type(block)
        yield BlockStart(self._index, block)

    def _close(self) -> Iterator[StreamEvent]:
        if self._open is not None:
            self._open = None
            yield BlockStop(self._index)


def _name(event: StreamEvent) -> str:
    return str(type(event).__struct_config__.tag)


def _blocks(choice: CollectedChoice) -> Iterator[ReplyBlock]:
    if choice.reasoning:
        yield ThinkingBlock(thinking=choice.reasoning)
    if choice.text:
        yield TextBlock(text=choice.text)
    for call in choice.tool_calls:
        yield ToolUseBlock(id=call.id, name=call.name, input=arguments_of(call.arguments))


def _end(reason: FinishReason, stop: str | None) -> StopDelta:
    return StopDelta(stop_reason="stop_sequence" if stop is not None else _STOP_REASONS[reason], stop_sequence=stop)


def _usage(usage: Usage) -> AnthropicUsage:
    return AnthropicUsage(
        input_tokens=usage.prompt_tokens - usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_input_tokens=usage.cached_tokens,
    )


def error_body(error: GatewayError) -> AnthropicError:
    """Anthropic's error. Its clients recognise a prompt over the context length by "prompt is too long"."""
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    is_too_long = isinstance(error, ContextLengthExceeded)
    message = f"prompt is too long: {error.message}" if is_too_long else error.message
    return AnthropicError(error=AnthropicErrorDetail(type=kind, message=message))
