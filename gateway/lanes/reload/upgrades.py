"""Moves models to better bundles that are built while they answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from gateway.config.tables import ModelConfig
from gateway.errors import BundleError, GatewayError
from gateway.lanes.lane import Lane
from gateway.lanes.reload.plan import with_keys_at_once
from gateway.lanes.reload.presence import Presence
from gateway.lanes.router import Router

_INTERVAL_S = 5.0
_QUIET_S = 15.0  # without a request in any lane, before the work on a better bundle goes on
_LAST_S = 30.0  # after the last request of an old lane: others may still use its tokenizer

_log = logging.getLogger(__name__)


class BetterBundles(Protocol):
    """Builds bundles for models that are served from others. Every method may block, and runs in a thread."""

    def next(self, served: Mapping[str, ModelConfig]) -> str | None:
        """The name of a model that can get a better bundle."""

    def advance(self, name: str, report: Callable[[str], None]) -> ModelConfig | None:
        """Work on the model's bundle for some minutes. Returns the model with it when it is finished.

        Args:
            report: gets the state of the work, for a person.
        Raises GatewayError if there will be none.
        """

    def moved(self, name: str) -> None:
        """The model answers from its better bundle now."""

    def failed(self, name: str, reason: str) -> None:
        """The model stays as it is. It is not tried again."""

    def stop(self) -> None:
        """End the work at once. Called from another thread."""


class Upgrades:
    """Works on better bundles, one at a time and only while no model has a request, and moves the models to them.

    Args:
        bundles: builds them.
        make_lane: the lane of a model, not started. It runs in a thread.
        sleep: waits for the given number of seconds.
        presence: if there is no work, it looks for some only while someone is connected.
    """

    def __init__(
        self,
        bundles: BetterBundles,
        make_lane: Callable[[str, ModelConfig], Lane],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        presence: Presence | None = None,
    ) -> None:
        self._bundles = bundles
        self._make_lane = make_lane
        self._sleep = sleep
        self._presence = presence or Presence()

    async def run(self, router: Router) -> None:
        """Runs until it is cancelled."""
        try:
            while True:
                await self._sleep(_INTERVAL_S)
                try:
                    if not await self._look(router):
                        await self._presence.someone()
                except Exception as error:
                    _log.error("the work on bundles in the background failed", exc_info=error)
        finally:
            self._bundles.stop()

    async def _look(self, router: Router) -> bool:
        """False: there is no work, and none waits."""
        served = {name: lane.config for name, lane in router.lanes.items()}
        name = await asyncio.to_thread(self._bundles.next, served)
        if name is not None:
            await self._advance(router, name)
        return name is not None or any(lane.background for lane in router.lanes.values())

    async def _advance(self, router: Router, name: str) -> None:
        def report(text: str) -> None:
            if lane := router.lanes.get(name):  # else the model was removed
                lane.background = text

        await self._quiet(router)
        try:
            better = await asyncio.to_thread(self._bundles.advance, name, report)
            if better is not None:
                await self._move(router, name, better)
        except Exception as error:
            report("")
            reason = error.message if isinstance(error, GatewayError) else f"{type(error).__name__}: {error}"
            await asyncio.to_thread(self._bundles.failed, name, reason)

    async def _quiet(self, router: Router) -> None:
        """Return after some seconds without a request."""
        quiet_s = 0.0
        while quiet_s < _QUIET_S:
            await self._sleep(_INTERVAL_S)
            quiet_s = 0.0 if any(map(_is_busy, router.lanes.values())) else quiet_s + _INTERVAL_S

    async def _move(self, router: Router, name: str, better: ModelConfig) -> None:
        """Load the better bundle while the old one answers. Raises GatewayError if it cannot be loaded."""
        while (old := router.lanes.get(name)) and old.is_unloaded:  # it moves when a request has loaded it again
            await self._sleep(_INTERVAL_S)
        if old is None or type(old.config) is not type(better):
            return  # a reload has removed or changed the model
        lane = await asyncio.to_thread(self._make_lane, name, with_keys_at_once(better, old.config))
        try:
            while not lane.memory.is_free_for(lane.claim) and router.lanes.get(name) is old:
                old.background = "a better bundle waits for memory; the next start of the gateway uses it"
                await self._sleep(_INTERVAL_S)
            if router.lanes.get(name) is old and (fault := await lane.load()):
                raise BundleError(fault)
        except BaseException:
            await lane.aclose()
            raise
        if router.lanes.get(name) is not old:  # unloaded, changed or removed during the load
            await lane.aclose()
            if (now := router.lanes.get(name)) and now.is_unloaded:
                await self._move(router, name, better)
            return
        lane.configure(with_keys_at_once(better, old.config), old.breaker.config)  # as a reload has changed them
        old = router.replace(lane)
        try:
            await asyncio.to_thread(self._bundles.moved, name)
        except Exception as error:  # the model has moved nevertheless
            _log.error("%s has moved to a better bundle, and that could not be noted", name, exc_info=error)
        while _is_busy(old):
            await self._sleep(1.0)
        await self._sleep(_LAST_S)
        await old.aclose()
        router.replaced.discard(old)


def _is_busy(lane: Lane) -> bool:
    return bool(lane.queue.running or lane.queue.waiting)
