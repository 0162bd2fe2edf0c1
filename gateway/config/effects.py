"""What a reload does with each key of config.toml: apply it at once, load the model again, or name it for a restart."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gateway.config.check import TABLES, fields_of
from gateway.config.tables import MODEL_KINDS, Config, ModelBase
from gateway.config.value import Table
from gateway.sampling import configurable

#: "new engine": the model is loaded again with the new table. Requests that run are finished by the old engine.
Effect = Literal["at once", "new engine", "restart"]

_AT_ONCE: dict[str, str] = {
    "": "default_model models_dir",
    "server": """
        api_keys api_keys_file insecure allowed_hosts cors_origins max_body_bytes ping_s shutdown_grace_s drain_s
        timeout_s log_prompts watch
    """,
    "limits": "requests_per_minute tokens_per_minute concurrent_requests models keys",
    "defaults": "max_tokens truncation",
    "breaker": "enabled latency_ms prompt_token_ms token_ms window min_calls rate open_s probes probe_itself",
    "log": "level",
    "usage": "days",
    "state": "responses_days",
    "memory": "budget_mb",
    "models": "load keep_alive pinned aliases fallback ttft_timeout_s queue breaker max_tokens truncation",
}
_RESTART: dict[str, str] = {
    "server": "host port",
    "log": "format file max_mb files",
    "traces": "endpoint",
    "usage": "enabled",
    "state": "url keys",
}
_NEW_ENGINE = """
    max_sequences watchdog_s path dialect context_length prefix_cache load_timeout_s source activations precision
    tokenizer provider provider_options threads draft poll url targets hedge upstream_model api_key
    api_key_env api_key_file simulate script engine
"""
_TEXTS: dict[Effect, str] = {"at once": "at once", "new engine": "loads the model again", "restart": "restart"}


def effect(table: Table, key: str) -> Effect:
    """The effect of a change of `key`. Raises KeyError for a key that the lists of this module lack."""
    kind = table[0] if table else ""
    is_sampling = kind in ("defaults", "models") and key in configurable()
    if is_sampling or key in _AT_ONCE.get(kind, "").split():
        return "at once"
    if kind == "models" and key in _NEW_ENGINE.split():
        return "new engine"
    if key in _RESTART.get(kind, "").split():
        return "restart"
    raise KeyError(f"add {'.'.join((*table, key))} to a list of gateway/config/effects.py")


def effect_text(table: Table, key: str) -> str:
    """The same for docs/configuration.md."""
    return _TEXTS[effect(table, key)]


def keys_at_once(kind: type[Struct]) -> list[str]:
    """The keys of a model's table that need no other engine."""
    return [key for key in kind.__struct_fields__ if effect(("models", ""), key) == "at once"]


def unclassified() -> list[str]:
    """The keys that no list has."""
    tables: dict[Table, list[str]] = {(): list(fields_of(Config))}
    tables |= {(name,): list(fields_of(struct)) for name, struct in TABLES.items()}
    models = {key for kind in (ModelBase, *MODEL_KINDS.values()) for key in kind.__struct_fields__}
    tables["models", "NAME"] = ["engine", *sorted(models)]
    return [".".join((*table, key)) for table, keys in tables.items() for key in keys if not _is_known(table, key)]


def _is_known(table: Table, key: str) -> bool:
    try:
        return bool(effect(table, key))
    except KeyError:
        return False
