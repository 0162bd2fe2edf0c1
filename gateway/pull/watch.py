"""Reads the configuration again while the gateway runs, as `serve` has read it, with the bundles of its models."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gateway.bundles.preflight.draft import check_draft
from gateway.bundles.stamp import built_folder, plan_bundle, plan_start
from gateway.config.file import has_keys, load_config
from gateway.config.find import find_config, search
from gateway.config.keys import key_warnings
from gateway.config.select import only_model, waits_for_demand
from gateway.config.tables import Config, GenieModel, LocalModel, ModelConfig, ServerConfig
from gateway.config.toml_file import read_toml
from gateway.config.value import quoted
from gateway.errors import BundleError, ConfigError
from gateway.qnn.detect import Provider, npu_for, variant_here

_log = logging.getLogger(__name__)


class ConfigSource:
    """Implements `Source` of lanes/reload/reloader.py.

    Args:
        path: what the user named with --config.
        overrides: of the command line.
        running: what the gateway is started with, before its bundles were prepared.
        only: the model that `serve NAME` serves, with its fallbacks and with tables that come later; "": every model.
    """

    def __init__(self, path: Path | None, overrides: Mapping[str, Any], running: Config, only: str = "") -> None:
        self.running = running
        self._path = path
        self._overrides = overrides
        self._only = only
        self._file = find_config(path)[0] if find_config(path)[0].exists() else None
        at_start = self._load().models.keys() if only else set()
        self._is_only_in_file = only in at_start
        self._left_out = at_start - running.models.keys()
        self._server = running.server
        self._warned: set[str] = set()
        self._has_npu = cache(_has_npu)

    def state(self) -> Hashable:
        """Path, number, time of modification in ns and bytes of the file, and of the file with the keys."""
        return _state(find_config(self._path)[0]), _state(Path(keys)) if (keys := self._server.api_keys_file) else None

    def read(self) -> Config:
        self._require_file()
        config = self._load()
        if (file := find_config(self._path)[0]).exists():
            self._file = file
        self._warn(config.server)
        return self._selected(config) if self._only else config

    def prepared(self, name: str, model: ModelConfig, models_dir: Path) -> ModelConfig:
        if isinstance(model, GenieModel) and not Path(model.path).exists():
            raise BundleError(f"There is no bundle {model.path}. `npu-gateway pull` downloads one.")
        if not isinstance(model, LocalModel) or waits_for_demand(model):
            return model
        if model.draft and not built_folder(Path(model.draft)).is_dir():
            raise BundleError(
                f"{Path(model.draft).name}, which drafts for it, has no bundle yet; `npu-gateway models --prepare` "
                "builds those with a `source`, and `npu-gateway pull` gets others."
            )
        plan = plan_start(model, models_dir, lambda: self._has_npu(model.provider))
        provider: Provider = "cpu" if plan.waits_for_npu else model.provider
        if not plan.is_ready and plan.for_npu and provider == "auto":  # as at a start whose build for the NPU failed
            plan, provider = plan_bundle(model, models_dir, lambda: False), "cpu"
        if not plan.is_ready:
            raise BundleError("It has no bundle yet; `npu-gateway models --prepare` builds it.")
        folder = variant_here(plan.folder, provider)
        if model.draft:
            check_draft(name, folder, model.tokenizer, built_folder(Path(model.draft)))
        return replace(model, path=str(folder), provider=provider)

    def _require_file(self) -> None:
        """Raises ConfigError if the search now finds a later file: all of its models would replace these."""
        files = [each.file for each in search(self._path)]
        found, last = find_config(self._path)[0], self._file
        if last is None or last not in files or files.index(found) <= files.index(last):
            return
        if last.exists():
            read_toml(last)  # its mistake, because of which it seems to be another program's
        raise ConfigError(f"{last}: the file is not there any more; write it again, or restart the gateway")

    def _warn(self, server: ServerConfig) -> None:
        """Log what is doubtful about keys and web pages, as at a start, if it can have changed."""
        if server != self._server:
            for line in key_warnings(server, self._file if self._file and has_keys(self._file) else None):
                _log.warning("%s", line)
        self._server = server

    def _load(self) -> Config:
        return load_config(self._path, overrides=self._overrides, may_be_empty=bool(self._only))

    def _selected(self, fresh: Config) -> Config:
        """With the models that `serve NAME` serves, and those that are new in the file."""
        if self._only in fresh.models:
            served = only_model(fresh, self._only).models
        elif self._is_only_in_file:
            name = quoted(self._only)
            raise ConfigError(f"[models.{name}] is not in {self._file} any more; this gateway was started to serve it")
        else:  # `serve` has pulled it, and could not change the file
            served = {self._only: self.running.models[self._only]}
        models = served | {name: model for name, model in fresh.models.items() if name not in self._left_out}
        models = {name: self._with_known_fallback(name, model, models) for name, model in models.items()}
        return replace(fresh, models=models, default_model=self._only)

    def _with_known_fallback(self, name: str, model: ModelConfig, served: Mapping[str, ModelConfig]) -> ModelConfig:
        if model.fallback is None or model.fallback in served:
            return model
        if name not in self._warned:
            self._warned.add(name)
            _log.warning("%s: its fallback %s is not served, so it has none", name, model.fallback)
        return replace(model, fallback=None)


def _has_npu(provider: Provider) -> bool:
    return npu_for(provider) is not None


def _state(file: Path) -> Hashable:
    try:
        found = file.stat() if file.is_file() else None
    except OSError:
        found = None
    return (str(file), found.st_ino, found.st_mtime_ns, found.st_size) if found else (str(file),)
