"""The chunks of another server's answer become events.

Servers differ: some send no ids, indices, usage or reasons. A default replaces a missing value if that is harmless. A
missing end of a choice is an error, because a cut answer must not look complete. Chunks are objects of the SDK. Any
attribute can be missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from gateway.errors import UpstreamFailed
from gateway.generation import (
    ChoiceFinished,
    Event,
    FinishReason,
    Meter,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

_PART_OF_A_CHARACTER = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)", re.IGNORECASE)  # OpenAI's notation
_REASONS: dict[str, FinishReason] = {"length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}


class ChunkTranslator:
    """Args:
    n: the number of choices.
    meter: updated with every chunk.
    """

    def __init__(self, n: int, meter: Meter) -> None:
        self._open = set(range(n))
        self._meter = meter
        self._started = False
        self._calls: set[tuple[int, int]] = set()  # (choice, index) of the tool calls that have begun
        self._usage: Any = None

    def take(self, chunk: Any) -> Iterator[Event]:
        """The events of one chunk."""
        self._measure()
        if not self._started:
            self._started = True
            yield Started(prompt_tokens=0)
        self._usage = getattr(chunk, "usage", None) or self._usage
        for choice in getattr(chunk, "choices", None) or ():
            index = getattr(choice, "index", None) or 0
            yield from self._deltas(choice, index)
            if getattr(choice, "finish_reason", None) and index in self._open:
                self._open.discard(index)
                yield _ending(choice, index)

    def finish(self) -> Usage:
        """The token counts, at the end of the chunks. Raises UpstreamFailed when a choice has no end."""
        if self._open or not self._started:
            raise UpstreamFailed("The server ended its answer in the middle.")
        usage, meter = self._count(), self._meter
        meter.prompt_tokens, meter.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        meter.completion_tokens = usage.completion_tokens
        return usage

    def _measure(self) -> None:
        meter = self._meter
        meter.device_s = meter.device_s_at(meter.clock())
        meter.call_ended()

    def _deltas(self, choice: Any, index: int) -> Iterator[Event]:
        delta = getattr(choice, "delta", None)  # of a chat; a completion has `text`
        content = getattr(delta, "content", None) or getattr(choice, "text", None) or ""
        reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
        calls = getattr(delta, "tool_calls", None) or ()
        logprobs = _logprobs(getattr(choice, "logprobs", None))
        if content or reasoning or calls:
            self._meter.count_token()  # a chunk is about one token; the server's own count replaces it at the end
        if isinstance(reasoning, str) and reasoning:
            yield ReasoningDelta(reasoning, index)
        if content or logprobs:
            yield TextDelta(content, index, logprobs)
        for position, call in enumerate(calls):
            yield self._call(call, index, position)

    def _call(self, call: Any, choice: int, position: int) -> ToolCallDelta:
        index = position if getattr(call, "index", None) is None else int(call.index)
        function = getattr(call, "function", None)
        arguments = getattr(function, "arguments", None) or ""
        if (choice, index) in self._calls:
            return ToolCallDelta(index=index, arguments=arguments, choice=choice)
        self._calls.add((choice, index))
        id, name = getattr(call, "id", None) or f"call_{uuid4().hex}", getattr(function, "name", None) or ""
        return ToolCallDelta(index=index, arguments=arguments, id=id, name=name, choice=choice)

    def _count(self) -> Usage:
        if self._usage is None:
            return Usage(completion_tokens=self._meter.completion_tokens)
        prompt = getattr(self._usage, "prompt_tokens_details", None)
        completion = getattr(self._usage, "completion_tokens_details", None)
        return Usage(
            prompt_tokens=_number(self._usage, "prompt_tokens"),
            cached_tokens=_number(prompt, "cached_tokens"),
            completion_tokens=_number(self._usage, "completion_tokens"),
            reasoning_tokens=_number(completion, "reasoning_tokens"),
            accepted_prediction_tokens=_number(completion, "accepted_prediction_tokens"),
            rejected_prediction_tokens=_number(completion, "rejected_prediction_tokens"),
        )


def _ending(choice: Any, index: int) -> ChoiceFinished:
    stop = getattr(choice, "stop_reason", None)  # vLLM: the stop string
    reason = _REASONS.get(choice.finish_reason, "stop")
    return ChoiceFinished(reason, index, stop if isinstance(stop, str) else None)


def _logprobs(found: Any) -> tuple[TokenLogprob, ...]:
    """Of a chat (`content`: objects) or of a completion (parallel lists)."""
    if content := getattr(found, "content", None):
        return tuple(_entry(entry) for entry in content)
    tokens, values = getattr(found, "tokens", None) or (), getattr(found, "token_logprobs", None) or ()
    tops = getattr(found, "top_logprobs", None) or [{}] * len(tokens)
    return tuple(
        _token(token, value or 0.0, tuple(_token(other, logprob) for other, logprob in (top or {}).items()))
        for token, value, top in zip(tokens, values, tops, strict=False)
    )


def _entry(entry: Any) -> TokenLogprob:
    top = tuple(_token(other.token, other.logprob, (), other.bytes) for other in entry.top_logprobs or ())
    return _token(entry.token, entry.logprob, top, entry.bytes)


def _token(
    token: str, logprob: float, top: tuple[TokenLogprob, ...] = (), written: list[int] | None = None
) -> TokenLogprob:
    if part := _PART_OF_A_CHARACTER.fullmatch(token):
        raw = bytes.fromhex(part[1].replace(r"\x", ""))
        return TokenLogprob(raw.decode(errors="replace"), tuple(raw), logprob, top)
    return TokenLogprob(token, tuple(written if written is not None else token.encode()), logprob, top)


def _number(found: Any, name: str) -> int:
    value = getattr(found, name, None)
    return value if isinstance(value, int) else 0
