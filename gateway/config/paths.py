"""Makes the paths of a configuration absolute, and refuses those that no system has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from msgspec.structs import replace

from gateway.config.tables import BundleModel, Config, LocalModel, ModelConfig
from gateway.config.value import quoted
from gateway.errors import ConfigError
from gateway.state.open import SQLITE

_LONGEST_PATH, _LONGEST_NAME = 4000, 255
_ESCAPES = {"\b": r"\b", "\t": r"\t", "\n": r"\n", "\f": r"\f", "\r": r"\r", "\x1b": r"\e"}


def with_paths(config: Config, base: Path, file: str) -> Config:
    """The configuration with absolute paths. `base`: what relative ones start from. Raises ConfigError."""
    models_dir = absolute(base, str(config.models_dir), f"{file}: models_dir")

    def with_own(name: str, model: ModelConfig) -> ModelConfig:
        if not isinstance(model, BundleModel):
            return model
        where = f"{file}: [models.{quoted(name)}]"
        path, source = model.path, ""
        if isinstance(model, LocalModel) and model.source:
            path, source = model.path or quote(name, safe=""), model.source
            if not source.startswith(("pypi:", "hf:")):
                source = str(absolute(base, source, f"{where} source"))
        path = path and str(absolute(models_dir, path, f"{where} path"))
        if isinstance(model, LocalModel) and model.tokenizer:
            model = replace(model, tokenizer=str(absolute(models_dir, model.tokenizer, f"{where} tokenizer")))
        return replace(model, path=path, source=source) if source else replace(model, path=path)

    models = {name: with_own(name, model) for name, model in config.models.items()}
    models = {name: _with_draft(name, model, models) for name, model in models.items()}
    log = config.log
    if log.file not in ("", "auto"):
        log = replace(log, file=str(absolute(base, log.file, f"{file}: [log] file")))
    state = config.state
    if state.url.startswith(SQLITE) and (path := state.url.removeprefix(SQLITE)):
        state = replace(state, url=f"{SQLITE}{absolute(base, path, f'{file}: [state] url')}")
    return replace(config, models_dir=models_dir, models=models, log=log, state=state)


def _with_draft(name: str, model: ModelConfig, models: Mapping[str, ModelConfig]) -> ModelConfig:
    """The model with the folder of the bundle that drafts for it, in place of its name. A wrong name stays."""
    draft = models.get(model.draft) if isinstance(model, LocalModel) and model.draft != name else None
    return replace(model, draft=draft.path) if isinstance(draft, LocalModel) and draft.path else model


def absolute(base: Path, text: str, where: str) -> Path:
    """The path that `text` means in the folder `base`. Raises ConfigError, which starts with `where`."""
    if problem := _problem(text):
        raise ConfigError(f"{where}: {problem}")
    if len(text) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_NAME for part in Path(text).parts):
        raise ConfigError(f"{where}: no system has so long a path")
    try:
        return base / Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{where}: '~' has no folder here; write the whole path") from None


def _problem(text: str) -> str:
    """The message for a path that no system has, such as "C:\\new" in double quotes; "" for any other."""
    if "\0" in text:
        return "a path has no NUL character"
    if re.search(r"[\x00-\x1f\x7f]", text):
        meant = "".join(_ESCAPES.get(character, character) for character in text)
        return f"{text!r} has a control character; write a path in single quotes: {meant[:100]!r}".replace("\\\\", "\\")
    return ""
