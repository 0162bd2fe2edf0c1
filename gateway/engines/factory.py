"""From a model's configuration to the engine that answers for it."""

from __future__ import annotations

from pathlib import Path

from gateway.config import ModelConfig
from gateway.engines.base import Engine


def make_engine(name: str, model: ModelConfig, models_dir: Path) -> Engine:
    """The engine of the `[models.NAME]` table, not started. Raises ConfigError for a table that contradicts itself.

    Only the module of the engine that is used is imported: a gateway of upstreams needs no tokenizer.
    """
    match model.engine:
        case "local":
            from gateway.engines.local.engine import LocalEngine

            return LocalEngine(name, model, models_dir)
        case "genie":
            from gateway.engines.local.genie import GenieEngine

            return GenieEngine(name, model, models_dir)
        case "upstream":
            from gateway.engines.upstream.engine import UpstreamEngine

            return UpstreamEngine(name, model)
        case "scripted":
            from gateway.engines.scripted.engine import ScriptedEngine

            return ScriptedEngine(name, model)
