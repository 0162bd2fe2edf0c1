"""The engine for `engine = "local"`: a chat model's, or an encoder's, by what the bundle is.

The folder of a bundle can be missing until the gateway has built or pulled it. So the kind is looked up at each start,
and the bundle of a model that is loaded on demand is built then.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from msgspec.structs import replace

from gateway.bundles.encoder.bundle import is_encoder_bundle
from gateway.config.tables import LocalModel
from gateway.engines.base import Emit, Engine, EngineStatus, Prepared, TextTools
from gateway.engines.encoder.engine import EncoderEngine
from gateway.engines.local.published import PublishedEngine
from gateway.engines.missing_bundle import MissingBundle
from gateway.generation import Generation, Meter, Usage


class BundleEngine:
    """Implements Engine. Args: see LocalEngine."""

    def __init__(self, name: str, model: LocalModel, models_dir: Path) -> None:
        self._name, self._model, self._models_dir = name, model, models_dir
        self._missing = MissingBundle(name, model, models_dir)
        self._engine = self._make()

    @property
    def takes_turns(self) -> bool:
        return self._engine.takes_turns

    @property
    def status(self) -> EngineStatus:
        if stage := self._missing.stage:
            return EngineStatus(state="loading", detail=stage, capabilities=self._missing.capabilities)
        if self._missing.is_missing:
            return replace(self._engine.status, capabilities=self._missing.capabilities)
        return self._engine.status

    @property
    def text_tools(self) -> TextTools | None:
        return self._engine.text_tools

    async def start(self) -> None:
        if await asyncio.to_thread(lambda: self._missing.is_missing):
            self._model = await self._missing.build()
        if await asyncio.to_thread(self._is_encoder) != isinstance(self._engine, EncoderEngine):
            await self._engine.aclose()
            self._engine = self._make()
        await self._engine.start()

    async def lost(self) -> str:
        return await self._engine.lost()

    def breaker_opened(self) -> None:
        self._engine.breaker_opened()

    def free_cache(self) -> None:
        self._engine.free_cache()

    async def prepare(self, generation: Generation) -> Prepared:
        return await self._engine.prepare(generation)

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        return await self._engine.run(prepared, meter, emit)

    async def aclose(self) -> None:
        self._missing.stop()
        await self._engine.aclose()

    def _is_encoder(self) -> bool:
        return bool(self._model.path) and is_encoder_bundle(self._models_dir / self._model.path)

    def _make(self) -> Engine:
        kind = EncoderEngine if self._is_encoder() else PublishedEngine
        return kind(self._name, self._model, self._models_dir)
