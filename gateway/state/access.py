"""Work on the database for the event loop: in threads, within a time limit, and not again while it is known to fail."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gateway.state.database import Database, StateError

T = TypeVar("T")

_THREADS = 4
_LIMIT_S = 5.0  # of one piece of work, with its wait for a thread
_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 30.0  # after a failure, before the database is tried again; doubled each time

_log = logging.getLogger(__name__)


class _Health:
    """Of the reads, or of the writes: a full or read-only database can be read."""

    def __init__(self) -> None:
        self.failures = 0  # since the last success
        self.next_try = 0.0  # while there are failures


class Access:
    """The database that the gateway's requests use.

    A failure is one warning, until the next success. Then all other work fails at once, so that no request waits for a
    database that is down, except one after each pause.

    Args:
        effect: of a failure, for the log.
        clock: seconds, monotonic.
    """

    def __init__(self, database: Database, effect: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.database = database
        self._effect = effect
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, "state")
        self._health = {"read": _Health(), "written": _Health()}

    async def read(self, work: Callable[[Database], T]) -> T:
        """The result of `work`, called in a thread. Raises StateError, after `_LIMIT_S` at the latest.

        A caller that is cancelled does not stop the work.
        """
        return await self._run(work, "read")

    async def write(self, work: Callable[[Database], T]) -> T:
        """The same for work that writes."""
        return await self._run(work, "written")

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.database.close)

    async def _run(self, work: Callable[[Database], T], what: str) -> T:
        health = self._health[what]
        if health.failures:
            if self._clock() < health.next_try:
                raise StateError(f"{self.database.label} failed a moment ago")
            health.next_try = self._clock() + _LIMIT_S  # of one request; the others do not wait
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_LIMIT_S):
                result = await loop.run_in_executor(self._threads, work, self.database)
        except TimeoutError:
            error = StateError(f"{self.database.label} did not answer within {_LIMIT_S:.0f} s")
            raise self._failed(what, error) from None
        except StateError as error:
            raise self._failed(what, error) from None
        self._recovered(what)
        return result

    def _failed(self, what: str, error: StateError) -> StateError:
        health = self._health[what]
        health.failures += 1
        pause_s = min(_PAUSE_S * 2 ** min(health.failures - 1, 10), _LONGEST_PAUSE_S)
        health.next_try = self._clock() + pause_s
        if health.failures == 1:
            _log.warning("the shared state cannot be %s: %s. %s", what, str(error).rstrip("."), self._effect)
        return error

    def _recovered(self, what: str) -> None:
        if self._health[what].failures:
            self._health[what] = _Health()
            _log.info("the shared state can be %s again", what)
