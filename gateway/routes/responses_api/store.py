"""The answers that `previous_response_id`, `item_reference` and GET /v1/responses/{id} find again. Lost on a restart.

Each owner of a key has a store of its own, so that nobody reads another's answers nor pushes them out.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict

import msgspec
from msgspec import Struct

from gateway.errors import NotFound
from gateway.routes.responses_api.wire import InputItem, Response

MAX_RESPONSES = 256  # per owner
MAX_BYTES = 64 * 2**20  # per owner, as JSON


class Stored(Struct, frozen=True):
    """`items`: the conversation up to and with the response's own output."""

    response: Response
    items: tuple[InputItem, ...]
    size_bytes: int


class ResponseStore:
    """Bounded by number and by size; the least recently used response goes first."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: defaultdict[str, OrderedDict[str, Stored]] = defaultdict(OrderedDict)
        self._bytes: defaultdict[str, int] = defaultdict(int)

    def put(self, owner: str, response: Response, asked: tuple[InputItem, ...]) -> None:
        """`asked`: what the response answers. One that alone is too large is not kept."""
        items = (*asked, *(as_input(item) for item in msgspec.to_builtins(response.output)))
        size_bytes = len(msgspec.json.encode((response, items)))
        self._stored[owner][response.id] = Stored(response, items, size_bytes)
        self._bytes[owner] += size_bytes
        while len(self._stored[owner]) > self._max_responses or self._bytes[owner] > self._max_bytes:
            self._forget(owner, next(iter(self._stored[owner])))

    def get(self, owner: str, id: str) -> Stored:
        """Raises NotFound, also for a response of somebody else's."""
        if owner not in self._stored or id not in self._stored[owner]:
            raise NotFound(f"Response with id '{id}' not found.")
        self._stored[owner].move_to_end(id)
        return self._stored[owner][id]

    def delete(self, owner: str, id: str) -> None:
        """Raises NotFound."""
        self.get(owner, id)
        self._forget(owner, id)

    def item(self, owner: str, id: str) -> InputItem | None:
        """The item called `id` that a stored response took in or put out."""
        kept = self._stored[owner].values() if owner in self._stored else ()
        return next((item for stored in kept for item in stored.items if item.id == id), None)

    def _forget(self, owner: str, id: str) -> None:
        self._bytes[owner] -= self._stored[owner].pop(id).size_bytes


def as_input(item: object) -> InputItem:
    """An item of a response, in builtins, as a request sends it back."""
    return msgspec.convert(item, InputItem)
