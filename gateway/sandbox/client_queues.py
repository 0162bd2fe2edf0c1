"""The order in which clients use something that serves one request after another, as a sandbox does."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class ClientQueues(Generic[T]):
    """Items by client. Clients take turns (round robin); the items of one client keep their order. Not thread-safe."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()  # the next client is the first

    def put(self, client: str, item: T) -> None:
        self._queues.setdefault(client, deque()).append(item)

    def get(self) -> T | None:
        """Remove the next item. None: there is none."""
        if not self._queues:
            return None
        client, items = self._queues.popitem(last=False)
        item = items.popleft()
        if items:
            self._queues[client] = items  # behind the other clients
        return item
