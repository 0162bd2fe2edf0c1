"""Unloads models and loads them again while the gateway runs: for a client, or because the manager needs the memory.

An unloaded model has a new lane, with an engine that is not started. The old lane finishes what it has accepted and is
closed: its worker process ends, and so all of its memory is free. Only then may the new lane load. So there are never
two engines of one model in memory, and queue, breaker and forecast are those of the new load.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gateway.config.tables import ModelConfig, UpstreamModel
from gateway.config.value import nearest
from gateway.errors import Conflict, ModelNotFound, ModelNotReady, quote
from gateway.lanes.lane import Lane
from gateway.lanes.memory.claim import Claim
from gateway.lanes.router import Router
from gateway.lanes.status import LaneStatus

_log = logging.getLogger(__name__)


class Residency:
    """Args:
    make_lane: makes the lane of a model, not started.
    """

    def __init__(self, router: Router, make_lane: Callable[[str, ModelConfig], Awaitable[Lane]]) -> None:
        self._router = router
        self._make_lane = make_lane
        self._closing: set[asyncio.Task[None]] = set()

    async def load(self, name: str) -> LaneStatus:
        """Load the model unless it is loaded. Returns when it is ready.

        Raises:
            ModelNotFound: the gateway has no model of that name.
            ModelNotReady: it could not be loaded.
            Conflict: it was unloaded meanwhile.
        """
        lane = self._lane(name)
        await lane.demand()
        status = lane.status
        if lane.successor:
            raise Conflict(f"{lane.name} was unloaded before it was ready.")
        if status.engine.state != "ready":
            raise ModelNotReady(f"{lane.name} could not be loaded: {status.engine.detail}")
        return status

    async def unload(self, name: str) -> LaneStatus:
        """Unload the model unless it is unloaded. Returns when its requests have ended and its memory is free.

        Raises:
            ModelNotFound: the gateway has no model of that name.
            Conflict: the model is on another server.
        """
        lane = self._lane(name)
        if isinstance(lane.config, UpstreamModel):
            raise Conflict(f"{lane.name} is on another server, which decides itself what it loads.")
        while not lane.is_unloaded:
            lane = await self._leave(lane)
        await lane.previous_is_gone()
        return self._lane(name).status

    def exchange(self, old: Lane, new: Lane) -> None:
        """Let `new`, which the router has, follow `old`, which it no longer has: it loads when `old` has ended.

        It loads without a request unless `old` is unloaded, or only its first request was to load it. A model of other
        servers needs no memory, and takes requests at once.
        """
        starts = old.claim.is_on_demand and not new.claim.is_on_demand
        if not isinstance(new.config, UpstreamModel):
            new.follow(old, loads=starts or not old.is_unloaded)
        old.successor, old.is_removed = new, new.name != old.name
        self._router.replaced.add(old)
        new.start()
        self._close_when_unused(old, "%s has ended; its new engine is loaded")

    def remove(self, lane: Lane) -> None:
        """End a lane that the router no longer has, when its requests have ended."""
        lane.is_removed = True
        self._router.replaced.add(lane)
        self._close_when_unused(lane, "%s is removed")

    async def release(self, claim: Claim) -> None:
        """Begin to unload the model of a claim, for the manager. Its requests are answered first."""
        lane = self._router.lanes.get(claim.name)
        if lane is None or lane.claim is not claim:
            return  # it is being closed already
        try:
            await self._leave(lane)
        except Exception as error:  # its files are gone
            if self._router.lanes.get(claim.name) is not lane:
                return  # a reload has removed the model meanwhile, and it is being closed
            _log.error("%s cannot be unloaded", claim.name, exc_info=error)
            claim.is_leaving, claim.pinned = False, True

    def keep_alive(self, name: str, seconds: float) -> None:
        """Unload a loaded model after `seconds` without a request; negative: never. 0: when its requests end."""
        claim = self._lane(name).claim
        if claim.state == "held":
            claim.keep_alive_s = seconds
            claim.uses.on_change()

    async def aclose(self) -> None:
        """Stop waiting for lanes that are to be closed. The router closes them."""
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _leave(self, lane: Lane) -> Lane:
        """Let a new lane, which is not loaded, take the requests of `lane`. Returns the lane that has them now."""
        new = await self._make_lane(lane.name, lane.config)
        current = self._router.lanes.get(lane.name)
        if current is not lane:
            await new.aclose()
            return current or self._lane(lane.name)
        new.configure(lane.config, lane.breaker.config)  # a reload can have changed them meanwhile
        new.follow(lane)
        self._router.replace(new)
        self._close_when_unused(lane, "%s is unloaded; the next request for it loads it")
        return new

    def _lane(self, name: str) -> Lane:
        """Unlike for a request, the default model does not take the name of a model that is not there."""
        router = self._router
        if (model := router.known(name)) is None:
            hint = nearest(name, router.lanes) or f"; there is {', '.join(router.lanes)}."
            raise ModelNotFound(f"The model {quote(name)} does not exist{hint}", param="model")
        return router.lanes[model]

    def _close_when_unused(self, lane: Lane, line: str) -> None:
        lane.claim.is_leaving = True
        task = asyncio.create_task(self._close(lane, line))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, lane: Lane, line: str) -> None:
        if lane.uses:
            _log.info("%s is unloaded when its %d requests have ended", lane.name, len(lane.uses))
        await lane.uses.over()
        await lane.aclose()
        self._router.replaced.discard(lane)
        _log.info(line, lane.name)
