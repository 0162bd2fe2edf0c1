"""A limit that clients share, so that none of them can use it up."""

from __future__ import annotations

from collections.abc import Callable

from litestar.types import Scope

from gateway.errors import Unavailable
from gateway.server.identity import client_of

COLLECT_BODY = 1024 * 1024  # bytes; after a request with a larger body that failed, the garbage collector runs


class Shares:
    """Counts what each client holds of something limited.

    A client may hold at most what is left over for the others: one client alone half of the limit, the next one half of
    the rest, and so on. So something is always left for a client that comes now.

    Args:
        limit: the most that all clients may hold together.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._held: dict[str, int] = {}
        self._total = 0

    def take(self, client: str, amount: int) -> bool:
        """Count `amount`. False if the client then holds more than its share; `give_back` is due all the same."""
        self._held[client] = self._held.get(client, 0) + amount
        self._total += amount
        return self._held[client] <= self._limit() - self._total

    def give_back(self, client: str, amount: int) -> None:
        self._total -= amount
        left = self._held.pop(client, 0) - amount
        if left:
            self._held[client] = left


class Holding:
    """What one request in progress holds: its connection, and the bytes of its body."""

    def __init__(self, scope: Scope, bodies: Shares, requests: Shares) -> None:
        self._scope, self._bodies, self._requests = scope, bodies, requests
        self._client: str | None = None  # known when the guards have run
        self._bytes = 0

    def begin(self) -> None:
        """Raises Unavailable if the client has too many requests in progress."""
        if self._client is not None:
            return
        self._client = client_of(self._scope)
        if not self._requests.take(self._client, 1):
            raise Unavailable("This client has too many requests in progress. Try again later.", retry_after_s=1.0)

    def add(self, size: int) -> None:
        """Raises Unavailable if the client holds too much."""
        assert self._client is not None
        self._bytes += size
        if not self._bodies.take(self._client, size):
            raise Unavailable(
                "The running requests of this client use too much memory. Try again later.", retry_after_s=1.0
            )

    @property
    def is_garbage(self) -> bool:
        """True if only the garbage collector frees the body: an error and its traceback refer to each other, and to the
        request.
        """
        return self._bytes > COLLECT_BODY and self._scope["state"].get("has_failed", False)

    def end(self) -> None:
        if self._client is not None:
            self._requests.give_back(self._client, 1)
            self._bodies.give_back(self._client, self._bytes)
