"""Every key of every table, with values that no one means: refused with file, table and key, or without effect."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config.check import TABLES, fields_of, is_loopback
from gateway.config.file import load_config
from gateway.config.tables import MODEL_KINDS, BreakerConfig, Config, Script
from gateway.errors import ConfigError

#: As TOML writes them.
ABSURD = ["0", "-1", "-0.5", "inf", "-inf", "nan", "1e300", str(2**63 - 1), "true", "false", '""', '" "', '"*"']
ABSURD += [
    '"\\u0000"',
    '"\\u001b[2J"',
    '"a\\nb"',
    "[]",
    "[0]",
    '[""]',
    '["*"]',
    "[[]]",
    "{}",
    '{ a = "" }',
    '{ "" = "k" }',
]
ABSURD += ['{ "" = "k" }', "{ a = [] }", "1979-05-27", "07:32:00"]

NEEDED = {
    "local": 'path = "x"\n',
    "genie": 'path = "x"\n',
    "upstream": 'url = "http://127.0.0.1:1/v1"\n',
    "scripted": "",
}
SAFE = '[models.other]\npath = "x"\n'


def settings() -> Iterator[tuple[str, str, str]]:
    """(table, key, the file up to the key) of every key."""
    for key in fields_of(Config):
        yield "", key, ""
    for table, struct in TABLES.items():
        for key in fields_of(struct):
            yield table, key, f"{SAFE}[{table}]\n"
    for engine, kind in MODEL_KINDS.items():
        head = f'{SAFE}[models.m]\nengine = "{engine}"\n'
        for key in sorted({"breaker", *fields_of(kind)} - {"script"}):
            yield "models.m", key, head + ("" if NEEDED[engine].startswith(key) else NEEDED[engine])
    for key in fields_of(BreakerConfig):
        yield "models.m.breaker", key, f'{SAFE}[models.m]\nengine = "scripted"\n[models.m.breaker]\n'
    for key in fields_of(Script):
        yield "models.m", f"script.{key}", f'{SAFE}[models.m]\nengine = "scripted"\n'


@pytest.mark.parametrize(("table", "key", "head"), list(settings()), ids=lambda text: text.replace("\n", " ")[-30:])
def test_absurd_value_is_refused_by_name_or_harmless(tmp_path: Path, table: str, key: str, head: str) -> None:
    file = tmp_path / "config.toml"
    for value in ABSURD:
        file.write_text(f"{head}{key} = {value}\n{SAFE if not head else ''}", encoding="utf-8")
        try:
            config = load_config(file, {})
        except ConfigError as error:
            name = key.split(".")[-1]
            assert str(file) in error.message or key in error.message, (value, error.message)
            assert table in error.message and name in error.message, (value, error.message)
            assert error.message.isprintable(), (value, error.message)
        else:
            assert list(faults(config)) == [], value


def faults(config: Config) -> Iterator[str]:
    """What a loaded configuration must never have, however it was written."""
    server = config.server
    if not is_loopback(server.host) and not (server.api_keys or server.insecure):
        yield "open to other machines"
    if any(not key or not name for name, key in server.api_keys.items()):
        yield "an empty key"
    yield from odd_numbers(msgspec.to_builtins(msgspec.structs.replace(config, models_dir=None)))


def odd_numbers(value: Any, path: str = "") -> Iterator[str]:
    match value:
        case float() if not math.isfinite(value) and "script" not in path:  # a script's `inf` hangs a call
            yield f"{path} is {value}"
        case float() | int() if value != value or value < -100:  # -100 is the least bias of a token
            yield f"{path} is {value}"
        case dict():
            for key, inner in value.items():
                yield from odd_numbers(inner, f"{path}.{key}")
        case list() | tuple():
            for inner in value:
                yield from odd_numbers(inner, path)


@pytest.mark.parametrize("value", ["yes", "1.5", "on please", "-", "[]"])
def test_switch_of_environment_needs_true_or_false(tmp_path: Path, value: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(SAFE, encoding="utf-8")
    with pytest.raises(ConfigError, match="NPU_GATEWAY_SERVER_INSECURE"):
        load_config(file, {"NPU_GATEWAY_SERVER_INSECURE": value, "NPU_GATEWAY_SERVER_HOST": "0.0.0.0"})
