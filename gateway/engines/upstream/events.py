"""The chunks of another server's answer become events.

Servers differ: some send no ids, indices, usage or reasons. A default replaces a missing value if that is harmless. A
missing end of a choice is an error, because a cut answer must not look complete. So is what no API can render: an index
that was not requested, content after the end of a choice, parts of two tool calls mixed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from gateway.engines.upstream.chunks import Call, Choice, Chunk, Delta, Entry, Logprobs, read_logprobs
from gateway.engines.upstream.refusals import ended
from gateway.engines.upstream.sse import EventTooLarge
from gateway.generation import (
    ChoiceFinished,
    Event,
    FinishReason,
    Generation,
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

MAX_TOKENS = 2**18  # of one request, for its bounds
_MAX_CALLS = 1000  # of one choice
_MAX_COUNT = 10_000_000  # tokens that a server may report
_ANSWER_CHARACTERS = 1024 * 1024  # an answer has at most these, and 256 more for each token that it may have
_TOKEN_CHARACTERS = 256
_LOGPROB_CHARACTERS = 64  # what one log-probability counts


class MalformedAnswer(ValueError):
    """The chunks are right one by one, but no answer has them in this order or number."""


class ChunkTranslator:
    """Args:
    generation: the request.
    meter: updated with every chunk. It can be exchanged.
    """

    def __init__(self, generation: Generation, meter: Meter) -> None:
        self._open = set(range(generation.n))
        self._generation = generation
        self.meter = meter
        self._started = False
        self._calls: dict[int, list[int]] = {}  # choice -> the server's indices of its tool calls, in order
        self._in_call: set[int] = set()  # choices whose newest event is of a tool call
        self._left = _ANSWER_CHARACTERS + _TOKEN_CHARACTERS * most_tokens(generation)
        self._usage: Any = None

    def take(self, chunk: Chunk) -> Iterator[Event]:
        """The events of one chunk. Raises MalformedAnswer, EventTooLarge, or one of chunks.MALFORMED."""
        self._measure()
        if not self._started:
            self._started = True
            yield Started(prompt_tokens=0)
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices or ():
            index = choice.index or 0
            yield from self._deltas(choice, index)
            if choice.finish_reason and index in self._open:
                self._open.discard(index)
                yield self._ending(choice, index)

    def finish(self) -> Usage:
        """The token counts, at the end of the chunks. Raises UpstreamFailed when a choice has no end."""
        self.check_complete()
        usage, meter = self._count(), self.meter
        meter.prompt_tokens, meter.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        meter.completion_tokens = usage.completion_tokens
        return usage

    def check_complete(self) -> None:
        """Raises UpstreamFailed when a choice has no end."""
        if self._open or not self._started:
            raise ended()

    def _measure(self) -> None:
        meter = self.meter
        meter.device_s = meter.device_s_at(meter.clock())
        meter.call_ended()

    def _deltas(self, choice: Choice, index: int) -> Iterator[Event]:
        delta = choice.delta or Delta()
        content = delta.content or choice.text or ""
        reasoning = delta.reasoning_content or delta.reasoning
        logprobs = self._logprobs(choice)
        if content or reasoning or delta.tool_calls:
            if index not in self._open:
                raise MalformedAnswer("content after the end of a choice, or of one that was not requested")
            self.meter.count_token()  # a chunk is about one token; the server's own count replaces it at the end
        if reasoning:
            self._spend(len(reasoning))
            self._in_call.discard(index)
            yield ReasoningDelta(reasoning, index)
        if content or (logprobs and index in self._open):
            self._spend(len(content))
            self._in_call.discard(index)
            yield TextDelta(content, index, logprobs)
        for position, call in enumerate(delta.tool_calls or ()):
            yield self._call(call, index, position)

    def _call(self, call: Call, choice: int, position: int) -> ToolCallDelta:
        """Numbers the calls of a choice in the order in which they begin, whatever the server's indices are."""
        theirs = position if call.index is None else call.index
        known = self._calls.setdefault(choice, [])
        arguments = (call.function and call.function.arguments) or ""
        name = (call.function and call.function.name) or ""
        self._spend(len(arguments))
        if theirs in known:
            if arguments and (known[-1] != theirs or choice not in self._in_call):
                raise MalformedAnswer("a part of a tool call after its end")
            return ToolCallDelta(index=known.index(theirs), arguments=arguments, choice=choice)
        if len(known) >= _MAX_CALLS:
            raise MalformedAnswer("too many tool calls")
        self._spend(len(name) + len(call.id or ""))
        known.append(theirs)
        self._in_call.add(choice)
        id = call.id or f"call_{uuid4().hex}"
        return ToolCallDelta(index=len(known) - 1, arguments=arguments, id=id, name=name, choice=choice)

    def _spend(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise EventTooLarge("more text than the request allows")

    def _ending(self, choice: Choice, index: int) -> ChoiceFinished:
        reason = _REASONS.get(choice.finish_reason or "", "stop")
        stop = next((stop for stop in self._generation.stop if stop == choice.stop_reason), None)
        return ChoiceFinished(reason, index, stop)

    def _logprobs(self, choice: Choice) -> tuple[TokenLogprob, ...]:
        if self._generation.logprobs is None or not bytes(choice.logprobs):
            return ()
        tokens = tuple(_tokens(read_logprobs(choice.logprobs), self._generation.logprobs))
        self._spend(_LOGPROB_CHARACTERS * sum(1 + len(token.top) for token in tokens))
        return tokens

    def _count(self) -> Usage:
        usage = self._usage
        prompt, completion = _number(usage, "prompt_tokens") or 0, _number(usage, "completion_tokens")
        details = _part(usage, "completion_tokens_details")
        return Usage(
            prompt_tokens=prompt,
            cached_tokens=min(prompt, _number(_part(usage, "prompt_tokens_details"), "cached_tokens") or 0),
            completion_tokens=self.meter.completion_tokens if completion is None else completion,
            reasoning_tokens=_number(details, "reasoning_tokens") or 0,
            accepted_prediction_tokens=_number(details, "accepted_prediction_tokens") or 0,
            rejected_prediction_tokens=_number(details, "rejected_prediction_tokens") or 0,
        )


def most_tokens(generation: Generation) -> int:
    """The tokens that the answer may have, with a limit for requests that set none that is useful."""
    return min(generation.n * generation.max_tokens, MAX_TOKENS)


def _tokens(found: Logprobs, most: int) -> Iterator[TokenLogprob]:
    """At most `most` alternatives of a token: llama.cpp sends 20 to a request for none."""
    for entry in found.content or ():
        yield _entry(entry, most)
    if found.content is None:
        tokens, values = found.tokens or (), found.token_logprobs or ()
        tops = found.top_logprobs or [{}] * len(tokens)
        for token, value, top in zip(tokens, values, tops, strict=False):
            yield _token(token, value, tuple(_token(other, logprob) for other, logprob in (top or {}).items()))


def _entry(entry: Entry, most: int) -> TokenLogprob:
    alternatives = (entry.top_logprobs or ())[:most]
    top = tuple(_token(other.token, other.logprob, (), other.bytes) for other in alternatives)
    return _token(entry.token, entry.logprob, top, entry.bytes)


def _token(
    token: str, logprob: float | None, top: tuple[TokenLogprob, ...] = (), written: list[int] | None = None
) -> TokenLogprob:
    if part := _PART_OF_A_CHARACTER.fullmatch(token):
        raw = bytes.fromhex(part[1].replace(r"\x", ""))
        return TokenLogprob(raw.decode(errors="replace"), tuple(raw), logprob or 0.0, top)
    return TokenLogprob(token, tuple(written if written is not None else token.encode()), logprob or 0.0, top)


def _part(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, dict) else None


def _number(found: Any, name: str) -> int | None:
    """A count of tokens; None if it is missing, or cannot be a count."""
    value = _part(found, name)
    return value if type(value) is int and 0 <= value <= _MAX_COUNT else None
