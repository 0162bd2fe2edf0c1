"""Makes the engine for a model's configuration."""

from __future__ import annotations

import math
from pathlib import Path

from gateway.config.tables import GenieModel, LocalModel, ModelConfig, ScriptedModel, UpstreamModel
from gateway.engines.base import Engine


def make_engine(name: str, model: ModelConfig, models_dir: Path, budget_bytes: float = math.inf) -> Engine:
    """The engine of the `[models.NAME]` table, not started. Raises ConfigError for a wrong table.

    Args:
        budget_bytes: for all models together.

    Imports only the module of that engine: a gateway with only upstream models does not load a tokenizer.
    """
    match model:
        case LocalModel():
            from gateway.engines.by_kind import BundleEngine

            return BundleEngine(name, model, models_dir, budget_bytes=budget_bytes)
        case GenieModel():
            from gateway.engines.local.genie import GenieEngine

            return GenieEngine(name, model, models_dir)
        case UpstreamModel():
            from gateway.engines.upstream.engine import UpstreamEngine

            return UpstreamEngine(name, model)
        case ScriptedModel():
            from gateway.engines.scripted.engine import ScriptedEngine

            return ScriptedEngine(name, model)
