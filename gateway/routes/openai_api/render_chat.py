"""Events become an OpenAI chat completion: one reply, or a stream of chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import sha256

from msgspec import UNSET

from gateway import __version__
from gateway.errors import GatewayError
from gateway.generation import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    Generation,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from gateway.routes.collect import Collected, CollectedChoice
from gateway.routes.openai_api.wire import (
    CallPiece,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionTokensDetails,
    CompletionUsage,
    Delta,
    FunctionPiece,
    PromptTokensDetails,
    ReplyMessage,
)
from gateway.routes.render import logprobs_of
from gateway.server.error_body import error_body
from gateway.server.sse import ANY_TEXT, DONE, MEDIA_TYPE, around_text, frame, with_text


class ChatRendering:
    """See `respond.Rendering`.

    Args:
        with_usage: the stream ends with a chunk that has the token counts.
        with_functions: the request has the older `functions`, so the call is also in `function_call`.
    """

    media_type = MEDIA_TYPE

    def __init__(self, generation: Generation, *, with_usage: bool = False, with_functions: bool = False) -> None:
        self._id = generation.id
        self._created = int(time.time())
        self._with_logprobs = generation.logprobs is not None
        self._with_usage = with_usage
        self._with_functions = with_functions
        self._with_role: set[int] = set()  # choices whose role was sent
        self._around: dict[int, tuple[bytes, bytes]] = {}  # the text of each choice, in a chunk

    def whole(self, model: str, collected: Collected) -> ChatCompletion:
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=model,
            choices=[self._choice(index, choice) for index, choice in enumerate(collected.choices)],
            usage=usage_of(collected.usage),
            system_fingerprint=fingerprint(model),
        )

    def _choice(self, index: int, choice: CollectedChoice) -> Choice:
        calls = [
            CallPiece(id=call.id, type="function", function=FunctionPiece(name=call.name, arguments=call.arguments))
            for call in choice.tool_calls
        ]
        message = ReplyMessage(
            content=choice.text if choice.text or not calls else None,
            reasoning_content=choice.reasoning or UNSET,
            tool_calls=calls or UNSET,
            function_call=calls[0].function if calls and self._with_functions else UNSET,
        )
        return Choice(
            index=index,
            message=message,
            finish_reason=self._reason(choice.reason),
            logprobs=self._logprobs(choice.logprobs),
        )

    def _reason(self, reason: FinishReason) -> str:
        return "function_call" if reason == "tool_calls" and self._with_functions else reason

    def pieces(self, model: str, event: Event) -> Iterator[bytes]:
        match event:
            case TextDelta(text, choice, logprobs) if text or logprobs:
                yield from self._role(model, choice)
                yield self._text(model, choice, text, logprobs)
            case ReasoningDelta(text, choice) if text:
                yield from self._role(model, choice)
                yield self._chunk(model, ChunkChoice(index=choice, delta=Delta(reasoning_content=text)))
            case ToolCallDelta():
                yield from self._role(model, event.choice)
                for call in call_pieces(event):
                    older = call.function if self._with_functions else UNSET
                    delta = Delta(tool_calls=[call], function_call=older)
                    yield self._chunk(model, ChunkChoice(index=event.choice, delta=delta))
            case ChoiceFinished(reason, choice):
                yield from self._role(model, choice)
                yield self._chunk(model, ChunkChoice(index=choice, delta=Delta(), finish_reason=self._reason(reason)))
            case Finished():
                if self._with_usage:
                    yield self._chunk(model, usage=event.usage)
                yield DONE

    def _text(self, model: str, choice: int, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        if self._with_logprobs:
            delta = Delta(content=text)
            return self._chunk(model, ChunkChoice(index=choice, delta=delta, logprobs=self._logprobs(logprobs)))
        if (around := self._around.get(choice)) is None:
            any_text = ChunkChoice(index=choice, delta=Delta(content=ANY_TEXT))
            around = self._around[choice] = around_text(self._chunk(model, any_text))
        return with_text(around, text)

    def failed(self, error: GatewayError) -> bytes:
        return frame(error_body(error))

    def _role(self, model: str, choice: int) -> Iterator[bytes]:
        if choice not in self._with_role:
            self._with_role.add(choice)
            yield self._chunk(model, ChunkChoice(index=choice, delta=Delta(role="assistant", content="")))

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> ChoiceLogprobs | None:
        return ChoiceLogprobs(content=logprobs_of(tokens)) if self._with_logprobs else None

    def _chunk(self, model: str, *choices: ChunkChoice, usage: Usage | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=model,
            choices=list(choices),
            system_fingerprint=fingerprint(model),
        )
        if self._with_usage:
            chunk.usage = usage_of(usage) if usage else None
        return frame(chunk)


def call_pieces(delta: ToolCallDelta) -> Iterator[CallPiece]:
    """As OpenAI: the first piece of a call has its name and no arguments, the others have only arguments."""
    if delta.id is not None:
        function = FunctionPiece(name=delta.name or "", arguments="")
        yield CallPiece(index=delta.index, id=delta.id, type="function", function=function)
    if delta.arguments:
        yield CallPiece(index=delta.index, function=FunctionPiece(arguments=delta.arguments))


def usage_of(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=usage.reasoning_tokens,
            accepted_prediction_tokens=usage.accepted_prediction_tokens,
            rejected_prediction_tokens=usage.rejected_prediction_tokens,
        ),
    )


@lru_cache(100)
def fingerprint(model: str) -> str:
    """Requests with the same seed and the same fingerprint get the same text."""
    return "fp_" + sha256(f"{__version__} {model}".encode()).hexdigest()[:10]
