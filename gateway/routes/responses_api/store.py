"""The responses that `previous_response_id`, `item_reference` and GET /v1/responses/{id} refer to, in memory.

Each API key has its own store. A client can neither read another client's responses nor cause their eviction.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import NotFound, quote
from gateway.routes.responses_api.wire import InputItem
from gateway.routes.responses_api.wire_response import MessageItem, OutputItem, Response

MAX_RESPONSES = 256  # each limit is per API key
MAX_ITEMS = 25_000
MAX_BYTES = 32 * 2**20  # size as JSON

_json = msgspec.json.Encoder()


class ConversationItem(Struct, eq=False):
    """One item of a conversation. All stored responses of the conversation share it."""

    item: InputItem
    size_bytes: int = 0  # set when it is stored
    responses: int = 0  # the number of stored responses that have it


class Stored(Struct, frozen=True):
    """`items`: the whole conversation, including the response's output."""

    response: Response
    items: tuple[ConversationItem, ...]
    size_bytes: int


class Lookup(Protocol):
    """What a request reads of the stored responses."""

    def get(self, owner: str, id: str) -> Stored:
        """Raises NotFound, also for a response of another owner."""

    def item(self, owner: str, id: str) -> ConversationItem | None:
        """The input or output item with this id of any stored response; the last one stored if several have it."""


class ResponseStore:
    """Limited in number and in bytes. Eviction removes the least recently used response first."""

    def __init__(
        self, max_responses: int = MAX_RESPONSES, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._limits = max_responses, max_items, max_bytes
        self._owners: dict[str, _OwnerStore] = {}

    def put(self, owner: str, response: Response, conversation: tuple[ConversationItem, ...]) -> None:
        """`conversation`: the items that the response answers. A response over a limit is not stored."""
        items = items_with_output(response, conversation)
        self.add(owner, Stored(response, items, len(_json.encode(response)) + sum(map(measured, items))))

    def add(self, owner: str, stored: Stored) -> None:
        store = self._owners.setdefault(owner, _OwnerStore())
        store.add(stored)
        while any(used > limit for used, limit in zip(store.used, self._limits, strict=True)):
            store.remove(next(iter(store.responses)))

    def get(self, owner: str, id: str) -> Stored:
        """Raises NotFound, also for a response of another owner."""
        store = self._owners.get(owner)
        if store is None or id not in store.responses:
            raise NotFound(f"Response with id {quote(id)} not found.")
        store.responses.move_to_end(id)
        return store.responses[id]

    def delete(self, owner: str, id: str) -> None:
        """Raises NotFound."""
        self.get(owner, id)
        self._owners[owner].remove(id)

    def item(self, owner: str, id: str) -> ConversationItem | None:
        """The input or output item with this id of any stored response; the last one stored if several have it."""
        store = self._owners.get(owner)
        return None if store is None else store.item(id)


class _OwnerStore:
    """The responses of one API key, and an index of their items: a look-up does not depend on what is stored."""

    def __init__(self) -> None:
        self.responses: OrderedDict[str, Stored] = OrderedDict()
        self._index: dict[str, dict[ConversationItem, None]] = {}  # the items with an id, the last one stored last
        self._items = self._bytes = 0

    @property
    def used(self) -> tuple[int, int, int]:
        """The numbers of responses, of items and of bytes."""
        return len(self.responses), self._items, self._bytes

    def add(self, stored: Stored) -> None:
        if stored.response.id in self.responses:
            self.remove(stored.response.id)
        self.responses[stored.response.id] = stored
        self._items += len(stored.items)
        self._bytes += stored.size_bytes
        for item in stored.items:
            item.responses += 1
            if item.item.id:
                same_id = self._index.setdefault(item.item.id, {})
                same_id.pop(item, None)
                same_id[item] = None

    def remove(self, id: str) -> None:
        stored = self.responses.pop(id)
        self._items -= len(stored.items)
        self._bytes -= stored.size_bytes
        for item in stored.items:
            item.responses -= 1
            if not item.responses and item.item.id:
                del self._index[item.item.id][item]
                if not self._index[item.item.id]:
                    del self._index[item.item.id]

    def item(self, id: str) -> ConversationItem | None:
        return next(reversed(self._index.get(id, {})), None)


def _without_logprobs(items: Iterable[OutputItem]) -> list[OutputItem]:
    """No input has log-probabilities, and there can be many."""
    return [
        replace(item, content=[replace(part, logprobs=[]) for part in item.content])
        if isinstance(item, MessageItem)
        else item
        for item in items
    ]


def items_with_output(response: Response, conversation: Iterable[ConversationItem]) -> tuple[ConversationItem, ...]:
    """The whole conversation after `response`."""
    output = (ConversationItem(as_input(item)) for item in msgspec.to_builtins(_without_logprobs(response.output)))
    return (*conversation, *output)


def measured(item: ConversationItem) -> int:
    item.size_bytes = item.size_bytes or len(_json.encode(item.item))
    return item.size_bytes


def as_input(item: object) -> InputItem:
    """An output item, given as builtins, in the form in which a client sends it back."""
    return msgspec.convert(item, InputItem)
