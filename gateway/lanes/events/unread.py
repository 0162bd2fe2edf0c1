"""The events that the readers of a lane have not read yet, limited together.

An engine never waits for a reader, so a stalled reader does not hold a slot. Its events stay in memory until the server
closes its connection. Above the limit, the request with the most of them ends.
"""

from __future__ import annotations

from typing import Protocol

from gateway.generation import ReasoningDelta, Started, TextDelta, TokenLogprob, ToolCallDelta

MAX_UNREAD = 1_000_000  # about 100 MB
_COUNTED_TEXT = 100  # characters


class Reader(Protocol):
    """The queue of one request."""

    unread: int

    def overflow(self) -> None:
        """Drop the events and end the request."""


class UnreadEvents:
    """Counts the unread events of all requests of a lane. An event counts as one, and each log-probability as one."""

    def __init__(self, limit: int = MAX_UNREAD) -> None:
        self._limit = limit
        self._total = 0
        self._behind: set[Reader] = set()

    def add(self, reader: Reader, amount: int) -> None:
        self._total += amount
        reader.unread += amount
        self._behind.add(reader)
        if self._total > self._limit:
            max(self._behind, key=lambda reader: reader.unread).overflow()

    def remove(self, reader: Reader, amount: int) -> None:
        self._total -= amount
        reader.unread -= amount
        if not reader.unread:
            self._behind.discard(reader)


def weight(event: object) -> int:
    """What an event counts: one, each of its log-probabilities one more, and each 100 characters of its text."""
    size, tokens = 1, tuple[TokenLogprob, ...]()
    if isinstance(event, TextDelta):
        size, tokens = 1 + len(event.text) // _COUNTED_TEXT, event.logprobs
    elif isinstance(event, ReasoningDelta):
        size = 1 + len(event.text) // _COUNTED_TEXT
    elif isinstance(event, ToolCallDelta):
        size = 1 + (len(event.arguments) + len(event.name or "")) // _COUNTED_TEXT
    elif isinstance(event, Started):
        tokens = event.prompt_logprobs
    return size + sum(1 + len(token.top) for token in tokens) if tokens else size
