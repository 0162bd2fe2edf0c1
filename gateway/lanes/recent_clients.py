"""The clients that have sent a request lately, for the slot that the admission queue keeps free for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

_RECENT_S = 60.0
_MOST = 8  # clients that are remembered


class RecentClients:
    """Args:
    clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, float] = {}  # the last request of each, the oldest first

    def note(self, client: str) -> None:
        """The client sends a request."""
        self._seen.pop(client, None)
        self._seen[client] = self._clock()
        if len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]

    def has_absent(self, running: Mapping[str, int]) -> bool:
        """True if one of them has no running request, and can send the next one at any time."""
        since = self._clock() - _RECENT_S
        return any(at > since and not running.get(client) for client, at in self._seen.items())
