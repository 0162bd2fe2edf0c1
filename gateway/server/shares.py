"""A limit that clients share, so that none of them can use it up."""

from __future__ import annotations

from collections.abc import Callable


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
