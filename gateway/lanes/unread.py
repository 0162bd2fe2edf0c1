"""The events that the readers of a lane have not read yet, limited together.

An engine never waits for a reader, so a stalled reader does not hold a slot. Its events stay in memory until the server
closes its connection. Above the limit, the request with the most of them ends.
"""

from __future__ import annotations

from typing import Protocol

from gateway.generation import Started, TextDelta

MAX_UNREAD = 1_000_000  # about 100 MB


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
    """What an event counts."""
    if isinstance(event, TextDelta):
        tokens = event.logprobs
    elif isinstance(event, Started):
        tokens = event.prompt_logprobs
    else:
        return 1
    return 1 + sum(1 + len(token.top) for token in tokens) if tokens else 1
