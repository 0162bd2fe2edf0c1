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
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec.structs import replace

from gateway.bundles.disk import data_folder
from gateway.config.check import TABLES, Engine, Kinds, engines_of_keys, fields_of, keys_of, mistakes, unknown_key
from gateway.config.keys import API_KEY_VARIABLE, all_keys
from gateway.config.tables import (
    MODEL_KINDS,
    BreakerConfig,
    BundleModel,
    Config,
    LocalModel,
    ModelConfig,
)
from gateway.config.value import Setting, Table, convert, nearest, path_hint, path_problem, quoted, upper
from gateway.errors import ConfigError
from gateway.qnn.options import check_options

ENV_PREFIX = "NPU_GATEWAY_"
_LONGEST_PATH, _LONGEST_NAME = 4000, 255
#: A server that answers for all public model servers, with their paths (gateway/pull/sources.py).
MODEL_SERVER_VARIABLE = ENV_PREFIX + "MODEL_SERVER"


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    may_be_empty: bool = False,
) -> Config:
    """Read and check the configuration.

    Args:
        path: the file. None: `NPU_GATEWAY_CONFIG`, else ./config.toml if it exists, else config.toml in the user's data
            folder, else the file in the package. With the last two, models are in the user's data folder.
        environ: the environment; None: `os.environ`.
        overrides: "table.key" -> value from the command line ("server.port": 8123). "models.provider" applies to every
            local model. None as a value: the option is not on the command line.
        may_be_empty: accept a file without a model, or no file at all.

    Raises:
        ConfigError: with a message of one line.
    """
    environ = os.environ if environ is None else environ
    file, base = find_config(path, environ)
    raw = {} if may_be_empty and not file.exists() else _read(file)
    names = list(_subtable(raw, "models", str(file)))
    settings = [
        *_from_file(raw, str(file)),
        *_from_environ(environ, names),
        *_from_options(overrides or {}),
    ]
    kinds = dict.fromkeys(names, LocalModel) | _chosen_kinds(settings)
    config = _build(kinds, _merge(settings, kinds), overrides or {})
    config = _with_keys(with_paths(config, base, str(file)), environ, base, str(file))
    for where, problem in mistakes(config):
        if config.models or not may_be_empty:
            raise ConfigError(f"{file}: {where}: {problem}")
    for name, model in config.models.items():
        if isinstance(model, LocalModel):
            check_options(model.provider_options, f"{file}: [models.{quoted(name)}] provider_options")
    return config


def find_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """The file to read, and the folder to which its relative paths are relative."""
    environ = os.environ if environ is None else environ
    named = environ.get(ENV_PREFIX + "CONFIG")
    file = path or (Path(named) if named else Path("config.toml"))
    if path or named or file.is_file():
        return file, file.absolute().parent
    packaged = Path(__file__).parent.with_name("config.toml")
    if packaged.is_file():
        folder = data_folder(environ)
        own = folder / "config.toml"
        return own if own.is_file() else packaged, folder
    checkout = Path(__file__).parents[1].with_name("config.toml")
    return checkout, checkout.parent


def has_keys(file: Path) -> bool:
    """True if an API key, of this gateway or of another server, is in the text of a config file that was loaded."""
    raw = _read(file) if file.is_file() else {}  # a pipe can be read only once
    return any(
        "api_key" in table or "api_keys" in table for table in [raw.get("server", {}), *raw.get("models", {}).values()]
    )


def environment_with(**settings: str) -> dict[str, str]:
    """The environment of this process for a child, with gateway settings added: `SERVER_PORT="9000"`."""
    return {**os.environ, **{ENV_PREFIX + name: value for name, value in settings.items()}}


