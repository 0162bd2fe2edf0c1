"""The limits of each API key, from [limits] and the tables [limits.keys.NAME]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import asdict

from gateway.config.keys import ENVIRONMENT_KEY
from gateway.config.tables import KeyLimits, LimitsConfig
from gateway.config.value import nearest, quoted

ALL_MODELS = "*"


def limits_of(config: LimitsConfig, key: str) -> KeyLimits:
    """The limits of the API key with this name, all set. `key`: "" if the gateway has no keys."""
    own = asdict(config.keys.get(key, KeyLimits()))
    return KeyLimits(**{name: getattr(config, name) if value is None else value for name, value in own.items()})


def listed_models(config: LimitsConfig) -> Iterator[tuple[str, str]]:
    """(table and key, model) of each model in a list."""
    lists = {"[limits] models": config.models}
    lists |= {f"[limits.keys.{quoted(key)}] models": own.models or () for key, own in config.keys.items()}
    for where, models in lists.items():
        yield from ((where, name) for name in models if name != ALL_MODELS)


def limit_mistakes(config: LimitsConfig, keys: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The tables of keys that do not exist: a misspelt name would leave its key without limits."""
    for name in config.keys:
        if name in keys.values():
            yield "[limits.keys]", "a table has a key as its name; write the name of the key"
        elif name not in keys and name != ENVIRONMENT_KEY:  # that variable may be set only for the service
            known = nearest(name, keys) or "; add the key, or remove the table"
            yield f"[limits.keys.{quoted(name)}]", f"there is no API key with this name{known}"
