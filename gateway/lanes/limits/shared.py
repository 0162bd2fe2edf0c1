"""The counters of several gateways together, in their database.

The database has what a key has used, and for each gateway its requests in progress. A gateway writes its own number as
it is, so a number that could not be written is right again after the next write, and the numbers of a gateway that was
killed expire. The clock is that of the database.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable

from msgspec import Struct, field
from msgspec.structs import replace

from gateway.lanes.limits.counters import Counters, Levels, Quota, Refusal, after, taken
from gateway.state.access import Access
from gateway.state.database import Execute, StateError

_VALID_S = 60  # of the requests in progress of one gateway, after its last write
_BEAT_S = 20.0  # between its writes while requests run
_LONGEST_MIN = 24 * 60  # of what a key has used


class _Key(Struct, kw_only=True, eq=False):
    """What this gateway knows of one key."""

    quota: Quota
    running: int = 0  # requests in progress here
    requests: int = 0  # that were used and are not in the database yet
    tokens: int = 0
    at: float
    levels: Levels = Levels()  # what all have used, at `at`; `running`: of the other gateways
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one write at a time
    writing: asyncio.Task[None] | None = None

    def use(self, requests: int, tokens: int) -> None:
        self.requests += requests
        self.tokens += tokens
        self.levels = _plus(self.levels, requests, tokens)


class SharedCounters(Counters):
    """While the database fails, this gateway counts alone, and writes what it has counted later.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, access: Access, clock: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._clock = clock
        self._gateway = secrets.token_hex(8)
        self._keys: dict[str, _Key] = {}
        self._beat: asyncio.Task[None] | None = None

    async def take(self, key: str, quota: Quota, tokens: int) -> Refusal | None:
        task = asyncio.ensure_future(self._take(key, quota, tokens))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: self._undo(done, key, quota, tokens))
            raise

    def give_back(self, key: str, quota: Quota, *, requests: int = 0, tokens: int = 0) -> None:
        known = self._known(key, quota)
        known.running = max(0, known.running - 1)
        known.use(-requests, -tokens)
        if known.writing is None:
            known.writing = asyncio.ensure_future(self._write(key, known))

    def levels(self, key: str, quota: Quota) -> Levels:
        known = self._known(key, quota)
        return replace(known.levels, running=known.levels.running + known.running)

    async def aclose(self) -> None:
        """Write what is not written. No request of this gateway is in progress any more."""
        if self._beat is not None:
            self._beat.cancel()
        for known in self._keys.values():
            known.running = 0
        await asyncio.gather(*(self._write(key, known) for key, known in self._keys.items()))

    def _known(self, key: str, quota: Quota) -> _Key:
        """What is known of the key, with the levels of now."""
        now = self._clock()
        known = self._keys.setdefault(key, _Key(quota=quota, at=now))
        known.levels, known.at, known.quota = after(known.levels, quota, now - known.at), now, quota
        return known

    async def _take(self, key: str, quota: Quota, tokens: int) -> Refusal | None:
        known = self._known(key, quota)
        async with known.lock:
            try:
                result = await self._exchange(key, known, tokens)
            except StateError:
                result = taken(replace(self._known(key, quota).levels, running=known.running), quota, tokens)
                if isinstance(result, Levels):
                    known.use(1, tokens)
            if isinstance(result, Refusal):
                return result
            known.running += 1
        if self._beat is None or self._beat.done():
            self._beat = asyncio.ensure_future(self._keep_valid())
        return None

    def _undo(self, done: asyncio.Task[Refusal | None], key: str, quota: Quota, tokens: int) -> None:
        if not done.cancelled() and done.exception() is None and done.result() is None:
            self.give_back(key, quota, requests=1, tokens=tokens)

    async def _write(self, key: str, known: _Key) -> None:
        async with known.lock:
            known.writing = None  # what comes from now on needs another one
            try:
                await self._exchange(key, known, None)
            except StateError:
                return  # the next write has it

    async def _keep_valid(self) -> None:
        while any(known.running for known in self._keys.values()):
            await asyncio.sleep(_BEAT_S)
            for key, known in list(self._keys.items()):
                if known.running:
                    await self._write(key, known)

    async def _exchange(self, key: str, known: _Key, wanted: int | None) -> Levels | Refusal | None:
        """Write what the database does not have, and take a request with `wanted` tokens. None: take nothing.

        Raises StateError: nothing is written.
        """
        requests, tokens, running, quota = known.requests, known.tokens, known.running, known.quota

        def work(execute: Execute, now: str) -> tuple[Levels, Levels | Refusal | None]:
            levels = _plus(_locked(execute, now, key, self._gateway, quota), requests, tokens)
            result = None
            if wanted is not None:
                result = taken(replace(levels, running=levels.running + running), quota, wanted)
            is_taken = isinstance(result, Levels)
            levels = _plus(levels, 1, wanted or 0) if is_taken else levels
            _save(execute, now, key, self._gateway, replace(levels, running=running + is_taken))
            return levels, result

        found, result = await self._access.write(
            lambda database: database.write(lambda execute: work(execute, database.now))
        )
        known.requests, known.tokens = known.requests - requests, known.tokens - tokens
        known.levels, known.at = _plus(found, known.requests, known.tokens), self._clock()
        return result


