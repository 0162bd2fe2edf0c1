"""Which keys each table of config.toml has, and the rules that join several keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from gateway.config.hosts import host_name, is_loopback, server_url, web_origin
from gateway.config.keys import key_mistakes
from gateway.config.limits import limit_mistakes, listed_models
from gateway.config.tables import (
    MODEL_KINDS,
    BreakerConfig,
    BundleModel,
    Config,
    Defaults,
    GenieModel,
    LimitsConfig,
    LocalModel,
    LogConfig,
    MemoryConfig,
    ModelConfig,
    ResidentModel,
    ScriptedModel,
    ServerConfig,
    StateConfig,
    TracesConfig,
    UpstreamModel,
    UsageConfig,
)
from gateway.config.upstream import upstream_mistakes
from gateway.config.value import Setting, Table, closest, nearest, quoted
from gateway.dialects.choose import DIALECT_NAMES
from gateway.errors import ConfigError, cut, error_class
from gateway.state.open import check_url

#: The struct of each model's table, by the model's name.
Kinds = Mapping[str, type[ModelConfig]]
Engine = Literal[tuple(MODEL_KINDS)]  # type: ignore[valid-type]
TABLES: dict[str, type[Struct]] = {
    "server": ServerConfig,
    "limits": LimitsConfig,
    "defaults": Defaults,
    "breaker": BreakerConfig,
    "log": LogConfig,
    "traces": TracesConfig,
    "usage": UsageConfig,
    "state": StateConfig,
    "memory": MemoryConfig,
}
#: Other names of the providers.
_PROVIDERS = {
    "npu": "qnn",
    "htp": "qnn",
    "hexagon": "qnn",
    "qnnexecutionprovider": "qnn",
    "cpuexecutionprovider": "cpu",
}
_NO_DEVICE = {"gpu", "igpu", "adreno", "cuda", "dml", "directml", "opencl", "vulkan", "metal", "rocm", "xnnpack"}


def keys_of(table: Table, kinds: Kinds) -> dict[str, Any]:
    """The keys of a table with their types, without the tables inside it."""
    match table:
        case ():
            return fields_of(Config)
        case ("models", name):
            return {"engine": Engine, **fields_of(kinds[name])}
        case _:
            return fields_of(TABLES[table[-1]])


@cache
def fields_of(struct: type[Struct]) -> dict[str, Any]:
    tables = (*TABLES, "models") if struct is Config else ()
    return {item.name: item.type for item in msgspec.structs.fields(struct) if item.name not in tables}


def unknown_key(setting: Setting, keys: Iterable[str]) -> str:
    """The message for a key that is not among the `keys` of its table."""
    is_model = setting.table[:1] == ("models",)
    foreign = engines_of_keys() if len(setting.table) == 2 and is_model else {}
    if setting.key in foreign:
        return f"means something only with {foreign[setting.key]}"
    if is_model and isinstance(setting.value, dict):
        name = f"{setting.table[1]}.{setting.key}"
        return f'unknown table; a name with a dot needs quotes: [models."{name}"]'
    if homes := list(_homes(setting)):
        return f"unknown key here; it belongs {' or '.join(homes)}"
    if hint := nearest(setting.key, keys if setting.table else (*keys, *TABLES, "models")):
        return f"unknown key{hint}"
    if key := closest(setting.key, foreign):
        return f"unknown key; did you mean {key!r}? It means something only with {foreign[key]}"
    return "unknown key"


def _homes(setting: Setting) -> Iterator[str]:
    """Where else a key of this name can be, nearest first."""
    key, model = setting.key, quoted(setting.table[1]) if len(setting.table) > 1 else "NAME"
    if len(setting.table) == 2 and key in fields_of(BreakerConfig):
        yield f"in [models.{model}.breaker]"
        return
    if setting.table and key in fields_of(Config):
        yield "at the top of the file, before the first [table]"
    yield from (f"in [{name}]" for name, struct in TABLES.items() if key in fields_of(struct))
    is_elsewhere = setting.table[:1] != ("models",) or len(setting.table) == 3
    if is_elsewhere and key not in fields_of(Defaults) and key in {"engine", *engines_of_keys()}:
        yield f"in [models.{model}]"


def with_usual_name(setting: Setting) -> Setting:
    """The setting with "qnn" for its other name, "npu". Raises ConfigError for a device that is never used."""
    if setting.key != "provider" or not isinstance(setting.value, str):
        return setting
    name = setting.value.lower()
    if name in _NO_DEVICE:
        raise ConfigError(f"{setting.where}: models run on the NPU ('npu') or the CPU ('cpu'), not {setting.value!r}")
    return setting._replace(value=_PROVIDERS.get(name, name))


@cache
def engines_of_keys() -> dict[str, str]:
    """For each key of a model table, the values of `engine` that it needs: "engine = 'local' or 'genie'"."""
    engines: dict[str, list[str]] = {}
    for engine, kind in MODEL_KINDS.items():
        for key in fields_of(kind):
            engines.setdefault(key, []).append(repr(engine))
    return {key: f"engine = {' or '.join(names)}" for key, names in engines.items()}


def mistakes(config: Config) -> Iterator[tuple[str, str]]:
    """The broken rules that join several keys: (table and key, message)."""
    if not config.models:
        yield "[models]", "the file has no model; `npu-gateway pull NAME` adds one"
    if config.default_model is not None:
        yield from _not_a_model("default_model", config.default_model, config)
    yield from _server_mistakes(config.server, config.state)
    for where, name in listed_models(config.limits):
        yield from _not_a_model(where, name, config)
    if not config.state.keys:  # the database has other keys, with names that are not known here
        yield from limit_mistakes(config.limits, config.server.api_keys)
    if config.traces.endpoint:
        yield from _malformed("[traces] endpoint", [config.traces.endpoint], server_url)
    if config.breaker.min_calls > config.breaker.window:
        yield "[breaker] min_calls", f"{config.breaker.min_calls} is more than the window of {config.breaker.window}"
    owners = {name: name for name in config.models}
    for name, model in config.models.items():
        where = f"[models.{quoted(name)}]"
        if not name:
            yield where, "a model needs a name"
        if not name.isprintable():
            yield where, "the name must be printable"
        for alias in model.aliases:
            if not alias:
                yield f"{where} aliases", "an alias must not be empty"
            if not alias.isprintable():
                yield f"{where} aliases", f"{alias!r} must be printable"
            if owners.setdefault(alias, name) != name or alias in config.models:
                yield f"{where} aliases", f"{alias!r} already names the model {owners[alias]!r}"
        yield from _model_mistakes(where, name, model, config)


def _server_mistakes(server: ServerConfig, state: StateConfig) -> Iterator[tuple[str, str]]:
    for problem in key_mistakes(server.api_keys):
        yield "[server] api_keys", problem
    yield from _malformed("[server] allowed_hosts", (host for host in server.allowed_hosts if host != "*"), host_name)
    yield from _malformed("[server] cors_origins", server.cors_origins, web_origin)
    try:
        check_url(state.url)
    except ValueError as error:
        yield "[state] url", f"{error}, as docs/state.md shows"
    if not (is_loopback(server.host) or server.api_keys or state.keys or server.insecure):
        problem = f"{server.host!r} lets other machines connect without a key"
        yield "[server] host", f"{problem}; set api_keys, or insecure = true (--insecure) to allow it"


def _malformed(where: str, texts: Iterable[str], read: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    for text in texts:
        try:
            read(text)
        except ValueError as error:
            yield where, f"{text!r} never matches: {error}"


def _model_mistakes(where: str, name: str, model: ModelConfig, config: Config) -> Iterator[tuple[str, str]]:
    if model.fallback is not None:
        yield from _not_a_model(f"{where} fallback", model.fallback, config)
        if cycle := _cycle(name, config):
            yield f"{where} fallback", f"is a cycle: {' -> '.join(cycle)}"
    match model:
        case LocalModel(path=""):
            yield where, "needs path (the folder of the bundle) or source (from which the gateway builds it)"
        case LocalModel(path=path, source=""):
            yield from _file_as_path(f"{where} path", path, config.models_dir)
        case GenieModel(path=""):
            yield where, "needs path (the folder of the bundle)"
        case UpstreamModel():
            yield from upstream_mistakes(where, model)
        case ScriptedModel(script=script):
            for fault in script.faults:
                if fault.error and error_class(fault.error).__name__ != fault.error:
                    yield f"{where} script.faults", f"there is no error {fault.error!r}"
    match model:
        case BundleModel(dialect=dialect) | ScriptedModel(dialect=dialect) if dialect not in ("", *DIALECT_NAMES):
            known = ", ".join(DIALECT_NAMES)
            yield f"{where} dialect", f"{dialect!r} is not one of {known}{nearest(dialect, DIALECT_NAMES)}"
    if isinstance(model, LocalModel) and model.draft:
        yield from _draft_mistakes(f"{where} draft", name, model, config)
    if isinstance(model, ResidentModel) and model.pinned and model.keep_alive >= 0:
        yield f"{where} keep_alive", "a pinned model stays loaded; remove keep_alive, or pinned"
    if model.breaker and model.breaker.min_calls > model.breaker.window:
        yield (
            f"{where[:-1]}.breaker] min_calls",
            f"{model.breaker.min_calls} is more than the window of {model.breaker.window}",
        )


def _draft_mistakes(where: str, name: str, model: LocalModel, config: Config) -> Iterator[tuple[str, str]]:
    """The name of a model that cannot draft: that of one that can is the folder of its bundle by now."""
    draft = model.draft
    if draft in (name, model.path):
        yield where, "a model cannot draft for itself; name a smaller one with the same vocabulary"
        return
    if Path(draft).is_absolute():
        return
    yield from _not_a_model(where, draft, config)
    if draft in config.models and (engine := config.models[draft].engine) != LocalModel.engine:
        yield where, f"{draft!r} has engine = {engine!r}; only a model with engine = 'local' can draft"


def _file_as_path(where: str, path: str, models_dir: Path) -> Iterator[tuple[str, str]]:
    """`path` is the folder of a bundle. People write there what `source` and `pull` take."""
    written = path.removeprefix(str(models_dir)).lstrip("/\\")
    if re.match(r"https?:/", written):
        yield where, "is the folder of a bundle; `npu-gateway pull URL` downloads a model and adds its table"
    elif re.match(r"(hf|pypi):", written):
        yield where, f"is the folder of a bundle; write source = '{cut(Path(written).as_posix(), 100)}'"
    elif path.lower().endswith((".gguf", ".safetensors")) and not Path(path).is_dir():
        file = path if Path(path).is_file() or not path.startswith(str(models_dir)) else written
        yield where, f"is the folder of a bundle; write a file of weights as source = '{cut(file, 100)}'"
    elif path.lower().endswith((".onnx", ".bin", "_config.json")):
        yield where, f"is the folder of a bundle, not a file in it: path = '{cut(str(Path(path).parent), 100)}'"


def _not_a_model(where: str, name: str, config: Config) -> Iterator[tuple[str, str]]:
    if name in config.models:
        return
    owner = next((model for model, table in config.models.items() if name in table.aliases), None)
    hint = f"; it is an alias, write {owner!r}" if owner else nearest(name, config.models)
    yield where, f"there is no model {name!r}{hint}"


def _cycle(name: str, config: Config) -> list[str]:
    """The models from `name` along the fallbacks back to `name`; empty if they do not lead back."""
    chain = [name]
    while (fallback := config.models[chain[-1]].fallback) in config.models and fallback is not None:
        chain.append(fallback)
        if fallback == name:
            return chain
        if fallback in chain[:-1]:  # a cycle without `name`: reported for the models in it
            return []
    return []
