"""From config.toml, the environment and the command line to a checked `Config`.

Every mistake becomes one ConfigError line that names file, table, key and the nearest right spelling.

1. Each value is converted by itself: msgspec loses the table's key inside `dict[str, Struct]`, and a value from the
   environment must be reported under its variable's name.
2. A model's `[models.NAME.breaker]` starts from the `[breaker]` table, not from the structs' defaults, so that a model
   states only what differs.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.config import BreakerConfig, Config, Defaults, ModelConfig, ServerConfig, mistakes
from gateway.config_value import Setting, Table, convert, nearest, quoted, upper
from gateway.errors import ConfigError

ENV_PREFIX = "NPU_GATEWAY_"
_TABLES: dict[str, type[Struct]] = {"server": ServerConfig, "defaults": Defaults, "breaker": BreakerConfig}


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Read the configuration that is in force.

    Args:
        path: the file; None: `NPU_GATEWAY_CONFIG`, else ./config.toml if there, else the packaged one, whose models
            live in the user's data folder.
        environ: the environment, `os.environ` when None.
        overrides: "table.key" -> value from the command line ("server.port": 8123; "models.provider" goes to every
            local model). A value of None is an option that nobody gave.
    Raises ConfigError with one line for a person.
    """
    environ = os.environ if environ is None else environ
    file, base = find_config(path, environ)
    raw = _read(file)
    names = list(_subtable(raw, "models", str(file)))
    settings = [
        *_from_file(raw, str(file)),
        *_from_environ(environ, names),
        *_from_options(overrides or {}),
    ]
    config = _build(names, _merge(settings), overrides or {})
    config = _with_keys(_with_paths(config, base), environ, base)
    for where, problem in mistakes(config):
        raise ConfigError(f"{file}: {where}: {problem}")
    return config


def find_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """The file to read, and the folder that its relative paths start from."""
    environ = os.environ if environ is None else environ
    named = environ.get(ENV_PREFIX + "CONFIG")
    file = path or (Path(named) if named else Path("config.toml"))
    if path or named or file.is_file():
        return file, file.absolute().parent
    packaged = Path(__file__).with_name("config.toml")
    if packaged.is_file():
        return packaged, data_folder(environ)
    checkout = Path(__file__).parent.with_name("config.toml")
    return checkout, checkout.parent


