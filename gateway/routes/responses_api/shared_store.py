"""Stored responses in the database that several gateways share.

A row has one response with its whole conversation, so it can be read, and the others deleted, without the rest. Texts
that a client chooses (names of keys, ids of items) are digests in the indexed columns.
"""

from __future__ import annotations

import hashlib
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from msgspec import Struct

from gateway.errors import InvalidRequest
from gateway.routes.responses_api.store import ConversationItem, ResponseStore, Stored, items_with_output, measured
from gateway.routes.responses_api.wire import InputItem
from gateway.routes.responses_api.wire_response import Response
from gateway.state.database import Database, Execute, column, insert, marks

MAX_RESPONSES = 4096  # each limit is per API key
MAX_BYTES = 256 * 2**20  # as JSON; the database has them compressed, in a fifth of that
MAX_RESPONSE_BYTES = 32 * 2**20  # of one
_MAX_READ_BYTES = 64 * 2**20  # of one response, and for the references of one request
_OLDEST = 64  # responses that are read at once, to find those above a limit
_DAY_MS = 86_400_000
_SIZE = "CAST(coalesce(size, 0) AS BIGINT)"
_LEVEL = 1  # of zlib: 400 KB of a conversation in 5 ms

_log = logging.getLogger(__name__)
_json = msgspec.json.Encoder()


class _Body(Struct):
    response: Response
    items: list[InputItem]


_decoder = msgspec.json.Decoder(_Body)


class SharedStore:
    """All methods read or write the database: call them in a thread. They raise StateError.

    Args:
        days: after which a response expires.
        clock: seconds since 1970.
    """

    def __init__(self, days: int, clock: Callable[[], float] = time.time) -> None:
        self.days = days
        self._clock = clock

    def put(self, database: Database, owner: str, response: Response, conversation: Iterable[ConversationItem]) -> None:
        """`conversation`: the items that the response answers. A response over a limit is not stored."""
        items = items_with_output(response, conversation)
        for item in items:
            measured(item)  # here, because the event loop puts the same items into its copies
        body = _json.encode(_Body(response, [item.item for item in items]))
        if len(body) > MAX_RESPONSE_BYTES:
            return
        packed = zlib.compress(body, _LEVEL)
        id, now = _digest(owner, response.id), self._now_ms()
        ids = sorted({_digest(owner, item.item.id) for item in items if item.item.id})

        def write(execute: Execute) -> None:
            _delete(execute, [id])
            row = (id, _digest(owner), now, len(body), packed)
            execute("INSERT INTO npu_responses (id, owner, stored, size, body) VALUES (?, ?, ?, ?, ?)", row)
            insert(execute, "INSERT INTO npu_items (item, response) VALUES *", [(item, id) for item in ids])
            self._shrink(execute, owner)

        database.write(write)

    def get(self, database: Database, owner: str, id: str) -> Stored | None:
        return next(self._load(database, [_digest(owner, id)]), None)

    def delete(self, database: Database, owner: str, id: str) -> bool:
        """False: there is none."""

        def write(execute: Execute) -> bool:
            known = execute("SELECT id FROM npu_responses WHERE id = ? AND stored > ?", (digest, self._oldest()))
            _delete(execute, [digest])
            return bool(known)

        digest = _digest(owner, id)
        return database.write(write)

    def view(self, database: Database, owner: str, id: str | None, items: Sequence[str]) -> ResponseStore:
        """A store with the response `id` and, for each of the `items`, the last response that has it.

        Raises InvalidRequest for items of too many, or too large, responses.
        """
        store = ResponseStore(2**31, 2**31, 2**62)
        for stored in self._load(database, self._with_items(database, owner, items)):
            for item in stored.items:
                measured(item)  # what references name is limited
            store.add(owner, stored)
        for stored in self._load(database, [_digest(owner, id)] if id else []):
            store.add(owner, stored)
        return store

    def _with_items(self, database: Database, owner: str, items: Sequence[str]) -> list[str]:
        """The responses that are necessary for the items, the oldest first."""
        wanted = sorted({_digest(owner, item) for item in items})
        if not wanted:
            return []
        sql = f"""
        SELECT i.item, r.id, {_SIZE} FROM npu_items i JOIN npu_responses r ON r.id = i.response
        WHERE i.item IN ({marks(wanted)}) AND r.stored > ? ORDER BY r.stored
        """
        latest = {item: (id, size) for item, id, size in database.read(sql, [*wanted, self._oldest()])}
        sizes = dict(latest.values())
        if sum(sizes.values()) > _MAX_READ_BYTES:
            raise InvalidRequest(
                "'input' has references to items of too many responses. Send 'previous_response_id' instead.",
                param="input",
            )
        return list(sizes)

    def _load(self, database: Database, ids: Sequence[str]) -> Iterator[Stored]:
        """The oldest first: of several with one item, the last one counts."""
        if not ids:
            return
        sql = f"SELECT body FROM npu_responses WHERE id IN ({marks(ids)}) AND stored > ? ORDER BY stored"
        for packed in column(database.read(sql, [*ids, self._oldest()])):
            try:
                body = _decoder.decode(_unpacked(packed))
            except (zlib.error, msgspec.MsgspecError, TypeError) as error:  # SQLite takes any value in any column
                _log.warning("a stored response cannot be read and counts as deleted: %s", error)
                continue
            yield Stored(body.response, tuple(map(ConversationItem, body.items)), 0)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _oldest(self) -> int:
        return self._now_ms() - self.days * _DAY_MS

    def _shrink(self, execute: Execute, owner: str) -> None:
        """Delete the responses that have expired, of every key, and the oldest ones of this key above its limits.

        Few rows are read: the driver of PostgreSQL needs a millisecond of Python for 600.
        """
        _delete(execute, [*column(execute("SELECT id FROM npu_responses WHERE stored <= ?", (self._oldest(),)))])
        own = "FROM npu_responses WHERE owner = ?"
        sums = f"SELECT count(*), CAST(coalesce(sum({_SIZE}), 0) AS BIGINT) {own}"
        [[number, used]] = execute(sums, (_digest(owner),))
        while number > MAX_RESPONSES or used > MAX_BYTES:
            excess = []
            oldest = f"SELECT id, {_SIZE} {own} ORDER BY stored, id LIMIT {_OLDEST}"
            for id, size in execute(oldest, (_digest(owner),)):
                if number > MAX_RESPONSES or used > MAX_BYTES:
                    excess.append(id)
                    number, used = number - 1, used - size
            if not excess:  # another gateway has deleted them since they were counted
                return
            _delete(execute, excess)


def _unpacked(packed: bytes) -> bytes:
    """Raises zlib.error, and TypeError for no bytes. A few kilobytes can be packed gigabytes."""
    unpacker = zlib.decompressobj()
    body = unpacker.decompress(packed, _MAX_READ_BYTES + 1)
    if not unpacker.eof:
        raise zlib.error("it is incomplete or too large")
    return body


def _delete(execute: Execute, ids: Sequence[str]) -> None:
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        execute(f"DELETE FROM npu_items WHERE response IN ({marks(some)})", some)
        execute(f"DELETE FROM npu_responses WHERE id IN ({marks(some)})", some)


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
