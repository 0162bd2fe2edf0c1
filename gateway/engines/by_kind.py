"""The engine for `engine = "local"`: a chat model's, or an encoder's, by what the bundle is.

The folder of a bundle can be missing until the gateway has built or pulled it. So the kind is looked up at each start,
and the bundle of a model that is loaded on demand is built then.
"""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path

from msgspec.structs import replace

from gateway.bundles.encoder.bundle import is_encoder_bundle
from gateway.bundles.kv_cache.window import read_window
from gateway.bundles.preflight.draft import check_kinds
from gateway.bundles.stamp import built_folder
from gateway.config.tables import LocalModel
from gateway.engines.base import Engine, EngineStatus
from gateway.engines.encoder.engine import EncoderEngine
from gateway.engines.forwarding import ForwardingEngine
from gateway.engines.local.published import PublishedEngine
from gateway.engines.missing_bundle import MissingBundle
from gateway.errors import ModelTooLarge

_log = logging.getLogger(__name__)


class BundleEngine(ForwardingEngine):
    """Implements Engine. Args: see LocalEngine.

    Args:
        budget_bytes: for all models together; it limits the context of a model on the CPU.
    """

    def __init__(self, name: str, model: LocalModel, models_dir: Path, *, budget_bytes: float = math.inf) -> None:
        self._name, self._model, self._models_dir = name, model, models_dir
        self._budget_bytes = budget_bytes
        self._context = model.context_length
        self._context_note = ""
        self._missing = MissingBundle(name, model, models_dir)
        self._engine = self._make()

    @property
    def status(self) -> EngineStatus:
        if stage := self._missing.stage:
            return EngineStatus(state="loading", detail=stage, capabilities=self._missing.capabilities)
        status = self._engine.status
        if status.state != "ready" and self._missing.is_missing:  # a loaded model needs no look at the disk
            return replace(status, capabilities=self._missing.capabilities)
        return replace(status, context_note=self._context_note) if self._context_note else status

    async def start(self) -> None:
        if await asyncio.to_thread(lambda: self._missing.is_missing):
            self._model = await self._missing.build()
        await asyncio.to_thread(self._check_draft)
        context = await asyncio.to_thread(self._find_context)
        is_encoder = await asyncio.to_thread(self._is_encoder)
        if is_encoder != isinstance(self._engine, EncoderEngine) or context != self._context:
            self._context = context
            await self._engine.aclose()
            self._engine = self._make()
        await self._engine.start()

    async def aclose(self) -> None:
        self._missing.stop()
        await super().aclose()

    def _find_context(self) -> int:
        """The `context_length` for the engine. Raises ModelTooLarge if the configured one can never fit."""
        window = read_window(
            self._models_dir / self._model.path,
            sequences=self._model.max_sequences,
            configured=self._model.context_length,
            budget_bytes=self._budget_bytes,
            draft=self._model.draft,
        )
        if window and (reason := window.refusal(self._budget_bytes)):
            raise ModelTooLarge(f"{self._name} {reason}.")
        note = window.note if window else ""
        if note and note != self._context_note:
            _log.info("%s: %s", self._name, note)
        self._context_note = note
        return window.context if window and note else self._model.context_length

    def _check_draft(self) -> None:
        """Raises BundleError if the key `draft` cannot work with these bundles. The worker compares their tokens."""
        if self._model.draft:
            check_kinds(self._name, self._models_dir / self._model.path, built_folder(Path(self._model.draft)))

    def _is_encoder(self) -> bool:
        return bool(self._model.path) and is_encoder_bundle(self._models_dir / self._model.path)

    def _make(self) -> Engine:
        kind = EncoderEngine if self._is_encoder() else PublishedEngine
        return kind(self._name, replace(self._model, context_length=self._context), self._models_dir)