def data_folder(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Where this user's models go when no config file says otherwise."""
    home = Path.home()
    if platform == "win32":
        root = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        root = home / "Library" / "Application Support"
    else:
        root = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return root / "npu-gateway"


def environment_with(**settings: str) -> dict[str, str]:
    """This process's environment for a child, with our variables set as well: `SERVER_PORT="9000"`."""
    return {**os.environ, **{ENV_PREFIX + name: value for name, value in settings.items()}}


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # Notepad writes a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def _from_file(raw: dict[str, Any], file: str) -> Iterator[Setting]:
    for key, value in raw.items():
        if key in _TABLES:
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
            raise ConfigError(f"environment variable {variable} sets nothing{nearest(variable, known)}")
        if place := known[variable]:
            yield Setting(*place, environ[variable], f"environment variable {variable}", text=True)


def _variables(models: Iterable[str]) -> dict[str, tuple[Table, str] | None]:
    """Every variable that may be set, and the table and key it stands for (None: read elsewhere)."""
    tables: list[Table] = [(), *((name,) for name in _TABLES)]
    tables += [table for name in models for table in (("models", name), ("models", name, "breaker"))]
    known: dict[str, tuple[Table, str] | None] = {ENV_PREFIX + "CONFIG": None, ENV_PREFIX + "API_KEY": None}
    for table in tables:
        for key in _keys(table):
            known[ENV_PREFIX + "_".join(map(upper, (*table, key)))] = (table, key)
    return known


def _from_options(overrides: Mapping[str, Any]) -> Iterator[Setting]:
    for dotted, value in overrides.items():
        table, _, key = dotted.rpartition(".")
        if value is not None and table != "models":
            yield Setting((table,) if table else (), key, value, f"option --{key.replace('_', '-')}")


def _merge(settings: Iterable[Setting]) -> dict[Table, dict[str, Any]]:
    """Each table's converted values; a later setting wins."""
    values: dict[Table, dict[str, Any]] = {}
    for setting in settings:
        keys = _keys(setting.table)
        if setting.key not in keys:
            raise ConfigError(f"{setting.where}: {_unknown_key(setting, keys)}")
        values.setdefault(setting.table, {})[setting.key] = convert(setting, keys[setting.key])
    return values


def _build(names: Iterable[str], values: Mapping[Table, dict[str, Any]], overrides: Mapping[str, Any]) -> Config:
    def model(name: str) -> ModelConfig:
        said = dict(values.get(("models", name), {}))
        if breaker := values.get(("models", name, "breaker")):
            said["breaker"] = BreakerConfig(**values.get(("breaker",), {}) | breaker)
        if overrides.get("models.provider") and said.get("engine", "local") == "local":
            said["provider"] = overrides["models.provider"]
        return ModelConfig(**said)

    return Config(
        **values.get((), {}),
        server=ServerConfig(**values.get(("server",), {})),
        defaults=Defaults(**values.get(("defaults",), {})),
        breaker=BreakerConfig(**values.get(("breaker",), {})),
        models={name: model(name) for name in names},
    )


def _keys(table: Table) -> dict[str, Any]:
    """The keys a table may hold, with their types; tables inside it have their own."""
    match table:
        case ():
            struct: type[Struct] = Config
        case ("models", _):
            struct = ModelConfig
        case _:
            struct = _TABLES[table[-1]]
    return {item.name: item.type for item in msgspec.structs.fields(struct) if item.name not in (*_TABLES, "models")}


def _unknown_key(setting: Setting, keys: Iterable[str]) -> str:
    if setting.table[:1] == ("models",) and isinstance(setting.value, dict):
        name = f"{setting.table[1]}.{setting.key}"
        return f'unknown table; a name with a dot needs quotes: [models."{name}"]'
    if hint := nearest(setting.key, keys if setting.table else (*keys, *_TABLES, "models")):
        return f"unknown key{hint}"
    if setting.key in _keys(()):
        return "unknown key here; it belongs at the top of the file, before the first [table]"
    homes = [name for name in _TABLES if setting.key in _keys((name,))]
    return f"unknown key here; it belongs in [{homes[0]}]" if homes else "unknown key"


def _with_paths(config: Config, base: Path) -> Config:
    models_dir = base / config.models_dir.expanduser()

    def absolute(name: str, model: ModelConfig) -> ModelConfig:
        if model.engine not in ("local", "genie"):
            return model
        path = Path(model.path).expanduser() if model.path else Path(quote(name, safe=""))
        source = model.source
        if source and not source.startswith(("pypi:", "hf:")):
            source = str(base / Path(source).expanduser())
        known = bool(model.path or source)  # neither: left empty, for `mistakes` to name
        return replace(model, path=str(models_dir / path) if known else "", source=source)

    models = {name: absolute(name, model) for name, model in config.models.items()}
    return replace(config, models_dir=models_dir, models=models)


def _with_keys(config: Config, environ: Mapping[str, str], base: Path) -> Config:
    """Collect the API keys of the table, the file and the environment."""
    server = config.server
    keys = dict(server.api_keys)
    if server.api_keys_file:
        file = base / Path(server.api_keys_file).expanduser()
        try:
            lines = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"[server] api_keys_file: {file} cannot be read") from None
        for number, words in enumerate(lines, 1):
            if len(words) > 2:
                raise ConfigError(f"{file}: line {number}: expected KEY or NAME KEY")
            if words and not words[0].startswith("#"):
                keys[words[0] if len(words) == 2 else f"key{number}"] = words[-1]
    if key := environ.get(ENV_PREFIX + "API_KEY"):
        keys["environment"] = key
    return replace(config, server=replace(server, api_keys=keys))
