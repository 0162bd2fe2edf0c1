"""Reads config.toml again while the gateway runs: for the models of new tables, and for changes that need a restart."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gateway.bundles.stamp import plan_start
from gateway.config.check import TABLES
from gateway.config.file import load_config
from gateway.config.find import find_config
from gateway.config.tables import Config, LocalModel, ModelConfig
from gateway.errors import BundleError, ConfigError
from gateway.qnn.detect import Provider, npu_for, variant_here

_log = logging.getLogger(__name__)


class ConfigWatch:
    """The models that came into the configuration since the last call, if they can be loaded now.

    Args:
        path: what the user named with --config.
        overrides: of the command line.
        served: the names of the models that the gateway serves now. A model that was in the file before and is not
            among them stays out.
    """

    def __init__(self, path: Path | None, overrides: Mapping[str, Any], served: set[str]) -> None:
        self._path = path
        self._overrides = overrides
        self._served = served
        self._state = _state(path)
        self._known = load_config(path, overrides=overrides, may_be_empty=True)
        self._waiting: dict[str, ModelConfig] = {}  # new, but without a bundle
        self._has_npu = cache(_has_npu)

    def __call__(self) -> dict[str, ModelConfig]:
        state = _state(self._path)
        if state != self._state:
            self._state = state
            self._read()
        found = {name: ready for name, model in self._waiting.items() if (ready := self._ready(model))}
        self._waiting = {name: model for name, model in self._waiting.items() if name not in found}
        self._served |= found.keys()
        return {name: self._with_known_fallback(name, model) for name, model in found.items()}

    def _read(self) -> None:
        try:
            fresh = load_config(self._path, overrides=self._overrides, may_be_empty=True)
        except ConfigError as error:
            _log.warning("the configuration was changed and has a mistake, so nothing is added: %s", error.message)
            return
        new = {name: model for name, model in fresh.models.items() if name not in self._known.models}
        if changed := _changed(self._known, fresh):
            _log.warning("the configuration was changed; a restart is necessary for %s", ", ".join(changed))
        self._waiting = {name: fresh.models[name] for name in (*self._waiting, *new) if name in fresh.models}
        for name, model in new.items():
            if not self._ready(model):
                _log.warning("%s has no bundle yet; `npu-gateway models --prepare` builds it", name)
        self._known = fresh

    def _ready(self, model: ModelConfig) -> ModelConfig | None:
        """The model with the path of its bundle. None: the bundle is not there."""
        if not isinstance(model, LocalModel):
            return model
        try:
            plan = plan_start(model, self._known.models_dir, lambda: self._has_npu(model.provider))
            provider: Provider = "cpu" if plan.waits_for_npu else model.provider
            folder = str(variant_here(plan.folder, provider))
            return replace(model, path=folder, provider=provider) if plan.is_ready else None
        except BundleError:
            return None

    def _with_known_fallback(self, name: str, model: ModelConfig) -> ModelConfig:
        if model.fallback is None or model.fallback in self._served:
            return model
        _log.warning("%s: its fallback %s is not served, so it has none", name, model.fallback)
        return replace(model, fallback=None)


def _has_npu(provider: Provider) -> bool:
    return npu_for(provider) is not None


def _state(path: Path | None) -> tuple[str, int, int]:
    """The file, its time of modification in ns and its bytes."""
    file, _ = find_config(path)
    try:
        found = file.stat() if file.is_file() else None
    except OSError:
        found = None
    return (str(file), found.st_mtime_ns, found.st_size) if found else (str(file), 0, 0)


def _changed(before: Config, after: Config) -> list[str]:
    """The tables and keys that differ, without new models."""
    names = (*TABLES, "default_model", "models_dir")
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    return changed + [f"models.{name}" for name, model in before.models.items() if after.models.get(name) != model]
