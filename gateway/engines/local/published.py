"""The engine for `engine = "local"`: our own engine, or Genie for a bundle of Genie that our own engine refuses.

Our own engine gives seeds, log-probabilities, grammars and the prefix cache, which Genie does not. But a driver, or a
kind of bundle, can refuse the way in which it opens the graphs. Then Genie answers, with fewer parameters.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from gateway.bundles.open import is_genie
from gateway.config.tables import GenieModel, LocalModel
from gateway.engines.base import EngineStatus
from gateway.engines.forwarding import ForwardingEngine
from gateway.engines.local.engine import LocalEngine
from gateway.engines.local.genie import GenieEngine
from gateway.errors import BundleError, BundleUnfit, EngineFailed, GatewayError

_log = logging.getLogger(__name__)


class PublishedEngine(ForwardingEngine):
    """Implements Engine. Args: see LocalEngine."""

    def __init__(self, name: str, model: LocalModel, models_dir: Path) -> None:
        self._name, self._model, self._models_dir = name, model, models_dir
        self._engine = LocalEngine(name, model, models_dir)
        self._logged = ""  # the refusal of our own engine that is in the log
        self._is_decided = False  # True: one of the two engines has loaded the bundle
        self._failure = ""  # why neither of them could load it

    @property
    def status(self) -> EngineStatus:
        if self._failure:
            return EngineStatus(state="failed", detail=self._failure)
        return self._engine.status

    async def start(self) -> None:
        self._failure = ""
        try:
            await self._engine.start()
        except (BundleError, EngineFailed) as error:
            if self._is_decided or isinstance(error, BundleUnfit) or not await asyncio.to_thread(self._is_genie):
                raise
            await self._start_genie(error)
        self._is_decided = True

    def _is_genie(self) -> bool:
        """Looked up at each start: a new table can be read before its folder is there."""
        try:
            return is_genie(self._models_dir / self._model.path)
        except BundleError:
            return False  # our own engine has given the reason

    async def _start_genie(self, refusal: GatewayError) -> None:
        """Start Genie after our own engine refused the bundle. Raises the refusal if Genie refuses it too."""
        if refusal.message != self._logged:
            _log.warning("%s: our own engine cannot load it (%s), so Genie is tried", self._name, refusal.message)
        self._logged = refusal.message
        genie = GenieEngine(self._name, _for_genie(self._model), self._models_dir)
        own, self._engine = self._engine, genie
        await own.aclose()
        try:
            await genie.start()
        except GatewayError as error:
            await genie.aclose()
            self._engine = LocalEngine(self._name, self._model, self._models_dir)  # the next try is as the first one
            is_same = error.message == refusal.message
            self._failure = refusal.message if is_same else f"{refusal.message} Genie: {error.message}"
            raise type(refusal)(self._failure) from error
        _log.warning("%s: runs in Genie: no seeds, log-probabilities or JSON schemas", self._name)
        if self._model.draft:
            _log.warning("%s: Genie cannot use the draft model %s", self._name, Path(self._model.draft).name)


def _for_genie(model: LocalModel) -> GenieModel:
    """The same table for the engine `genie`, without the keys that it does not have."""
    values: dict[str, Any] = {
        name: getattr(model, name) for name in GenieModel.__struct_fields__ if hasattr(model, name)
    }
    return GenieModel(**values)
