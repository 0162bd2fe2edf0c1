"""Makes the engine for a model's configuration."""

from __future__ import annotations

from pathlib import Path

from gateway.config.tables import GenieModel, LocalModel, ModelConfig, ScriptedModel, UpstreamModel
from gateway.engines.base import Engine
from gateway.errors import BundleError


def make_engine(name: str, model: ModelConfig, models_dir: Path) -> Engine:
    """The engine of the `[models.NAME]` table, not started. Raises ConfigError for a wrong table.

    Imports only the module of that engine: a gateway with only upstream models does not load a tokenizer.
    """
    match model:
        case LocalModel():
            from gateway.engines.local.engine import LocalEngine
            from gateway.engines.local.published import PublishedEngine

            if model.path and _is_genie(models_dir / model.path):
                return PublishedEngine(name, model, models_dir)
            return LocalEngine(name, model, models_dir)
        case GenieModel():
            from gateway.engines.local.genie import GenieEngine

            return GenieEngine(name, model, models_dir)
        case UpstreamModel():
            from gateway.engines.upstream.engine import UpstreamEngine

            return UpstreamEngine(name, model)
        case ScriptedModel():
            from gateway.engines.scripted.engine import ScriptedEngine

            return ScriptedEngine(name, model)


def _is_genie(folder: Path) -> bool:
    from gateway.bundles.open import is_genie

    try:
        return is_genie(folder)
    except BundleError:
        return False  # the engine gives the reason when it loads the bundle
