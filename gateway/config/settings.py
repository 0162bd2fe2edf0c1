"""Settings from the file, the environment and the command line: each value with its table, its key and where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gateway.config.check import TABLES, engines_of_keys, fields_of
from gateway.config.find import CONFIG_VARIABLE
from gateway.config.keys import API_KEY_VARIABLE
from gateway.config.tables import BreakerConfig, Config
from gateway.config.value import Setting, Table, nearest, quoted, upper
from gateway.errors import ConfigError

ENV_PREFIX = "NPU_GATEWAY_"
#: A server that answers for all public model servers, with their paths (gateway/pull/sources.py).
MODEL_SERVER_VARIABLE = ENV_PREFIX + "MODEL_SERVER"
#: What is done with a mistake: raise it, or note it.
Report = Callable[[ConfigError], None]


def from_file(raw: dict[str, Any], file: str, report: Report) -> Iterator[Setting]:
    for key, value in raw.items():
        if key in TABLES:
            yield from _table_settings((key,), _subtable(raw, key, file, report), file)
        elif key == "models":
            for name in (models := _subtable(raw, key, file, report)):
                own = _subtable(models, name, file, report, f"models.{quoted(name)}")
                yield from _model_settings(name, own, file, report)
        else:
            yield Setting((), key, value, f"{file}: {key}")


def _model_settings(name: str, raw: dict[str, Any], file: str, report: Report) -> Iterator[Setting]:
    own = {key: value for key, value in raw.items() if key != "breaker"}
    yield from _table_settings(("models", name), own, file)
    breaker = _subtable(raw, "breaker", file, report, f"models.{quoted(name)}.breaker")
    yield from _table_settings(("models", name, "breaker"), breaker, file)


def _table_settings(table: Table, raw: dict[str, Any], file: str) -> Iterator[Setting]:
    for key, value in raw.items():
        yield Setting(table, key, value, f"{file}: [{'.'.join(map(quoted, table))}] {key}")


def _subtable(raw: dict[str, Any], key: str, file: str, report: Report, name: str = "") -> dict[str, Any]:
    value = raw.get(key, {})
    if isinstance(value, dict):
        return value
    report(ConfigError(f"{file}: {name or key} must be a table, written [{name or key}]"))
    return {}


def from_environ(environ: Mapping[str, str], models: Iterable[str], report: Report) -> Iterator[Setting]:
    known = _variables(models)
    for variable in sorted(name for name in environ if name.startswith(ENV_PREFIX)):
        meanings = known.get(variable)
        if meanings is None:
            report(ConfigError(f"environment variable {variable} is unknown{nearest(variable, known)}"))
        elif len(meanings) > 1:
            names = " and ".join(repr(table[1]) for table, _ in meanings)
            report(ConfigError(f"environment variable {variable} means the models {names}; rename one of them"))
        else:
            for table, key in meanings:
                yield Setting(table, key, environ[variable], f"environment variable {variable}", text=True)


def _variables(models: Iterable[str]) -> dict[str, list[tuple[Table, str]]]:
    """The tables and keys of each variable: none if other code reads it, two if the names of two models are similar."""
    tables: dict[Table, Iterable[str]] = {(): fields_of(Config)}
    tables |= {(name,): fields_of(struct) for name, struct in TABLES.items()}
    for name in models:
        tables[("models", name)] = ("engine", *engines_of_keys())
        tables[("models", name, "breaker")] = fields_of(BreakerConfig)
    read_elsewhere = (CONFIG_VARIABLE, API_KEY_VARIABLE, MODEL_SERVER_VARIABLE)
    known: dict[str, list[tuple[Table, str]]] = {name: [] for name in read_elsewhere}
    for table, keys in tables.items():
        for key in keys:
            known.setdefault(ENV_PREFIX + "_".join(map(upper, (*table, key))), []).append((table, key))
    return known


def from_options(overrides: Mapping[str, Any]) -> Iterator[Setting]:
    for dotted, value in overrides.items():
        table, _, key = dotted.rpartition(".")
        if value is not None and table != "models":
            yield Setting((table,) if table else (), key, value, f"option --{key.replace('_', '-')}")
