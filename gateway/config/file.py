"""Reads config.toml, the environment and the command line into a checked `Config`.

Each mistake is a ConfigError of one line, with file, table, key and the nearest right spelling.

1. Each value is converted alone: msgspec loses the key of the table inside `dict[str, Struct]`, and the message for a
   value from the environment names the variable.
2. A `[models.NAME.breaker]` table starts from the `[breaker]` table, not from the defaults of the struct. So it needs
   only the keys that differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gateway.config.check import (
    TABLES,
    Engine,
    Kinds,
    keys_of,
    mistakes,
    unknown_key,
    with_usual_name,
)
from gateway.config.find import find_config, warn_of_foreign
from gateway.config.keys import all_keys
from gateway.config.paths import absolute, with_paths
from gateway.config.settings import ENV_PREFIX, Report, from_environ, from_file, from_options
from gateway.config.tables import (
    MODEL_KINDS,
    BreakerConfig,
    Config,
    LocalModel,
    ModelConfig,
)
from gateway.config.toml_file import read_toml
from gateway.config.upstream import with_server_keys
from gateway.config.value import Setting, Table, convert, quoted
from gateway.errors import ConfigError
from gateway.qnn.options import check_options


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    may_be_empty: bool = False,
) -> Config:
    """Read and check the configuration.

    Args:
        path: the file. None: the first that `config.find.search` finds.
        environ: the environment; None: `os.environ`.
        overrides: "table.key" -> value from the command line ("server.port": 8123). "models.provider" applies to every
            local model. None as a value: the option is not on the command line.
        may_be_empty: accept a file without a model, or no file at all.

    Raises:
        ConfigError: with a message of one line.
    """
    return _load(path, environ, overrides or {}, may_be_empty, _raise)


def all_mistakes(path: Path | None = None, environ: Mapping[str, str] | None = None) -> tuple[Config, list[str]]:
    """What is configured, without the values that are wrong, and a message of one line for each mistake.

    Raises:
        ConfigError: the file cannot be read.
    """
    found: list[ConfigError] = []
    config = _load(path, environ, {}, False, found.append)
    return config, [error.message for error in found]


def _raise(error: ConfigError) -> None:
    raise error


def _load(
    path: Path | None,
    environ: Mapping[str, str] | None,
    overrides: Mapping[str, Any],
    may_be_empty: bool,
    report: Report,
) -> Config:
    environ = os.environ if environ is None else environ
    warn_of_foreign(path, environ)
    file, base = find_config(path, environ)
    first: list[str] = []

    def note(error: ConfigError) -> None:
        report(error)
        first.append(error.message)

    raw = {} if may_be_empty and not file.exists() else read_toml(file)
    tables = models if isinstance(models := raw.get("models"), dict) else {}
    names = [name for name, table in tables.items() if isinstance(table, dict)]
    settings = [*from_file(raw, str(file), note), *from_environ(environ, names, note), *from_options(overrides)]
    chosen = _chosen_kinds(settings, note)
    undecided = {setting.table for setting in settings if _is_engine(setting) and setting.table[1] not in chosen}
    kinds = dict.fromkeys(names, LocalModel) | chosen
    known = (setting for setting in settings if setting.table[:2] not in undecided)
    config = _build(kinds, _merge(known, kinds, note), overrides)
    config = _complete(config, environ, base, str(file), note)
    for where, error in _rules(config, str(file)):
        follows = any(where.partition("] ")[0] in message for message in first)
        if not follows and (config.models or not may_be_empty):
            report(error)
    return config


def _complete(config: Config, environ: Mapping[str, str], base: Path, file: str, note: Report) -> Config:
    """The configuration with absolute paths and all API keys."""
    try:
        config = with_server_keys(with_paths(config, base, file), environ, base, file)
        return _with_keys(config, environ, base, file)
    except ConfigError as error:
        note(error)
    return config


def _rules(config: Config, file: str) -> Iterator[tuple[str, ConfigError]]:
    """The broken rules that join several keys: table and key, message."""
    for where, problem in mistakes(config):
        yield where, ConfigError(f"{file}: {where}: {problem}")
    for name, model in config.models.items():
        if isinstance(model, LocalModel):
            where = f"[models.{quoted(name)}] provider_options"
            try:
                check_options(model.provider_options, f"{file}: {where}")
            except ConfigError as error:
                yield where, error


def has_keys(file: Path) -> bool:
    """True if a config file has an API key, of this gateway or of another server, or the password of a database."""
    raw = read_toml(file) if file.is_file() else {}  # a pipe can be read only once
    models = raw.get("models", {}).values()
    targets = [target for model in models for target in model.get("targets", ()) if isinstance(target, dict)]
    if "@" in str(raw.get("state", {}).get("url", "")):
        return True
    return any("api_key" in table or "api_keys" in table for table in [raw.get("server", {}), *models, *targets])


#: A variable of the gateway that `bench` measures. It is no setting, so it has another prefix.
UNLISTED = "_NPU_GATEWAY_UNLISTED"


def is_unlisted() -> bool:
    """True for a gateway that no other command should find."""
    return UNLISTED in os.environ


def environment_with(**settings: str) -> dict[str, str]:
    """The environment of this process for a child, with gateway settings added: `SERVER_PORT="9000"`."""
    return {**os.environ, **{ENV_PREFIX + name: value for name, value in settings.items()}}


def set_search_path(folder: Path) -> None:
    """Let the Python programs that this process starts import first from `folder`, and not from the current folder."""
    own = os.environ.get("PYTHONPATH")
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(folder), *([own] if own else [])]), "PYTHONSAFEPATH": "1"}


def server_address(variable: str, environ: Mapping[str, str] | None = None) -> str:
    """The address in an environment variable, without a slash at the end; "": it is not set. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    text = environ.get(variable, "").strip().rstrip("/")
    if not text or re.match(r"https?://[^/\s]+", text, re.IGNORECASE):
        return text
    raise ConfigError(f"{variable}: {text[:100]!r} is no address. Write https://HOST, or remove the variable.")


