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
_PAUSE_S = 2.0  # after a failure, before the database is tried again

_log = logging.getLogger(__name__)


class Access:
    """The database that the gateway's requests use.

    A failure is one warning, until the next success. For `_PAUSE_S` after it, all other work fails at once, so that no
    request waits for a database that is down.

    Args:
        effect: of a failure, for the log.
        clock: seconds, monotonic.
    """

    def __init__(self, database: Database, effect: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.database = database
        self._effect = effect
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, "state")
        self._failed_at: float | None = None
        self._is_failing = False

    async def run(self, work: Callable[[Database], T]) -> T:
        """The result of `work`, called in a thread. Raises StateError, after `_LIMIT_S` at the latest.

        A caller that is cancelled does not stop the work.
        """
        if self._failed_at is not None and self._clock() - self._failed_at < _PAUSE_S:
            raise StateError(f"{self.database.label} failed a moment ago")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_LIMIT_S):
                result = await loop.run_in_executor(self._threads, work, self.database)
        except TimeoutError:
            raise self._failed(StateError(f"{self.database.label} did not answer within {_LIMIT_S:.0f} s")) from None
        except StateError as error:
            raise self._failed(error) from None
        self._recovered()
        return result

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.database.close)

    def _failed(self, error: StateError) -> StateError:
        self._failed_at = self._clock()
        if not self._is_failing:
            self._is_failing = True
            _log.warning("the shared state cannot be used: %s. %s", str(error).rstrip("."), self._effect)
        return error

    def _recovered(self) -> None:
        self._failed_at = None
        if self._is_failing:
            self._is_failing = False
            _log.info("the shared state can be used again")
