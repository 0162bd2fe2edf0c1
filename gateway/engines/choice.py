"""The text of one choice becomes events: stop strings, the dialect's markup, log-probabilities."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.dialects.base import Delta, Parser
from gateway.generation import ChoiceFinished, Event, FinishReason, TextDelta, TokenLogprob, ToolCallDelta
from gateway.text.textstream import TextStream


class _PendingLogprob(Struct, frozen=True):
    """A token's log-probabilities that are not sent yet, and its characters in the text: `start` up to `end`."""

    start: int
    end: int
    logprob: TokenLogprob


class ChoiceText:
    """Turns the text of one choice into deltas and its one ChoiceFinished.

    Stop strings are searched in all text of the model, also in its markup. The log-probabilities of a token are sent
    with the text that completes it. Those of tokens that begin after a stop string are not sent.

    Args:
        choice: its number.
        stops: stop strings.
        parser: separates the text from reasoning and tool calls.
        ends: texts that stop it too. They end the turn, as an end token does: the client does not hear of them.
    """

    def __init__(self, choice: int, stops: Sequence[str], parser: Parser, ends: Sequence[str] = ()) -> None:
        self._choice, self._stops = choice, stops
        self._stream = TextStream((*stops, *ends))
        self._parser = parser
        self._pending: deque[_PendingLogprob] = deque()
        self._pushed = 0  # characters from the model
        self._parsed = 0  # characters that went to the parser
        self._has_call = False
        #: The stop string or end that was found.
        self.stopped: str | None = None
        self.reasoning_tokens = 0

    @property
    def is_over(self) -> bool:
        """True if the choice ends here, whatever the model would write next. Push nothing after it."""
        return self.stopped is not None or self._parser.is_over

    def push(self, text: str, logprob: TokenLogprob | None = None, *, whole: bool = True) -> list[Event]:
        """The deltas that are certain after one more token.

        Args:
            text: the token's text.
            whole: False if the token ends inside a character.
        """
        if logprob is not None:
            self._pending.append(_PendingLogprob(self._pushed, self._pushed + len(text) + (not whole), logprob))
        self._pushed += len(text)
        was_reasoning = self._parser.is_reasoning
        safe, self.stopped = self._stream.push(text)
        events = self._parse(safe)
        self.reasoning_tokens += was_reasoning or self._parser.is_reasoning
        return events

    def finish(self, reason: FinishReason) -> list[Event]:
        """The text that was held back, and the end. A stop string or a tool call replaces `reason`."""
        events: list[Event] = []
        if self.stopped is None:
            rest, self.stopped = self._stream.finish()
            events += self._parse(rest)
        if self.stopped is not None:
            reason = "stop"
            self._pending = deque(entry for entry in self._pending if entry.start < self._parsed)
        events += self._events(self._parser.finish())
        if self._pending:
            events.append(TextDelta("", self._choice, tuple(entry.logprob for entry in self._pending)))
        if self._has_call and reason == "stop":
            reason = "tool_calls"
        return [*events, ChoiceFinished(reason, self._choice, self.stopped if self.stopped in self._stops else None)]

    def _parse(self, text: str) -> list[Event]:
        self._parsed += len(text)
        return self._events(self._parser.push(text)) if text else []

    def _events(self, deltas: Iterable[Delta]) -> list[Event]:
        """Add the log-probabilities that are due to the first text delta. Record tool calls."""
        events: list[Event] = []
        for delta in deltas:
            self._has_call |= isinstance(delta, ToolCallDelta)
            if isinstance(delta, TextDelta) and self._pending:
                delta = replace(delta, logprobs=self._due())
            events.append(delta)
        return events

    def _due(self) -> tuple[TokenLogprob, ...]:
        due = []
        while self._pending and self._pending[0].end <= self._parsed:
            due.append(self._pending.popleft().logprob)
        return tuple(due)
