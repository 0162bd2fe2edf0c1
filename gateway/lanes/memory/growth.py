"""Measures the models that answer: their KV caches grow. It measures nothing while all of them are idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from gateway.lanes.memory.claim import Claim
from gateway.lanes.memory.manager import MemoryManager
from gateway.lanes.memory.needs import PROMPT_PROCESS
from gateway.monitoring.memory import Memory, measure

_INTERVAL_S = 2.0

_log = logging.getLogger(__name__)


class Growth:
    """Args:
    workers: the process of each model that has one, by name.
    in_thread: runs a function that blocks.
    """

    def __init__(
        self,
        memory: MemoryManager,
        workers: Callable[[], Mapping[str, int]],
        in_thread: Callable[..., Awaitable[Memory]] = asyncio.to_thread,
    ) -> None:
        self._memory = memory
        self._workers = workers
        self._in_thread = in_thread
        self._changed_at: dict[Claim, float] = {}  # when it was used, or its cache freed, at the last measurement

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await self._memory.used.wait()
            await asyncio.sleep(_INTERVAL_S)
            try:
                await self._look()
            except Exception as error:
                _log.error("the memory of the models could not be measured; it is tried again", exc_info=error)

    async def _look(self) -> None:
        changed = {claim: _changed_at(claim) for claim in self._memory.held if claim.ready_at is not None}
        used = [
            claim
            for claim, at in changed.items()
            if claim.uses or claim.is_freeing or self._changed_at.get(claim) != at
        ]
        self._changed_at = changed
        if used:
            await self._measure(used)
        else:
            self._memory.used.clear()

    async def _measure(self, used: list[Claim]) -> None:
        workers = dict(self._workers())
        found = await self._in_thread(measure, workers)
        for claim in used:
            if claim.name in found.models and workers == self._workers():  # else it can be that of another lane
                self._memory.measured(claim, int(found.models[claim.name] * 1e6) + PROMPT_PROCESS)


def _changed_at(claim: Claim) -> float:
    return max(claim.last_used_at, claim.cache_freed_at or 0.0)
