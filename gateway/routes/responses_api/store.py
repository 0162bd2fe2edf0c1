"""The responses that `previous_response_id`, `item_reference` and GET /v1/responses/{id} refer to. Lost on a restart.

Each API key has its own store. A client can neither read another client's responses nor cause their eviction.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict

import msgspec
from msgspec import Struct

from gateway.errors import NotFound
from gateway.routes.responses_api.wire import InputItem
from gateway.routes.responses_api.wire_response import Response

MAX_RESPONSES = 256  # per API key
MAX_BYTES = 64 * 2**20  # per API key, size as JSON


class Stored(Struct, frozen=True):
    """`items`: the whole conversation, including the response's output."""

    response: Response
    items: tuple[InputItem, ...]
    size_bytes: int


class ResponseStore:
    """Limited in number and in bytes. Eviction removes the least recently used response first."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: defaultdict[str, OrderedDict[str, Stored]] = defaultdict(OrderedDict)
        self._bytes: defaultdict[str, int] = defaultdict(int)

    def put(self, owner: str, response: Response, conversation: tuple[InputItem, ...]) -> None:
        """`conversation`: the items that the response answers. A response over `max_bytes` is not stored."""
        items = (*conversation, *(as_input(item) for item in msgspec.to_builtins(response.output)))
        size_bytes = len(msgspec.json.encode((response, items)))
        self._stored[owner][response.id] = Stored(response, items, size_bytes)
        self._bytes[owner] += size_bytes
        while len(self._stored[owner]) > self._max_responses or self._bytes[owner] > self._max_bytes:
            self._evict(owner, next(iter(self._stored[owner])))

    def get(self, owner: str, id: str) -> Stored:
        """Raises NotFound, also for a response of another owner."""
        if owner not in self._stored or id not in self._stored[owner]:
            raise NotFound(f"Response with id '{id}' not found.")
        self._stored[owner].move_to_end(id)
        return self._stored[owner][id]

    def delete(self, owner: str, id: str) -> None:
        """Raises NotFound."""
        self.get(owner, id)
        self._evict(owner, id)

    def item(self, owner: str, id: str) -> InputItem | None:
        """The input or output item with this id of any stored response."""
        stored_responses = self._stored[owner].values() if owner in self._stored else ()
        return next((item for stored in stored_responses for item in stored.items if item.id == id), None)

    def _evict(self, owner: str, id: str) -> None:
        self._bytes[owner] -= self._stored[owner].pop(id).size_bytes


def as_input(item: object) -> InputItem:
    """An output item, given as builtins, in the form in which a client sends it back."""
    return msgspec.convert(item, InputItem)
