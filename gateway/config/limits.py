"""The limits of each API key, from [limits] and the tables [limits.keys.NAME]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import asdict

from gateway.config.keys import ENVIRONMENT_KEY
from gateway.config.tables import Config, KeyLimits, LimitsConfig
from gateway.config.value import nearest, quoted

ALL_MODELS = "*"
OPEN_ANSWER = 1024  # tokens that a request takes for an answer that only the context limits
_WORDS = {"requests_per_minute": "requests per minute", "tokens_per_minute": "tokens per minute"}


def limits_of(config: LimitsConfig, key: str) -> KeyLimits:
    """The limits of the API key with this name, all set. `key`: "" if the gateway has no keys."""
    own = asdict(config.keys.get(key, KeyLimits()))
    return KeyLimits(**{name: getattr(config, name) if value is None else value for name, value in own.items()})


def limits_table(key: str) -> str:
    """The table of the configuration that changes the limits of the API key. `key`: "" if the gateway has no keys."""
    return f"[limits.keys.{quoted(key)}]" if key else "[limits]"


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


def limit_lines(config: Config) -> Iterator[str]:
    """The limits for a person: one line for all keys, and one for each key with other limits."""
    owner = "each API key" if config.server.api_keys or config.state.keys else "all requests together"
    if text := _in_words(limits_of(config.limits, "")):
        yield f"{owner}: {text}"
    for key in config.limits.keys:
        yield f"API key {key}: {_in_words(limits_of(config.limits, key)) or 'no limits'}"


def limit_warnings(config: Config) -> Iterator[str]:
    """Limits that refuse every request that sends no token limit: one line each."""
    owners = {"[limits]": ""} | {f"[limits.keys.{quoted(key)}]": key for key in config.limits.keys}
    for where, key in owners.items():
        limits = limits_of(config.limits, key)
        models = config.models if ALL_MODELS in (limits.models or ()) else limits.models or ()
        for name in models:
            default = config.defaults_for(name).max_tokens
            tokens = OPEN_ANSWER if default == "context" else default
            if isinstance(limits.tokens_per_minute, int) and limits.tokens_per_minute <= tokens:
                yield (
                    f"{where} tokens_per_minute = {limits.tokens_per_minute} refuses every request for {name} that "
                    f"sends no max_tokens: its answer takes {tokens}"
                )


def _in_words(limits: KeyLimits) -> str:
    """ "60 requests per minute, 4 requests at once, only small"; "" without a limit."""
    found = [f"{limit} {words}" for name, words in _WORDS.items() if isinstance(limit := getattr(limits, name), int)]
    if isinstance(limits.concurrent_requests, int):
        found.append(f"{limits.concurrent_requests} at once")
    if ALL_MODELS not in (models := limits.models or ()):
        found.append(f"only {', '.join(models)}" if models else "no model")
    return ", ".join(found)
