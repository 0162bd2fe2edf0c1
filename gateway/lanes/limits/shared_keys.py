"""The API keys of the database, as a gateway knows them: read again by the request that finds them older than seconds.

An idle gateway reads nothing. While the database fails, the keys that were read last count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

import msgspec

from gateway.config.tables import KeyLimits
from gateway.errors import Unavailable
from gateway.state.access import Access
from gateway.state.database import StateError
from gateway.state.keys import hash_of, list_keys

_AGE_S = 2.0  # a revoked key is refused after this time
_NEW_KEY_S = 0.5  # the same if a request has a key that is not known: it may be new
_RETRY_S = 10.0  # after a failure
_WAIT_S = 1.0  # of a request, for keys that can be read again later

_log = logging.getLogger(__name__)


class SharedKeys:
    """The names of the keys by their hashes.

    Args:
        changed: gets the limits of each key by its name, if they have changed.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        access: Access,
        changed: Callable[[Mapping[str, KeyLimits]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access = access
        self._changed = changed
        self._clock = clock
        self._names: dict[str, str] | None = None  # None: never read
        self._limits: dict[str, KeyLimits] = {}
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None

    def name_of(self, key: bytes) -> str | None:
        """The name of a key that counts. Raises Unavailable if the keys were never read."""
        if self._names is None:
            raise Unavailable("The database with the API keys cannot be read now.", retry_after_s=_RETRY_S)
        return self._names.get(hash_of(key))

    def names(self) -> list[str]:
        return list((self._names or {}).values())

    async def fresh(self, key: bytes) -> None:
        """Read the keys again if they are too old for a request with `key`. Waits no longer than seconds."""
        is_known = self._names is not None and hash_of(key) in self._names
        age = self._clock() - self._read_at
        if self._names is None or age >= (_AGE_S if is_known else _NEW_KEY_S):
            if self._reading is None or self._reading.done():
                self._reading = asyncio.ensure_future(self._read())
            await asyncio.wait([self._reading], timeout=_WAIT_S)

    async def _read(self) -> None:
        try:
            found = [each for each in await self._access.read(list_keys) if each.revoked is None]
        except StateError:
            self._read_at = self._clock() - _AGE_S + _RETRY_S
            return
        self._read_at = self._clock()
        self._names = {each.hash: each.name for each in found}
        limits = {each.name: _limits_of(each.name, each.limits) for each in found}
        if limits != self._limits:
            self._limits = limits
            self._changed(limits)


def _limits_of(name: str, limits: Mapping[str, object]) -> KeyLimits:
    """The limits of a key; of one that a newer version has made with others, no model may be used."""
    try:
        return msgspec.convert(limits, KeyLimits)
    except msgspec.ValidationError as error:
        _log.warning("the limits of the API key %r are not known here, so it may use no model: %s", name, error)
        return KeyLimits(models=())
