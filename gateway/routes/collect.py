"""Collects the events of an answer, for replies that are not streamed."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence

import msgspec
from msgspec import Struct, field

from gateway.engines.context import MAX_LOGPROBS
from gateway.errors import InvalidRequest
from gateway.generation import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from gateway.routes.wire import Json


class CollectedChoice(Struct):
    text: str = ""
    reasoning: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    reason: FinishReason = "stop"
    stop: str | None = None

    def add_call(self, delta: ToolCallDelta) -> None:
        if delta.index == len(self.tool_calls):
            self.tool_calls.append(ToolCall(delta.id or "", delta.name or "", delta.arguments))
        else:
            call = self.tool_calls[delta.index]
            self.tool_calls[delta.index] = ToolCall(call.id, call.name, call.arguments + delta.arguments)


class Collected(Struct):
    choices: list[CollectedChoice]
    prompt_logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)  # one for each prompt
    usage: Usage = Usage()
    timings: Timings = Timings()
    logprobs: int = 0  # the number of log-probabilities

    def count(self, tokens: Sequence[TokenLogprob]) -> None:
        """Raises InvalidRequest for a list of prompts whose answers have too many log-probabilities together."""
        self.logprobs += sum(1 + len(token.top) for token in tokens)
        if self.logprobs > MAX_LOGPROBS:
            raise InvalidRequest(
                f"The answers to these prompts have more than {MAX_LOGPROBS} log-probabilities. Send fewer prompts at "
                "once, or stream the answers.",
                param="logprobs",
            )


async def collect(events: AsyncIterable[Event], n: int) -> Collected:
    """Read `events` to the end. `n` is the number of choices. Raises what `events` raises."""
    collected = Collected([CollectedChoice() for _ in range(n)])
    async for event in events:
        _add(collected, event)
    return collected


def arguments_of(text: str) -> Json:
    """A call's arguments as an object. Empty if the token limit cut them: the finish reason is `length` then."""
    try:
        return msgspec.json.decode(text or "{}", type=Json)
    except (ValueError, RecursionError):
        return {}


def _add(collected: Collected, event: Event) -> None:
    match event:
        case TextDelta(text, choice, logprobs):
            collected.choices[choice].text += text
            collected.choices[choice].logprobs += logprobs
            collected.count(logprobs)
        case ReasoningDelta(text, choice):
            collected.choices[choice].reasoning += text
        case ToolCallDelta():
            collected.choices[event.choice].add_call(event)
        case ChoiceFinished(reason, choice, stop):
            collected.choices[choice].reason = reason
            collected.choices[choice].stop = stop
        case Finished():
            collected.usage, collected.timings = event.usage, event.timings
        case Started():
            collected.prompt_logprobs.append(event.prompt_logprobs)
            collected.count(event.prompt_logprobs)