def server_address(variable: str, environ: Mapping[str, str] | None = None) -> str:
    """The address in an environment variable, without a slash at the end; "": it is not set. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    text = environ.get(variable, "").strip().rstrip("/")
    if not text or re.match(r"https?://[^/\s]+", text, re.IGNORECASE):
        return text
    raise ConfigError(f"{variable}: {text[:100]!r} is no address. Write https://HOST, or remove the variable.")


def _read(file: Path) -> dict[str, Any]:
    text = ""
    try:
        text = file.read_text(encoding="utf-8-sig")  # Notepad writes a byte order mark
        return tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{file}: the file does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}{path_hint(text)}") from None
    except ValueError:  # Python's limit
        raise ConfigError(f"{file}: not valid TOML: a number has too many digits") from None
    except RecursionError:
        raise ConfigError(f"{file}: not valid TOML: too many nested lists or tables") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def _from_file(raw: dict[str, Any], file: str) -> Iterator[Setting]:
    for key, value in raw.items():
        if key in TABLES:
            yield from _table_settings((key,), _subtable(raw, key, file), file)
        elif key == "models":
            for name in value:
                yield from _model_settings(name, _subtable(value, name, file, f"models.{quoted(name)}"), file)
        else:
            yield Setting((), key, value, f"{file}: {key}")


def _model_settings(name: str, raw: dict[str, Any], file: str) -> Iterator[Setting]:
    own = {key: value for key, value in raw.items() if key != "breaker"}
    yield from _table_settings(("models", name), own, file)
    breaker = _subtable(raw, "breaker", file, f"models.{quoted(name)}.breaker")
    yield from _table_settings(("models", name, "breaker"), breaker, file)


def _table_settings(table: Table, raw: dict[str, Any], file: str) -> Iterator[Setting]:
    for key, value in raw.items():
        yield Setting(table, key, value, f"{file}: [{'.'.join(map(quoted, table))}] {key}")


def _subtable(raw: dict[str, Any], key: str, file: str, name: str = "") -> dict[str, Any]:
    value = raw.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {name or key} must be a table, written [{name or key}]")
    return value


def _from_environ(environ: Mapping[str, str], models: Iterable[str]) -> Iterator[Setting]:
    known = _variables(models)
    for variable in sorted(name for name in environ if name.startswith(ENV_PREFIX)):
        if variable not in known:
            raise ConfigError(f"environment variable {variable} is unknown{nearest(variable, known)}")
        if len(meanings := known[variable]) > 1:
            names = " and ".join(repr(table[1]) for table, _ in meanings)
            raise ConfigError(f"environment variable {variable} means the models {names}; rename one of them")
        for table, key in meanings:
            yield Setting(table, key, environ[variable], f"environment variable {variable}", text=True)


def _variables(models: Iterable[str]) -> dict[str, list[tuple[Table, str]]]:
    """The tables and keys of each variable: none if other code reads it, two if the names of two models are similar."""
    tables: dict[Table, Iterable[str]] = {(): fields_of(Config)}
    tables |= {(name,): fields_of(struct) for name, struct in TABLES.items()}
    for name in models:
        tables[("models", name)] = ("engine", *engines_of_keys())
        tables[("models", name, "breaker")] = fields_of(BreakerConfig)
    read_elsewhere = (ENV_PREFIX + "CONFIG", API_KEY_VARIABLE, MODEL_SERVER_VARIABLE)
    known: dict[str, list[tuple[Table, str]]] = {name: [] for name in read_elsewhere}
    for table, keys in tables.items():
        for key in keys:
            known.setdefault(ENV_PREFIX + "_".join(map(upper, (*table, key))), []).append((table, key))
    return known


def _from_options(overrides: Mapping[str, Any]) -> Iterator[Setting]:
    for dotted, value in overrides.items():
        table, _, key = dotted.rpartition(".")
        if value is not None and table != "models":
            yield Setting((table,) if table else (), key, value, f"option --{key.replace('_', '-')}")


def _chosen_kinds(settings: Iterable[Setting]) -> dict[str, type[ModelConfig]]:
    """The struct of each model whose `engine` is set."""
    return {
        setting.table[1]: MODEL_KINDS[convert(setting, Engine)]
        for setting in settings
        if setting.key == "engine" and setting.table[:1] == ("models",) and len(setting.table) == 2
    }


def _merge(settings: Iterable[Setting], kinds: Kinds) -> dict[Table, dict[str, Any]]:
    """The converted values of each table. A later setting overrides an earlier one."""
    values: dict[Table, dict[str, Any]] = {}
    for setting in settings:
        keys = keys_of(setting.table, kinds)
        if setting.key not in keys:
            raise ConfigError(f"{setting.where}: {unknown_key(setting, keys)}")
        values.setdefault(setting.table, {})[setting.key] = convert(setting, keys[setting.key])
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


def with_paths(config: Config, base: Path, file: str) -> Config:
    """The configuration with absolute paths. `base`: what relative ones start from. Raises ConfigError."""
    models_dir = _absolute(base, str(config.models_dir), f"{file}: models_dir")

    def absolute(name: str, model: ModelConfig) -> ModelConfig:
        if not isinstance(model, BundleModel):
            return model
        where = f"{file}: [models.{quoted(name)}]"
        path, source = model.path, ""
        if isinstance(model, LocalModel) and model.source:
            path, source = model.path or quote(name, safe=""), model.source
            if not source.startswith(("pypi:", "hf:")):
                source = str(_absolute(base, source, f"{where} source"))
        path = path and str(_absolute(models_dir, path, f"{where} path"))
        if isinstance(model, LocalModel) and model.tokenizer:
            model = replace(model, tokenizer=str(_absolute(models_dir, model.tokenizer, f"{where} tokenizer")))
        return replace(model, path=path, source=source) if source else replace(model, path=path)

    models = {name: absolute(name, model) for name, model in config.models.items()}
    log = config.log
    if log.file not in ("", "auto"):
        log = replace(log, file=str(_absolute(base, log.file, f"{file}: [log] file")))
    return replace(config, models_dir=models_dir, models=models, log=log)


def _absolute(base: Path, text: str, where: str) -> Path:
    if problem := path_problem(text):
        raise ConfigError(f"{where}: {problem}")
    if len(text) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_NAME for part in Path(text).parts):
        raise ConfigError(f"{where}: no system has so long a path")
    try:
        return base / Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{where}: '~' has no folder here; write the whole path") from None


def _with_keys(config: Config, environ: Mapping[str, str], base: Path, file: str) -> Config:
    """Add the API keys of the keys file and of the environment."""
    server = config.server
    if server.api_keys_file:
        keys_file = _absolute(base, server.api_keys_file, f"{file}: [server] api_keys_file")
        server = replace(server, api_keys_file=str(keys_file))
    return replace(config, server=replace(server, api_keys=all_keys(server, environ)))
