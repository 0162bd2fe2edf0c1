"""An engine that chooses another one at each start, and passes the calls on to it."""

from __future__ import annotations

from gateway.engines.base import Emit, Engine, Prepared, TextTools
from gateway.generation import Generation, Meter, Usage


class ForwardingEngine:
    """Implements Engine with the methods of `_engine`. A subclass sets it, and has `status` and `start`."""

    _engine: Engine

    @property
    def takes_turns(self) -> bool:
        return self._engine.takes_turns

    @property
    def text_tools(self) -> TextTools | None:
        return self._engine.text_tools

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
        await self._engine.aclose()
