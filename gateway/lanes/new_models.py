"""Adds models to a running gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from gateway.config.tables import ModelConfig
from gateway.errors import GatewayError
from gateway.lanes.lane import Lane
from gateway.lanes.router import Router

_INTERVAL_S = 5.0

_log = logging.getLogger(__name__)


class NewModels:
    """Looks for new models, and gives each its lane.

    Args:
        read: the models that came since its last call. It runs in a thread, because it reads files.
        make_lane: the lane of a model, not started. It runs in a thread, because it reads the bundle's files.
        sleep: waits for the given number of seconds.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, ModelConfig]],
        make_lane: Callable[[str, ModelConfig], Lane],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._read = read
        self._make_lane = make_lane
        self._sleep = sleep

    async def run(self, router: Router) -> None:
        """Add the models to `router`. Runs until it is cancelled."""
        while True:
            await self._sleep(_INTERVAL_S)
            try:
                found = await asyncio.to_thread(self._read)
            except Exception as error:
                _log.error("the configuration could not be read again", exc_info=error)
                continue
            for name, model in found.items():
                await self._add(router, name, model)

    async def _add(self, router: Router, name: str, model: ModelConfig) -> None:
        try:
            router.add(await asyncio.to_thread(self._make_lane, name, model))
        except GatewayError as error:
            _log.error("%s is not added: %s", name, error.message)
        except Exception as error:  # the next models are still added
            _log.error("%s is not added", name, exc_info=error)
        else:
            _log.info("%s is new in the configuration; it is loaded", name)
