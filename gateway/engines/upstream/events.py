"""The chunks of another server's answer, as events.

Servers differ: some leave out ids, indices, usage or reasons. What is missing is made up where that is harmless, and
an error where an answer would look complete that is not. Chunks come as the SDK's objects, read by attribute and never
trusted to have one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

from gateway.errors import UpstreamFailed
from gateway.generation import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    Generation,
    Meter,
    ReasoningDelta,
    Started,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

_PART_OF_A_CHARACTER = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)", re.IGNORECASE)  # as OpenAI names such tokens
_REASONS: dict[str, FinishReason] = {"length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}


class ChunkTranslator:
    """Args:
    clock: seconds, monotonic.
    """

    def __init__(self, generation: Generation, meter: Meter, clock: Callable[[], float]) -> None:
        self._open = set(range(generation.n))
        self._meter, self._clock = meter, clock
        self._asked_at = meter.call_since = clock()
        self._started = False
        self._calls: set[tuple[int, int]] = set()  # (choice, index) of the tool calls that were announced
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

    def finish(self) -> Iterator[Event]:
        """The end of the answer. Raises UpstreamFailed when a choice has none."""
        if self._open or not self._started:
            raise UpstreamFailed("The server ended its answer in the middle.")
        usage = self._count()
        self._meter.call_since = None
        self._meter.prompt_tokens, self._meter.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        self._meter.completion_tokens = usage.completion_tokens
        yield Finished(usage=usage, timings=self._timings())

    def _measure(self) -> None:
        now, meter = self._clock(), self._meter
        meter.device_s = meter.device_s_at(now)
        meter.call_since = now

    def _deltas(self, choice: Any, index: int) -> Iterator[Event]:
        delta = getattr(choice, "delta", None)  # a chat's; a completion has `text`
        content = getattr(delta, "content", None) or getattr(choice, "text", None) or ""
        reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
        calls = getattr(delta, "tool_calls", None) or ()
        logprobs = _logprobs(getattr(choice, "logprobs", None))
        if content or reasoning or calls:
            self._count_token()
        if isinstance(reasoning, str) and reasoning:
            yield ReasoningDelta(reasoning, index)
        if content or logprobs:
            yield TextDelta(content, index, logprobs)
        for place, call in enumerate(calls):
            yield self._call(call, index, place)

    def _call(self, call: Any, choice: int, place: int) -> ToolCallDelta:
        index = place if getattr(call, "index", None) is None else int(call.index)
        function = getattr(call, "function", None)
        arguments = getattr(function, "arguments", None) or ""
        if (choice, index) in self._calls:
            return ToolCallDelta(index=index, arguments=arguments, choice=choice)
        self._calls.add((choice, index))
        id, name = getattr(call, "id", None) or f"call_{uuid4().hex}", getattr(function, "name", None) or ""
        return ToolCallDelta(index=index, arguments=arguments, id=id, name=name, choice=choice)

    def _count_token(self) -> None:
        """A chunk is about a token: good enough until the server has counted."""
        self._meter.completion_tokens += 1
        if self._meter.first_token_at is None:
            self._meter.first_token_at = self._clock()

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

    def _timings(self) -> Timings:
        now = self._clock()
        first_at = self._meter.first_token_at if self._meter.first_token_at is not None else now
        return Timings(ttft_s=first_at - self._asked_at, device_s=self._meter.device_s, total_s=now - self._asked_at)


def _ending(choice: Any, index: int) -> ChoiceFinished:
    stop = getattr(choice, "stop_reason", None)  # vLLM says which stop string it was
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