def _chosen_kinds(settings: Iterable[Setting], note: Report) -> dict[str, type[ModelConfig]]:
    """The struct of each model whose `engine` is set."""
    kinds = {}
    for setting in settings:
        if _is_engine(setting):
            try:
                kinds[setting.table[1]] = MODEL_KINDS[convert(setting, Engine)]
            except ConfigError as error:
                note(error)
    return kinds


def _is_engine(setting: Setting) -> bool:
    return setting.key == "engine" and setting.table[:1] == ("models",) and len(setting.table) == 2


def _merge(settings: Iterable[Setting], kinds: Kinds, note: Report) -> dict[Table, dict[str, Any]]:
    """The converted values of each table. A later setting overrides an earlier one."""
    values: dict[Table, dict[str, Any]] = {}
    for setting in settings:
        keys = keys_of(setting.table, kinds)
        try:
            if setting.key not in keys:
                raise ConfigError(f"{setting.where}: {unknown_key(setting, keys)}")
            values.setdefault(setting.table, {})[setting.key] = convert(with_usual_name(setting), keys[setting.key])
        except ConfigError as error:
            note(error)
    return values


def _build(kinds: Kinds, values: Mapping[Table, dict[str, Any]], overrides: Mapping[str, Any]) -> Config:
    def model(name: str, kind: type[ModelConfig]) -> ModelConfig:
        own = dict(values.get(("models", name), {}))
        own.pop("engine", None)
        if breaker := values.get(("models", name, "breaker")):
            own["breaker"] = BreakerConfig(**values.get(("breaker",), {}) | breaker)
        if overrides.get("models.provider") and kind is LocalModel:
            own["provider"] = overrides["models.provider"]
        return kind(**own)

    tables: dict[str, Any] = {name: struct(**values.get((name,), {})) for name, struct in TABLES.items()}
    return Config(
        **values.get((), {}),
        **tables,
        models={name: model(name, kind) for name, kind in kinds.items()},
    )


def _with_keys(config: Config, environ: Mapping[str, str], base: Path, file: str) -> Config:
    """Add the API keys of the keys file and of the environment."""
    server = config.server
    if server.api_keys_file:
        keys_file = absolute(base, server.api_keys_file, f"{file}: [server] api_keys_file")
        server = replace(server, api_keys_file=str(keys_file))
    return replace(config, server=replace(server, api_keys=all_keys(server, environ)))
