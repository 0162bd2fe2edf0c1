"""One choice of an answer on its way from text to events: stop strings, the dialect's markup, log-probabilities."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.dialects.base import Delta, Parser
from gateway.generation import ChoiceFinished, Event, FinishReason, TextDelta, TokenLogprob, ToolCallDelta
from gateway.text.textstream import TextStream


class _Placed(Struct, frozen=True):
    """A token's log-probabilities and the characters of the text that it wrote: `start` up to `end`."""

    start: int
    end: int
    logprob: TokenLogprob


class ChoiceText:
    """Turns one choice's text into deltas and its one ChoiceFinished.

    Stop strings are looked for in all that the model writes, markup included. A token's log-probabilities leave with
    the text that completes it; those of tokens that begin behind a stop string do not leave at all.
    """

    def __init__(self, choice: int, stops: Sequence[str], parser: Parser) -> None:
        self._choice = choice
        self._stream = TextStream(stops)
        self._parser = parser
        self._placed: deque[_Placed] = deque()
        self._arrived = 0  # characters pushed
        self._delivered = 0  # characters that went to the parser
        self._called = False
        #: The stop string that was met; nothing more is to be pushed then.
        self.stopped: str | None = None
        self.reasoning_tokens = 0

    def push(self, text: str, logprob: TokenLogprob | None = None, *, whole: bool = True) -> list[Event]:
        """The deltas that one token's `text` makes certain; `whole` says that the token ends with a character."""
        if logprob is not None:
            self._placed.append(_Placed(self._arrived, self._arrived + len(text) + (not whole), logprob))
        self._arrived += len(text)
        was_reasoning = self._parser.is_reasoning
        safe, self.stopped = self._stream.push(text)
        events = self._deliver(safe)
        self.reasoning_tokens += was_reasoning or self._parser.is_reasoning
        return events

    def finish(self, reason: FinishReason) -> list[Event]:
        """All that was held back, and the end: `reason`, unless a stop string or a tool call says otherwise."""
        events: list[Event] = []
        if self.stopped is None:
            rest, self.stopped = self._stream.finish()
            events += self._deliver(rest)
        if self.stopped is not None:
            reason = "stop"
            self._placed = deque(placed for placed in self._placed if placed.start < self._delivered)
        events += self._mark(self._parser.finish())
        if self._placed:
            events.append(TextDelta("", self._choice, tuple(placed.logprob for placed in self._placed)))
        if self._called and reason == "stop":
            reason = "tool_calls"
        return [*events, ChoiceFinished(reason, self._choice, self.stopped)]

    def _deliver(self, text: str) -> list[Event]:
        self._delivered += len(text)
        return self._mark(self._parser.push(text)) if text else []

    def _mark(self, deltas: Iterable[Delta]) -> list[Event]:
        """Attach to the first text the log-probabilities that are due, and notice tool calls."""
        events: list[Event] = []
        for delta in deltas:
            self._called |= isinstance(delta, ToolCallDelta)
            if isinstance(delta, TextDelta) and self._placed:
                delta = replace(delta, logprobs=self._due())
            events.append(delta)
        return events

    def _due(self) -> tuple[TokenLogprob, ...]:
        due = []
        while self._placed and self._placed[0].end <= self._delivered:
            due.append(self._placed.popleft().logprob)
        return tuple(due)
