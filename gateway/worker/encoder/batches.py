"""Which texts the next device call computes: texts of about one length, of several requests.

Clients take turns, and requests in the background come last. The request whose turn it is chooses the length: its
longest text that is left. Other texts that are not much shorter fill the batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain
from operator import itemgetter

from msgspec import Struct

from gateway.worker.encoder.model import Text
from gateway.worker.frames import Embed

_LARGEST_PADDING = 0.125  # share of a batch
_FREE_PADDING = 8  # tokens of each text that do not count, because each call has a fixed cost


class Waiting(Struct, eq=False):
    """A request and its texts that are left, the shortest first: (tokens, index)."""

    frame: Embed
    left: list[tuple[int, int]]
    shared_from_s: float = 0.0  # the device's seconds when it came
    has_begun: bool = False


class Item(Struct, frozen=True):
    """One text of a batch."""

    request: Waiting
    index: int
    text: Text


class BatchQueue:
    """The requests of a worker. Not thread-safe.

    Args:
        batch_tokens: of one batch, with padding. A text that is longer is alone.
    """

    def __init__(self, batch_tokens: int) -> None:
        self._batch_tokens = batch_tokens
        self._clients: OrderedDict[str, list[Waiting]] = OrderedDict()  # the next client is the first

    @property
    def is_empty(self) -> bool:
        return not self._clients

    def add(self, frame: Embed, device_s: float) -> None:
        left = sorted((len(ids), index) for index, ids in enumerate(frame.ids))
        self._clients.setdefault(frame.client, []).append(Waiting(frame, left, device_s))

    def cancel(self, id: int) -> None:
        """Forget a request. A batch that runs still computes its texts."""
        for waiting in list(self._all()):
            if waiting.frame.id == id:
                self._remove(waiting)

    def next_batch(self) -> list[Item]:
        """Remove the texts of one batch. Not empty unless the queue is."""
        if self.is_empty:
            return []
        leader = self._leader()
        self._clients.move_to_end(leader.frame.client)
        batch = [self._take(leader, len(leader.left) - 1)]
        width, padding = len(batch[0].text.ids), 0
        for waiting in (leader, *(each for each in list(self._all()) if each is not leader)):
            while (len(batch) + 1) * width <= self._batch_tokens:
                position = bisect_right(waiting.left, width, key=itemgetter(0)) - 1  # the longest that fits
                if position < 0:
                    break
                padding += max(0, width - waiting.left[position][0] - _FREE_PADDING)
                if padding > _LARGEST_PADDING * width * (len(batch) + 1):
                    break
                batch.append(self._take(waiting, position))
        for waiting in {id(item.request): item.request for item in batch}.values():
            if not waiting.left:
                self._remove(waiting)
        return batch

    def _leader(self) -> Waiting:
        ordinary = (each for each in self._all() if not each.frame.background)
        return next(ordinary, None) or next(self._all())

    def _all(self) -> Iterator[Waiting]:
        return chain.from_iterable(self._clients.values())

    def _take(self, waiting: Waiting, position: int) -> Item:
        _, index = waiting.left.pop(position)
        firsts = waiting.frame.firsts
        return Item(waiting, index, Text(waiting.frame.ids[index], firsts[index] if firsts else 0))

    def _remove(self, waiting: Waiting) -> None:
        requests = self._clients[waiting.frame.client]
        requests.remove(waiting)
        if not requests:
            del self._clients[waiting.frame.client]