def _locked(execute: Execute, now: str, key: str, gateway: str, quota: Quota) -> Levels:
    """What the key has used; `running`: of the other gateways. They wait for the end of this transaction.

    SQLite takes any value in any column, and other programs can write to the file.
    """
    used, used_tokens, at = (f"CAST(coalesce({each}, 0) AS DOUBLE PRECISION)" for each in ("requests", "tokens", "at"))
    begin = f"""
    INSERT INTO npu_limits (key, requests, tokens, at) VALUES (?, 0, 0, {now})
    ON CONFLICT (key) DO UPDATE SET key = excluded.key RETURNING {used}, {used_tokens}, {now} - {at}
    """
    [[requests, tokens, seconds]] = execute(begin, (key,))
    requests, tokens = _plausible(requests, quota.requests), _plausible(tokens, quota.tokens)
    # one from the future: the clock was set back, and a gateway that still runs writes its number again
    expired = f"(at IS NULL OR at NOT BETWEEN {now} - {_VALID_S} AND {now} + {_VALID_S})"
    execute(f"DELETE FROM npu_running WHERE key = ? AND {expired}", (key,))
    others = "SELECT CAST(coalesce(sum(running), 0) AS BIGINT) FROM npu_running WHERE key = ? AND gateway <> ?"
    [[running]] = execute(others, (key, gateway))
    return after(Levels(requests=requests, tokens=tokens, running=running), quota, seconds)


def _plausible(used: float, limit: int | None) -> float:
    """At most what a day gives back; 0 for no number."""
    return min(used, _LONGEST_MIN * limit) if limit is not None and 0 <= used < math.inf else 0.0


def _save(execute: Execute, now: str, key: str, gateway: str, levels: Levels) -> None:
    used = f"UPDATE npu_limits SET requests = ?, tokens = ?, at = {now} WHERE key = ?"
    execute(used, (levels.requests, levels.tokens, key))
    running = f"""
    INSERT INTO npu_running (key, gateway, running, at) VALUES (?, ?, ?, {now})
    ON CONFLICT (key, gateway) DO UPDATE SET running = excluded.running, at = excluded.at
    """
    if levels.running:
        execute(running, (key, gateway, levels.running))
    else:
        execute("DELETE FROM npu_running WHERE key = ? AND gateway = ?", (key, gateway))


def _plus(levels: Levels, requests: int, tokens: int) -> Levels:
    return replace(levels, requests=max(0.0, levels.requests + requests), tokens=max(0.0, levels.tokens + tokens))
