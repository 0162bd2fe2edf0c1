"""The stored responses of this gateway: in memory, or in the database that several gateways share."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import GatewayError, NotFound, Unavailable
from gateway.routes.responses_api.parse_items import MAX_REFERENCES
from gateway.routes.responses_api.shared_store import SharedStore
from gateway.routes.responses_api.store import ConversationItem, Lookup, ResponseStore, Stored
from gateway.routes.responses_api.wire import ResponsesRequest
from gateway.routes.responses_api.wire_response import Response
from gateway.state.access import Access
from gateway.state.database import StateError

_RETRY_S = 5.0


class Responses:
    """All methods are for the event loop.

    While the database fails, new responses and those that this gateway made before are read from its memory. Others get
    503. Responses that could not be written stay in the memory of this gateway.

    Args:
        access: None: responses are in memory only.
    """

    def __init__(self, access: Access | None = None, days: int = 30) -> None:
        self._access = access
        self.shared = SharedStore(days)
        self._memory = ResponseStore()  # without a database all, else those that could not be written
        self._copies = ResponseStore()  # of those in the database

    @property
    def is_shared(self) -> bool:
        return self._access is not None

    async def put(self, owner: str, response: Response, conversation: tuple[ConversationItem, ...]) -> None:
        """When it returns, every gateway finds the response, unless the database fails."""
        store = self._memory
        if self._access is not None:
            try:
                await self._access.write(lambda database: self.shared.put(database, owner, response, conversation))
                store = self._copies
            except StateError:
                pass
        store.put(owner, response, conversation)

    async def view(self, owner: str, request: ResponsesRequest) -> Lookup:
        """What the request refers to."""
        items = [] if isinstance(request.input, str) else request.input
        references = [item.id for item in items if item.type == "item_reference" and item.id]
        return await self._view(owner, request.previous_response_id, references[: MAX_REFERENCES + 1])

    async def get(self, owner: str, id: str) -> Response:
        """Raises NotFound, and Unavailable while the database fails."""
        return (await self._view(owner, id, ())).get(owner, id).response

    async def delete(self, owner: str, id: str) -> None:
        """Raises NotFound, and Unavailable while the database fails."""
        found = False
        if self._access is not None:
            try:
                found = await self._access.write(lambda database: self.shared.delete(database, owner, id))
            except StateError:
                raise _unavailable() from None
            _forget(self._copies, owner, id)
        if not _forget(self._memory, owner, id) and not found:
            self._memory.get(owner, id)  # raises NotFound

    async def _view(self, owner: str, id: str | None, items: Sequence[str]) -> Lookup:
        if self._access is None or not (id or items):
            return self._memory
        try:
            found = await self._access.read(lambda database: self.shared.view(database, owner, id, items))
        except StateError:
            return _Chain([self._memory, self._copies], is_complete=False)
        return _Chain([found, self._memory], is_complete=True)


class _Chain:
    """Several stores as one; see `Lookup`. One that is not complete raises Unavailable for what it lacks."""

    def __init__(self, stores: Sequence[ResponseStore], *, is_complete: bool) -> None:
        self._stores = stores
        self._is_complete = is_complete

    def get(self, owner: str, id: str) -> Stored:
        error: GatewayError = _unavailable()
        for store in self._stores:
            try:
                return store.get(owner, id)
            except NotFound as missing:
                error = missing if self._is_complete else error
        raise error

    def item(self, owner: str, id: str) -> ConversationItem | None:
        found = next((item for store in self._stores if (item := store.item(owner, id))), None)
        if found is None and not self._is_complete:
            raise _unavailable()
        return found


def _unavailable() -> Unavailable:
    return Unavailable(
        "The database of the stored responses cannot be used now. Retry, or send the whole conversation as 'input'.",
        retry_after_s=_RETRY_S,
    )


def _forget(store: ResponseStore, owner: str, id: str) -> bool:
    try:
        store.delete(owner, id)
    except NotFound:
        return False
    return True
