"""Configurations made from another one: with one model more, or with fewer models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gateway.config.paths import with_paths
from gateway.config.tables import MODEL_KINDS, Config, LocalModel, ModelConfig


def only_model(config: Config, name: str) -> Config:
    """The configuration with the model `name` and its fallbacks. It is the model for every unknown name."""
    models: dict[str, ModelConfig] = {}
    step: str | None = name
    while step is not None and step not in models:
        models[step] = config.models[step]
        step = models[step].fallback
    return replace(config, models=models, default_model=name)


def with_model(config: Config, name: str, table: Mapping[str, Any], file: Path, provider: str | None = None) -> Config:
    """The configuration with the table of a pulled model, as if it were in `file`.

    Args:
        provider: of the command line; None: not given.
    """
    keys = dict(table)
    kind = MODEL_KINDS[keys.pop("engine", LocalModel.engine)]
    if provider and kind is LocalModel:
        keys["provider"] = provider
    with_it = replace(config, models={**config.models, name: kind(**keys)})
    return with_paths(with_it, file.absolute().parent, str(file))


def waits_for_demand(model: ModelConfig) -> bool:
    """True for a model whose bundle is missing and is built for its first request."""
    return (
        isinstance(model, LocalModel)
        and model.load == "demand"
        and bool(model.source)
        and not Path(model.path).exists()
    )
